"""Measures of a face drawn by hand, in centimetres: x to the right, y downwards, z backwards."""

from __future__ import annotations

import math

import numpy as np
import pytest

from msea_lightning.features.faces.geometry import (
    CHIN,
    FOREHEAD,
    LEFT,
    MEASURES,
    RIGHT,
    Array,
    Side,
    head_axes,
    measures,
    pose,
)

WIDTH = 10.0
"""Between the outer corners of the eyes."""


def drawn() -> Array:
    """(468, 3) a face that looks into the camera; its right side is the left one in the picture."""
    points = np.zeros((468, 3))

    def place(side: Side, sign: int) -> None:
        points[side.eye_outer] = sign * 5, 0, 0
        points[side.eye_inner] = sign * 2, 0, 0
        for x, (upper, lower) in zip((4, 3.5, 3), side.lids, strict=True):
            points[upper], points[lower] = (sign * x, -0.6, 0), (sign * x, 0.3, 0)
        points[side.brow_outer] = sign * 5.5, -1, 0
        points[side.brow_middle] = sign * 3.5, -2, 0
        points[side.brow_inner] = sign * 1.5, -1.5, 0
        points[side.nose_wing] = sign * 2, 4, 0
        points[side.mouth_corner] = sign * 3, 6, 0

    place(RIGHT, -1)
    place(LEFT, 1)
    points[FOREHEAD], points[CHIN], points[2] = (0, -6, 0), (0, 11, 0), (0, 4.5, 0)
    points[0], points[13], points[14], points[17] = (0, 5, 0), (0, 6, 0), (0, 6.4, 0), (0, 7.4, 0)
    return points


def turned(points: Array, yaw: float, pitch: float, roll: float) -> Array:
    """The head pitched up, then turned to the picture's right, then tilted clockwise."""
    c, s = np.cos([-pitch, -yaw, roll]), np.sin([-pitch, -yaw, roll])
    around_x = np.array([[1, 0, 0], [0, c[0], -s[0]], [0, s[0], c[0]]])
    around_y = np.array([[c[1], 0, s[1]], [0, 1, 0], [-s[1], 0, c[1]]])
    around_z = np.array([[c[2], -s[2], 0], [s[2], c[2], 0], [0, 0, 1]])
    return np.asarray(points @ (around_z @ around_y @ around_x).T)


def named(points: Array) -> dict[str, float]:
    return dict(zip(MEASURES, measures(points, head_axes(points)), strict=True))


@pytest.mark.parametrize(
    "angles", [(0, 0, 0), (0.4, 0, 0), (0, -0.3, 0), (0, 0, 0.5), (-0.6, 0.3, -0.4)]
)
def test_pose_is_that_of_the_head(angles: tuple[float, float, float]) -> None:
    axes = head_axes(turned(drawn(), *angles) * 37 + (100, 200, 0))
    assert pose(axes) == pytest.approx(angles, abs=1e-12)
    assert axes @ axes.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)


def test_signs_of_the_pose_are_seen_at_the_nose() -> None:
    nose = np.array([[0.0, 0, -1]])  # towards the camera
    assert turned(nose, 0.2, 0, 0)[0, 0] > 0  # to the right in the picture
    assert turned(nose, 0, 0.2, 0)[0, 1] < 0  # up
    assert turned(np.array([[1.0, 0, 0]]), 0, 0, 0.2)[0, 1] > 0  # clockwise: what is right, lower


def test_measures_of_the_drawn_face() -> None:
    found = named(drawn())
    one_side = {
        "eye_opening": 0.9 / 3,
        "brow_outer_height": 1 / WIDTH,
        "brow_middle_height": 2 / WIDTH,
        "brow_inner_height": 1.5 / WIDTH,
        "brow_slope": math.atan2(0.5, 4),
        "nose_wing_to_eye": 4 / WIDTH,
        "mouth_corner_height": 0.2 / WIDTH,
        "mouth_corner_angle": math.atan2(1, 3) + math.atan2(1.4, 3),
    }
    both = {
        f"{side}_{name}": value for side in ("right", "left") for name, value in one_side.items()
    }
    middle = {
        "brow_gap": 3 / WIDTH,
        "mouth_width": 6 / WIDTH,
        "mouth_opening": 0.4 / WIDTH,
        "lips_height": 2.4 / WIDTH,
        "upper_lip_to_nose": 0.5 / WIDTH,
        "lower_lip_to_chin": 3.6 / WIDTH,
        "mouth_shift": 0,
    }
    assert found == pytest.approx(both | middle, abs=1e-12)


def test_measures_stay_when_the_head_turns_moves_or_comes_nearer() -> None:
    there = turned(drawn(), 0.5, -0.3, 0.2) * 12 + (300, 50, -20)
    assert named(there) == pytest.approx(named(drawn()), abs=1e-12)


def test_each_expression_moves_its_own_measure() -> None:
    def changed(move: dict[int, tuple[float, float, float]]) -> dict[str, float]:
        points, before = drawn(), named(drawn())
        for index, step in move.items():
            points[index] += step
        after = named(points)
        return {
            name: round(after[name] - before[name], 9)
            for name in after
            if after[name] != before[name]
        }

    wink = changed({upper: (0, 0.9, 0) for upper, _ in LEFT.lids})
    assert wink == {"left_eye_opening": -0.3}
    frown = changed({RIGHT.brow_inner: (0.5, 0, 0), LEFT.brow_inner: (-0.5, 0, 0)})
    assert frown["brow_gap"] == -0.1
    smile = changed({RIGHT.mouth_corner: (-0.5, -1, 0), LEFT.mouth_corner: (0.5, -1, 0)})
    assert smile["right_mouth_corner_height"] == smile["left_mouth_corner_height"] == 0.1
    assert smile["mouth_width"] == 0.1
    to_its_left = changed({RIGHT.mouth_corner: (1, 0, 0), LEFT.mouth_corner: (1, 0, 0)})
    assert to_its_left["mouth_shift"] == 0.1


def test_a_mirrored_face_has_its_sides_exchanged() -> None:
    points = drawn()
    points[[upper for upper, _ in RIGHT.lids]] += (0, 0.3, 0)
    points[RIGHT.mouth_corner] += (0, -1, 0)
    mirrored = points * (-1, 1, 1)
    right, left = (np.array([*side[:2], *np.ravel(side.lids), *side[3:]]) for side in (RIGHT, LEFT))
    mirrored[right], mirrored[left] = mirrored[left], mirrored[right]
    found, other = named(points), named(mirrored)
    exchange = {"right": "left", "left": "right"}
    for name, value in found.items():
        side, _, rest = name.partition("_")
        assert other[f"{exchange.get(side, side)}_{rest}"] == pytest.approx(value), name
