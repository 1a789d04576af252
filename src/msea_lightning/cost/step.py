"""What a training step and an evaluation batch cost, measured on a small copy of the model.

The model of a run itself computes its own ``step`` and ``predict``, in front of a language model of
the real width and few layers, on PyTorch's meta device: tensors have shapes there, but no numbers
and no memory. Meanwhile the bytes of all tensors that are alive are added up, or the operations of
all matrix products. Both grow by the same for every further layer, and memory is taken to do so for
every further frame of a feature.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from msea_lightning.backbone import BackboneError, FrozenBackbone
from msea_lightning.backbone.loading.attention import resolve_attention
from msea_lightning.backbone.loading.memory import architecture_on_meta, parameter_count
from msea_lightning.backbone.options import Attention
from msea_lightning.data.utterance import MAIN_LABEL, Batch, PaddedSequences
from msea_lightning.model.adapted_lm import AdaptedLM

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

META = torch.device("meta")

_FEW, _MORE = 3, 4
"""Layers of the copies: from three layers on, each further one costs the same."""

_FEW_FRAMES = 2
"""Frames of a feature in the copies, where a batch has more."""

_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError)
"""How an architecture fails that does not run without numbers."""


@dataclass(frozen=True)
class BatchSize:
    """A batch in which every utterance is as long as the longest.

    Attributes:
        utterances: Number of utterances.
        text: Tokens of a text.
        frames: Frames of each feature, by name; a feature that is left out is absent.
    """

    utterances: int
    text: int
    frames: Mapping[str, int]


class StepMeter:
    """Measures what the steps of a model cost.

    Args:
        language: The language model's architecture; nothing of its size is allocated.
        tokenizer: Its tokenizer, or another one that writes as many tokens.
        build: Puts the trained part in front of a language model, both on the meta device.
        dims: Values per frame of each feature, by name.
        dtype: Compute dtype of the language model.
        attention: Implementation of the attention.
        checkpoint_activations: Whether layers compute their activations again.

    Raises:
        BackboneError: here or later, if the architecture does not run without numbers.
    """

    def __init__(
        self,
        language: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        build: Callable[[FrozenBackbone], AdaptedLM],
        dims: Mapping[str, int],
        *,
        dtype: torch.dtype = torch.float32,
        attention: Attention = Attention.auto,
        checkpoint_activations: bool = False,
    ) -> None:
        # flash-attn is none of PyTorch's operators; it keeps what sdpa keeps.
        plain = Attention.auto if attention is Attention.flash_attention_2 else attention
        self._attention = resolve_attention(language, plain)
        self._language = language
        self._tokenizer = tokenizer
        self._build = build
        self._dims = dims
        self._dtype = dtype
        self._recompute = checkpoint_activations
        self._models: dict[int, AdaptedLM] = {}
        self._peaks: dict[tuple[Any, ...], int] = {}
        self._frames: dict[tuple[str, bool], float] = {}
        self._layers = self._measured_layers()

    def train_bytes(self, size: BatchSize) -> int:
        """Bytes of all tensors at the peak of a training step, weights not counted."""
        return self._bytes(size, training=True)

    def predict_bytes(self, size: BatchSize) -> int:
        """Bytes of all tensors at the peak of an evaluation batch, weights not counted."""
        return self._bytes(size, training=False)

    def flops(self, text: int, *, training: bool) -> int:
        """Operations for one utterance: forward and backward in training, else forward.

        An addition and a multiplication are two operations. Attention counts in full, also the
        part that the mask hides, because every implementation computes it under an explicit mask.
        A cached prefix costs nothing; layers that compute their activations again count twice.
        The features of the utterance are absent: reading them takes less than a thousandth of the
        language model's operations.

        Args:
            text: Tokens of its text.
            training: A training step, not an evaluation.
        """

        def count(layers: int) -> int:
            counter = _Operations()
            self._run(layers, BatchSize(1, text, {}), counter, training=training)
            return counter.total

        return self._whole_depth(count)

    def _bytes(self, size: BatchSize, *, training: bool) -> int:
        few = {name: min(frames, _FEW_FRAMES) for name, frames in size.frames.items()}
        base = replace(size, frames=few)
        total = self._whole_depth(lambda layers: self._peak(layers, base, training=training))
        for name, frames in size.frames.items():
            if frames > _FEW_FRAMES:
                further = (frames - _FEW_FRAMES) * size.utterances
                total += round(further * self._frame_bytes(name, base, training=training))
        return total

    def _frame_bytes(self, name: str, base: BatchSize, *, training: bool) -> float:
        """What a further frame of a feature takes for each utterance."""
        key = (name, training)
        if key not in self._frames:
            longer = replace(base, frames={**base.frames, name: _FEW_FRAMES + 1})
            less, more = (
                self._peak(self._layers[0], size, training=training) for size in (base, longer)
            )
            self._frames[key] = (more - less) / base.utterances
        return self._frames[key]

    def _peak(self, layers: int, size: BatchSize, *, training: bool) -> int:
        """Bytes of all tensors at the peak of a batch in front of few layers."""
        key = (layers, size.utterances, size.text, *sorted(size.frames.items()), training)
        if key not in self._peaks:
            live = LiveBytes(self._model(layers), META)
            self._run(layers, size, live, training=training)
            self._peaks[key] = live.peak
        return self._peaks[key]

    def _whole_depth(self, measure: Callable[[int], int]) -> int:
        """What the whole depth costs, from what few layers cost."""
        few, more = self._layers
        base = measure(few)
        deep = self._language.get_text_config().num_hidden_layers
        return base if deep == few else base + (deep - few) * (measure(more) - base) // (more - few)

    def _measured_layers(self) -> tuple[int, int]:
        """Two depths that tell of the whole one; the whole one twice where layers differ."""
        deep = self._language.get_text_config().num_hidden_layers
        if deep > _MORE:
            few, more, whole = (
                parameter_count(with_layers(self._language, layers))
                for layers in (_FEW, _MORE, deep)
            )
            if whole - few == (deep - _FEW) * (more - few):
                return _FEW, _MORE
        return deep, deep

    def _model(self, layers: int) -> AdaptedLM:
        if layers not in self._models:
            frozen = FrozenBackbone(
                architecture_on_meta(
                    with_layers(self._language, layers), self._dtype, self._attention
                ),
                self._tokenizer,
                checkpoint_activations=self._recompute,
            )
            model = self._models[layers] = self._build(frozen)
            frozen.cached_prefix(model.prompt.prefix_ids)
        return self._models[layers]

    def _run(
        self, layers: int, size: BatchSize, watching: AbstractContextManager[Any], *, training: bool
    ) -> None:
        """Lets the model compute a batch, and watches it."""
        try:
            model = self._model(layers)
            # Operations are counted of the products that attention consists of, memory is not.
            # Recomputed layers run where the mode does not reach; their scores are counted.
            fuse = isinstance(watching, LiveBytes) and not self._recompute
            fused = _FusedAttention() if fuse else nullcontext()
            with fused, watching:
                batch = batch_of(model, size, self._dims)
                if training:
                    model.step(batch).loss_sum.backward()  # type: ignore[no-untyped-call]
                else:
                    with torch.no_grad():
                        model.predict(batch)
            model.zero_grad()
        except _FAILURES as error:
            first = next(iter(str(error).splitlines()), "").rstrip(".")
            raise BackboneError(
                f"The cost of a {self._language.model_type} backbone cannot be estimated: "
                f"{type(error).__name__}: {first}. Choose a causal transformer with ordinary "
                "attention, or go without the estimate (backbone.check_memory=false)."
            ) from error


def with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same architecture with fewer layers: the first of them.

    Args:
        config: The architecture, which is left as it is.
        layers: Their number.
    """
    small = deepcopy(config)
    text = small.get_text_config()
    deep = text.num_hidden_layers
    text.num_hidden_layers = layers
    # Some architectures say of each layer of what kind it is.
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == deep:
            setattr(text, name, value[:layers])
    return small


def batch_of(model: AdaptedLM, size: BatchSize, dims: Mapping[str, int]) -> Batch:
    """A batch of a size, on the model's device: zeros, and labels that take the most tokens."""
    count = size.utterances
    tree = model.tree
    longest = int((tree.answer_ids >= 0).sum(1).argmax())
    features = {
        name: PaddedSequences(
            torch.zeros(count, size.frames.get(name, 0), dim, device=model.device),
            torch.full((count,), size.frames.get(name, 0)),
        )
        for name, dim in dims.items()
    }
    return Batch(
        index=torch.arange(count),
        ids=[""] * count,
        texts=[""] * count,
        labels={MAIN_LABEL: [model.space.label(tree.space.values[longest])] * count},
        features=features,
        groups=[None] * count,
        speakers=[None] * count,
        positions=torch.arange(count),
        tokens=[np.zeros(size.text, dtype=np.int32)] * count,
    )


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of matrix products as ``FlopCounterMode`` does, but not by module."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += int(count(*args, **(kwargs or {}), out_val=result))
        return result


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operators return, as long as they are alive.

    Args:
        model: Its weights, and those of its language model, are not counted.
        device: Storages elsewhere are not counted.
    """

    def __init__(self, model: AdaptedLM, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        language = model.backbone.model
        weights = (language.parameters(), language.buffers(), model.parameters(), model.buffers())
        self._known = {tensor.untyped_storage()._cdata for tensor in chain(*weights)}
        self._device = device
        self._live = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device == self._device:
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self._live += storage.nbytes()
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._live)
        return result

    def _free(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self._live -= size


class _FusedAttention(TorchFunctionMode):
    """Makes sdpa one operator, as it is on CPUs and GPUs; on the meta device it is several."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        queries, keys, values = args[:3]
        options = dict(kwargs or {})
        if options.pop("enable_gqa", False):
            groups = queries.shape[1] // keys.shape[1]
            keys, values = (part.repeat_interleave(groups, dim=1) for part in (keys, values))
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return fused(queries, keys, values, **options)[0]
