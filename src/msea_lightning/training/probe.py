"""What a frozen language model knows without having to say it: a linear model of its last state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.store import StoreSplit
from msea_lightning.metrics import score, selection_metric
from msea_lightning.metrics.options import MetricKind
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.readout import LinearReadout
from msea_lightning.training.references import Reference

_STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0)
"""Inverse strengths of the regularisation that validation chooses from."""

_STEPS = 1000

_LEAST_VARIANCE = 1e-4

_ROUNDING = 1e-2
"""Layer-normalised states that deviate by less are all alike but for rounding."""

_UNSEEN = -5.0
"""Added to the least constant of all classes, for one that training does not have."""


def probe(model: AdaptedLM, data: UtteranceDataModule, kind: MetricKind) -> Reference | None:
    """A linear model of the state that would write the answer, as a reference.

    Logistic regression, or ridge regression of intensities, on standardised states; it learns from
    the training part, and the validation part chooses its regularisation.

    Args:
        model: The language model with its prompt, without an adapter.
        data: Its data, set up and tokenised.
        kind: The kind of metrics.

    Returns:
        None where training has but one label.
    """
    found = _chosen(model, data, kind)
    if found is None:
        return None
    test = data.splits["test"]
    values = _answers(model, found, last_states(model, test, data.eval_batch_size))
    return Reference(
        name="linear probe",
        kind="state",
        answers=[model.space.label(value) for value in values],
        test=score(kind, values, _targets(model, test)),
    )


def start_as_probe(model: AdaptedLM, data: UtteranceDataModule, kind: MetricKind) -> None:
    """Gives an untrained linear readout the weights of a linear probe.

    So training begins with what the language model knows already, beside pseudo tokens that are yet
    untrained. Intensities become the distribution of ridge regression: a normal one with the
    deviation of the residuals, at the legal intensities.

    Args:
        model: With a linear readout.
        data: See :func:`probe`.
        kind: Likewise.
    """
    readout = model.readout
    assert isinstance(readout, LinearReadout)
    found = _chosen(model, data, kind)
    if found is None:
        return
    scaler, linear = found.pipeline[0], found.pipeline[-1]
    coefficients = np.atleast_2d(linear.coef_) / scaler.scale_
    constants = np.atleast_1d(linear.intercept_) - coefficients @ scaler.mean_
    values = np.asarray(model.space.values)
    if model.space.ordered:
        variance = max(found.error**2, _LEAST_VARIANCE)
        weight = values[:, None] * coefficients / variance
        # Zero is one intensity, which scales with both signs write in two ways.
        same = (values[:, None] == values).sum(1)
        bias = (values * constants - values**2 / 2) / variance - np.log(same)
    else:
        if len(coefficients) == 1:  # of two classes scikit-learn has the difference alone
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            constants = np.concatenate([-constants, constants]) / 2
        # A class that training does not have stays improbable.
        weight = np.zeros((len(values), coefficients.shape[1]))
        bias = np.full(len(values), constants.min() + _UNSEEN)
        weight[linear.classes_], bias[linear.classes_] = coefficients, constants
    readout.start(torch.tensor(weight), torch.tensor(bias))


class _Probe(NamedTuple):
    """A linear model of last states, and the root of its mean squared error in validation."""

    pipeline: Pipeline
    error: float


def _chosen(model: AdaptedLM, data: UtteranceDataModule, kind: MetricKind) -> _Probe | None:
    """The linear model that does best in validation.

    None where training has but one label, or one state but for rounding, as without text before
    the pseudo tokens are trained.
    """
    space, train, valid = model.space, data.splits["train"], data.splits["valid"]
    taught: list[Any] = [_taught(model, label) for label in train.targets]
    if len(set(taught)) < 2:
        return None
    states, held_out = (last_states(model, part, data.eval_batch_size) for part in (train, valid))
    if states.std(axis=0).max() < _ROUNDING:
        return None
    targets = _targets(model, valid)
    metric = selection_metric(kind)
    best: tuple[float, _Probe] | None = None
    for strength in _STRENGTHS:
        learned = _learned(states, taught, strength, ordered=space.ordered)
        error = float(np.sqrt(np.mean((learned.predict(held_out) - np.asarray(targets)) ** 2)))
        found = _Probe(learned, error)
        value = score(kind, _answers(model, found, held_out), targets)[metric.name]
        if best is None or metric.better(value, best[0]):
            best = value, found
    assert best is not None
    return best[1]


@torch.no_grad()
def last_states(model: AdaptedLM, split: StoreSplit, batch_size: int) -> NDArray[np.float32]:
    """(N, d) the state from which the language model writes its answer, of each utterance."""
    order = np.argsort([-len(text) for text in split.texts], kind="stable")
    states = np.zeros((len(split), model.backbone.width), dtype=np.float32)
    was_training = model.training
    model.to(model.device).eval()  # Lightning leaves it on the CPU
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        states[rows] = model.last_states(split.batch(rows.tolist()).to(model.device)).cpu().numpy()
    model.train(was_training)
    return states


def _learned(
    states: NDArray[np.float32], labels: Sequence[Any], strength: float, *, ordered: bool
) -> Pipeline:
    linear = (
        Ridge(alpha=1 / strength) if ordered else LogisticRegression(C=strength, max_iter=_STEPS)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted: Pipeline = make_pipeline(StandardScaler(), linear).fit(states, labels)
    return fitted


def _answers(model: AdaptedLM, found: _Probe, states: NDArray[np.float32]) -> list[float]:
    """The numbers that metrics compare."""
    values = found.pipeline.predict(states)
    if model.space.ordered:
        values = np.clip(values, model.space.values[0], model.space.values[-1])
    return [float(value) for value in values]


def _targets(model: AdaptedLM, split: StoreSplit) -> list[float]:
    return [model.space.target(label) for label in split.targets]


def _taught(model: AdaptedLM, label: float | str) -> float | int:
    """What is learned of a label: the intensity, or the class number."""
    value = model.space.target(label)
    return value if model.space.ordered else int(value)
