"""How much memory a run will take, told before its backbone is loaded, and measured beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from msea_lightning.backbone.loading.load import compute_dtype
from msea_lightning.backbone.loading.memory import (
    HEADROOM,
    Reading,
    Stored,
    activation_bytes,
    free_bytes,
    process_bytes,
    readable_bytes,
    refuse_unless_fits,
    smaller,
    weight_memory,
)
from msea_lightning.backbone.options import Quantization
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.module import EVALUATION_BATCH, UtteranceDataModule
from msea_lightning.language.prompt import encode_all
from msea_lightning.model.build import build_adapter, build_prompt, trainable

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


_log = logging.getLogger(__name__)

_LIBRARIES = 36 << 20
"""What a process on a CPU grows by in its first steps, whatever it computes: code that is loaded on
its first use, and buffers of the matrix products."""

_KERNELS = 40 << 20
"""The same on a GPU: buffers of the matrix products that PyTorch allocates."""

_SCATTERED = 0.5
"""Part of what training leaves to the allocator of a CPU that the larger blocks of an evaluation
batch find no room in."""

_FLOAT = 4
"""Bytes of a float32, in which features are stored and the adapter computes."""

_LARGEST_EVALUATION_BATCH = 256

_COPIES = 3
"""A batch of features is there as collated, as standardised, and as sorted for the LSTM."""

_LSTM_TRAINING, _LSTM_EVALUATION = 12, 4
"""Numbers per frame and unit of an LSTM that are there at the height of a step: gates of all
frames; in training also the cells and outputs of each, for the gradient."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process of a run takes on its device, by what takes them.

    On a CPU, where they are resident memory, they include the holes that the allocator leaves.

    Attributes:
        process: What the process holds already, and what its libraries add.
        weights: The frozen language model.
        activations: Of the largest training or evaluation batch, at the height of a step.
        adapter: The adapter's weights and their gradients.
        optimizer: The two moments of AdamW.
        loading: What loading takes beyond the weights; it is gone before training begins.
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
        """The peak, which is at the height of loading or of a step."""
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
        data: The data module, set up.
        tokenizer: The backbone's tokenizer.
        language: The backbone's architecture.
        device: Where the run is to go.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: UtteranceDataModule,
        tokenizer: PreTrainedTokenizerBase,
        language: PretrainedConfig,
        device: torch.device,
    ) -> None:
        self._config = config
        self._data = data
        self._language = language
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
        # The id of the padding takes the place of any other.
        self._prompt, tree = build_prompt(
            tokenizer,
            data.labels,
            config.dataset,
            config.backbone,
            config.adapter,
            config.text,
            config.prompt,
        )
        self._label_tokens = int(tree.answer_ids.shape[1])
        self._nodes = len(tree)
        with torch.device("meta"):
            self._adapter = build_adapter(
                config.adapter,
                config.ablation,
                width=_width(language),
                dims=data.dims,
            )
        self._text_tokens: dict[str, int] = {}
        seen = set(tree.answer_ids.flatten().tolist())
        for split, part in data.splits.items():
            texts = part.tokens
            if texts is None:
                texts = [np.array(ids) for ids in encode_all(tokenizer, part.texts)]
            self._text_tokens[split] = self._width(texts) if config.ablation.text else 0
            seen |= set(np.unique(np.concatenate(texts)).tolist())
        self._longest_text = self._prompt.pad_to or self._prompt.text_tokens
        self._activations: dict[tuple[Stored, Reading], int] = {}
        self._distinct_tokens = len(seen) + self._prompt.longest

    @property
    def trainable(self) -> int:
        """Parameters of the adapter."""
        return trainable(self._adapter)

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
        """
        stored = stored or self._stored
        training = self._config.training
        weights = weight_memory(self._language, stored, self._device, rows=self._distinct_tokens)
        train = self._train_bytes(stored, batch_size or training.batch_size)
        evaluate = self._evaluation_bytes(stored, eval_batch_size or self._eval_batch_size(stored))
        numbers = trainable(self._adapter) * _FLOAT
        on_cpu = self._device.type == "cpu"
        scattered = _SCATTERED if on_cpu else 0
        return MemoryEstimate(
            process=process_bytes(self._device) + (_LIBRARIES if on_cpu else _KERNELS),
            weights=weights.weights,
            activations=max(train, evaluate, evaluate + int(train * scattered)),
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
        processes = self._processes_sharing()
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
        training = self._config.training
        least = self._config.trainer.devices * self._config.trainer.accumulate

        def fits(batch_size: int, eval_batch_size: int) -> bool:
            sizes = self.estimate(batch_size=batch_size, eval_batch_size=eval_batch_size)
            return sizes.needed <= limit

        train, evaluate = training.batch_size, self.eval_batch_size
        if largest := _largest(evaluate, 1, lambda size: fits(train, size)):
            return {"eval_batch_size": largest}
        if largest := _largest(train, least, lambda size: fits(size, evaluate)):
            return {"batch_size": largest}
        batch = _largest(train, least, lambda size: fits(size, 1))
        if not batch:
            return {}
        beside = _largest(evaluate, 1, lambda size: fits(batch, size))
        return {"batch_size": batch, "eval_batch_size": beside}

    def _width(self, texts: Sequence[NDArray[np.int32]]) -> int:
        """Tokens of the longest text as it is read."""
        return self._prompt.pad_to or min(self._prompt.text_tokens, max(map(len, texts)))

    def _train_bytes(self, stored: Stored, batch_size: int) -> int:
        """Activations of the largest training batch of one device."""
        utterances = len(self._data.splits["train"])
        batches = -(-utterances // batch_size)
        batch = -(-utterances // batches)  # batches differ by one utterance at most
        batch = -(-batch // self._config.trainer.devices)
        batch = -(-batch // self._config.trainer.accumulate)
        fixed = self._prompt.longest - self._longest_text
        reading = Reading(
            batch,
            fixed + self._text_tokens["train"] + self._label_tokens - 1,
            labels=self._label_tokens,
        )
        return self._backbone_bytes(stored, reading) + self._feature_bytes(
            "train", batch, _LSTM_TRAINING
        )

    def _evaluation_bytes(self, stored: Stored, batch_size: int) -> int:
        """Activations of the largest evaluation batch of one device."""
        fixed = self._prompt.longest - self._longest_text
        sizes = []
        for split in ("valid", "test"):
            batch = min(
                batch_size, -(-len(self._data.splits[split]) // self._config.trainer.devices)
            )
            reading = Reading(batch, fixed + self._text_tokens[split], nodes=self._nodes)
            sizes.append(
                self._backbone_bytes(stored, reading)
                + self._feature_bytes(split, batch, _LSTM_EVALUATION)
            )
        return max(sizes)

    def _backbone_bytes(self, stored: Stored, reading: Reading) -> int:
        key = (stored, reading)
        if key not in self._activations:
            self._activations[key] = activation_bytes(
                self._language,
                stored,
                self._config.backbone.attention,
                self._device,
                reading,
                checkpointed=self._config.backbone.checkpoint_activations,
            )
        return self._activations[key]

    def _feature_bytes(self, split: str, batch: int, kept: int) -> int:
        """Features of a batch, and what the LSTMs keep of them (numbers per frame and unit)."""
        part = self._data.splits[split]
        size = 0
        for modality, dim in part.dims.items():
            longest = np.sort(part.lengths[modality])[-batch:]
            if not len(longest):
                continue
            size += _COPIES * batch * int(longest[-1]) * dim
            branch = getattr(self._adapter, modality, None)
            if (lstm := getattr(branch, "lstm", None)) is not None:
                size += int(longest.sum()) * (dim + kept * lstm.hidden_size)
        return size * _FLOAT

    def _frame_bytes(self) -> int:
        """The data set's features, which are read once an epoch, from files that stay mapped."""
        return sum(
            int(part.lengths[name].sum()) * dim * _FLOAT
            for part in self._data.splits.values()
            for name, dim in part.dims.items()
        )

    def _processes_sharing(self) -> int:
        """Processes that share the device's memory."""
        return self._config.trainer.devices if self._device.type == "cpu" else 1


def _largest(size: int, least: int, fits: Callable[[int], bool]) -> int:
    """The largest number from ``least`` up to ``size`` that fits; 0 where none does."""
    if least > size or not fits(least):
        return 0
    low, high = least, size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _width(language: PretrainedConfig) -> int:
    width: int = language.get_text_config().hidden_size
    return width
