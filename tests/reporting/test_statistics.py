"""Means, the paired test and its correction, and calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from msea_lightning.metrics import METRICS
from msea_lightning.reporting.statistics import (
    Summary,
    holm,
    paired_test,
    reliability,
    summarize,
)

NAN = math.nan


def of(*values: float, metric: str = "corr") -> Summary:
    return summarize(METRICS[metric], dict(enumerate(values, start=1)))


def test_a_summary() -> None:
    found = summarize(METRICS["acc"], {3: 0.61, 1: 0.65, 2: 0.65, 4: 0.6})
    assert list(found.values) == [1, 2, 3, 4]
    assert found.mean == pytest.approx(np.mean([65, 65, 61, 60]), abs=1e-12)
    assert found.sd == pytest.approx(np.std([65, 65, 61, 60], ddof=1), abs=1e-12)
    assert found.best == 1
    # Of an even number the lower one of the two in the middle: 60, 61 | 65, 65.
    assert found.median == 3


def test_the_best_error_is_the_smallest() -> None:
    assert of(0.5, 0.4, 0.6, metric="mae").best == 2


def test_one_value_has_no_spread_and_undefined_ones_are_in_no_mean() -> None:
    found = of(NAN, 0.5, NAN)
    assert (found.n, found.undefined, found.mean, found.best) == (1, (1, 3), 0.5, 2)
    assert math.isnan(found.sd)
    empty = of(NAN)
    assert math.isnan(empty.mean)
    assert (empty.n, empty.best, empty.median) == (0, None, None)


def test_the_paired_test_is_students() -> None:
    ours, full = [0.61, 0.63, 0.6, 0.66], [0.65, 0.64, 0.66, 0.67]
    differences = np.array(ours) - np.array(full)
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(4))
    found = paired_test(of(*ours), of(*full))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), df=3), rel=1e-9)
    assert found.difference == pytest.approx(differences.mean())


def test_only_common_seeds_are_paired() -> None:
    info = METRICS["corr"]
    ours = summarize(info, {1: 0.1, 2: 0.3, 9: 0.9})
    full = summarize(info, {2: 0.2, 1: 0.15, 8: NAN})
    found = paired_test(ours, full)
    assert found.seeds == (1, 2)
    assert found.p == pytest.approx(stats.ttest_rel([0.1, 0.3], [0.15, 0.2]).pvalue)


@pytest.mark.parametrize(
    ("ours", "full", "p", "reason"),
    [
        ((0.5,), (0.6,), NAN, "needs two seeds"),
        ((0.5, 0.6), (0.5, 0.6), 1.0, ""),
        ((0.5, 0.6), (0.4, 0.5), NAN, "undefined: the differences do not vary"),
        ((NAN,), (0.5,), NAN, "no common seed"),
    ],
)
def test_what_cannot_be_tested(
    ours: tuple[float, ...], full: tuple[float, ...], p: float, reason: str
) -> None:
    found = paired_test(of(*ours), of(*full))
    assert found.p == pytest.approx(p, nan_ok=True)
    assert found.reason == reason


def test_holms_correction() -> None:
    # By hand: 3 * 0.01, then max(0.03, 2 * 0.02), then max(0.04, 0.03).
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([NAN, 0.03, 0.01]) == pytest.approx([NAN, 0.03, 0.02], nan_ok=True)
    assert holm([]) == []


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([0.95, 0.95, 0.05, NAN])
    found = reliability(probabilities, np.array([True, False, False, True]))
    assert found.counts.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert found.ece == pytest.approx((1 * 0.05 + 2 * 0.45) / 3)
    assert math.isnan(reliability(np.array([]), np.array([], dtype=bool)).ece)
