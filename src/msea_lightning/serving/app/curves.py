"""What was heard and seen over the seconds of a clip, in curves that mean something.

Which they are is decided by the names of an extractor's columns. Where these have no meaning of
their own, such as an encoder's states, the curve is each frame's distance from the clip's mean.

Shape legend: L frames of one feature, d values a frame, P points of a curve.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msea_lightning.features import media
from msea_lightning.features.contract import Extractor, Frames

Values = NDArray[np.float64]

_POINTS = 300
"""Most points of a curve; of longer clips each is a mean over several frames."""

_SHOWN = 4
"""Most curves of one panel."""

_NOTICED = 0.05
"""Probability that an emotion has to reach once to be shown."""

_DYNAMICS = 60.0
"""Decibels that are shown below the loudest moment: digital silence is far below what is heard."""

_ACTION_UNITS = {
    "AU12_r": "lip corners up (AU12)",
    "AU06_r": "cheeks up (AU6)",
    "AU04_r": "brows down (AU4)",
    "AU15_r": "lip corners down (AU15)",
}
"""Columns of OpenFace that most readings of a face begin with."""


@dataclass(frozen=True, eq=False)
class Panel:
    """Curves of one feature in one frame of axes.

    Attributes:
        title: What they show, with the unit.
        curves: Name of each curve to (P,) values at even distances over the clip; NaN where there
            is none, such as where no face was found.
        low: Lower end of the axis.
        high: Upper end of the axis.
    """

    title: str
    curves: Mapping[str, Values]
    low: float
    high: float


def panel(feature: str, frames: Frames, columns: Sequence[str]) -> Panel:
    """The curves of one feature.

    Args:
        feature: ``audio`` or ``vision``.
        frames: (L, d) features of the clip.
        columns: The extractor's names of the d values.
    """
    values = frames.astype(np.float64)
    of = {name: values[:, index] for index, name in enumerate(columns)}
    emotions = {name: of[name] for name in columns if name.startswith("emotion_")}
    if emotions:
        seen = np.where(of["face_found"] > 0, 1.0, np.nan) if "face_found" in of else 1.0
        strongest = sorted(emotions, key=lambda name: -float(emotions[name].max()))
        shown = [name for name in strongest[:_SHOWN] if emotions[name].max() >= _NOTICED]
        named = {
            name.removeprefix("emotion_"): emotions[name] * seen for name in shown or strongest[:1]
        }
        return _panel("Seen: emotion of the face, probability", named, 0.0, 1.0)
    if all(name.startswith("mel") for name in columns):
        loudness = 10 * np.log10(np.mean(10.0**values, axis=1))
        quietest = max(loudness.min(), loudness.max() - _DYNAMICS)
        return _panel("Heard: loudness, dB", {"loudness": loudness}, quietest)
    if "Loudness_sma3" in of:
        return _panel("Heard: loudness as perceived", {"loudness": of["Loudness_sma3"]}, 0.0)
    units = {title: of[name] for name, title in _ACTION_UNITS.items() if name in of}
    if units:
        return _panel("Seen: movements of the face, intensity 0 to 5", units, 0.0, 5.0)
    spread = values.std(axis=0)
    away = (values - values.mean(axis=0)) / np.where(spread, spread, 1.0)
    distance = np.sqrt((away**2).mean(axis=1))
    title = {"audio": "Heard", "vision": "Seen"}.get(feature, feature)
    return _panel(
        f"{title}: distance from the clip's mean, standard deviations", {"distance": distance}, 0.0
    )


def face_missing(frames: Frames, columns: Sequence[str]) -> bool:
    """Whether an extractor that looks for a face found none in the whole clip."""
    return "face_found" in columns and not frames[:, list(columns).index("face_found")].any()


def seconds(path: Path) -> float:
    """How long a clip lasts; where its header does not say, as in recordings, it is decoded."""
    info = media.probe(path)
    if info.duration:
        return info.duration
    if info.sound:
        rate = 8000
        return sum(len(block) for block in media.audio_blocks(path, rate)) / rate
    fps = 10
    return sum(1 for _ in media.pictures(path, fps)) / fps


def names(extractor: Extractor | None) -> Sequence[str]:
    """The names of an extractor's columns; none without an extractor."""
    return () if extractor is None else extractor.columns


def _panel(
    title: str, curves: Mapping[str, Values], low: float | None = None, high: float | None = None
) -> Panel:
    short = {name: _shortened(values) for name, values in curves.items()}
    all_values = np.concatenate(list(short.values()))
    known = all_values[np.isfinite(all_values)]
    low = float(known.min(initial=0 if not len(known) else known[0])) if low is None else low
    if high is None:
        high = float(known.max(initial=low))
    return Panel(title, short, low, high if high > low else low + 1.0)


def _shortened(values: Values) -> Values:
    """(L,) values as (P,), the means of even parts; NaN where a part has none."""
    parts = np.array_split(values, min(_POINTS, len(values)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        return np.array([np.nanmean(part) for part in parts])
