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
"""Most bytes that a batch may take by :class:`_Size`, unless it is a single utterance."""

_LARGEST = 1e30
"""Features beyond this overflow in the adapter."""


_NOTHING: NDArray[np.int32] = np.empty(0, dtype=np.int32)


class Question(NamedTuple):
    """One utterance for one of the attached plugins.

    Attributes:
        number: Its place among those that are asked at once.
        model: The attached plugin.
        name: Its name.
        utterance: The utterance, with its features unless batches are only planned.
        tokens: Token ids of its text, uncut.
        lengths: Name of each of its features to the number of frames.
        context: Token ids of what was said before; none where the plugin reads no context.
    """

    number: int
    model: AdaptedLM
    name: str
    utterance: Utterance
    tokens: NDArray[np.int32]
    lengths: Mapping[str, int]
    context: NDArray[np.int32] = _NOTHING


def check(utterance: Utterance, model: AdaptedLM) -> None:
    """Refuses what a plugin cannot read.

    Raises:
        DataError: if features have another number of values per frame than in training, or hold NaN
            or infinity, or there is nothing to read.
    """
    who = f"utterance {utterance.id!r}"
    for name, frames in utterance.features.items():
        expected = model.dims.get(name)
        if expected is None:
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
    around = {question.name: _around(question.model) for question in questions}
    taken = _Size()
    for question in _in_order(questions):
        grown = taken.with_one(question, around[question.name])
        if batch and (len(batch) == size or grown.bytes(question.model) > _BYTES_AT_ONCE):
            yield batch
            batch = []
            grown = _Size().with_one(question, around[question.name])
        batch.append(question)
        taken = grown
    if batch:
        yield batch


def collate(questions: Sequence[Question]) -> Batch:
    """The batch of questions to one plugin."""
    utterances = [question.utterance for question in questions]
    model = questions[0].model
    contexts = [question.context for question in questions]
    return Batch(
        index=torch.tensor([question.number for question in questions]),
        ids=[utterance.id for utterance in utterances],
        texts=[utterance.text for utterance in utterances],
        labels={},
        features={
            name: pad([utterance.features.get(name) for utterance in utterances], dim)
            for name, dim in model.dims.items()
        },
        groups=[utterance.group for utterance in utterances],
        speakers=[utterance.speaker for utterance in utterances],
        positions=torch.zeros(len(utterances), dtype=torch.int64),
        tokens=[question.tokens for question in questions],
        contexts=contexts if model.prompt.most_context else None,
    )


class _Size(NamedTuple):
    """What decides how much a batch takes, kept while it grows: the most of each, in any question.

    Attributes:
        questions: How many there are.
        around: Tokens besides the text and what was said before.
        text: Tokens of these that are read.
        frames: Frames of each feature.
        dims: Values per frame of each feature.
    """

    questions: int = 0
    around: int = 0
    text: int = 0
    frames: Mapping[str, int] = {}
    dims: Mapping[str, int] = {}

    def with_one(self, question: Question, around: int) -> _Size:
        """The size with one question more."""
        return _Size(
            self.questions + 1,
            max(self.around, around),
            max(self.text, _read(question)),
            _most(self.frames, question.lengths),
            _most(self.dims, question.model.dims),
        )

    def bytes(self, model: AdaptedLM) -> int:
        """About what it takes besides the models: one layer's activations, and features."""
        config: Any = model.backbone.model.config.get_text_config()
        width = model.backbone.width
        inner: int = getattr(config, "intermediate_size", None) or 4 * width
        tokens = self.around + self.text
        values = sum(self.frames.get(name, 0) * dim for name, dim in self.dims.items())
        return self.questions * 4 * (tokens * (6 * width + 3 * inner + tokens) + 3 * values)


def _most(one: Mapping[str, int], other: Mapping[str, int]) -> Mapping[str, int]:
    """The larger of two numbers under each name."""
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {*one, *other}}


def _around(model: AdaptedLM) -> int:
    """Most tokens of a sequence besides text and context, those of the answers included."""
    prompt = model.prompt
    return prompt.longest - prompt.text_tokens - prompt.most_context + len(model.tree)


def _in_order(questions: Sequence[Question]) -> list[Question]:
    read = np.array([_read(question) for question in questions], dtype=np.int64)
    frames = np.array([_frames(question) for question in questions], dtype=np.int64)
    costs = reading_costs(read, frames)
    plugins = {name: number for number, name in enumerate(dict.fromkeys(q.name for q in questions))}
    numbers = np.array([plugins[question.name] for question in questions], dtype=np.int64)
    return [questions[index] for index in np.lexsort((-costs, numbers)).tolist()]


def _read(question: Question) -> int:
    """Tokens of the text, and of what was said before, that are read."""
    text = min(len(question.tokens), question.model.prompt.text_tokens)
    return text + len(question.context)


def _frames(question: Question) -> int:
    return sum(question.lengths.values())
