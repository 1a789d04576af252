"""What a variant of the benchmark does, and how its batches and their stages are timed."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Timing:
    """Some batches, one after another.

    Attributes:
        seconds: How long they took.
        utterances: Utterances that were read, on all devices.
        tokens: Tokens of their sequences, without padding.
        operations: Floating point operations that the frozen model needs for them: forward, and in
            training backward to its input, without padding and with the prefix cached.
    """

    seconds: float
    utterances: int
    tokens: int
    operations: float


@dataclass(eq=False)
class Variant(ABC):
    """Something that trains and evaluates on the generated data.

    Attributes:
        backbone: The frozen language model.
        adapter: The adapter.
        prompt: The sequence layout.
        tree: The legal answers.
        optimizer: An optimizer for the adapter.
        accumulate: Batches for each of its steps.
    """

    backbone: FrozenBackbone
    adapter: Adapter
    prompt: Prompt
    tree: AnswerTree
    optimizer: torch.optim.Optimizer
    accumulate: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.backbone.device

    def first_step(self) -> None:
        """Takes a training step that is not measured."""
        self._train(1, 0.5)

    def train(self, steps: int, offset: float = 0.5) -> Timing:
        """Trains on some batches.

        Args:
            steps: How many; at most all.
            offset: Which of them, in [0, 1), where batches differ in cost: see :func:`evenly`.
        """
        return self._timing("train", *self._train(steps, offset))

    def evaluate(self, utterances: int, offset: float = 0.5) -> Timing:
        """Decodes some test utterances, metrics included.

        Args:
            utterances: How many, rounded up to whole batches; at most all.
            offset: Which of them, as in :meth:`train`.
        """
        return self._timing("test", *self._evaluate(utterances, offset))

    @abstractmethod
    def _train(self, steps: int, offset: float) -> tuple[float, Sequence[int]]:
        """Seconds of training, and the positions of the utterances in their split."""

    @abstractmethod
    def _evaluate(self, utterances: int, offset: float) -> tuple[float, Sequence[int]]:
        """Seconds of an evaluation, and the positions of the utterances in their split."""

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
        """Seconds of each stage over a few batches, in training and in evaluation.

        In training, forward and backward of a part count together, and the adapter is what is left.
        """
        clock = StageClock(self.device)
        for batch in self._few_batches("train", clock):
            with (
                clock.timing(*self._methods["backbone"], "backbone"),
                clock.timing(*self._methods["head"], "head", until_gradient=True),
                clock.during("step"),
            ):
                self._mean_loss(batch).backward()  # type: ignore[no-untyped-call]
            with clock.during("optimizer"):
                self.optimizer.step()
                self.optimizer.zero_grad()
        training = _with_rest(clock.seconds, "adapter")
        training["optimizer"] /= self.accumulate
        clock = StageClock(self.device)
        for batch in self._few_batches("test", clock):
            with ExitStack() as stack:
                for stage, (owner, method) in self._methods.items():
                    stack.enter_context(clock.timing(owner, method, stage))
                with clock.during("step"):
                    self._decode(batch)
        return {"train": training, "evaluate": _with_rest(clock.seconds, "decode")}

    def _timing(self, split: str, seconds: float, read: Sequence[int]) -> Timing:
        texts = self._texts(split)[0][list(read)]
        operations = self._meter.flops(texts, training=split == "train").sum()
        tokens = int(self.lengths(split)[list(read)].sum())
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
        fixed = prompt.longest - (prompt.pad_to or prompt.text_tokens)
        lengths = tokens * self.adapter.use_text + fixed
        if split == "train":
            # The last token of a label is predicted, and not read.
            lengths = lengths + np.array([len(self.tree.ids(label)) - 1 for label in labels])
        return lengths

    def weight_bytes(self) -> int:
        """Bytes that the weights of the language model take."""
        model = self.backbone.model
        tensors = [*model.parameters(), *model.buffers()]
        sizes = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}
        return sum(sizes.values())


def now(device: torch.device) -> float:
    """This instant in seconds, once a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def evenly(items: Sequence[Item], count: int, offset: float) -> list[Item]:
    """Of items in order of their cost, one out of each of ``count`` equal parts.

    Args:
        items: All items.
        count: How many are wanted; at most all.
        offset: How far into each part the wanted one lies, in [0, 1).
    """
    count = min(count, len(items))
    return [items[int((offset + number) * len(items) / count)] for number in range(count)]


class StageClock:
    """Adds up the time that the stages of a step take.

    Args:
        device: Where the steps are computed.

    Attributes:
        seconds: Of each stage, in the order in which stages first came.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Counts the time of a block."""
        since = now(self._device)
        yield
        self._add(stage, since)

    def _add(self, stage: str, since: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now(self._device) - since

    @contextmanager
    def timing(
        self, owner: object, method: str, stage: str, *, until_gradient: bool = False
    ) -> Iterator[None]:
        """Counts the calls of a method of an object, and its part of the backward pass.

        Args:
            owner: The object.
            method: Name of the method; its backward pass ends with the gradient of the first
                argument that has one.
            stage: What to count it as.
            until_gradient: Count everything from the call to that gradient: nothing comes between.
        """
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            since = now(self._device)
            result = original(*args, **kwargs)
            inputs = [item for item in args if isinstance(item, Tensor) and item.requires_grad]
            backward = bool(inputs) and result.requires_grad
            if not (backward and until_gradient):
                self._add(stage, since)
            if backward:
                starts = [since]
                if not until_gradient:
                    result.register_hook(lambda _: starts.append(now(self._device)))
                inputs[0].register_hook(  # type: ignore[no-untyped-call]
                    lambda _: self._add(stage, starts[-1])
                )
            return result

        setattr(owner, method, timed)
        try:
            yield
        finally:
            delattr(owner, method)


def _with_rest(stages: Mapping[str, float], name: str) -> dict[str, float]:
    """The stages, with the rest of ``step`` as one of its own in its place."""
    parts = {stage: seconds for stage, seconds in stages.items() if stage != "step"}
    inside = sum(seconds for stage, seconds in parts.items() if stage not in ("data", "optimizer"))
    return {**parts, name: max(0.0, stages["step"] - inside)}
