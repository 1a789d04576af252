"""Infers the label space and the metrics of a data set from its labels."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from msea_lightning.config.errors import UserError
from msea_lightning.data.options import LabelConfig, LabelKind
from msea_lightning.data.store import StoreSplit
from msea_lightning.data.utterance import MAIN_LABEL, Label
from msea_lightning.metrics.options import MetricKind

_log = logging.getLogger(__name__)


class LabelError(UserError):
    """A label outside the label space, or labels that make none."""


def resolve_labels(config: LabelConfig, splits: Mapping[str, StoreSplit]) -> LabelConfig:
    """The label space of a data set, with nothing left to infer; all main labels lie in it.

    What is not configured is inferred from the labels of the training split alone (all of it, also
    what is held out for validation later): what may be predicted must not depend on the test part.
    Labels that are all numbers make a scale, any others a set of emotions, sorted by name.

    The bounds of a scale are the labels' extremes, rounded outwards to the leading digit of their
    spread (2.6 to 3; 1.33 and 4.8 to 1 and 5), up to the next power of ten where the spread is at
    most 1 (0.8 to 1); they lie symmetrically around zero where both signs occur. The step is the
    largest of 1, 2, 5 times a power of ten on which all labels and both bounds lie (whole numbers:
    1; SIMS: 0.2), because an answer that no label ever is can only be wrong; but it is not finer
    than the power of ten that divides the range into 20 to 200 parts, which is what labels off any
    grid get (CMU-MOSI's thirds from -3 to 3: 0.1).
    """
    train = [label for label in splits["train"].labels[MAIN_LABEL] if label is not None]
    if not train:
        raise LabelError(
            "no training utterance has a label, which leaves nothing to learn. Label them."
        )
    is_scale = config.kind is LabelKind.scale or (
        config.kind is LabelKind.infer and not config.names and not isinstance(train[0], str)
    )
    everything = [
        (f"utterance '{identity}' ({split}) has the label", label)
        for split, part in splits.items()
        for identity, label in zip(part.ids, part.labels[MAIN_LABEL], strict=True)
        if label is not None
    ]
    for where, label in everything:
        if isinstance(label, str) == is_scale:
            raise LabelError(
                f"{where} {label!r}, but dataset.labels.kind={config.kind.value} expects "
                f"{'a number' if is_scale else 'the name of an emotion'}. Change the labels, or "
                "use dataset.labels.kind=infer without dataset.labels.names."
            )
    if len(set(train)) < 2 and not config.names:
        raise LabelError(
            f"all training utterances have the label {_written(train[0])}, which leaves nothing to "
            "learn. Label them with at least two."
        )
    if is_scale:
        resolved = _scale(config, train)
    else:
        names = config.names or sorted(set(map(str, train)))
        resolved = LabelConfig(kind=LabelKind.emotions, names=list(names), words=config.words)
    for where, label in everything:
        if not _is_inside(label, resolved):
            given = config.names or config.low is not None or config.high is not None
            options = "low and dataset.labels.high" if is_scale else "names"
            raise LabelError(
                f"{where} {_written(label)}, but the labels are {describe_labels(resolved)}, "
                f"{'as configured' if given else 'inferred from the training split'}. Correct the "
                f"label, remove the utterance, or set dataset.labels.{options}."
            )
    return resolved


def resolve_metrics(metrics: MetricKind, labels: LabelConfig) -> MetricKind:
    """The metric definitions for a label space, unless configured.

    Emotions get ``emotion``, a scale from -3 to 3 ``mosei``, any other with both signs within -1
    and 1 ``simsv2``, and other scales ``scale``.
    """
    emotions = labels.kind is LabelKind.emotions
    if metrics is not MetricKind.infer:
        if emotions != (metrics is MetricKind.emotion):
            raise LabelError(
                f"dataset.metrics={metrics.value} does not fit the labels, which are "
                f"{describe_labels(labels)}. Use dataset.metrics=infer."
            )
        return metrics
    if emotions:
        return MetricKind.emotion
    low, high = bounds(labels)
    if (low, high) == (-3, 3):
        return MetricKind.mosei
    return MetricKind.simsv2 if -1 <= low < 0 < high <= 1 else MetricKind.scale


def bounds(labels: LabelConfig) -> tuple[float, float]:
    """Lowest and highest intensity of a resolved scale."""
    assert labels.low is not None
    assert labels.high is not None
    return labels.low, labels.high


def describe_labels(labels: LabelConfig) -> str:
    """A resolved label space in words: ``intensities from -3 to 3 in steps of 0.1``."""
    if labels.kind is LabelKind.emotions:
        return f"{len(labels.names)} emotions ({', '.join(labels.names)})"
    low, high = bounds(labels)
    return f"intensities from {low:g} to {high:g} in steps of {labels.step:g}"


def _written(label: Label) -> str:
    return f"'{label}'" if isinstance(label, str) else f"{label:g}"


def _is_inside(label: Label, labels: LabelConfig) -> bool:
    if isinstance(label, str):
        return label in labels.names
    low, high = bounds(labels)
    return low - 1e-6 <= label <= high + 1e-6


def _scale(config: LabelConfig, train: Sequence[Label]) -> LabelConfig:
    found = np.unique(np.array(train, dtype=np.float64))
    # Few whole numbers, none below zero, may be the names of classes.
    few = len(found) <= 20 and found[0] >= 0 and bool(np.all(found == np.round(found)))
    if few and config.kind is LabelKind.infer and config.low is None and config.high is None:
        numbers = [f"{label:.0f}" for label in found]
        _log.warning(
            "the labels are the whole numbers %s, and are taken for intensities on a scale. If "
            "they stand for classes, set dataset.labels.kind=emotions and "
            "'dataset.labels.names=[%s]'; if not, set dataset.labels.low and dataset.labels.high",
            ", ".join(numbers),
            ",".join(numbers),
        )
    low, high = _outer_bounds(float(found[0]), float(found[-1]))
    low = low if config.low is None else config.low
    high = high if config.high is None else config.high
    if not low < high:
        raise LabelError(
            f"the lowest intensity {low:g} is not below the highest {high:g}; the training labels "
            f"lie between {found[0]:g} and {found[-1]:g}. Set dataset.labels.low and "
            "dataset.labels.high."
        )
    step = _step(np.append(found, [low, high])) if config.step is None else config.step
    return dataclasses.replace(config, kind=LabelKind.scale, low=low, high=high, step=step)


def _outer_bounds(low: float, high: float) -> tuple[float, float]:
    """Extremes rounded outwards, symmetric around zero where both signs occur."""
    spread = high - low
    if low < 0 < high:
        spread = high = max(-low, high)
        low = -high
    # The leading digit's place of a spread above 1; the next power of ten of one up to 1.
    exponent = round(math.log10(spread), 6)
    unit = 10.0 ** (math.floor(exponent) if spread > 1 else math.ceil(exponent))
    # Rounding first: 0.3 / 0.1 is a little less than 3.
    steps = math.floor(round(low / unit, 6)), math.ceil(round(high / unit, 6))
    return _tidy(steps[0] * unit), _tidy(steps[1] * unit)


def _step(values: NDArray[np.float64]) -> float:
    """The coarsest 1-2-5 step on which all values lie, or the finest one that makes sense."""
    spread = float(np.ptp(values))
    finest = math.floor(round(math.log10(spread / 20), 6))
    coarsest = math.ceil(math.log10(spread))
    for exponent in range(coarsest, finest - 1, -1):
        for digit in (5, 2, 1):
            step = digit * 10.0**exponent
            parts = values / step
            # float32 intensities are off by less than 1e-5.
            if step <= spread and np.all(np.abs(parts - np.round(parts)) < 1e-4):
                return _tidy(step)
    return _tidy(10.0**finest)


def _tidy(value: float) -> float:
    """Without the rounding error of arithmetic on decimal fractions."""
    return float(f"{value:.9g}") + 0.0
