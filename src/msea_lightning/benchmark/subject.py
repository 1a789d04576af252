"""What a benchmark measures: one variant, in one process."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from msea_lightning.config.roots import TrainConfig
from msea_lightning.cost.flops import UtteranceFlops

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Round:
    """Some batches, one after another.

    Attributes:
        seconds: How long it took.
        utterances: Utterances that were read.
        tokens: Tokens of their sequences, padding not counted.
        operations: Floating point operations that the frozen model needs for them: forward, and in
            training backward to its input, without padding and with the opening read beforehand.
    """

    seconds: float
    utterances: int
    tokens: int
    operations: float


@dataclass(frozen=True)
class Material:
    """The generated data.

    Attributes:
        store: Folder of the store.
        published: The same data as it is published, as ``dataset.path`` names it; None where no
            variant reads it.
    """

    store: Path
    published: Path | None


@dataclass(frozen=True)
class Workload:
    """What there is to compute.

    Attributes:
        language: The language model's architecture.
        dtype: What it computes in.
        weights: Bytes of its weights.
        labels: Label tokens of an utterance.
        nodes: Nodes of the answer tree.
        opening: Tokens that all sequences begin with, which need to be read once only.
        train: (N,) tokens of the training sequences, without padding.
        test: (M,) tokens of the test sequences, without padding and answers.
    """

    language: PretrainedConfig
    dtype: torch.dtype
    weights: int
    labels: int
    nodes: int
    opening: int
    train: NDArray[np.int64]
    test: NDArray[np.int64]


class Subject(ABC):
    """One variant.

    Args:
        config: All options.
        material: The data.
    """

    def __init__(self, config: TrainConfig, material: Material) -> None:
        self.config = config
        self.material = material
        self._flops: dict[str, UtteranceFlops] = {}

    @abstractmethod
    def start(self, clock: StageClock) -> None:
        """Loads everything and takes the first training step.

        Args:
            clock: Notes the seconds of each stage of it.
        """

    @abstractmethod
    def train(self, steps: int, beginning: float = 0.5) -> Round:
        """Trains on some batches; all where there are no more.

        Args:
            steps: How many.
            beginning: Which of them, in [0, 1): where batches cost differently, the order of their
                cost is cut into as many parts as are wanted, and the one so far into each is taken.
        """

    @abstractmethod
    def evaluate(self, utterances: int, beginning: float = 0.5) -> Round:
        """Decodes some test utterances, metrics included.

        Args:
            utterances: How many, rounded up to whole batches; all where there are no more.
            beginning: Which of them, as in :meth:`train`.
        """

    @abstractmethod
    def stages(self) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds of each stage, in training and in evaluation, over a few batches each.

        Forward and backward are one stage where they belong to the same part.
        """

    def measured(self, split: str, seconds: float, read: Sequence[int]) -> Round:
        """A round.

        Args:
            split: ``train`` or ``test``.
            seconds: How long it took.
            read: Positions of the utterances in the split, of all devices.
        """
        work, training = self.workload(), split == "train"
        lengths = (work.train if training else work.test)[list(read)]
        if split not in self._flops:
            kind = {"labels": work.labels} if training else {"nodes": work.nodes}
            self._flops[split] = UtteranceFlops(work.language, **kind)
        operations = self._flops[split](lengths, read_before=work.opening).sum()
        return Round(seconds, len(lengths), int(lengths.sum()), float(operations))

    @abstractmethod
    def workload(self) -> Workload:
        """What has to be computed of the data, whatever is computed beyond that."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""


@dataclass
class StageClock:
    """Adds up the time that the stages of a step take.

    On a GPU, which works on while the program goes ahead, instants are events in its queue.

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

    def add(self, stage: str, since: Any, until: Any = None) -> None:
        """Counts a span of time, up to now where no end is given."""
        self._spans.append((stage, since, self.now() if until is None else until))

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
    def watching(
        self, owner: Any, method: str, stage: str, *, to_the_end: bool = False
    ) -> Iterator[None]:
        """Counts the calls of a method of an object, and the gradient's way back through it.

        Args:
            owner: The object.
            method: The method's name. The gradient is that of its first argument with one.
            stage: What to count it as.
            to_the_end: What follows belongs to it: everything counts from the call to the gradient.
        """
        own: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            since = self.now()
            result = own(*args, **kwargs)
            entering = [item for item in args if isinstance(item, Tensor) and item.requires_grad]
            if not (entering and result.requires_grad):
                self.add(stage, since)
            elif to_the_end:
                _on_gradient(entering[0], lambda: self.add(stage, since))
            else:
                self.add(stage, since)
                arrived: list[Any] = []
                _on_gradient(result, lambda: arrived.append(self.now()))
                _on_gradient(entering[0], lambda: self.add(stage, arrived[-1]))
            return result

        setattr(owner, method, timed)
        try:
            yield
        finally:
            delattr(owner, method)


def _on_gradient(tensor: Tensor, act: Callable[[], None]) -> None:
    tensor.register_hook(lambda _: act())  # type: ignore[no-untyped-call]


def weight_bytes(model: nn.Module) -> int:
    """Bytes that the parameters and buffers of a model take."""
    tensors = [*model.parameters(), *model.buffers()]
    sizes = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}
    return sum(sizes.values())


def rest(stages: dict[str, float], whole: str, name: str) -> dict[str, float]:
    """The stages with what of the whole they leave as a stage of its own.

    Args:
        stages: Seconds by stage, the whole among them.
        whole: The stage that the others are parts of, except ``data`` and ``optimizer``.
        name: What to call the rest.
    """
    parts = {stage: seconds for stage, seconds in stages.items() if stage != whole}
    inside = sum(seconds for stage, seconds in parts.items() if stage not in _OUTSIDE)
    return {**parts, name: max(0.0, stages[whole] - inside)}


_OUTSIDE = frozenset({"data", "optimizer"})
"""Stages of a step that lie before and behind the computation."""
