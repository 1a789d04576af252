"""Head pose, and distances and angles of eyes, brows and mouth, from the points of a face mesh.

The numbers of the points are those of MediaPipe's canonical face model; right and left are the
person's own. Distances and angles are measured in the head's own axes, distances in widths between
the outer corners of the eyes, so that they stay when the head turns, tilts or comes nearer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Side(NamedTuple):
    """The points of one side of the face."""

    eye_outer: int
    eye_inner: int
    lids: tuple[tuple[int, int], ...]
    """Upper and lower lid, at three places from the outside to the inside."""
    brow_outer: int
    brow_middle: int
    brow_inner: int
    nose_wing: int
    mouth_corner: int


RIGHT = Side(33, 133, ((160, 144), (159, 145), (158, 153)), 70, 105, 107, 98, 61)
LEFT = Side(263, 362, ((387, 373), (386, 374), (385, 380)), 300, 334, 336, 327, 291)

FOREHEAD, CHIN, BELOW_NOSE = 10, 152, 2
UPPER_LIP_TOP, UPPER_LIP_BOTTOM, LOWER_LIP_TOP, LOWER_LIP_BOTTOM = 0, 13, 14, 17

POSE = ("yaw", "pitch", "roll")
"""What :func:`pose` gives."""

_OF_A_SIDE = (
    "eye_opening",
    "brow_outer_height",
    "brow_middle_height",
    "brow_inner_height",
    "brow_slope",
    "nose_wing_to_eye",
    "mouth_corner_height",
    "mouth_corner_angle",
)

MEASURES = (
    *(f"{side}_{name}" for side in ("right", "left") for name in _OF_A_SIDE),
    "brow_gap",
    "mouth_width",
    "mouth_opening",
    "lips_height",
    "upper_lip_to_nose",
    "lower_lip_to_chin",
    "mouth_shift",
)
"""What :func:`measures` gives."""


def head_axes(points: Array) -> Array:
    """(3, 3) the head's axes as rows: to its left, down, and backwards.

    The first runs between the outer corners of the eyes, the second from the forehead to the chin
    as far as it is perpendicular to the first. They are the identity for a head that looks into
    the camera.

    Args:
        points: (468, 3) x to the right, y downwards, depth away from the camera.
    """
    across = _unit(points[LEFT.eye_outer] - points[RIGHT.eye_outer])
    down = points[CHIN] - points[FOREHEAD]
    down = _unit(down - down @ across * across)
    return np.stack([across, down, np.cross(across, down)])


def pose(axes: Array) -> Array:
    """(3,) yaw, pitch and roll in radians, from a head's axes (see :func:`head_axes`).

    Yaw is positive where the nose points to the right in the picture, pitch where it points up,
    roll where the head is tilted clockwise in the picture. The head is pitched first, then turned,
    then tilted.
    """
    across, down, back = axes
    yaw = math.asin(max(-1.0, min(1.0, across[2])))
    pitch = math.atan2(-down[2], back[2])
    roll = math.atan2(across[1], across[0])
    return np.array([yaw, pitch, roll])


def measures(points: Array, axes: Array) -> Array:
    """(23,) distances in widths between the outer corners of the eyes, angles in radians.

    ``eye_opening`` is the mean distance of the lids in widths of the eye. Heights are along the
    head's second axis, upwards: of the brows' ends above the corners of the eye and of their middle
    above the eye's, of the corners of the mouth above the middle of the lips. ``brow_slope`` is
    positive where the inner end is the higher one. ``mouth_corner_angle`` is between the lips.
    ``mouth_shift`` is how far the mouth is to the left of the middle between the eyes.

    Args:
        points: (468, 3) as for :func:`head_axes`.
        axes: (3, 3) of the head.
    """
    right, left = points[RIGHT.eye_outer], points[LEFT.eye_outer]
    head = (points - (right + left) / 2) @ axes.T / np.linalg.norm(left - right)
    corners = head[[RIGHT.mouth_corner, LEFT.mouth_corner]]
    return np.array(
        [
            *_of_a_side(head, RIGHT),
            *_of_a_side(head, LEFT),
            _distance(head, RIGHT.brow_inner, LEFT.brow_inner),
            _distance(head, RIGHT.mouth_corner, LEFT.mouth_corner),
            _distance(head, UPPER_LIP_BOTTOM, LOWER_LIP_TOP),
            _distance(head, UPPER_LIP_TOP, LOWER_LIP_BOTTOM),
            _distance(head, UPPER_LIP_TOP, BELOW_NOSE),
            _distance(head, LOWER_LIP_BOTTOM, CHIN),
            corners[:, 0].mean(),
        ]
    )


def _of_a_side(head: Array, side: Side) -> list[float]:
    eye = head[[side.eye_outer, side.eye_inner]].mean(axis=0)
    lips = head[[UPPER_LIP_BOTTOM, LOWER_LIP_TOP]].mean(axis=0)
    opening = np.mean([_distance(head, *pair) for pair in side.lids])
    inwards, down = np.abs(head[side.brow_inner] - head[side.brow_outer])[0], head[:, 1]
    rise = down[side.brow_outer] - down[side.brow_inner]
    return [
        float(opening) / _distance(head, side.eye_outer, side.eye_inner),
        down[side.eye_outer] - down[side.brow_outer],
        eye[1] - down[side.brow_middle],
        down[side.eye_inner] - down[side.brow_inner],
        math.atan2(rise, inwards),
        _distance(head, side.nose_wing, side.eye_inner),
        lips[1] - down[side.mouth_corner],
        _angle(head, UPPER_LIP_TOP, side.mouth_corner, LOWER_LIP_BOTTOM),
    ]


def _distance(head: Array, first: int, second: int) -> float:
    return float(np.linalg.norm(head[first] - head[second]))


def _angle(head: Array, first: int, corner: int, second: int) -> float:
    one, other = head[first] - head[corner], head[second] - head[corner]
    return math.atan2(float(np.linalg.norm(np.cross(one, other))), float(one @ other))


def _unit(vector: Array) -> Array:
    return np.asarray(vector / np.linalg.norm(vector))
