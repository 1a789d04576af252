"""One variant of a benchmark, in a process of its own: what is timed, and how."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msea_lightning.adapter import Adapter
from msea_lightning.backbone import FrozenBackbone, resolve_device
from msea_lightning.config.roots import TrainConfig
from msea_lightning.cost.flops import UtteranceFlops, utterance_flops
from msea_lightning.data.utterance import Label
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.prompt import Prompt

Item = TypeVar("Item")


@dataclass(frozen=True)
class Timing:
    """Some batches, one after another.

    Attributes:
        seconds: How long they took.
        utterances: Utterances that were read.
        tokens: Tokens of their sequences, without padding.
        operations: Floating point operations that the frozen model needs for them: forward, and in
            training backward to its input, without padding and with the prefix cached.
    """

    seconds: float
    utterances: int
    tokens: int
    operations: float


class Variant(ABC):
    """One variant: something that trains and evaluates on the generated data.

    Args:
        config: All options.
        store: The data, prepared.
        published: The same data as it is published, as ``dataset.path`` names it; None where no
            variant reads it.

    Attributes:
        device: Where it computes.
        backbone: The frozen language model; this and the following once it has started.
        adapter: The adapter.
        prompt: The sequence layout.
        tree: The legal answers.
        optimizer: An optimizer for the adapter.
        methods: Owner and name of the methods in which ``backbone``, ``head`` and ``adapter``
            compute, for timing the stages of a step.
    """

    backbone: FrozenBackbone
    adapter: Adapter
    prompt: Prompt
    tree: AnswerTree
    optimizer: torch.optim.Optimizer
    methods: Mapping[str, tuple[object, str]]

    def __init__(self, config: TrainConfig, store: Path, published: Path | None) -> None:
        self.config = config
        self.store = store
        self.published = published
        self.device = resolve_device(config.trainer.accelerator)
        self._flops: dict[str, UtteranceFlops] = {}

    @abstractmethod
    def start(self, clock: StageClock) -> None:
        """Loads everything and takes the first training step.

        Args:
            clock: Times the stages of it.
        """

    @abstractmethod
    def train(self, steps: int, offset: float = 0.5) -> Timing:
        """Trains on some batches.

        Args:
            steps: How many; at most all.
            offset: Which of them, in [0, 1), where batches differ in cost: see :func:`evenly`.
        """

    @abstractmethod
    def evaluate(self, utterances: int, offset: float = 0.5) -> Timing:
        """Decodes some test utterances, metrics included.

        Args:
            utterances: How many, rounded up to whole batches; at most all.
            offset: Which of them, as in :meth:`train`.
        """

    @abstractmethod
    def _texts(self, split: str) -> tuple[NDArray[np.int64], list[Label]]:
        """(N,) tokens of the texts of a split, cut but without padding, and their N labels."""

    # ---- stages of a step --------------------------------------------------------------------

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
                clock.timing(*self.methods["backbone"], "backbone"),
                clock.timing(*self.methods["head"], "head", until_gradient=True),
                clock.during("step"),
            ):
                self._mean_loss(batch).backward()  # type: ignore[no-untyped-call]
            with clock.during("optimizer"):
                self.optimizer.step()
                self.optimizer.zero_grad()
        training = _with_rest(clock.seconds(), "adapter")
        # With gradient accumulation, one optimizer step is for several batches.
        training["optimizer"] /= self.config.trainer.accumulate
        clock = StageClock(self.device)
        for batch in self._few_batches("test", clock):
            with ExitStack() as stack:
                for stage, (owner, method) in self.methods.items():
                    stack.enter_context(clock.timing(owner, method, stage))
                with clock.during("step"):
                    self._decode(batch)
        return {"train": training, "evaluate": _with_rest(clock.seconds(), "decode")}

    # ---- counting ----------------------------------------------------------------------------

    def _timing(self, split: str, seconds: float, indices: Sequence[int]) -> Timing:
        """A timing of utterances at these positions in a split, those of all devices."""
        if split not in self._flops:
            prompt = copy.copy(self.prompt)
            prompt.pad_to, prompt.attend_padding = None, False  # padding does not count
            config, training = self.backbone.model.config, split == "train"
            self._flops[split] = utterance_flops(
                config, self.adapter, prompt, self.tree, training=training
            )
        read = list(indices)
        lengths, (texts, _) = self.lengths(split)[read], self._texts(split)
        operations = self._flops[split](texts[read]).sum()
        return Timing(seconds, len(lengths), int(lengths.sum()), float(operations))

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


def evenly(items: Sequence[Item], count: int, offset: float) -> list[Item]:
    """Of items in order of their cost, one out of each of ``count`` equal parts.

    Args:
        items: All items.
        count: How many are wanted; at most all.
        offset: How far into each part the wanted one lies, in [0, 1).
    """
    count = min(count, len(items))
    return [items[int((offset + number) * len(items) / count)] for number in range(count)]


@dataclass
class StageClock:
    """Adds up the time that the stages of a step take.

    A GPU works asynchronously; there, instants are events in its queue.

    Args:
        device: Where the steps are computed.
    """

    device: torch.device
    _spans: list[tuple[str, Any, Any]] = field(default_factory=list)

    def now(self) -> Any:
        """This instant."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def add(self, stage: str, since: Any) -> None:
        """Counts the time up to now."""
        self._spans.append((stage, since, self.now()))

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Counts the time of a block."""
        since = self.now()
        yield
        self.add(stage, since)

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, in the order in which stages first came."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        sums: dict[str, float] = {}
        for stage, since, until in self._spans:
            span = since.elapsed_time(until) / 1000 if self.device.type == "cuda" else until - since
            sums[stage] = sums.get(stage, 0.0) + span
        return sums

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
            since = self.now()
            result = original(*args, **kwargs)
            inputs = [item for item in args if isinstance(item, Tensor) and item.requires_grad]
            backward = bool(inputs) and result.requires_grad
            if not (backward and until_gradient):
                self.add(stage, since)
            if backward:
                starts = [since]
                if not until_gradient:
                    result.register_hook(lambda _: starts.append(self.now()))
                inputs[0].register_hook(  # type: ignore[no-untyped-call]
                    lambda _: self.add(stage, starts[-1])
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
