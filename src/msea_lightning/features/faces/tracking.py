"""One face from picture to picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msea_lightning.features.faces.crop import Square, upright_square
from msea_lightning.features.faces.detector import Array, FaceDetector, area, overlap

if TYPE_CHECKING:
    from PIL.Image import Image


def choose(boxes: Array, before: Array | None) -> int:
    """Which of n boxes (n, 4), of at least one, is the face to follow.

    The one that overlaps most with the box before (4,); the largest where there is none, or none
    overlaps with it.
    """
    if before is not None:
        shares = overlap(before, boxes)
        if shares.max() > 0:
            return int(shares.argmax())
    return int(area(boxes).argmax())


class FaceTracker:
    """Follows a face through the pictures of one clip.

    The largest face is taken at first, then the one that overlaps most with the one before. A face
    that is not found for a while is taken up again where it was; where another one is found
    elsewhere instead, the largest is taken.
    """

    def __init__(self, detector: FaceDetector) -> None:
        self._detector = detector
        self._before: Array | None = None

    def __call__(self, image: Image) -> Square | None:
        """The upright square around the face in the next picture, or None where no face is."""
        faces = self._detector(image)
        if not len(faces.scores):
            return None
        index = choose(faces.boxes, self._before)
        self._before = faces.boxes[index]
        return upright_square(faces.boxes[index], *faces.points[index, :2])
