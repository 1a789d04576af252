"""Squares of a picture, turned so that the face in them is upright.

Pictures have x to the right and y downwards; the centre of their first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image


class Square(NamedTuple):
    """A square of a picture.

    Attributes:
        centre: (x, y) in pixels.
        side: Length of a side in pixels.
        angle: By how much it is turned clockwise, in radians.
    """

    centre: tuple[float, float]
    side: float
    angle: float

    def axes(self) -> NDArray[np.float64]:
        """(2, 2) the square's x and y direction in the picture, as rows."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return np.array([[cos, sin], [-sin, cos]])


def upright_square(
    box: NDArray[np.float64], right_eye: NDArray[np.float64], left_eye: NDArray[np.float64]
) -> Square:
    """The square around a box, as wide as its longer side, in which the eyes are level.

    Args:
        box: (4,) x and y of the upper left corner, then of the lower right one.
        right_eye: (2,) of the person, which is the left one in the picture.
        left_eye: (2,).
    """
    x, y = left_eye - right_eye
    width, height = box[2:] - box[:2]
    centre = (box[:2] + box[2:]) / 2
    return Square((centre[0], centre[1]), max(width, height), math.atan2(y, x))


def crop(image: Image, square: Square, size: int) -> Image:
    """The square as a picture of ``size`` by ``size`` pixels; black outside of the picture.

    Sampled bilinearly; a square much larger than ``size`` is shrunk by averaging before, since
    sampling alone would skip most of its pixels.
    """
    from PIL.Image import Resampling, Transform

    step = square.side / size
    right, down = square.axes() * step
    start = np.asarray(square.centre) - (right + down) * size / 2
    shrink = int(step)
    if shrink > 1:
        corners = start + np.array([right * 0, right, down, right + down]) * size
        low = np.maximum(np.floor(corners.min(axis=0)), 0)
        high = np.minimum(np.ceil(corners.max(axis=0)), image.size)
        if (high > low).all():
            image = image.reduce(shrink, box=(int(low[0]), int(low[1]), int(high[0]), int(high[1])))
            start, right, down = (start - low) / shrink, right / shrink, down / shrink
    matrix = (right[0], down[0], start[0], right[1], down[1], start[1])
    return image.transform((size, size), Transform.AFFINE, matrix, Resampling.BILINEAR)


def to_picture(points: NDArray[np.float64], square: Square, size: int) -> NDArray[np.float64]:
    """Points of a crop in the picture.

    Args:
        points: (n, 3) x, y and depth in pixels of the crop.
        square: What was cropped.
        size: Pixels of the crop's side.

    Returns:
        (n, 3) in pixels of the picture.
    """
    step = square.side / size
    flat = (points[:, :2] - size / 2) * step @ square.axes() + square.centre
    return np.concatenate([flat, points[:, 2:] * step], axis=1)
