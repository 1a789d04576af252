"""How much memory a run will take, estimated before its backbone is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from msea_lightning.adapter import FeatureStandardizer
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.loading.load import compute_dtype
from msea_lightning.backbone.loading.memory import (
    HEADROOM,
    Stored,
    architecture_on_meta,
    free_bytes,
    process_bytes,
    quantizable_layers,
    readable_bytes,
    refuse_unless_fits,
    smaller,
    weight_memory,
)
from msea_lightning.backbone.options import Quantization
from msea_lightning.config.roots import TrainConfig
from msea_lightning.cost.step import BatchSize, StepMeter
from msea_lightning.data.options import EVALUATION_BATCH, LabelConfig
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.build import build_adapter, build_prompt, trainable

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_LIBRARIES = 40 << 20
"""Allowance for what libraries load and allocate on their first use, on any device."""

_FRAGMENTATION = 1.5
"""Resident bytes on a CPU for every byte of tensors at the peak. An allocator keeps what is freed
between blocks in use, and batches of other lengths do not always fit there: between 1.2 and 2
times were measured (docs/log.md), so the activations of an estimate are right within a third."""

_METERS: dict[str, StepMeter] = {}
"""The meters of this process, by all that they measure. They hold no numbers."""

_METERS_KEPT = 8

_FLOAT = 4
"""Bytes of a float32, in which features are stored and the adapter computes."""

_LARGEST_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class SplitSize:
    """How much there is of a split.

    Attributes:
        utterances: Their number.
        text: Tokens of the longest text, uncut.
        frames: Frames of the longest sequence of each feature, by name.
        all_frames: Frames of all utterances together, by name.
    """

    utterances: int
    text: int
    frames: Mapping[str, int]
    all_frames: Mapping[str, int]

    @classmethod
    def of(cls, tokens: Sequence[Sized], lengths: Mapping[str, NDArray[np.int64]]) -> SplitSize:
        """The size of a split whose utterances are at hand.

        Args:
            tokens: Token ids of each text.
            lengths: (N,) frames of each utterance, by the name of the feature.
        """
        return cls(
            len(tokens),
            max(map(len, tokens), default=0),
            {name: int(frames.max(initial=0)) for name, frames in lengths.items()},
            {name: int(frames.sum()) for name, frames in lengths.items()},
        )


@dataclass(frozen=True)
class DataSize:
    """What an estimate needs to know of a data set.

    Attributes:
        splits: ``train``, ``valid`` and ``test``.
        dims: Values per frame of each feature, by name.
        labels: The label space, with nothing left to infer.
    """

    splits: Mapping[str, SplitSize]
    dims: Mapping[str, int]
    labels: LabelConfig


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process of a run takes on its device, by what takes them.

    On a CPU, where they are resident memory, activations include what the allocator keeps.

    Attributes:
        process: What the process holds already, and what its libraries add.
        weights: The frozen language model.
        activations: Of the largest training or evaluation batch, at the peak of a step.
        adapter: The adapter's weights and their gradients.
        optimizer: The two moments of AdamW.
        loading: What loading takes beyond the weights; it is freed before training begins.
        files: Resident pages of files, which the system drops when memory is short: the data
            set's, and those of a checkpoint that is converted.
        loading_files: Further pages of files while loading.
    """

    process: int
    weights: int
    activations: int
    adapter: int
    optimizer: int
    loading: int
    files: int
    loading_files: int

    @property
    def total(self) -> int:
        """The peak, of loading or of a step."""
        step = self.activations + self.adapter + self.optimizer
        loading = self.loading + self.loading_files
        return self.process + self.weights + self.files + max(step, loading)

    @property
    def needed(self) -> int:
        """What must be free for the run: without what is there, and what the system can drop."""
        step = self.activations + self.adapter + self.optimizer
        return self.weights + max(step, self.loading)

    def __str__(self) -> str:
        """One line with all parts."""
        parts = {
            "weights": self.weights,
            "activations": self.activations,
            "adapter": self.adapter,
            "optimizer": self.optimizer,
            "process and libraries": self.process,
            "file pages": self.files,
            "loading": self.loading + self.loading_files,
        }
        listed = ", ".join(f"{name} {readable_bytes(size)}" for name, size in parts.items() if size)
        return f"about {readable_bytes(self.total)} at its peak: {listed}"

    def report(
        self, trainable_parameters: int, eval_batch_size: int, measured: int | None = None
    ) -> dict[str, Any]:
        """Everything in bytes, as ``memory.json`` has it.

        Args:
            trainable_parameters: Of the adapter.
            eval_batch_size: Utterances per evaluation batch and device.
            measured: The measured peak, where the run has ended.
        """
        return {
            "trainable_parameters": trainable_parameters,
            "eval_batch_size": eval_batch_size,
            "parts": asdict(self),
            "total": self.total,
            "measured_peak": measured,
        }


class MemoryEstimator:
    """Estimates the memory of a run and of its variations.

    Args:
        config: All options of the run.
        data: How much data there is.
        tokenizer: The backbone's tokenizer.
        language: The backbone's architecture.
        device: Where the run is to go.

    Attributes:
        language: The backbone's architecture.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: DataSize,
        tokenizer: PreTrainedTokenizerBase,
        language: PretrainedConfig,
        device: torch.device,
    ) -> None:
        self._config = config
        self._data = data
        self._tokenizer = tokenizer
        self.language = language
        self._device = device
        self._stored = Stored(
            compute_dtype(config.backbone.dtype, device),
            config.backbone.quantization,
            config.backbone.double_quantization,
            config.backbone.weights,
        )
        if config.backbone.quantization is not Quantization.none:
            with suppress(ImportError):
                # It is a part of the process, and of its memory, from now on.
                import bitsandbytes  # noqa: F401
        self._prompt, self._tree = build_prompt(
            tokenizer,
            data.labels,
            config.dataset,
            config.backbone,
            config.adapter,
            config.text,
            config.prompt,
        )
        with torch.device("meta"):
            self._adapter = build_adapter(
                config.adapter,
                config.ablation,
                width=language.get_text_config().hidden_size,
                dims=data.dims,
            )

    @property
    def trainable(self) -> int:
        """Parameters of the adapter."""
        return trainable(self._adapter)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, the label not counted."""
        return self._prompt.longest

    @cached_property
    def eval_batch_size(self) -> int:
        """Utterances per evaluation batch and device.

        Where none is given: on a GPU, which is faster the more it has to do, the largest power of
        two up to 256 whose batch takes no more memory than a training step.
        """
        return self._eval_batch_size(self._stored)

    def _eval_batch_size(self, stored: Stored) -> int:
        training = self._config.training
        if training.eval_batch_size is not None:
            return training.eval_batch_size
        if self._device.type == "cpu":
            return EVALUATION_BATCH
        step = self._train_bytes(stored, training.batch_size)
        size = _LARGEST_EVALUATION_BATCH
        while size > 1 and self._evaluation_bytes(stored, size) > step:
            size //= 2
        return size

    def estimate(
        self,
        *,
        stored: Stored | None = None,
        batch_size: int | None = None,
        eval_batch_size: int | None = None,
    ) -> MemoryEstimate:
        """The estimate of the run as configured, or with a change.

        Args:
            stored: How the backbone's weights are kept.
            batch_size: Utterances per training batch, all devices together.
            eval_batch_size: Utterances per evaluation batch and device.

        Raises:
            BackboneError: if the architecture does not run without numbers.
        """
        stored = stored or self._stored
        weights = weight_memory(self.language, stored, self._device)
        train = self._train_bytes(stored, batch_size or self._config.training.batch_size)
        evaluate = self._evaluation_bytes(stored, eval_batch_size or self._eval_batch_size(stored))
        numbers = trainable(self._adapter) * _FLOAT
        on_cpu = self._device.type == "cpu"
        return MemoryEstimate(
            process=process_bytes(self._device) + _LIBRARIES,
            weights=weights.weights,
            activations=int(max(train, evaluate) * (_FRAGMENTATION if on_cpu else 1)),
            adapter=2 * numbers,
            optimizer=2 * numbers,
            loading=weights.loading,
            files=weights.files + (self._frame_bytes() if on_cpu else 0),
            loading_files=weights.loading_files,
        )

    def check(self, estimate: MemoryEstimate) -> None:
        """Refuses a run that does not fit.

        Args:
            estimate: Of the run as configured.

        Raises:
            BackboneError: giving what is needed and free, and which single changes would make it
                fit.
        """
        # Processes on a CPU share its memory.
        processes = self._config.trainer.devices if self._device.type == "cpu" else 1
        free = free_bytes(self._device)

        def needed(**change: Any) -> int:
            return self.estimate(**change).needed * processes

        changes: dict[str, Callable[[], int]] = {
            option: partial(needed, stored=how) for option, how in smaller(self._stored).items()
        }
        if estimate.needed * processes * HEADROOM > free:
            sizes = self._fitting_batches(int(free / processes / HEADROOM))
            if sizes:
                named = " ".join(f"training.{name}={size}" for name, size in sizes.items())
                changes[named] = partial(needed, **sizes)
        what = f"This run ({self._stored}, training.batch_size={self._config.training.batch_size})"
        if processes > 1:
            what += f" in {processes} processes"
        refuse_unless_fits(what, estimate.needed * processes, free, self._device, changes)

    def _fitting_batches(self, limit: int) -> dict[str, int]:
        """The largest batches that fit; nothing where none would.

        Evaluation batches first, because they change no result; then training batches, then both.
        """
        least = self._config.trainer.devices * self._config.trainer.accumulate

        def fits(batch_size: int, eval_batch_size: int) -> bool:
            sizes = self.estimate(batch_size=batch_size, eval_batch_size=eval_batch_size)
            return sizes.needed <= limit

        train, evaluate = self._config.training.batch_size, self.eval_batch_size
        if largest := _largest(evaluate, 1, lambda size: fits(train, size)):
            return {"eval_batch_size": largest}
        if largest := _largest(train, least, lambda size: fits(size, evaluate)):
            return {"batch_size": largest}
        batch = _largest(train, least, lambda size: fits(size, 1))
        if not batch:
            return {}
        beside = _largest(evaluate, 1, lambda size: fits(batch, size))
        return {"batch_size": batch, "eval_batch_size": beside}

    def meter(self, dtype: torch.dtype) -> StepMeter:
        """What measures the steps of the run in a dtype; runs that differ in no step share it."""
        config = self._config
        measured = (
            (dtype, self.language.to_json_string(), len(self._tokenizer), self._prompt.longest),
            (self._data.labels, self._data.dims, config.dataset.standardize),
            (config.backbone, config.adapter, config.ablation, config.text, self._prompt.task),
        )
        key = repr(measured)
        if key not in _METERS:
            if len(_METERS) == _METERS_KEPT:
                _METERS.clear()
            _METERS[key] = StepMeter(
                self.language,
                self._tokenizer,
                self._in_front_of,
                self._data.dims,
                dtype=dtype,
                attention=config.backbone.attention,
                checkpoint_activations=config.backbone.checkpoint_activations,
            )
        return _METERS[key]

    def _in_front_of(self, frozen: FrozenBackbone) -> AdaptedLM:
        dims = self._data.dims if self._config.dataset.standardize else {}
        statistics = {name: (np.zeros(dim), np.ones(dim)) for name, dim in dims.items()}
        return AdaptedLM(
            frozen,
            self._adapter,
            standardizer=FeatureStandardizer(statistics).to("meta"),
            prompt=self._prompt,
            tree=self._tree,
        )

    def _train_bytes(self, stored: Stored, batch_size: int) -> int:
        """Activations of the largest training batch of one device."""
        split = self._data.splits["train"]
        batches = -(-split.utterances // batch_size)
        batch = -(-split.utterances // batches)  # batches differ by one utterance at most
        batch = -(-batch // self._config.trainer.devices)
        batch = -(-batch // self._config.trainer.accumulate)
        size = BatchSize(batch, split.text, split.frames)
        return self.meter(stored.dtype).train_bytes(size) + self._workspace(stored, size)

    def _evaluation_bytes(self, stored: Stored, batch_size: int) -> int:
        """Activations of an evaluation batch of one device with the longest of all sequences."""
        splits = [self._data.splits[name] for name in ("valid", "test")]
        largest = max(split.utterances for split in splits)
        batch = min(batch_size, -(-largest // self._config.trainer.devices))
        frames = {
            name: max(split.frames.get(name, 0) for split in splits) for name in self._data.dims
        }
        size = BatchSize(batch, max(split.text for split in splits), frames)
        return self.meter(stored.dtype).predict_bytes(size) + self._workspace(stored, size)

    def _workspace(self, stored: Stored, size: BatchSize) -> int:
        """What a quantised layer needs beyond a dense one while it is multiplied."""
        if stored.quantization is Quantization.none:
            return 0
        layers = quantizable_layers(architecture_on_meta(self.language, stored.dtype))
        # The matrix is written out in the compute dtype, one layer at a time.
        numbers: int = max((layer.weight.numel() for layer in layers), default=0)
        matrix = numbers * stored.dtype.itemsize
        if stored.quantization is not Quantization.int8:
            return matrix
        # Input in float16 and in int8; product in int32, and twice in float32.
        row: int = max(3 * layer.weight.shape[1] + 12 * layer.weight.shape[0] for layer in layers)
        tokens = self._prompt.longest + len(self._tree)
        return matrix + size.utterances * tokens * row

    def _frame_bytes(self) -> int:
        """The data set's features, which are read once an epoch, from files that stay mapped."""
        return _FLOAT * sum(
            frames * self._data.dims[name]
            for split in self._data.splits.values()
            for name, frames in split.all_frames.items()
        )


def _largest(size: int, least: int, fits: Callable[[int], bool]) -> int:
    """The largest number from ``least`` up to ``size`` that fits; 0 where none does."""
    if least > size or not fits(least):
        return 0
    low, high = least, size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
