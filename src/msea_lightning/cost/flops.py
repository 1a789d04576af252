"""How many floating point operations a frozen language model takes, told before it is loaded.

As in :mod:`msea_lightning.backbone.loading.memory`, no architecture has formulas of its own: it
runs on the meta device, where tensors have shapes but no numbers, and PyTorch adds up its matrix
products, an addition and a multiplication being two operations.

Counted is what is mathematically needed, forward and, in training, backward to the input. There is
no gradient of a weight, for nothing of the language model is trained. Attention counts in full, all
S positions with all S: the task gives explicit masks between positions, under which every
implementation computes the part that a causal mask hides as well. What an implementation computes
twice to save memory counts once: activations that are recomputed, scores that fused attention makes
again in its backward pass. Of the last layer, what works on each position by itself counts where
its result is read. An opening that a run reads once for all of its utterances counts with each of
them.

Shape legend: S tokens, L label tokens, M nodes of the answer tree.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from msea_lightning.backbone.errors import BackboneError
from msea_lightning.backbone.frozen import FrozenBackbone
from msea_lightning.backbone.loading.memory import Reading, _architecture, _Shadow, _train
from msea_lightning.backbone.options import Attention
from msea_lightning.backbone.self_check import find_last_modules

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_FEW, _MORE = 1, 2
"""Layers of the small models that a deep one is counted from, where its layers are all alike."""

_SQUARE_GPU, _SQUARE_CPU = 4096, 1024
"""Rows and columns of the matrices that a device's rate is measured with."""

_QUEUED = 8
"""Products that a GPU is given at a time, so that starting them takes no part in the rate."""

_MEASURING = 0.7
"""Seconds of measuring a rate, not counting the first product."""


def reading_flops(config: PretrainedConfig, reading: Reading) -> int:
    """Operations of one step, from the embeddings on; logits only where something is predicted.

    Args:
        config: The architecture; nothing of its size is allocated.
        reading: What it reads: forward and backward with label tokens, else forward alone.

    Raises:
        BackboneError: if the architecture does not run without numbers.
    """
    (flops,) = _utterance_flops(config, [reading])
    return reading.batch * flops


class UtteranceFlops:
    """Operations of one utterance by its length, without any padding.

    Every product in a transformer is of the first or second degree in the length, so that three
    lengths tell all the others, exactly.

    Args:
        config: The architecture; nothing of its size is allocated.
        labels: Training: label tokens L that the last positions predict.
        nodes: Evaluation: nodes M of the answer tree, behind the tokens.

    Raises:
        BackboneError: if the architecture does not run without numbers.
    """

    def __init__(self, config: PretrainedConfig, *, labels: int = 0, nodes: int = 0) -> None:
        first = max(1, labels)
        readings = [Reading(1, first + more, labels=labels, nodes=nodes) for more in range(3)]
        start, middle, end = _utterance_flops(config, readings)
        # Half the second difference is whole, as all three coefficients are.
        self._square = (end - 2 * middle + start) // 2
        self._linear = middle - start - self._square * (2 * first + 1)
        self._nodes = nodes
        self._constant = start - (self._square * first + self._linear) * first

    @overload
    def __call__(self, tokens: int, *, read_before: int = 0) -> float: ...
    @overload
    def __call__(
        self, tokens: NDArray[np.int64], *, read_before: int = 0
    ) -> NDArray[np.float64]: ...
    def __call__(
        self, tokens: NDArray[np.int64] | int, *, read_before: int = 0
    ) -> NDArray[np.float64] | float:
        """Operations at given lengths.

        Args:
            tokens: Tokens S of a sequence or of many, any shape: in training with the label tokens
                that are read, in evaluation without the nodes.
            read_before: First tokens, among them, that are not read again: nothing goes through the
                layers for them, and they attend to nothing; the others attend to them.

        Returns:
            As many numbers.
        """
        flops = (self._square * tokens + self._linear) * tokens + self._constant
        # A token by itself, and what it attends to: of all that is read, the nodes once.
        flops = flops - read_before * (self._square * (tokens - self._nodes) + self._linear)
        return flops.astype(np.float64) if isinstance(flops, np.ndarray) else float(flops)


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


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a device in products of square matrices: the best of several tries.

    It takes about a second, or as long as a few products do.

    Args:
        dtype: What is multiplied.
        device: Where.

    Raises:
        RuntimeError: if a GPU has no room for three such matrices, 100 MB in half precision, and
            what its library needs beside them.
    """
    on_gpu = device.type == "cuda"
    size, products = (_SQUARE_GPU, _QUEUED) if on_gpu else (_SQUARE_CPU, 1)
    # Random numbers, for GPUs multiply zeros faster; of an own generator, which no run draws from.
    own = torch.Generator(device).manual_seed(0)
    left, right = torch.randn(2, size, size, generator=own, dtype=dtype, device=device)
    out = torch.empty_like(left)

    def seconds(products: int) -> float:
        start = time.perf_counter()
        for _ in range(products):
            torch.mm(left, right, out=out)
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds(1)  # loads the library, and chooses the algorithm
    tries = [seconds(products), seconds(products)]
    while sum(tries) < _MEASURING:
        tries.append(seconds(products))
    return 2 * size**3 * products / min(tries)


def _utterance_flops(config: PretrainedConfig, readings: Sequence[Reading]) -> list[int]:
    """Operations of one utterance of each reading, whatever its batch."""
    try:
        with torch.device("meta"):
            return _count(config, readings)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise BackboneError(
            f"The operations of a {config.model_type} backbone cannot be counted: "
            f"{type(error).__name__}: {first.rstrip('.')}. Choose a causal transformer with "
            "ordinary attention."
        ) from error


def _count(config: PretrainedConfig, readings: Sequence[Reading]) -> list[int]:
    deep = config.get_text_config().num_hidden_layers
    whole = _shadow(config)
    if deep <= _MORE:
        return [_flops(whole, reading) for reading in readings]
    few, more = (_shadow(with_layers(config, layers)) for layers in (_FEW, _MORE))
    further = (deep - _FEW) // (_MORE - _FEW)
    if few.parameters + further * (more.parameters - few.parameters) != whole.parameters:
        # Its layers differ, and the first do not speak for the others.
        return [_flops(whole, reading) for reading in readings]
    counts = [(_flops(few, reading), _flops(more, reading)) for reading in readings]
    return [base + further * (larger - base) for base, larger in counts]


def _shadow(config: PretrainedConfig) -> _Shadow:
    # Eager attention consists of plain matrix products; fused kernels are counted on GPUs only.
    shadow = _Shadow(_architecture(config, torch.float32, Attention.eager.value))
    find_last_modules(shadow, _with_two_tokens(shadow.width), right=lambda _: True)
    return shadow


def _with_two_tokens(width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, mask and positions, to try something with."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    return torch.empty(1, 2, width), mask, torch.arange(2)[None]


def _flops(backbone: FrozenBackbone, reading: Reading) -> int:
    counter = FlopCounterMode(display=False)
    one = Reading(1, reading.tokens, reading.labels, reading.nodes)
    with counter:
        (_train if reading.labels else _evaluate)(backbone, one)
    return counter.get_total_flops()


@torch.no_grad()
def _evaluate(backbone: FrozenBackbone, reading: Reading) -> None:
    """What the task does in evaluation, from the embeddings on, and with all of the logits.

    Its twin for memory stops where no further logits would take more memory.
    """
    tokens = reading.tokens + reading.nodes
    mask = torch.ones(1, tokens, tokens, dtype=torch.bool)
    embedded = torch.empty(1, tokens, backbone.width, dtype=backbone.dtype)
    wanted = 1 + reading.nodes
    hidden = backbone.hidden(embedded, mask, torch.arange(tokens)[None], last=wanted)
    backbone.logits(hidden[:, -wanted:])
