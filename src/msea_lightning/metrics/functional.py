"""Metrics of the paper, to the digit of the original implementation, as pure functions.

:func:`score` is the entry point; below it is one pure function per family of metrics. Everything
about how a metric is named, written and compared is in :data:`METRICS`. Tensors are accepted, but
PyTorch is not imported, so that reading results from files is fast.

Rules that hold for all of them:

* Intensities are cast to float32 first and compared in float32, as in the original: a bin edge
  such as 0.1 belongs to its bin only when both sides are float32.
* Sums are exactly rounded (``math.fsum`` over float64), so that a result is the same bit for bit
  in whatever order, batches or ranks the utterances come.
* What is undefined is NaN, never an error: a metric of nothing, a correlation with a constant.
* A prediction that is NaN is wrong. Where classes are two, it counts as the other one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from msea_lightning.config.errors import UserError
from msea_lightning.metrics.options import MetricKind

if TYPE_CHECKING:
    from torch import Tensor

Values: TypeAlias = "Sequence[Any] | NDArray[Any] | Tensor"
"""Predictions or targets, (N,): a list, an array or a tensor of any dtype on any device."""

_Floats = NDArray[np.float32]
_Mask = NDArray[np.bool_]


class MetricError(UserError):
    """Predictions and targets that cannot be compared, or a kind of metrics that does not exist."""


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is named, written and compared.

    Attributes:
        name: Key in ``metrics.json`` and in :func:`score`.
        title: Column heading, as in the paper's tables; key in ``history.csv`` and in loggers.
        higher_is_better: Direction.
        percent: True for a share between 0 and 1 that tables show as a percentage with two
            decimals; False for a number that they show as it is, with three.
    """

    name: str
    title: str
    higher_is_better: bool
    percent: bool

    @property
    def unit(self) -> float:
        """What a value is multiplied with for people to read: shares are in percent."""
        return 100.0 if self.percent else 1.0

    def format(self, value: float) -> str:
        """The value as the paper's tables write it; "-" where it is undefined."""
        if math.isnan(value):
            return "-"
        return f"{self.unit * value:.{2 if self.percent else 3}f}"

    def better(self, value: float, than: float) -> bool:
        """Whether a value beats another one; NaN beats nothing and is beaten by any number."""
        if math.isnan(value) or math.isnan(than):
            return not math.isnan(value)
        return value > than if self.higher_is_better else value < than


METRICS: dict[str, MetricInfo] = {
    info.name: info
    for info in (
        MetricInfo("acc2", "Acc-2", higher_is_better=True, percent=True),
        MetricInfo("f1", "F1", higher_is_better=True, percent=True),
        MetricInfo("acc2_non0", "Acc-2 (non0)", higher_is_better=True, percent=True),
        MetricInfo("f1_non0", "F1 (non0)", higher_is_better=True, percent=True),
        MetricInfo("acc2_weak", "Acc2_weak", higher_is_better=True, percent=True),
        MetricInfo("acc3", "Acc-3", higher_is_better=True, percent=True),
        MetricInfo("acc5", "Acc-5", higher_is_better=True, percent=True),
        MetricInfo("acc7", "Acc-7", higher_is_better=True, percent=True),
        MetricInfo("mae", "MAE", higher_is_better=False, percent=False),
        MetricInfo("corr", "Corr", higher_is_better=True, percent=False),
        MetricInfo("acc", "Acc", higher_is_better=True, percent=True),
        MetricInfo("wf1", "WF1", higher_is_better=True, percent=True),
    )
}
"""Every metric by name; what each one is, is said at the functions below."""

ZERO_SHARE = MetricInfo("zero_share", "Exact zeros", higher_is_better=False, percent=True)
"""What :func:`zero_share` counts; it belongs to no set of metrics, and no direction is better."""

METRIC_NAMES: dict[MetricKind, tuple[str, ...]] = {
    MetricKind.mosei: ("acc2", "f1", "acc2_non0", "f1_non0", "acc5", "acc7", "mae", "corr"),
    MetricKind.simsv2: ("acc2", "f1", "acc2_weak", "acc3", "acc5", "mae", "corr"),
    MetricKind.scale: ("mae", "corr"),
    MetricKind.emotion: ("acc", "wf1"),
}
"""Names of the metrics of each kind, in the order of :func:`score`."""


def selection_metric(kind: MetricKind | str) -> MetricInfo:
    """The metric by which the best validation epoch is chosen: MAE (MSA) or WF1 (ERC)."""
    return METRICS["wf1" if kind_of(kind) is MetricKind.emotion else "mae"]


def kind_of(kind: MetricKind | str) -> MetricKind:
    """A kind of metrics by its name; a MetricError where there is none of that name."""
    name = kind.value if isinstance(kind, MetricKind) else kind
    names = [known.value for known in METRIC_NAMES]
    if name not in names:
        raise MetricError(
            f"there are no metrics of the kind '{name}': choose one of {', '.join(names)}."
        )
    return MetricKind(name)


def score(kind: MetricKind | str, preds: Values, targets: Values) -> dict[str, float]:
    """All metrics of a data set.

    Args:
        kind: "mosei" (intensities in -3..3), "simsv2" (-1..1), "scale" (any other range) or
            "emotion".
        preds: (N,) predicted intensities; for "emotion" class ids or names. What is no class of
            the truth, such as an unknown id or 0.5, is a class of its own.
        targets: (N,) true intensities, class ids or names.

    Returns:
        Name to value, with the names of :data:`METRIC_NAMES`; shares lie between 0 and 1.

    Raises:
        MetricError: if they cannot be compared, or the kind is unknown.
    """
    kind = kind_of(kind)
    if kind is MetricKind.emotion:
        return emotion_scores(preds, targets)
    intensity_scores = {
        MetricKind.mosei: mosei_scores,
        MetricKind.simsv2: simsv2_scores,
        MetricKind.scale: scale_scores,
    }
    return intensity_scores[kind](*intensities(preds, targets))


class Classes(NamedTuple):
    """Intensities put into classes, as an accuracy and perhaps a weighted F1 compare them.

    Attributes:
        accuracy: Name of the accuracy.
        f1: Name of the F1 that is weighted with the true classes; None where there is none.
        preds: (M,) classes of the predictions; NaN is a class that is not the truth's.
        targets: (M,) classes of the truth.
        kept: (N,) which of all utterances these M are.
    """

    accuracy: str
    f1: str | None
    preds: NDArray[Any]
    targets: NDArray[Any]
    kept: _Mask


def mosei_scores(pred: _Floats, true: _Floats) -> dict[str, float]:
    """Metrics of CMU-MOSEI and CMU-MOSI (paper, Table 2, left half).

    * ``acc2``, ``f1``: negative (< 0) against non-negative (>= 0), over all utterances. These are
      the paper's Acc-2 and F1.
    * ``acc2_non0``, ``f1_non0``: positive (> 0) against the rest, over the utterances whose truth
      is not exactly 0. Other papers report these; they part from ``acc2`` and ``f1`` when many
      answers are exactly 0 (see :func:`zero_share`).
    * ``acc7``, ``acc5``: classes are integers after clipping to [-3, 3] or [-2, 2]; halves are
      rounded to the even integer.
    * ``mae``, ``corr``: of the values as they are, without clipping.
    """
    classes = intensity_classes(MetricKind.mosei, pred, true)
    return {**_class_scores(classes), **scale_scores(pred, true)}


def simsv2_scores(pred: _Floats, true: _Floats) -> dict[str, float]:
    """Metrics of CH-SIMS and CH-SIMS v2.0 (paper, Table 2, right half).

    Predictions and truth are clipped to [-1, 1] before anything else. Bins are open on the left
    and closed on the right.

    * ``acc2``, ``f1``: non-positive (<= 0) against positive (> 0).
    * ``acc2_weak``: ``acc2`` over the utterances with -0.4 <= truth <= 0.4 (Acc2_weak).
    * ``acc3``: bins with the edges -0.1 and 0.1.
    * ``acc5``: bins with the edges -0.7, -0.1, 0.1 and 0.7.
    * ``mae``, ``corr``: of the clipped values.
    """
    classes = intensity_classes(MetricKind.simsv2, pred, true)
    return {**_class_scores(classes), **scale_scores(np.clip(pred, -1, 1), np.clip(true, -1, 1))}


def intensity_classes(kind: MetricKind, pred: _Floats, true: _Floats) -> list[Classes]:
    """The classes that the metrics of intensities (N,) count in; none with ``scale``."""
    everywhere = np.ones(len(true), dtype=bool)
    if kind is MetricKind.mosei:
        return [
            _two_classes("acc2", "f1", pred, pred >= 0, true >= 0, everywhere),
            _two_classes("acc2_non0", "f1_non0", pred, pred > 0, true > 0, true != 0),
            *(
                Classes(
                    f"acc{2 * bound + 1}",
                    None,
                    np.rint(np.clip(pred, -bound, bound)),
                    np.rint(np.clip(true, -bound, bound)),
                    everywhere,
                )
                for bound in (2, 3)
            ),
        ]
    if kind is not MetricKind.simsv2:
        return []
    pred, true = np.clip(pred, -1, 1), np.clip(true, -1, 1)
    weak = np.abs(true) <= np.float32(0.4)
    return [
        _two_classes("acc2", "f1", pred, pred > 0, true > 0, everywhere),
        _two_classes("acc2_weak", None, pred, pred > 0, true > 0, weak),
        _bins("acc3", pred, true, (-0.1, 0.1)),
        _bins("acc5", pred, true, (-0.7, -0.1, 0.1, 0.7)),
    ]


def scale_scores(pred: _Floats, true: _Floats) -> dict[str, float]:
    """``mae`` and ``corr`` of intensities on any range, without clipping."""
    return {"mae": mean_absolute_error(pred, true), "corr": pearson(pred, true)}


def emotion_scores(preds: Values, targets: Values) -> dict[str, float]:
    """Metrics of MELD, CHERMA and other emotion sets (paper, Table 3).

    * ``acc``: share of predictions that equal the truth (Acc).
    * ``wf1``: see :func:`weighted_f1` (WF1).
    """
    pred, true = _flat(preds).tolist(), _flat(targets).tolist()
    check_lengths(len(pred), len(true))
    _check_same_coding(pred, true)
    return {
        "acc": _share(np.array([p == t for p, t in zip(pred, true, strict=True)], dtype=bool)),
        "wf1": weighted_f1(pred, true),
    }


def weighted_f1(preds: Sequence[Hashable], targets: Sequence[Hashable]) -> float:
    """F1 of each true class, averaged with the number of utterances of that class as weight.

    A class that is predicted but never true has no weight; it only takes hits from the others.
    """
    if not targets:
        return math.nan
    hits = Counter(t for p, t in zip(preds, targets, strict=True) if p == t)
    predicted, true = Counter(preds), Counter(targets)
    return math.fsum(
        count * (2 * hits[label] / (predicted[label] + count)) for label, count in true.items()
    ) / len(targets)


def mean_absolute_error(pred: _Floats, true: _Floats) -> float:
    """Mean absolute difference (MAE); NaN without utterances."""
    if len(pred) == 0:
        return math.nan
    with np.errstate(invalid="ignore"):
        return math.fsum(np.abs(pred.astype(np.float64) - true)) / len(pred)


def pearson(pred: _Floats, true: _Floats) -> float:
    """Pearson's correlation (Corr); NaN of fewer than two, of constant or of infinite values."""
    # In float64 neither the squares of the largest nor of the smallest float32 leave the range.
    pair = [values.astype(np.float64) for values in (pred, true)]
    if any(len(v) < 2 or not np.isfinite(v).all() or v.min() == v.max() for v in pair):
        return math.nan
    left, right = (values - math.fsum(values) / len(values) for values in pair)
    deviations = math.sqrt(math.fsum(left * left)) * math.sqrt(math.fsum(right * right))
    return min(1.0, max(-1.0, math.fsum(left * right) / deviations))


def zero_share(preds: Values) -> float:
    """Share of predictions that are exactly 0.0, for which ``acc2`` and ``acc2_non0`` part."""
    return _share(_float32(preds) == 0)


def intensities(preds: Values, targets: Values) -> tuple[_Floats, _Floats]:
    """(N,) float32 each; a MetricError where they are no numbers, or not equally many."""
    pred, true = _float32(preds), _float32(targets)
    check_lengths(len(pred), len(true))
    return pred, true


def check_lengths(preds: int, targets: int) -> None:
    """Refuses numbers of predictions and targets that differ."""
    if preds != targets:
        raise MetricError(
            f"{preds} predictions were given for {targets} targets: every utterance needs one of "
            "each, in the same order."
        )


def _check_same_coding(pred: list[Any], true: list[Any]) -> None:
    """Refuses names on one side and ids on the other, which would all count as wrong."""
    for names, ids, which in ((pred, true, "predictions"), (true, pred, "targets")):
        all_names = all(isinstance(value, str) for value in names)
        if names and all_names and all(isinstance(value, int | float) for value in ids):
            raise MetricError(
                f"the {which} are names, such as '{names[0]}', but the others are numbers, such as "
                f"{ids[0]}: give names or class ids for both."
            )


def _flat(values: Values) -> NDArray[Any]:
    """(N,) array; of Python's own objects where a sequence is given."""
    if hasattr(values, "detach"):  # a tensor
        return values.detach().cpu().double().numpy().ravel()
    if isinstance(values, np.ndarray):
        return values.ravel()
    items = [value.item() if hasattr(value, "item") else value for value in values]
    return np.array(items, dtype=object)


def _float32(values: Values) -> _Floats:
    try:
        with np.errstate(over="ignore"):
            return _flat(values).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise MetricError(
            f"intensities must be numbers, but one of these is not: {error}. Emotions are scored "
            "with the kind 'emotion'."
        ) from error


def _share(hits: _Mask) -> float:
    return int(hits.sum()) / len(hits) if len(hits) else math.nan


def _class_scores(classes: Sequence[Classes]) -> dict[str, float]:
    scores = {}
    for one in classes:
        scores[one.accuracy] = _share(one.preds == one.targets)
        if one.f1 is not None:
            scores[one.f1] = weighted_f1(one.preds.tolist(), one.targets.tolist())
    return scores


def _two_classes(
    accuracy: str, f1: str | None, pred: _Floats, pred_class: _Mask, true_class: _Mask, kept: _Mask
) -> Classes:
    """Two classes; NaN counts as the other one than the truth's."""
    answers = np.where(np.isnan(pred), ~true_class, pred_class)
    return Classes(accuracy, f1, answers[kept], true_class[kept], kept)


def _bins(accuracy: str, pred: _Floats, true: _Floats, edges: Sequence[float]) -> Classes:
    """Bins that are open on the left and closed on the right."""
    float32_edges = np.array(edges, dtype=np.float32)
    found = np.where(np.isnan(pred), -1, np.searchsorted(float32_edges, pred))
    truth = np.searchsorted(float32_edges, true)
    return Classes(accuracy, None, found, truth, np.ones(len(true), dtype=bool))
