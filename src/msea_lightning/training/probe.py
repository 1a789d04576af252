"""What a frozen language model knows without having to say it: a linear model of its last state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.store import StoreSplit
from msea_lightning.data.utterance import MAIN_LABEL
from msea_lightning.metrics import score, selection_metric
from msea_lightning.metrics.options import MetricKind
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.training.references import Reference

_STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0)
"""Inverse strengths of the regularisation that validation chooses from."""

_STEPS = 1000


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
    space, splits = model.space, data.splits
    labelled = [
        n for n, label in enumerate(splits["train"].labels[MAIN_LABEL]) if label is not None
    ]
    train = splits["train"].select(labelled)
    taught: list[Any] = [_taught(model, label) for label in train.targets]
    if len(set(taught)) < 2:
        return None
    size = data.eval_batch_size
    states = {
        name: last_states(model, part, size) for name, part in {**splits, "train": train}.items()
    }
    metric = selection_metric(kind)
    found: tuple[float, Pipeline] | None = None
    for strength in _STRENGTHS:
        learned = _learned(states["train"], taught, strength, ordered=space.ordered)
        value = score(
            kind, _answers(model, learned, states["valid"]), _targets(model, splits["valid"])
        )
        if found is None or metric.better(value[metric.name], found[0]):
            found = value[metric.name], learned
    assert found is not None
    values = _answers(model, found[1], states["test"])
    return Reference(
        name="linear probe",
        kind="state",
        answers=[space.label(value) for value in values],
        test=score(kind, values, _targets(model, splits["test"])),
    )


@torch.no_grad()
def last_states(model: AdaptedLM, split: StoreSplit, batch_size: int) -> NDArray[np.float32]:
    """(N, d) the state from which the language model writes its answer, of each utterance."""
    order = np.argsort([-len(text) for text in split.texts], kind="stable")
    states = np.zeros((len(split), model.backbone.width), dtype=np.float32)
    was_training = model.training
    model.eval()
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


def _answers(model: AdaptedLM, learned: Pipeline, states: NDArray[np.float32]) -> list[float]:
    """The numbers that metrics compare."""
    values = learned.predict(states)
    if model.space.ordered:
        values = np.clip(values, model.space.values[0], model.space.values[-1])
    return [float(value) for value in values]


def _targets(model: AdaptedLM, split: StoreSplit) -> list[float]:
    return [model.space.target(label) for label in split.targets]


def _taught(model: AdaptedLM, label: float | str) -> float | int:
    """What is learned of a label: the intensity, or the class number."""
    value = model.space.target(label)
    return value if model.space.ordered else int(value)
