"""Metrics of the paper: pure functions, and :class:`UtteranceScore` over batches and devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msea_lightning.config.lazy import lazy
from msea_lightning.metrics.functional import (
    METRIC_NAMES,
    METRICS,
    ZERO_SHARE,
    MetricError,
    MetricInfo,
    score,
    selection_metric,
    zero_share,
)

if TYPE_CHECKING:
    from msea_lightning.metrics.utterance_score import UtteranceScore

__all__ = [
    "METRICS",
    "METRIC_NAMES",
    "ZERO_SHARE",
    "MetricError",
    "MetricInfo",
    "UtteranceScore",
    "score",
    "selection_metric",
    "zero_share",
]

# The torchmetrics shell loads PyTorch.
__getattr__ = lazy(__name__, {"UtteranceScore": "utterance_score"})
