"""What a result is worth: beside something simple, with its uncertainty, and in plain sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import fisher_exact  # type: ignore[import-untyped]

from msea_lightning.data.classes import confusion_classes
from msea_lightning.data.module import absent_features
from msea_lightning.data.options import LabelConfig, Language
from msea_lightning.data.store import StoreSplit
from msea_lightning.data.utterance import MAIN_LABEL
from msea_lightning.language.labels import LabelSpace
from msea_lightning.metrics import MetricInfo, selection_metric
from msea_lightning.metrics.bootstrap import interval_of_mean, intervals
from msea_lightning.metrics.classes import ClassScore, class_scores
from msea_lightning.metrics.options import MetricKind
from msea_lightning.model.contract import Prediction
from msea_lightning.training.references import Reference, references

_DOUBTFUL = 0.2
"""Validation this much above test says that the validation part is not independent."""

_CHANCE = 0.01
"""Largest p value with which two splits are said to differ by more than chance."""

_HANDFUL = 20
"""Fewer utterances say nothing about how answers vary, or which of two is better."""

_FEW = 10
"""Fewer test utterances of a class say nothing about whether it is ever answered."""

_SAME = 0.95
"""Share of equal answers from which on answers hardly vary."""

_FLAT = 0.1
"""Standard deviation of intensities, as a part of the labels', up to which they hardly vary."""


@dataclass(frozen=True)
class Verdict:
    """What stands beside the metrics of a run.

    Attributes:
        sentences: What the result is worth, in plain words.
        warnings: What makes it worth little.
        references: Something simple on the same test utterances.
        intervals: 95 % intervals of the test metrics.
        classes: Scores of each class in test.
        utterances: Number of utterances of each split.
        labels: Split to class to number of labels.
        majority: Share of the most frequent label in test.
    """

    sentences: list[str]
    warnings: list[str]
    references: list[Reference]
    intervals: dict[str, tuple[float, float]]
    classes: dict[str, ClassScore]
    utterances: dict[str, int]
    labels: dict[str, dict[str, int]]
    majority: float

    def facts(self) -> dict[str, Any]:
        """All of it for ``metrics.json``."""
        return {
            "majority": self.majority,
            "warnings": self.warnings,
            "verdict": self.sentences,
            "references": [
                {"name": one.name, "kind": one.kind, "test": one.test} for one in self.references
            ],
            "intervals": self.intervals,
            "classes": {name: one._asdict() for name, one in self.classes.items()},
            "data": {"utterances": self.utterances, "labels": self.labels},
        }


def judge(
    predictions: Sequence[Prediction],
    results: Mapping[str, Mapping[str, float]],
    splits: Mapping[str, StoreSplit],
    *,
    space: LabelSpace,
    labels: LabelConfig,
    kind: MetricKind,
    language: Language,
    best_epoch: int,
    epochs: int,
    more: Sequence[Reference] = (),
) -> Verdict:
    """The verdict on the test predictions of a finished run.

    Args:
        predictions: (N,) of the test part.
        results: Metrics of ``test`` and ``valid``.
        splits: The data set's.
        space: The label space, and what it was made of:
        labels: the resolved options.
        kind: The kind of metrics.
        language: Of the texts.
        best_epoch: The one that was tested, counted from 0.
        epochs: Number of epochs trained.
        more: Further references to compare with.
    """
    true, answers = ([getattr(p, name) for p in predictions] for name in ("label", "prediction"))
    train = splits["train"]
    simple = [
        *references(
            train.texts,
            train.labels[MAIN_LABEL],
            [prediction.text for prediction in predictions],
            true,
            space=space,
            kind=kind,
            language=language,
        ),
        *more,
    ]
    names, true_classes = confusion_classes(kind, labels, true)
    _, answered = confusion_classes(kind, labels, answers)
    counts = {split: len(part) for split, part in splits.items()}
    if len(true) < _HANDFUL:
        sentences = [f"Too few test utterances ({len(true)}) to say what the result is worth."]
    else:
        sentences = [_compared(true, answers, one, space) for one in simple]
    sentences += hardly_varies(predictions, space)
    if epochs > 1 and best_epoch == 0 and counts["valid"] >= _HANDFUL:
        sentences.append(
            f"The best of {epochs} epochs was the first: what was learned after it did not help "
            "in validation. A lower training.learning_rate may."
        )
    return Verdict(
        sentences=sentences,
        warnings=[
            *degenerate(predictions, space),
            *better_than_test(results, counts, selection_metric(kind)),
            *absent_features(splits),
        ],
        references=simple,
        intervals=metric_intervals(predictions, space, kind),
        classes=class_scores(answered, true_classes, names),
        utterances=counts,
        labels={split: _histogram(part, kind, labels) for split, part in splits.items()},
        majority=majority(predictions, space)[1],
    )


def metric_intervals(
    predictions: Sequence[Prediction], space: LabelSpace, kind: MetricKind
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the metrics of predictions."""
    answers = [space.target(item.prediction) for item in predictions]
    return intervals(kind, [answers], [space.target(item.label) for item in predictions])


def _histogram(split: StoreSplit, kind: MetricKind, labels: LabelConfig) -> dict[str, int]:
    """Number of labels of each class."""
    known = [label for label in split.labels[MAIN_LABEL] if label is not None]
    names, classes = confusion_classes(kind, labels, known)
    return dict(zip(names, np.bincount(classes, minlength=len(names)).tolist(), strict=True))


def _compared(
    true: Sequence[float | str],
    answers: Sequence[float | str],
    reference: Reference,
    space: LabelSpace,
) -> str:
    """How much better a run is than something simple, and whether that may be chance."""
    ours, theirs = (_marks(true, given, space) for given in (answers, reference.answers))
    if space.ordered:
        name, gain, unit, digits = "MAE", theirs - ours, "", 3
        means = [f"{values.mean():.3f}" for values in (ours, theirs)]
    else:
        name, gain, unit, digits = "Accuracy", 100 * (ours - theirs), " points", 1
        means = [f"{100 * values.mean():.1f} %" for values in (ours, theirs)]
    low, high = interval_of_mean(gain)
    how = "no better than"
    if low > 0 or high < 0:
        how = f"{abs(gain.mean()):.{digits}f}{unit} {'better' if low > 0 else 'WORSE'} than"
    return (
        f"{name} {means[0]}, {how} {reference.name} ({means[1]}; 95 % interval of the difference "
        f"{low:.{digits}f} to {high:.{digits}f})."
    )


def _marks(
    true: Sequence[float | str], answers: Sequence[float | str], space: LabelSpace
) -> NDArray[np.float64]:
    """What each answer counts, (N,): 1 for a right emotion, or the absolute error."""
    pairs = np.array([[space.target(label) for label in given] for given in (true, answers)])
    if space.ordered:
        return np.asarray(np.abs(pairs[0] - pairs[1]), dtype=np.float64)
    return np.asarray(pairs[0] == pairs[1], dtype=np.float64)


def majority(predictions: Sequence[Prediction], space: LabelSpace) -> tuple[str, float]:
    """The most frequent label as it is written, and the accuracy of always giving that answer."""
    counts = Counter(_written(item.label, space) for item in predictions)
    label, count = counts.most_common(1)[0]
    return label, count / len(predictions)


def hardly_varies(predictions: Sequence[Prediction], space: LabelSpace) -> list[str]:
    """A sentence on test predictions that are nearly all the same.

    Nothing where all are (see :func:`degenerate`), or where there is a handful of utterances.
    """
    answers = Counter(_written(item.prediction, space) for item in predictions)
    if len(predictions) < _HANDFUL or len(answers) == 1:
        return []
    if space.ordered:
        given, true = (
            float(np.std([float(getattr(item, name)) for item in predictions]))
            for name in ("prediction", "label")
        )
        if given > _FLAT * true:
            return []
        return [
            f"The answers hardly vary: their standard deviation is {given:.3f}, the labels' "
            f"{true:.3f}."
        ]
    label, count = answers.most_common(1)[0]
    share = count / len(predictions)
    true_share = sum(_written(item.label, space) == label for item in predictions) / len(
        predictions
    )
    if share < _SAME or true_share >= _SAME:
        return []
    return [
        f"The answers hardly vary: {100 * share:.1f} % of them are {label}, "
        f"{100 * true_share:.1f} % of the labels."
    ]


def degenerate(predictions: Sequence[Prediction], space: LabelSpace) -> list[str]:
    """Sentences on test predictions that are all the same, or leave out a class.

    Nothing where there is only a handful of utterances, or of those of the class.
    """
    labels = Counter(_written(item.label, space) for item in predictions)
    answers = Counter(_written(item.prediction, space) for item in predictions)
    label, share = majority(predictions, space)
    beside = f"the most frequent label, {label}, is {share:.1%} of the test labels"
    if len(answers) == 1:
        if len(predictions) < _HANDFUL:
            return []
        return [f"all {len(predictions):,} test predictions are {next(iter(answers))}; {beside}"]
    missed = [label for label, n in labels.items() if label not in answers and n >= _FEW]
    if space.ordered or not missed:
        return []
    listed = ", ".join(f"{name} ({labels[name] / len(predictions):.1%})" for name in missed)
    return [f"never predicted in test: {listed}; {beside}"]


def better_than_test(
    results: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int], selection: MetricInfo
) -> list[str]:
    """A sentence where validation was far better than the test confirms.

    Nothing where the splits are so small that the difference may be chance: Fisher's exact test,
    one-sided, with the metric as the share of right answers. ``sizes`` are numbers of utterances.
    """
    valid, test = (results[split][selection.name] for split in ("valid", "test"))
    if not selection.percent or not valid - test > _DOUBTFUL:
        return []
    right = [round(valid * sizes["valid"]), round(test * sizes["test"])]
    wrong = [sizes["valid"] - right[0], sizes["test"] - right[1]]
    if fisher_exact([right, wrong], alternative="greater").pvalue > _CHANCE:
        return []
    return [
        f"{selection.title} is {selection.format(valid)} in validation and "
        f"{selection.format(test)} in test: the validation part is probably not independent of "
        "the training part (the same videos or speakers, or features that were learned with its "
        "labels), so it cannot choose an epoch or an option"
    ]


def _written(label: float | str, space: LabelSpace) -> str:
    """An emotion's name, or an intensity as the space writes it."""
    return label if isinstance(label, str) else space.text(label)
