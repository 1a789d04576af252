"""The metrics over batches and devices, as a thin torchmetrics shell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from msea_lightning.metrics.functional import Values, intensities, kind_of, score
from msea_lightning.metrics.options import MetricKind


class UtteranceScore(Metric):
    """:func:`score` over all utterances that were seen, on all devices.

    It keeps every prediction, because no metric here is a mean of batch metrics, and hands all of
    them to :func:`score` at the end. ``settings`` are those of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False
    preds: list[Tensor]
    targets: list[Tensor]

    def __init__(self, kind: MetricKind | str, **settings: Any) -> None:
        super().__init__(**settings)
        self.kind = kind_of(kind)
        self.add_state("preds", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, preds: Values, targets: Values) -> None:
        """Adds a batch: (B,) intensities or class ids each (numbers, not names)."""
        pred, true = intensities(preds, targets)
        self.preds.append(torch.tensor(pred, device=self.device))
        self.targets.append(torch.tensor(true, device=self.device))

    def compute(self) -> dict[str, float]:
        """Name to value; all NaN where nothing was seen."""
        preds, targets = (
            dim_zero_cat(values) if len(values) else torch.empty(0)
            for values in (self.preds, self.targets)
        )
        return score(self.kind, preds, targets)
