"""Which metric definitions there are."""

from __future__ import annotations

import enum


class MetricKind(enum.Enum):
    """Which metric definitions a data set is reported with."""

    mosei = "mosei"
    simsv2 = "simsv2"
    scale = "scale"
    emotion = "emotion"
    infer = "infer"
