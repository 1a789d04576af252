"""Utterances to batches: what is checked of them, and which go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from msea_lightning.data.sampler import reading_costs
from msea_lightning.data.utterance import Batch, DataError, Utterance, pad
from msea_lightning.model.adapted_lm import AdaptedLM

_BYTES_AT_ONCE = 1 << 30
"""Most bytes that a batch may take by :func:`_bytes`, unless it is a single utterance."""

_LARGEST = 1e30
"""Features beyond this overflow in the adapter."""


class Question(NamedTuple):
    """One utterance for one of the attached plugins.

    Attributes:
        number: Its place among those that are asked at once.
        model: The attached plugin.
        name: Its name.
        utterance: The utterance, with its features unless batches are only planned.
        tokens: Token ids of its text, uncut.
        lengths: Name of each of its features to the number of frames.
    """

    number: int
    model: AdaptedLM
    name: str
    utterance: Utterance
    tokens: NDArray[np.int32]
    lengths: Mapping[str, int]


def check(utterance: Utterance, model: AdaptedLM) -> None:
    """Refuses what a plugin cannot read.

    Raises:
        DataError: if features have another number of values per frame than in training, or hold NaN
            or infinity, or there is nothing to read.
    """
    who = f"utterance {utterance.id!r}"
    for name, frames in utterance.features.items():
        expected = _dim(model, name)
        if not expected:
            raise DataError(
                f"{who} has {name} features, but the plugin was trained without any: leave them "
                "out."
            )
        if frames.shape[1] != expected:
            raise DataError(
                f"{who} has {frames.shape[1]} {name} features per frame, but the plugin was "
                f"trained on {expected}: extract them as for its training."
            )
        usable = np.abs(frames) < _LARGEST  # neither are NaN and infinity
        if not usable.all():
            frame, value = np.argwhere(~usable)[0]
            raise DataError(
                f"{who}: frame {frame} of {name} has {frames[frame, value]:g} as its value "
                f"{value}: replace what is not finite or beyond {_LARGEST:g}, or leave the "
                "modality out."
            )
    if not utterance.text.strip() and not utterance.features:
        raise DataError(f"{who} has neither a text nor features: give at least one of them.")


def batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Divides questions into batches, those of a plugin one after another, the longest first.

    With one plugin they are the batches in which a run tests these utterances, so that answers
    equal the run's to the last digit. A batch holds several plugins where one has no full batch
    left. It is smaller than ``size`` where it would take too much memory.
    """
    batch: list[Question] = []
    for question in _in_order(questions):
        if batch and (len(batch) == size or _bytes([*batch, question]) > _BYTES_AT_ONCE):
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch


def collate(questions: Sequence[Question]) -> Batch:
    """The batch of questions to one plugin."""
    utterances = [question.utterance for question in questions]
    model = questions[0].model
    return Batch(
        index=torch.tensor([question.number for question in questions]),
        ids=[utterance.id for utterance in utterances],
        texts=[utterance.text for utterance in utterances],
        labels={},
        features={
            name: pad([utterance.features.get(name) for utterance in utterances], dim)
            for name in model.reads
            if (dim := _dim(model, name))
        },
        groups=[utterance.group for utterance in utterances],
        speakers=[utterance.speaker for utterance in utterances],
        positions=torch.zeros(len(utterances), dtype=torch.int64),
        tokens=[question.tokens for question in questions],
    )


def _dim(model: AdaptedLM, name: str) -> int:
    """Values per frame of a feature that a plugin reads; 0 where it reads none of that name."""
    found = model.adapter.options().get(f"{name}_dim") if name in model.reads else None
    return int(found or 0)


def _in_order(questions: Sequence[Question]) -> list[Question]:
    read = np.array([_read(question) for question in questions], dtype=np.int64)
    frames = np.array([_frames(question) for question in questions], dtype=np.int64)
    costs = reading_costs(read, frames)
    plugins = {name: number for number, name in enumerate(dict.fromkeys(q.name for q in questions))}
    numbers = np.array([plugins[question.name] for question in questions], dtype=np.int64)
    return [questions[index] for index in np.lexsort((-costs, numbers)).tolist()]


def _read(question: Question) -> int:
    """Tokens of the text that are read."""
    return min(len(question.tokens), question.model.prompt.text_tokens)


def _frames(question: Question) -> int:
    return sum(question.lengths.values())


def _bytes(batch: Sequence[Question]) -> int:
    """About what a batch takes besides the models: one layer's activations, and features."""
    backbone = batch[0].model.backbone
    config: Any = backbone.model.config.get_text_config()
    width = backbone.width
    inner: int = getattr(config, "intermediate_size", None) or 4 * width
    prompts = max(
        question.model.prompt.longest - question.model.prompt.text_tokens + len(question.model.tree)
        for question in batch
    )
    tokens = prompts + max(map(_read, batch))
    longest = sum(
        max(question.lengths.get(name, 0) for question in batch) * dim
        for name in batch[0].model.reads
        for dim in [max(_dim(question.model, name) for question in batch)]
    )
    return len(batch) * 4 * (tokens * (6 * width + 3 * inner + tokens) + 3 * longest)
