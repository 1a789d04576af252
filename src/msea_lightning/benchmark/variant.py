"""What a variant of the benchmark does, and how its batches and their stages are timed."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msea_lightning.adapter import Adapter
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.cost.step import StepMeter
from msea_lightning.data.utterance import Label
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.prompt import Prompt

Item = TypeVar("Item")

STAGED_BATCHES = 4
"""Batches whose stages are timed."""


@dataclass(frozen=True)
class Timing:
    """Some batches, one after another.

    Attributes:
        tokens: Tokens of the sequences, without padding.
        operations: Floating point operations that the frozen model needs for them: forward, and in
            training backward to its input, without padding and with the prefix cached.
    """

    seconds: float
    utterances: int
    tokens: int
    operations: float


@dataclass(eq=False)
class Variant(ABC):
    """Something that trains and evaluates on the generated data."""

    backbone: FrozenBackbone
    adapter: Adapter
    prompt: Prompt
    tree: AnswerTree
    optimizer: torch.optim.Optimizer
    batch_size: int
    accumulate: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.backbone.device

    def first_step(self) -> None:
        """Takes a training step that is not measured."""
        self._train(1, 0.5)

    def train(self, batches: int, offset: float = 0.5) -> Timing:
        """Trains on some batches, at most all; the offset says which: see :func:`evenly`."""
        return self._timing("train", *self._train(batches, offset))

    def evaluate(self, batches: int, offset: float = 0.5) -> Timing:
        """Decodes as many test utterances as so many training batches have, metrics included."""
        return self._timing("test", *self._evaluate(batches * self.batch_size, offset))

    @abstractmethod
    def _train(self, batches: int, offset: float) -> tuple[float, list[int]]:
        """Seconds of training, and the positions of the utterances in their split."""

    @abstractmethod
    def _evaluate(self, utterances: int, offset: float) -> tuple[float, list[int]]:
        """Seconds of decoding whole batches, and the positions of the utterances in their split."""

    @abstractmethod
    def _texts(self, split: str) -> tuple[NDArray[np.int64], list[Label]]:
        """(N,) tokens of the texts of a split, cut but without padding, and their N labels."""

    @property
    @abstractmethod
    def _methods(self) -> Mapping[str, tuple[object, str]]:
        """Owner and name of the methods in which backbone, head and adapter compute."""

    @abstractmethod
    def _few_batches(self, split: str, clock: StageClock) -> Sequence[Any]:
        """A few batches, whose loading is timed as the stage ``data``."""

    @abstractmethod
    def _mean_loss(self, batch: Any) -> Tensor:
        """The loss of a batch."""

    @abstractmethod
    def _decode(self, batch: Any) -> object:
        """The answers to a batch."""

    def stages(self) -> dict[str, dict[str, float]]:
        """Seconds of each stage over a few batches, in training forward and backward together."""
        return {
            "train": self._stages("train", ("backbone", "head"), rest="adapter"),
            "evaluate": self._stages("test", ("backbone", "head", "adapter"), rest="decode"),
        }

    def _stages(self, split: str, watched: Sequence[str], rest: str) -> dict[str, float]:
        clock = StageClock(self.device)
        for batch in self._few_batches(split, clock):
            with ExitStack() as stack:
                for stage in watched:
                    stack.enter_context(clock.timing(*self._methods[stage], stage))
                stack.enter_context(clock.during(rest))
                if split == "train":
                    self._mean_loss(batch).backward()  # type: ignore[no-untyped-call]
                else:
                    self._decode(batch)
            if split == "train":
                with clock.during("optimizer"):
                    self.optimizer.step()
                    self.optimizer.zero_grad()
        found = clock.seconds
        found[rest] = max(0.0, found[rest] - sum(found[stage] for stage in watched))
        if split == "train":
            found["optimizer"] /= self.accumulate
        return found

    def _timing(self, split: str, seconds: float, read: list[int]) -> Timing:
        texts = self._texts(split)[0][read]
        operations = self._meter.flops(texts, training=split == "train").sum()
        tokens = int(self.lengths(split)[read].sum())
        return Timing(seconds, len(read), tokens, float(operations))

    @cached_property
    def _meter(self) -> StepMeter:
        prompt = copy.copy(self.prompt)
        prompt.pad_to, prompt.attend_padding = None, False  # padding does not count
        return StepMeter(self.backbone.model.config, self.adapter, prompt, self.tree, {})

    def lengths(self, split: str) -> NDArray[np.int64]:
        """(N,) tokens of the sequences of a split, without padding; in training with the label."""
        tokens, labels = self._texts(split)
        prompt = self.prompt
        fixed = prompt.longest - prompt.most_context - (prompt.pad_to or prompt.text_tokens)
        lengths = tokens * self.adapter.use_text + fixed
        if split == "train":
            # The last token of a label is predicted, and not read.
            lengths = lengths + np.array([len(self.tree.ids(label)) - 1 for label in labels])
        return lengths


def now(device: torch.device) -> float:
    """This instant in seconds, once a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def evenly(items: Sequence[Item], count: int, offset: float) -> list[Item]:
    """Of items in order of their cost, one out of each of ``count`` equal parts, at most all.

    The offset, in [0, 1), says how far into each part the wanted one lies.
    """
    count = min(count, len(items))
    return [items[int((offset + number) * len(items) / count)] for number in range(count)]


@dataclass(eq=False)
class StageClock:
    """Adds up the seconds that each stage of a step takes on a device."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Counts the time of a block."""
        since = now(self.device)
        yield
        self._add(stage, since)

    def _add(self, stage: str, since: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now(self.device) - since

    @contextmanager
    def timing(self, owner: object, method: str, stage: str) -> Iterator[None]:
        """Counts the calls of a method, and its backward pass.

        That ends with the gradient of the first argument that has one. Between forward and backward
        of the head comes the loss alone, which counts with it.
        """
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            starts = [now(self.device)]
            result = original(*args, **kwargs)
            inputs = [item for item in args if isinstance(item, Tensor) and item.requires_grad]
            backward = bool(inputs) and result.requires_grad
            if not (backward and stage == "head"):
                self._add(stage, starts[0])
                if backward:
                    result.register_hook(lambda _: starts.append(now(self.device)))
            if backward:
                inputs[0].register_hook(  # type: ignore[no-untyped-call]
                    lambda _: self._add(stage, starts[-1])
                )
            return result

        setattr(owner, method, timed)
        try:
            yield
        finally:
            delattr(owner, method)
