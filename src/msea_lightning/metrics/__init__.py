"""Metrics of the paper: pure functions, and :class:`UtteranceScore` over batches and devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msea_lightning.metrics.functional import (
    METRIC_NAMES,
    METRICS,
    MetricError,
    MetricInfo,
    emotion_scores,
    mean_absolute_error,
    mosei_scores,
    pearson,
    scale_scores,
    score,
    selection_metric,
    simsv2_scores,
    weighted_f1,
    zero_share,
)

if TYPE_CHECKING:
    from msea_lightning.metrics.utterance_score import UtteranceScore

__all__ = [
    "METRICS",
    "METRIC_NAMES",
    "MetricError",
    "MetricInfo",
    "UtteranceScore",
    "emotion_scores",
    "mean_absolute_error",
    "mosei_scores",
    "pearson",
    "scale_scores",
    "score",
    "selection_metric",
    "simsv2_scores",
    "weighted_f1",
    "zero_share",
]


def __getattr__(name: str) -> Any:
    """Loads the torchmetrics shell, and PyTorch with it, when it is asked for."""
    if name == "UtteranceScore":
        from msea_lightning.metrics.utterance_score import UtteranceScore

        return UtteranceScore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
