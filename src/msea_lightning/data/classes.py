"""The classes between which answers are confused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from msea_lightning.data.options import LabelConfig, LabelKind
from msea_lightning.metrics.options import MetricKind


def confusion_classes(
    kind: MetricKind, labels: LabelConfig, values: Sequence[float | str]
) -> tuple[list[str], NDArray[np.int64]]:
    """The classes between which a confusion matrix counts, and the class of each value.

    Emotions are classes already. Intensities are put into the classes of a metric: the seven of
    Acc-7 with the metrics of CMU-MOSEI, the two of Acc-2 with those of CH-SIMS v2.0 (see
    :mod:`msea_lightning.metrics.functional`). On any other scale, for which no metric has classes,
    they are five equal parts of the scale.

    Returns:
        The names of the C classes in ascending order, and (N,) numbers of classes.
    """
    if labels.kind is LabelKind.emotions:
        places = {name: index for index, name in enumerate(labels.names)}
        return list(labels.names), np.array([places[str(value)] for value in values], np.int64)
    assert labels.low is not None
    assert labels.high is not None
    numbers = np.array(values, dtype=np.float32)
    if kind is MetricKind.mosei:
        bins = np.rint(np.clip(numbers, -3, 3)).astype(np.int64)
        return [str(number) for number in range(-3, 4)], bins + 3
    if kind is MetricKind.simsv2:
        return ["not positive", "positive"], (numbers > 0).astype(np.int64)
    edges = np.linspace(labels.low, labels.high, 6)
    names = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    return names, np.searchsorted(edges[1:-1].astype(np.float32), numbers, side="right")
