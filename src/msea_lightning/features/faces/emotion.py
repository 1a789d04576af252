"""The emotion of a face: the network of the package ``fer``, trained on FER-2013."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msea_lightning.features.faces.crop import Square, crop
from msea_lightning.features.faces.networks import Network

if TYPE_CHECKING:
    from PIL.Image import Image

EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""What the network tells apart, in the order of its output."""

SIZE = 64
"""Pixels of a side of the network's input."""

MARGIN = 1.1
"""The crop's side in sides of the square around the face's points."""


class EmotionNetwork:
    """Rates a face whose points are known."""

    def __init__(self) -> None:
        self._network = Network(
            "fer",
            "fer/data/emotion_model_quantized.tflite",
            "65e3961bb68f497bd02a8d075da8409364db90004edb80c0c6cb15647c4de559",
        )

    def __call__(
        self, image: Image, points: NDArray[np.float64], angle: float
    ) -> NDArray[np.float32]:
        """(7,) probabilities of EMOTIONS.

        Args:
            image: The picture.
            points: (468, 3) of the face in the picture.
            angle: By how much the face is turned clockwise, in radians.
        """
        square = square_around(points[:, :2], angle)
        face = crop(image, square._replace(side=square.side * MARGIN), SIZE).convert("L")
        pixels = np.asarray(face, np.float32) / np.float32(127.5) - 1
        (probabilities,) = self._network(pixels[None, :, :, None])
        return probabilities.reshape(-1)


def square_around(points: NDArray[np.float64], angle: float) -> Square:
    """The smallest square, turned clockwise by an angle, around points (n, 2)."""
    axes = Square((0.0, 0.0), 1.0, angle).axes()
    turned = points @ axes.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    x, y = (low + high) / 2 @ axes
    return Square((x, y), (high - low).max(), angle)
