"""How much memory a run will take, estimated before its backbone is loaded."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from msea_lightning.backbone.loading.load import compute_dtype
from msea_lightning.backbone.loading.memory import (
    HEADROOM,
    Stored,
    WeightMemory,
    architecture_on_meta,
    free_bytes,
    kept_in_memory,
    process_bytes,
    quantizable_layers,
    readable_bytes,
    refuse_unless_fits,
    smaller,
    weight_memory,
)
from msea_lightning.backbone.loading.spread import Spread, plan_spread, spread_words
from msea_lightning.backbone.options import CacheDtype, Quantization
from msea_lightning.config.roots import RunConfig
from msea_lightning.cost.step import META, BatchSize, StepMeter
from msea_lightning.data.options import EVALUATION_BATCH, LabelConfig
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.prompt import Prompt
from msea_lightning.model.build import build_adapter, build_prompt

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_LIBRARIES = 40 << 20
"""Allowance for what libraries load and allocate on their first use, on any device."""

_FRAGMENTATION = 1.5
"""Resident bytes on a CPU for every byte of tensors at the peak. An allocator keeps what is freed
between blocks in use, and batches of other lengths do not always fit there: 1.1 to 1.6 bytes were
measured, with a batch of one utterance 2 (docs/log.md)."""

_FLOAT = 4
"""Bytes of a float32, in which features are stored and the adapter computes."""

_LARGEST_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class SplitSize:
    """How much there is of a split.

    Attributes:
        text: Tokens of the longest text, uncut.
        frames: Frames of the longest sequence of each feature, by name.
        all_frames: Frames of all utterances together, by name.
        context: Most tokens of what was said before an utterance.
    """

    utterances: int
    text: int
    frames: Mapping[str, int]
    all_frames: Mapping[str, int]
    context: int = 0

    @classmethod
    def of(
        cls,
        tokens: Sequence[Sized],
        lengths: Mapping[str, NDArray[np.int64]],
        contexts: Sequence[Sized] | None = None,
    ) -> SplitSize:
        """The size of a split.

        Args:
            tokens: Token ids of each text.
            lengths: (N,) frames by feature.
            contexts: Token ids of what was said before each, where that is read.
        """
        return cls(
            len(tokens),
            max(map(len, tokens), default=0),
            {name: int(frames.max(initial=0)) for name, frames in lengths.items()},
            {name: int(frames.sum()) for name, frames in lengths.items()},
            max(map(len, contexts or ()), default=0),
        )


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process of a run takes on its device, by what takes them.

    On a CPU, where they are resident memory, activations include what the allocator keeps.

    Attributes:
        process: What the process holds already, and what its libraries add.
        activations: Of the largest training or evaluation batch, at the peak of a step.
        adapter: The adapter's weights and their gradients.
        loading: What loading takes beyond the weights; it is freed before training begins.
        files: Resident pages of files, which the system drops when memory is short.
        loading_files: Further pages of files while loading.
        places: All of the language model's weights by place, where it is spread; ``weights`` are
            those that the run's own device holds at once.
        texts: Keys and values of the texts that are kept in memory once they are read.
    """

    process: int
    weights: int
    activations: int
    adapter: int
    optimizer: int
    loading: int
    files: int
    loading_files: int
    places: Mapping[str, int] = field(default_factory=dict)
    texts: int = 0

    @property
    def total(self) -> int:
        """The peak, of loading or of a step."""
        step = self.activations + self.adapter + self.optimizer + self.texts
        loading = self.loading + self.loading_files
        return self.process + self.weights + self.files + max(step, loading)

    @property
    def needed(self) -> int:
        """What must be free for the run: without what is there, and what the system can drop.

        It is the one figure that ``doctor`` and Table 1 say, and that a run is refused by.
        """
        step = self.activations + self.adapter + self.optimizer + self.texts
        return self.weights + max(step, self.loading)

    def __str__(self) -> str:
        """One line with all parts."""
        parts = {
            "weights": self.weights,
            "activations": self.activations,
            "adapter": self.adapter,
            "optimizer": self.optimizer,
            "texts": self.texts,
            "process and libraries": self.process,
            "file pages": self.files,
            "loading": self.loading + self.loading_files,
        }
        listed = ", ".join(f"{name} {readable_bytes(size)}" for name, size in parts.items() if size)
        peak = f"about {readable_bytes(self.total)} at its peak"
        spread = f"; the language model: {spread_words(self.places)}" if self.places else ""
        return f"{peak}, {readable_bytes(self.needed)} of it for this run: {listed}{spread}"

    def report(
        self, trainable_parameters: int, eval_batch_size: int, measured: int | None = None
    ) -> dict[str, Any]:
        """Everything in bytes, as ``memory.json`` has it; measured is the peak of a run."""
        return {
            "trainable_parameters": trainable_parameters,
            "eval_batch_size": eval_batch_size,
            "parts": asdict(self),
            "needed": self.needed,
            "total": self.total,
            "measured_peak": measured,
        }


@dataclass(eq=False)
class MemoryEstimator:
    """Estimates the memory of a run and of its variations.

    Attributes:
        devices: Processes of one machine; those on a CPU share its memory.
        ranks: Processes of all machines, which share a batch.
        accumulate: Parts in which a device computes its share of a training batch.
        given_eval_batch: Utterances per evaluation batch and device; None for what fits.
        kept_tokens: Tokens of the texts that are kept in memory once they are read.
        cache_dtype: The type in which they are kept.
        cache_limit: Bytes that all processes of a machine may keep; where they would take more
            (``kept_in_memory``), none is kept.
        spreads: Whether the language model is spread over all that the machine has.
        max_memory: Most weights at each place then; None for what a step leaves.
        check_memory: Whether places must have it free.
    """

    meter: StepMeter
    splits: Mapping[str, SplitSize]
    stored: Stored
    device: torch.device
    devices: int
    ranks: int
    batch_size: int
    accumulate: int
    given_eval_batch: int | None
    spreads: bool = False
    max_memory: Mapping[Any, Any] | None = None
    check_memory: bool = True
    kept_tokens: int = 0
    cache_dtype: CacheDtype = CacheDtype.exact
    cache_limit: int = 0

    def __post_init__(self) -> None:
        """Makes what quantises a part of the process, and of its memory, from now on."""
        self._meters = {self.stored.dtype: self.meter}
        self._spread: dict[Stored, Spread] = {}
        if self.stored.quantization is not Quantization.none:
            with suppress(ImportError):
                import bitsandbytes  # noqa: F401

    @property
    def trainable(self) -> int:
        """Parameters of the adapter and of the readout."""
        return self.meter.trainable

    def _kept_bytes(self, stored: Stored, weights: int) -> int:
        """Bytes of the texts that are kept beside weights of so many bytes."""
        size = self._meter(stored).kept_bytes(self.kept_tokens, self.cache_dtype)
        free = max(0, free_bytes(self.device) - self.devices * weights)
        return size if size <= kept_in_memory(self.cache_limit, free, self.devices) else 0

    def eval_batch_size(self, stored: Stored | None = None) -> int:
        """Utterances per evaluation batch and device.

        Where none is given: on a GPU, which is faster the more it has to do, the largest power of
        two up to 256 whose batch takes no more memory than a training step.
        """
        if self.given_eval_batch is not None:
            return self.given_eval_batch
        if self.device.type == "cpu":
            return EVALUATION_BATCH
        stored = stored or self.stored
        step = self._train_bytes(stored, self.batch_size)
        size = _LARGEST_EVALUATION_BATCH if step else EVALUATION_BATCH
        while step and size > 1 and self._evaluation_bytes(stored, size) > step:
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

        Raises:
            BackboneError: if the architecture does not run without numbers.
        """
        stored = stored or self.stored
        spread = self.spread(stored)
        if spread is None:
            weights = weight_memory(self.meter.language, stored, self.device)
        else:
            weights = WeightMemory(spread.on(self.device))
        activations = self._activations(
            stored, batch_size or self.batch_size, eval_batch_size or self.eval_batch_size(stored)
        )
        numbers = self.trainable * _FLOAT
        on_cpu = self.device.type == "cpu"
        return MemoryEstimate(
            process=process_bytes(self.device) + _LIBRARIES,
            weights=weights.weights,
            activations=activations,
            adapter=2 * numbers,
            optimizer=2 * numbers,
            loading=weights.loading,
            files=weights.files + (self._feature_bytes() if on_cpu else 0),
            loading_files=weights.loading_files,
            places={} if spread is None else spread.named_sizes,
            texts=self._kept_bytes(stored, weights.weights) if on_cpu else 0,
        )

    def spread(self, stored: Stored | None = None) -> Spread | None:
        """Where the layers lie, with room for a step beside them; None where all are on one device.

        Raises:
            BackboneError: they have no room.
        """
        if not self.spreads:
            return None
        stored = stored or self.stored
        if stored not in self._spread:
            step = self._activations(stored, self.batch_size, self.eval_batch_size(stored))
            self._spread[stored] = plan_spread(
                self.meter.language,
                stored,
                self.device,
                max_memory=self.max_memory,
                reserve=step + 4 * self.trainable * _FLOAT,
                check_fit=self.check_memory,
            )
        return self._spread[stored]

    def _activations(self, stored: Stored, batch_size: int, eval_batch_size: int) -> int:
        """Of the largest batch, with what an allocator keeps on a CPU."""
        train = self._train_bytes(stored, batch_size)
        evaluate = self._evaluation_bytes(stored, eval_batch_size)
        on_cpu = self.device.type == "cpu"
        return int(max(train, evaluate) * (_FRAGMENTATION if on_cpu else 1))

    def check(self, estimate: MemoryEstimate) -> None:
        """Refuses a run that does not fit, with the single changes that would make it fit."""
        # Processes on a CPU share its memory.
        processes = self.devices if self.device.type == "cpu" else 1
        free = free_bytes(self.device)

        def needed(**change: Any) -> int:
            return self.estimate(**change).needed * processes

        changes: dict[str, Callable[[], int]] = {
            option: partial(needed, stored=how) for option, how in smaller(self.stored).items()
        }
        if estimate.needed * processes * HEADROOM > free:
            sizes = self._fitting_batches(int(free / processes / HEADROOM))
            if sizes:
                named = " ".join(f"training.{name}={size}" for name, size in sizes.items())
                changes[named] = partial(needed, **sizes)
        if estimate.texts:
            without = replace(self, kept_tokens=0)
            changes["backbone.cache=none"] = lambda: without.estimate().needed * processes
        what = f"This run ({self.stored}, training.batch_size={self.batch_size})"
        if processes > 1:
            what += f" in {processes} processes"
        refuse_unless_fits(what, estimate.needed * processes, free, self.device, changes)

    def _fitting_batches(self, limit: int) -> dict[str, int]:
        """The largest batches that fit, if any; evaluation's change no result and shrink first."""
        least, evaluate = self.ranks * self.accumulate, self.eval_batch_size()
        batch = bisect_right(
            range(least, self.batch_size + 1),
            limit,
            key=lambda size: self.estimate(batch_size=size, eval_batch_size=1).needed,
        )
        if not batch:
            return {}
        batch += least - 1
        beside = bisect_right(
            range(1, evaluate + 1),
            limit,
            key=lambda size: self.estimate(batch_size=batch, eval_batch_size=size).needed,
        )
        wanted = {"batch_size": self.batch_size, "eval_batch_size": evaluate}
        fitting = {"batch_size": batch, "eval_batch_size": beside}
        return {name: size for name, size in fitting.items() if size != wanted[name]}

    def _meter(self, stored: Stored) -> StepMeter:
        if stored.dtype not in self._meters:
            self._meters[stored.dtype] = replace(self.meter, dtype=stored.dtype)
        return self._meters[stored.dtype]

    def _train_bytes(self, stored: Stored, batch_size: int) -> int:
        """Activations of one device's largest training batch; none where nothing is trained."""
        if not self.trainable:
            return 0
        split = self.splits["train"]
        batches = -(-split.utterances // batch_size)
        batch = -(-split.utterances // batches)  # batches differ by one utterance at most
        batch = -(-batch // self.ranks)
        batch = -(-batch // self.accumulate)
        size = BatchSize(batch, split.text, split.frames, split.context)
        return self._meter(stored).peak(size, training=True) + self._workspace(stored, size)

    def _evaluation_bytes(self, stored: Stored, batch_size: int) -> int:
        """Activations of an evaluation batch of one device with the longest of all sequences."""
        splits = [self.splits[name] for name in ("valid", "test")]
        largest = max(split.utterances for split in splits)
        batch = min(batch_size, -(-largest // self.ranks))
        frames = {
            name: max(split.frames.get(name, 0) for split in splits) for name in self.meter.dims
        }
        size = BatchSize(
            batch,
            max(split.text for split in splits),
            frames,
            max(split.context for split in splits),
        )
        return self._meter(stored).peak(size, training=False) + self._workspace(stored, size)

    def _workspace(self, stored: Stored, size: BatchSize) -> int:
        """What a quantised layer needs beyond a dense one while it is multiplied."""
        if stored.quantization is Quantization.none:
            return 0
        # The matrix is written out in the compute dtype, one layer at a time.
        matrix = max((shape.numel() for shape in self._matrices), default=0)
        matrix *= stored.dtype.itemsize
        if stored.quantization is not Quantization.int8:
            return matrix
        # Input in float16 and in int8; product in int32, and twice in float32.
        row = max(3 * inputs + 12 * outputs for outputs, inputs in self._matrices)
        return matrix + size.utterances * (self.meter.prompt.longest + len(self.meter.tree)) * row

    @cached_property
    def _matrices(self) -> list[torch.Size]:
        """Shapes of the weights that quantisation stores in another way."""
        model = architecture_on_meta(self.meter.language, torch.float32)
        return [layer.weight.shape for layer in quantizable_layers(model)]

    def _feature_bytes(self) -> int:
        """The data set's features, which are read once an epoch, from files that stay mapped."""
        return _FLOAT * sum(
            frames * self.meter.dims[name]
            for split in self.splits.values()
            for name, frames in split.all_frames.items()
        )


def build_estimator(
    config: RunConfig,
    labels: LabelConfig,
    splits: Mapping[str, SplitSize],
    dims: Mapping[str, int],
    tokenizer: PreTrainedTokenizerBase,
    language: PretrainedConfig,
    device: torch.device,
) -> MemoryEstimator:
    """The estimator of a run, of which ``labels`` leave nothing to infer."""
    backbone = config.backbone
    prompt, tree = run_prompt(config, labels, tokenizer)
    with META:
        width = language.get_text_config().hidden_size
        adapter = build_adapter(config.adapter, config.ablation, width=width, dims=dims)
    stored = Stored(
        compute_dtype(backbone.dtype, device),
        backbone.quantization,
        backbone.double_quantization,
        backbone.weights,
    )
    meter = StepMeter(
        language,
        adapter,
        prompt,
        tree,
        dims,
        standardize=config.dataset.standardize,
        dtype=stored.dtype,
        attention=backbone.attention,
        checkpoint_activations=backbone.checkpoint_activations,
        readout=config.readout,
        loss=config.training.loss,
        ordinal=config.training.ordinal,
    )
    estimator = MemoryEstimator(
        meter,
        splits,
        stored,
        device,
        devices=config.trainer.devices,
        ranks=config.trainer.ranks,
        batch_size=config.training.batch_size,
        accumulate=config.trainer.accumulate,
        given_eval_batch=config.training.eval_batch_size,
        spreads=backbone.device_map is not None,
        max_memory=backbone.max_memory or None,
        check_memory=backbone.check_memory,
        cache_dtype=backbone.cache_dtype,
        cache_limit=backbone.cache_bytes,
    )
    spread = estimator.spread()
    if spread is None or not spread.visiting:
        return estimator
    # Layers that visit their device compute again in the backward pass (backbone/frozen.py).
    return replace(estimator, meter=replace(meter, checkpoint_activations=True))


def run_prompt(
    config: RunConfig, labels: LabelConfig, tokenizer: PreTrainedTokenizerBase, pad_id: int = 0
) -> tuple[Prompt, AnswerTree]:
    """The sequence layout and the legal answers of a run; labels leave nothing to infer."""
    return build_prompt(
        tokenizer,
        labels,
        config.dataset,
        config.backbone,
        config.adapter,
        config.text,
        config.prompt,
        readout=config.readout,
        pad_id=pad_id,
    )
