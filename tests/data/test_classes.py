"""The classes between which answers are confused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msea_lightning.data.classes import confusion_classes
from msea_lightning.data.options import LabelConfig, LabelKind
from msea_lightning.metrics import score
from msea_lightning.metrics.options import MetricKind


def scale(low: float, high: float) -> LabelConfig:
    """The labels of a scale."""
    return LabelConfig(LabelKind.scale, low=low, high=high, step=0.1)


def accuracy(kind: MetricKind, labels: LabelConfig, preds: list[Any], targets: list[Any]) -> float:
    """Share of predictions in the class of the truth."""
    names, true = confusion_classes(kind, labels, targets)
    _, predicted = confusion_classes(kind, labels, preds)
    assert set(true) | set(predicted) <= set(range(len(names)))
    return float(np.mean(true == predicted))


pairs = st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4)), min_size=1, max_size=50)


@pytest.mark.parametrize(("kind", "metric"), [("mosei", "acc7"), ("simsv2", "acc2")])
@given(found=pairs)
def test_classes_of_intensities_are_those_of_the_metrics(
    found: list[tuple[float, float]], kind: str, metric: str
) -> None:
    preds, targets = (list(values) for values in zip(*found, strict=True))
    share = accuracy(MetricKind(kind), scale(-4, 4), preds, targets)
    assert share == pytest.approx(score(kind, preds, targets)[metric])


def test_classes_of_emotions_and_of_other_scales() -> None:
    emotions = LabelConfig(LabelKind.emotions, names=["sad", "glad"])
    names, classes = confusion_classes(MetricKind.emotion, emotions, ["glad", "sad"])
    assert (names, classes.tolist()) == (["sad", "glad"], [1, 0])
    names, classes = confusion_classes(MetricKind.scale, scale(0, 10), [0.0, 1.9, 2.0, 9.0, 10.0])
    assert names == ["0 to 2", "2 to 4", "4 to 6", "6 to 8", "8 to 10"]
    assert classes.tolist() == [0, 0, 1, 4, 4]
