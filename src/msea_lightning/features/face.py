"""The default of what is seen: emotion, head pose and shape of the face in each picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msea_lightning.features.contract import Frames, Picture, VisionExtractor
from msea_lightning.features.faces.detector import FaceDetector
from msea_lightning.features.faces.emotion import EMOTIONS, EmotionNetwork
from msea_lightning.features.faces.geometry import MEASURES, POSE, head_axes, measures, pose
from msea_lightning.features.faces.mesh import FaceMesh
from msea_lightning.features.faces.tracking import FaceTracker

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_PRESENCE = 0.5
"""A face counts where the mesh network gives it at least this probability."""

COLUMNS = (*(f"emotion_{name}" for name in EMOTIONS), *POSE, *MEASURES, "face_found")
"""What a frame holds, in order."""


class FaceExtractor(VisionExtractor):
    """34 numbers of the face in each picture.

    Seven emotion probabilities, three angles of the head in radians, 23 distances and angles of
    eyes, brows, nose and mouth (see :mod:`.faces.geometry`), and whether there is a face (1 or 0);
    where there is none, all are 0. Of several faces, the one that
    :class:`~msea_lightning.features.faces.tracking.FaceTracker` follows.

    Args:
        fps: Pictures a second.
    """

    def __init__(self, fps: float = 10.0) -> None:
        self.fps = fps
        self._detector = FaceDetector()
        self._mesh = FaceMesh()
        self._emotion = EmotionNetwork()

    @property
    def columns(self) -> Sequence[str]:
        """Names of the 34 values."""
        return COLUMNS

    def extract(self, pictures: Iterable[Picture]) -> Frames:
        """(L, 34) frames, one a picture; FeatureError where the networks are not installed."""
        from PIL import Image

        tracker = FaceTracker(self._detector)
        frames = [self._frame(Image.fromarray(picture.rgb), tracker) for picture in pictures]
        return np.array(frames, np.float32).reshape(-1, len(COLUMNS))

    def _frame(self, image: Image, tracker: FaceTracker) -> NDArray[np.float64]:
        nothing = np.zeros(len(COLUMNS))
        square = tracker(image)
        if square is None:
            return nothing
        points, presence = self._mesh(image, square)
        if presence < MIN_PRESENCE:
            return nothing
        axes = head_axes(points)
        angles = pose(axes)
        emotions = self._emotion(image, points, angles[POSE.index("roll")])
        return np.concatenate([emotions, angles, measures(points, axes), [1.0]])
