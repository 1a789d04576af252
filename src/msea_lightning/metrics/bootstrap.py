"""Confidence intervals of metrics: how far they would move with other test utterances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msea_lightning.metrics.functional import (
    METRIC_NAMES,
    Values,
    check_lengths,
    intensities,
    intensity_classes,
    kind_of,
)
from msea_lightning.metrics.options import MetricKind

DRAWS = 2000
"""Resamples of the test utterances."""

_LEVEL = 0.95
_AT_A_TIME = 250  # resamples that lie in memory together

_Array = NDArray[np.float64]


def intervals(
    kind: MetricKind | str, runs: Sequence[Values], targets: Values, *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap intervals (Efron 1979) of all metrics, over utterances.

    Utterances are drawn with replacement, of all runs the same ones. What the interval covers is
    the draw of the test utterances, not that of the training's seed.

    Args:
        kind: The kind of metrics, see :func:`score`.
        runs: S runs with (N,) predictions each; an interval is that of their mean.
        targets: (N,) the truth.
        seed: Of the draws.

    Returns:
        Name to lower and upper bound, both as :func:`score` gives the metric; a metric that is
        undefined in some resample (a correlation of one utterance drawn N times) goes by the
        others, and is left out where it is defined in none. Of one utterance there is no interval.

    Raises:
        MetricError: as :func:`score` does.
    """
    kind = kind_of(kind)
    if len(targets) == 1:
        return {}
    compared = [_Compared(kind, preds, targets) for preds in runs]
    drawn: dict[str, list[_Array]] = {name: [] for name in METRIC_NAMES[kind]}
    for weights in _resamples(len(targets), seed):
        for name, values in drawn.items():
            values.append(np.mean([one.scores(name, weights) for one in compared], axis=0))
    bounds = {}
    for name, values in drawn.items():
        defined = np.concatenate(values) if values else np.array([])
        defined = defined[np.isfinite(defined)]
        if len(defined):
            bounds[name] = _bounds(defined)
    return bounds


def interval_of_mean(values: NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of a value (N,) per utterance."""
    means = [weights @ values / len(values) for weights in _resamples(len(values), seed)]
    return _bounds(np.concatenate(means))


def _bounds(drawn: _Array) -> tuple[float, float]:
    low, high = np.quantile(drawn, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    return float(low), float(high)


def _resamples(count: int, seed: int) -> Iterator[_Array]:
    """How often each of N utterances is drawn, (R, N) for some resamples at a time."""
    generator = np.random.default_rng(seed)
    for _ in range(0, DRAWS if count else 0, _AT_A_TIME):
        drawn = generator.integers(count, size=(_AT_A_TIME, count), dtype=np.int32)
        rows = np.arange(_AT_A_TIME)[:, None] * count
        flat = np.bincount((drawn + rows).ravel(), minlength=_AT_A_TIME * count)
        yield flat.reshape(_AT_A_TIME, count).astype(np.float64)


class _Compared:
    """Predictions of a run beside the truth, of which metrics are sums over utterances."""

    def __init__(self, kind: MetricKind, preds: Values, targets: Values) -> None:
        self._classes: dict[str, tuple[_Array, bool]] = {}
        if kind is MetricKind.emotion:
            found, true_classes = list(preds), list(targets)
            check_lengths(len(found), len(true_classes))
            everywhere = np.ones(len(true_classes), dtype=bool)
            self._count("acc", "wf1", found, true_classes, everywhere)
            return
        pred, true = intensities(preds, targets)
        for one in intensity_classes(kind, pred, true):
            self._count(one.accuracy, one.f1, one.preds.tolist(), one.targets.tolist(), one.kept)
        if kind is MetricKind.simsv2:
            pred, true = np.clip(pred, -1, 1), np.clip(true, -1, 1)
        # About their means, so that sums of squares keep their digits.
        x, y = (
            values.astype(np.float64) - values.mean(dtype=np.float64) for values in (pred, true)
        )
        self._errors = np.abs(pred.astype(np.float64) - true)
        self._moments = np.stack([x, y, x * x, y * y, x * y], axis=1)

    def _count(
        self, accuracy: str, f1: str | None, preds: list[Any], targets: list[Any], kept: Any
    ) -> None:
        """Remembers the cell of the confusion matrix (K, K) of each utterance that is kept."""
        places = {label: place for place, label in enumerate(dict.fromkeys([*targets, *preds]))}
        size = max(1, len(places))
        cells = np.zeros((len(kept), size * size))
        numbers = [places[t] * size + places[p] for p, t in zip(preds, targets, strict=True)]
        cells[np.flatnonzero(kept), numbers] = 1
        self._classes[accuracy] = cells, False
        if f1 is not None:
            self._classes[f1] = cells, True

    def scores(self, name: str, weights: _Array) -> _Array:
        """A metric of R resamples, (R,); NaN where it is undefined."""
        with np.errstate(invalid="ignore", divide="ignore"):
            if name in self._classes:
                cells, is_f1 = self._classes[name]
                size = round(cells.shape[1] ** 0.5)
                matrix = (weights @ cells).reshape(-1, size, size)  # true, predicted
                hits = np.diagonal(matrix, axis1=1, axis2=2)
                true, total = matrix.sum(axis=2), matrix.sum(axis=(1, 2))
                if not is_f1:
                    return np.asarray(hits.sum(axis=1) / total)
                both = true + matrix.sum(axis=1)
                each = np.where(both > 0, 2 * hits / both, 0.0)
                return np.asarray((true * each).sum(axis=1) / total)
            count = weights.sum(axis=1)
            if name == "mae":
                return np.asarray(weights @ self._errors / count)
            x, y, xx, yy, xy = (weights @ self._moments / count[:, None]).T
            spreads = xx - x * x, yy - y * y
            # The spread of a constant is zero but for rounding.
            varies = (spreads[0] > 1e-12 * xx) & (spreads[1] > 1e-12 * yy)
            return np.where(varies, (xy - x * y) / np.sqrt(spreads[0] * spreads[1]), np.nan)
