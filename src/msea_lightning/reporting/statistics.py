"""Means over seeds, the paired test of ablations, and how good the probabilities are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binned_statistic, ttest_rel  # type: ignore[import-untyped]

from msea_lightning.metrics import MetricInfo

_SAME = 1e-10
"""Differences of metrics that lie this close together, in the unit of the paper's tables, are equal
but for rounding."""


@dataclass(frozen=True)
class Summary:
    """A metric of one configuration over its seeds, in the unit of the paper's tables.

    Attributes:
        values: Seed to value, by seed; seeds with an undefined value (not finite) are left out.
        undefined: Seeds whose value is undefined.
        mean: Arithmetic mean; NaN without values.
        sd: Sample standard deviation (n - 1); NaN with fewer than two values.
        best: Seed of the best value, the smallest of equal ones; None where there is none.
        median: Seed of the median run: the lower one of the two in the middle where n is even.
    """

    values: dict[int, float]
    undefined: tuple[int, ...]
    mean: float
    sd: float
    best: int | None
    median: int | None

    @property
    def n(self) -> int:
        """Number of seeds with a defined value."""
        return len(self.values)


def summarize(info: MetricInfo, by_seed: Mapping[int, float], *, directed: bool = True) -> Summary:
    """Mean, spread and outstanding runs of a metric, whose values are as in ``metrics.json``.

    It is not ``directed`` where neither high nor low values are better.
    """
    unit = 100.0 if info.percent else 1.0
    values = {seed: unit * by_seed[seed] for seed in sorted(by_seed)}
    defined = {seed: value for seed, value in values.items() if math.isfinite(value)}
    n = len(defined)
    in_order = sorted(defined, key=defined.__getitem__)
    best = max if info.higher_is_better else min
    return Summary(
        values=defined,
        undefined=tuple(seed for seed in values if seed not in defined),
        mean=statistics.fmean(defined.values()) if n else math.nan,
        sd=statistics.stdev(defined.values()) if n > 1 else math.nan,
        best=best(defined, key=defined.__getitem__) if n and directed else None,
        median=in_order[(n - 1) // 2] if n else None,
    )


@dataclass(frozen=True)
class PairedTest:
    """A two-sided paired t test of an ablation against the full model; NaN for what is undefined.

    Attributes:
        seeds: Seeds that both have.
        difference: Mean of ablation minus full model over these seeds, in the table's unit.
        p: The p value.
        reason: Why there is none.
        holm: The p value after Holm's correction.
    """

    seeds: tuple[int, ...]
    difference: float
    p: float = math.nan
    reason: str = ""
    holm: float = math.nan


def paired_test(ablation: Summary, full: Summary) -> PairedTest:
    """Student's paired t test over the common seeds (``scipy.stats.ttest_rel``, two-sided).

    Where all differences are zero the two do not differ, and p is 1. Where all are equal but not
    zero, the statistic divides by a variance of zero, and p is undefined.
    """
    seeds = tuple(seed for seed in ablation.values if seed in full.values)
    if not seeds:
        return PairedTest(seeds, math.nan, reason="no common seed")
    ours = [ablation.values[seed] for seed in seeds]
    theirs = [full.values[seed] for seed in seeds]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(differences)
    if len(seeds) < 2:
        return PairedTest(seeds, mean, reason="needs two seeds")
    if max(map(abs, differences)) <= _SAME:
        return PairedTest(seeds, mean, 1.0)
    if max(differences) - min(differences) <= _SAME:
        return PairedTest(seeds, mean, reason="undefined: the differences do not vary")
    return PairedTest(seeds, mean, float(ttest_rel(ours, theirs).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values after the step-down correction of Holm (1979), in the given order.

    The k-th smallest of m is multiplied by m - k + 1, made at least as large as the one before it,
    and at most 1. What is NaN stays so and does not count.
    """
    p = np.array(p_values, dtype=np.float64)
    order = np.argsort(p)  # NaN comes last
    factors = np.isfinite(p).sum() - np.arange(len(p))
    p[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return [float(value) for value in p]


_BINS = 10


class Reliability(NamedTuple):
    """How often answers of a given probability are right, in K = 10 bins of equal width over 0..1.

    Attributes:
        counts: (K,) answers in each bin.
        confidence: (K,) their mean probability; NaN in an empty bin.
        accuracy: (K,) the share of them that is right; NaN in an empty bin.
        ece: Expected calibration error (Guo et al. 2017): the mean distance of the two, weighted
            with the counts; NaN without answers.
    """

    counts: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    ece: float


def reliability(probabilities: NDArray[np.float64], right: NDArray[np.bool_]) -> Reliability:
    """Bins answers by their (N,) probabilities, and leaves out those without one (NaN)."""
    known = np.isfinite(probabilities)
    values = np.array([probabilities[known], right[known]], dtype=np.float64)
    counts, _, _ = binned_statistic(values[0], values[0], "count", _BINS, (0, 1))
    (confidence, accuracy), _, _ = binned_statistic(values[0], values, "mean", _BINS, (0, 1))
    gaps = np.nansum(counts * np.abs(accuracy - confidence))
    ece = float(gaps / counts.sum()) if counts.any() else math.nan
    return Reliability(counts, confidence, accuracy, ece)
