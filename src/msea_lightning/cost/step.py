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
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from msea_lightning.adapter import Adapter, FeatureStandardizer
from msea_lightning.backbone import BackboneError, FrozenBackbone
from msea_lightning.backbone.errors import MODEL_FAILURES
from msea_lightning.backbone.loading.load import resolve_attention
from msea_lightning.backbone.loading.memory import architecture_on_meta, parameter_count
from msea_lightning.backbone.options import Attention, CacheDtype
from msea_lightning.backbone.speed.read_once import TokenShape
from msea_lightning.config.errors import first_line
from msea_lightning.data.utterance import MAIN_LABEL, Batch, PaddedSequences
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.options import Loss
from msea_lightning.language.prompt import Prompt
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.build import build_readout, trainable
from msea_lightning.model.options import ReadoutKind
from msea_lightning.model.readout import Readout

if TYPE_CHECKING:
    from transformers import PretrainedConfig

META = torch.device("meta")

_FEW, _MORE = 3, 4
"""Layers of the copies: from three layers on, each further one costs the same."""

_FEW_FRAMES = 64
"""Frames of a feature in the copies, where a batch has more."""

_SHAPES: dict[Any, Any] = {}
"""What operations on the meta device result in, by what they are given; for all copies."""

_MOST_SHAPES = 20_000


@dataclass(frozen=True)
class BatchSize:
    """A batch in which every text has so many tokens, and every feature so many frames, or none.

    Attributes:
        context: Tokens of what was said before each.
    """

    utterances: int
    text: int
    frames: Mapping[str, int]
    context: int = 0


@dataclass(eq=False)
class StepMeter:
    """Measures what the steps of a model cost.

    Attributes:
        language: The language model's architecture; nothing of its size is allocated.
        prompt: The sequence layout, whose tokenizer may be any that writes as many tokens.
        dims: Values per frame of each feature of the data, by name.
        readout: What gives the probabilities of answers.
        loss: What they are normalised over.
        ordinal: Whether, if it is not zero, a step needs all answers.

    Raises:
        BackboneError: by all methods, if the architecture does not run without numbers.
    """

    language: PretrainedConfig
    adapter: Adapter
    prompt: Prompt
    tree: AnswerTree
    dims: Mapping[str, int]
    standardize: bool = False
    dtype: torch.dtype = torch.float32
    attention: Attention = Attention.auto
    checkpoint_activations: bool = False
    readout: ReadoutKind = ReadoutKind.tokens
    loss: Loss = Loss.vocabulary
    ordinal: float = 0.0

    def __post_init__(self) -> None:
        """Begins with nothing measured."""
        self._models: dict[int, AdaptedLM] = {}
        self._peaks: dict[tuple[Any, ...], int] = {}
        self._flops: dict[bool, tuple[int, int, int]] = {}

    def flops(self, text: ArrayLike, *, training: bool) -> NDArray[np.float64]:
        """Operations for one utterance: forward and backward in training, else forward.

        An addition and a multiplication are two operations. Attention counts in full, also the
        part that the mask hides, because every implementation computes it under an explicit mask.
        A cached prefix costs nothing; layers that compute their activations again count twice.
        The features of the utterance are absent: reading them takes less than a thousandth of the
        language model's operations. Texts, of any shape, are tokens as the run cuts them.
        """
        if training not in self._flops:
            # Every product in a transformer is of the first or second degree in the length, so
            # that three lengths tell all others, exactly.
            start, middle, end = (self._counted(tokens, training=training) for tokens in (1, 2, 3))
            self._flops[training] = start, middle - start, end - 2 * middle + start
        start, slope, bend = self._flops[training]
        further = np.asarray(text, dtype=np.float64) - 1
        found: NDArray[np.float64] = start + slope * further + bend * further * (further - 1) / 2
        return found

    def _counted(self, text: int, *, training: bool) -> int:
        """Operations for one utterance with so many tokens of text."""

        def count(layers: int) -> int:
            counter = _Operations()  # type: ignore[no-untyped-call]
            self._run(layers, BatchSize(1, text, {}), counter, training=training)
            return counter.total

        return self._whole_depth(count)

    def peak(self, size: BatchSize, *, training: bool) -> int:
        """Bytes of all tensors at the peak of a training step, else of a batch of evaluation.

        Weights are not counted.
        """
        few = {name: min(frames, _FEW_FRAMES) for name, frames in size.frames.items()}
        base = replace(size, frames=few)
        total = self._whole_depth(lambda layers: self._measured(layers, base, training=training))
        for name, frames in size.frames.items():
            if frames > _FEW_FRAMES:
                longer = replace(base, frames={**few, name: _FEW_FRAMES + 1})
                less, more = (
                    self._measured(self._layers[0], each, training=training)
                    for each in (base, longer)
                )
                total += (frames - _FEW_FRAMES) * (more - less)
        return total

    @property
    def trainable(self) -> int:
        """Parameters of the adapter and of the readout."""
        return trainable(self.adapter) + trainable(self._model(self._layers[0]).readout)

    def _readout(self, frozen: FrozenBackbone) -> Readout:
        with META:
            return build_readout(self.readout, self.loss, frozen, self.tree)

    def kept_bytes(self, tokens: int, how: CacheDtype) -> int:
        """Bytes of the keys and values of so many tokens, in all layers."""
        if not tokens:
            return 0

        def each(layers: int) -> int:
            with _MetaMode():  # type: ignore[no-untyped-call]
                found = self._model(layers).backbone.recorded(None, [[0]])
            return TokenShape.of(found).size(tokens, how, self.dtype)

        return self._whole_depth(each)

    def _measured(self, layers: int, size: BatchSize, *, training: bool) -> int:
        """Bytes of all tensors at the peak of a batch in front of few layers."""
        frames = sorted(size.frames.items())
        key = (layers, size.utterances, size.text, size.context, *frames, training)
        if key not in self._peaks:
            live = LiveBytes(self._model(layers), META)
            self._run(layers, size, live, training=training)
            self._peaks[key] = live.peak
        return self._peaks[key]

    def _whole_depth(self, measure: Callable[[int], int]) -> int:
        """What the whole depth costs, from what few layers cost."""
        few, more = self._layers
        base = measure(few)
        deep = self.language.get_text_config().num_hidden_layers
        return base if deep == few else base + (deep - few) * (measure(more) - base) // (more - few)

    @cached_property
    def _layers(self) -> tuple[int, int]:
        """Two depths that tell of the whole one; the whole one twice where layers differ."""
        deep = self.language.get_text_config().num_hidden_layers
        if deep > _MORE:
            few, more, whole = (
                parameter_count(with_layers(self.language, layers))
                for layers in (_FEW, _MORE, deep)
            )
            if whole - few == (deep - _FEW) * (more - few):
                return _FEW, _MORE
        return deep, deep

    def _model(self, layers: int) -> AdaptedLM:
        if layers not in self._models:
            # flash-attn is none of PyTorch's operators; it keeps what sdpa keeps.
            fast = self.attention is Attention.flash_attention_2
            attention = resolve_attention(self.language, Attention.auto if fast else self.attention)
            language = architecture_on_meta(
                with_layers(self.language, layers), self.dtype, attention
            )
            with _MetaMode():  # type: ignore[no-untyped-call]
                frozen = FrozenBackbone(
                    language,
                    self.prompt.tokenizer,
                    checkpoint_activations=self.checkpoint_activations,
                )
                frozen.cached_prefix(self.prompt.prefix_ids)
            dims = self.dims if self.standardize else {}
            statistics = {name: (np.zeros(dim), np.ones(dim)) for name, dim in dims.items()}
            self._models[layers] = AdaptedLM(
                frozen,
                deepcopy(self.adapter).to(META),
                standardizer=FeatureStandardizer(statistics).to(META),
                prompt=self.prompt,
                tree=self.tree,
                readout=self._readout(frozen),
                ordinal=self.ordinal,
            )
        return self._models[layers]

    def _run(self, layers: int, size: BatchSize, watching: _MetaMode, *, training: bool) -> None:
        """Lets the model compute a batch, and watches it."""
        try:
            model = self._model(layers)
            # Operations are counted of the products that attention consists of, memory is not.
            # Recomputed layers run where the mode does not reach; their scores are counted.
            fuse = isinstance(watching, LiveBytes) and not self.checkpoint_activations
            fused = _FusedAttention() if fuse else nullcontext()
            with fused, watching:
                batch = batch_of(model, size, self.dims)
                if training:
                    model.step(batch).loss_sum.backward()  # type: ignore[no-untyped-call]
                else:
                    with torch.no_grad():
                        model.predict(batch)
            model.zero_grad()
        except MODEL_FAILURES as error:
            raise BackboneError(
                f"The cost of a {self.language.model_type} backbone cannot be estimated: "
                f"{type(error).__name__}: {first_line(error).rstrip('.')}. Choose a causal "
                "transformer with ordinary attention, or go without the estimate "
                "(backbone.check_memory=false)."
            ) from error


def with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same architecture with the first of its layers alone."""
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
        contexts=[np.zeros(size.context, dtype=np.int32)] * count,
    )


class _MetaMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at every operation, and computes equal ones on the meta device only once.

    PyTorch derives shapes there in Python, which takes up to half a millisecond for an addition,
    and the layers of a model repeat the same few operations.
    """

    def look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Looks at an operation and its result."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs) if func.is_view else _computed(func, args, kwargs)
        self.look(func, args, kwargs, result)
        return result


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation, from ``_SHAPES`` where it is known."""
    given = (*args, *kwargs.values())
    key = (func, *kwargs, *map(_signature, given))
    if key in _SHAPES:
        place, size, stride, dtype = _SHAPES[key]
        if place is not None:
            return given[place]
        return torch.empty_strided(size, stride, dtype=dtype, device=META)
    result = func(*args, **kwargs)
    tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    if not isinstance(result, Tensor) or not all(part.is_meta for part in (result, *tensors)):
        return result
    if len(_SHAPES) == _MOST_SHAPES:
        _SHAPES.clear()
    places = [place for place, value in enumerate(given) if value is result]
    unchanged = key == (func, *kwargs, *map(_signature, given))
    storages = {tensor.untyped_storage()._cdata for tensor in tensors}
    if places and unchanged:  # an operation in place gives back what it was given
        _SHAPES[key] = places[0], None, None, None
    elif result.untyped_storage()._cdata not in storages:
        _SHAPES[key] = None, result.shape, result.stride(), result.dtype
    return result


def _signature(value: Any) -> Any:
    """What the shapes of results depend on."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (list, tuple)):
        return tuple(map(_signature, value))
    return type(value), value


class _Operations(_MetaMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of matrix products as ``FlopCounterMode`` does, but not by module."""

    total = 0

    def look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += int(count(*args, **kwargs, out_val=result))


class LiveBytes(_MetaMode):  # type: ignore[no-untyped-call]
    """Adds up the storages on a device that operators return, as long as they are alive.

    Weights of the model and of its language model are not counted.
    """

    def __init__(self, model: AdaptedLM, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        language = model.backbone.model
        weights = (language.parameters(), language.buffers(), model.parameters(), model.buffers())
        self._seen = {tensor.untyped_storage()._cdata for tensor in chain(*weights)}
        self._device = device
        self._live = 0
        self.peak = 0

    def look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Counts the storages of a result that are new."""
        for leaf in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device == self._device:
                storage = leaf.untyped_storage()
                if storage._cdata not in self._seen:
                    self._seen.add(storage._cdata)
                    self._live += storage.nbytes()
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._live)

    def _free(self, storage: int, size: int) -> None:
        self._seen.discard(storage)
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
