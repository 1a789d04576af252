"""Intervals of metrics, and the scores of classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap as scipy_bootstrap

from msea_lightning.metrics import METRIC_NAMES, MetricError, bootstrap, score
from msea_lightning.metrics.bootstrap import intervals
from msea_lightning.metrics.classes import class_scores
from msea_lightning.metrics.options import MetricKind

KINDS = [kind.value for kind in METRIC_NAMES]
# Thirds, as in CMU-MOSI, and halves, which are rounded to even integers.
INTENSITIES = st.sampled_from([number / 6 for number in range(-24, 25)])


def drawn(kind: str, number: int, size: int) -> tuple[list[Any], list[Any]]:
    """Predictions and truth that agree in part."""
    generator = np.random.default_rng(number)
    if kind == "emotion":
        true = generator.choice(["joy", "anger", "neutral"], size)
        other = generator.choice(["joy", "anger", "fear"], size)
        return np.where(generator.random(size) < 0.6, true, other).tolist(), true.tolist()
    true = generator.normal(size=size).clip(-3, 3)
    return (true + generator.normal(size=size)).tolist(), true.tolist()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(data=st.data())
def test_a_resample_scores_as_its_utterances_do(kind: str, data: st.DataObject) -> None:
    value = st.sampled_from("abc") if kind == "emotion" else INTENSITIES
    pairs = data.draw(st.lists(st.tuples(value, value, value), min_size=2, max_size=12))
    chosen = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=2, max_size=12))
    first, second, true = zip(*pairs, strict=True)
    weights = np.bincount(chosen, minlength=len(pairs)).astype(float)[None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "_resamples", lambda count, seed: iter([weights]))
        found = intervals(kind, [first, second], true)
    resampled = [[values[place] for place in chosen] for values in (first, second, true)]
    scores = [score(kind, preds, resampled[2]) for preds in resampled[:2]]
    for name in METRIC_NAMES[MetricKind(kind)]:
        mean = (scores[0][name] + scores[1][name]) / 2
        if math.isnan(mean):
            assert name not in found
        else:
            assert found[name] == pytest.approx((mean, mean), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interval_holds_the_score_and_is_the_same_again(kind: str) -> None:
    preds, true = drawn(kind, 0, 300)
    found = intervals(kind, [preds], true)
    assert found == intervals(kind, [preds], true)
    for name, value in score(kind, preds, true).items():
        low, high = found[name]
        assert low < value < high


def test_an_interval_is_that_of_scipy() -> None:
    preds, true = drawn("scale", 1, 200)
    errors = np.abs(np.float32(preds).astype(float) - np.float32(true))
    theirs = scipy_bootstrap((errors,), np.mean, method="percentile", rng=0).confidence_interval
    assert intervals("scale", [preds], true)["mae"] == pytest.approx(tuple(theirs), abs=0.01)


def test_nothing_has_no_interval_and_uneven_runs_are_refused() -> None:
    assert intervals("emotion", [[]], []) == {}
    with pytest.raises(MetricError, match="2 predictions were given for 3 targets"):
        intervals("scale", [[0.0, 1.0]], [0.0, 1.0, 2.0])
    with pytest.raises(MetricError, match="1 predictions were given for 2 targets"):
        intervals("emotion", [["a"]], ["a", "b"])


def test_scores_of_classes() -> None:
    alone = class_scores(np.array([0, 0]), np.array([1, 1]), ["a", "b"])
    assert [(one.utterances, type(one.utterances)) for one in alone.values()] == [
        (0, int),
        (2, int),
    ]
    found = class_scores(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2]), ["a", "b", "c", "d"])
    assert found["a"] == (0.5, 1, pytest.approx(2 / 3), 1)
    assert found["b"] == (0.5, 0.5, 0.5, 2)
    assert found["c"][1:] == (0, 0, 1)
    assert math.isnan(found["c"].precision)
    assert all(map(math.isnan, found["d"][:3]))
    assert found["d"].utterances == 0
