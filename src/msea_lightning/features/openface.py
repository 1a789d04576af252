"""What OpenFace 2 has written beside a clip: ``clip.csv`` beside ``clip.mp4``.

Rows are taken as they are, also where OpenFace doubts its own success, which is what MMSA's tools
do. Columns are found by their names.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msea_lightning.config.errors import ConfigError
from msea_lightning.features.contract import (
    FeatureError,
    Frames,
    MediaError,
    Picture,
    VisionExtractor,
)

Array = NDArray[np.float64]

_INTENSITIES = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
_PRESENCES = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28, 45)

_TIME_STEP = 0.001
"""Seconds to which OpenFace rounds its times."""


def _numbered(names: Iterable[str], count: int) -> tuple[str, ...]:
    return tuple(f"{name}_{index}" for name in names for index in range(count))


ACTION_UNITS = (
    *(f"AU{unit:02}_r" for unit in _INTENSITIES),
    *(f"AU{unit:02}_c" for unit in _PRESENCES),
)
_POSE = tuple(f"pose_{name}" for name in ("Tx", "Ty", "Tz", "Rx", "Ry", "Rz"))
_FLAT = _numbered("xy", 68)
_GAZE = (
    *(f"gaze_{eye}_{axis}" for eye in (0, 1) for axis in "xyz"),
    "gaze_angle_x",
    "gaze_angle_y",
)
_EYES = _numbered((f"eye_lmk_{axis}" for axis in "xyXYZ"), 56)
_SHAPE = (*(f"p_{name}" for name in ("scale", "rx", "ry", "rz", "tx", "ty")), *_numbered("p", 34))

SELECTIONS = {
    "action_units": ACTION_UNITS,
    "simsv2": (*_POSE, *_FLAT, *ACTION_UNITS),
    "all": (
        *_GAZE,
        *_EYES,
        *_POSE,
        *_FLAT,
        *_numbered("XYZ", 68),
        *_SHAPE,
        *ACTION_UNITS,
    ),
}
"""35, 177 and 709 columns, in the order in which OpenFace writes them."""


class OpenFace(VisionExtractor):
    """Columns of the CSV file that OpenFace 2 wrote for a clip.

    Where it has several faces (``face_id``), the one with most successful rows is taken.

    Args:
        columns: Which ones, a name in SELECTIONS.
        fps: Frames a second; each is the row that is shown at its time.
    """

    def __init__(self, *, columns: str = "action_units", fps: float = 25.0) -> None:
        if columns not in SELECTIONS:
            raise ConfigError(f"columns={columns}: there are {', '.join(SELECTIONS)}.")
        self.fps = fps
        self._columns = SELECTIONS[columns]

    @property
    def columns(self) -> Sequence[str]:
        """Names as OpenFace writes them."""
        return self._columns

    def extract(self, pictures: Iterable[Picture]) -> Frames:
        """Refused: nothing is computed from pictures here."""
        raise FeatureError(
            "vision=openface reads the CSV files that OpenFace has written; it sees no pictures "
            "itself. Choose vision=face to extract features from pictures."
        )

    def beside(self, path: Path) -> Path:
        """``clip.csv`` beside ``clip.mp4``."""
        return path.with_suffix(".csv")

    def read(self, path: Path, start: float | None = None, end: float | None = None) -> Frames:
        """(L, d) frames of a clip, or of its part from ``start`` to ``end`` (seconds).

        Raises:
            MediaError: where the CSV file is missing, or is none that OpenFace wrote with these
                columns.
        """
        file = self.beside(path)
        if not file.is_file():
            raise MediaError(
                f"{path}: there is no {file.name} beside it. Run OpenFace's FeatureExtraction on "
                "the clip, or choose vision=face."
            )
        times, values = _rows(file, file.stat().st_mtime_ns, self._columns)
        step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / self.fps
        last = times[-1] + step
        last = last if end is None else min(last, end)
        begin = start or 0.0
        count = max(0, int(np.ceil((last - begin) * self.fps - self.fps * _TIME_STEP)))
        wanted = begin + np.arange(count) / self.fps
        shown = np.searchsorted(times, wanted + _TIME_STEP / 2, side="right") - 1
        return values[np.maximum(shown, 0)].astype(np.float32)


@functools.lru_cache(maxsize=1)  # the utterances of a clip come one after the other
def _rows(file: Path, modified: int, columns: tuple[str, ...]) -> tuple[Array, Array]:
    """(n,) increasing times and (n, d) values of one face."""
    try:
        with file.open(encoding="utf-8") as stream:
            header = [name.strip() for name in stream.readline().split(",")]
            keys = ("timestamp", "success", *columns)
            if lacking := [name for name in keys if name not in header]:
                raise MediaError(
                    f"{file} lacks {len(lacking)} of {len(keys)} columns, such as "
                    f"{', '.join(lacking[:3])}. Run OpenFace with -2Dfp -3Dfp -pdmparams -pose "
                    "-aus -gaze, or without any of these, which writes all."
                )
            face = ["face_id"] if "face_id" in header else []
            places = [header.index(name) for name in (*keys, *face)]
            if not (first := stream.readline()).strip():
                raise MediaError(f"{file} has no rows. Run OpenFace again.")
            lines = itertools.chain([first], stream)
            rows = np.loadtxt(lines, delimiter=",", usecols=places, ndmin=2)
    except (OSError, ValueError) as error:
        raise MediaError(f"{file} cannot be read ({error}). Run OpenFace again.") from error
    if not np.isfinite(rows).all():
        raise MediaError(f"{file} holds values that are not finite. Run OpenFace again.")
    if face:
        rows = rows[rows[:, -1] == _most_successful(rows[:, -1], rows[:, 1])][:, :-1]
    times, values = rows[:, 0], rows[:, 2:]
    if not (np.diff(times) > 0).all():
        raise MediaError(
            f"{file}: its times (timestamp) do not increase. Run OpenFace on the clip itself "
            "(-f), not on pictures of it."
        )
    return times, values


def _most_successful(faces: Array, success: Array) -> float:
    """The face with most successful rows, the first one of several."""
    names, places = np.unique(faces, return_inverse=True)
    return float(names[np.bincount(places, weights=success).argmax()])
