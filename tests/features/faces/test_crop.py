from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from msea_lightning.features.faces.crop import Square, crop, to_picture, upright_square


def gradient(width: int, height: int) -> Image.Image:
    """A picture whose red grows to the right, and whose green grows downwards."""
    y, x = np.mgrid[:height, :width] + 0.5
    planes = [x * 255 / width, y * 255 / height, np.zeros_like(x)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


@pytest.mark.parametrize("angle", [0.0, 0.5, -0.9])
@pytest.mark.parametrize("side", [40.0, 60.0, 150.0])  # also shrunk before it is sampled
def test_a_crop_holds_what_is_at_its_points(angle: float, side: float) -> None:
    picture, square = gradient(300, 400), Square((150.0, 190.0), side, angle)
    pixels = np.asarray(crop(picture, square, 24), float)
    y, x = np.mgrid[:24, :24]
    points = np.stack([x.ravel() + 0.5, y.ravel() + 0.5, np.zeros(24 * 24)], axis=1)
    there = to_picture(points, square, 24)
    expected = there[:, :2] * 255 / (300, 400)
    # one of 255 each for the gradient's rounding, for the mean's and for the sample's
    assert np.abs(pixels.reshape(-1, 3)[:, :2] - expected).max() < 3


def test_the_square_is_as_wide_as_the_longer_side_and_the_eyes_are_level() -> None:
    box = np.array([10.0, 20, 50, 80])
    square = upright_square(box, np.array([20.0, 30]), np.array([30.0, 40]))
    assert square.centre == (30, 50)
    assert square.side == 60
    assert square.angle == pytest.approx(math.pi / 4)
    eyes = np.array([[20.0, 30], [30, 40]]) @ square.axes().T
    assert eyes[0, 1] == pytest.approx(eyes[1, 1])
    assert eyes[0, 0] < eyes[1, 0]


@pytest.mark.parametrize("centre", [(-500.0, 40.0), (0.0, 0.0)])
def test_outside_of_the_picture_is_black(centre: tuple[float, float]) -> None:
    white = Image.new("RGB", (100, 100), (255, 255, 255))
    pixels = np.asarray(crop(white, Square(centre, 80.0, 0.0), 20))
    inside = 100 if centre == (0.0, 0.0) else 0
    assert (pixels > 0).all(axis=-1).sum() == pytest.approx(inside, abs=20)
    assert pixels[0, 0].tolist() == [0, 0, 0]


def test_depth_is_in_pixels_of_the_picture() -> None:
    points = np.array([[5.0, 5.0, 2.0]])
    assert to_picture(points, Square((7.0, 9.0), 30.0, 1.0), 10) == pytest.approx(
        np.array([[7.0, 9.0, 6.0]])
    )
