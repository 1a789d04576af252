"""Whether a language model fits into the memory that is free, told before it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn

from msea_lightning.backbone.frozen import BackboneError
from msea_lightning.config import Quantization

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_BYTES = {Quantization.int8: 1.0, Quantization.nf4: 0.53}
"""Bytes of a quantised weight, its scales included (nf4: 4 bits, doubly quantised scales)."""

_HEADROOM = 1.1
"""Loading needs a little more than the weights: buffers, one shard in flight."""


def weight_bytes(config: PretrainedConfig, dtype: torch.dtype, quantization: Quantization) -> int:
    """Bytes that the weights of an architecture take.

    Args:
        config: The architecture; built without memory for it.
        dtype: Compute dtype.
        quantization: Storage of the linear layers; embeddings and output head stay dense.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    total = sum(parameter.numel() for parameter in model.parameters())
    head = model.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    per_linear = _BYTES.get(quantization, dtype.itemsize)
    return int(linear * per_linear + (total - linear) * dtype.itemsize)


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def check_memory(
    config: PretrainedConfig,
    dtype: torch.dtype,
    quantization: Quantization,
    device: torch.device,
    *,
    dense_first: bool = False,
) -> None:
    """Refuses a model whose weights do not fit.

    Args:
        config: The architecture.
        dtype: Compute dtype.
        quantization: Storage of the linear layers.
        device: Where the model is to go.
        dense_first: Random weights are drawn dense before they are quantised.

    Raises:
        BackboneError: giving what is needed, what is free, and which quantisation would fit.
    """

    def size(how: Quantization, compute: torch.dtype) -> float:
        stored = Quantization.none if dense_first else how
        return weight_bytes(config, compute, stored) * _HEADROOM

    needed, free = size(quantization, dtype), free_bytes(device)
    if needed <= free:
        return
    choices = {
        "backbone.dtype=bfloat16": size(quantization, torch.bfloat16),
        **{f"backbone.quantization={how.value}": size(how, dtype) for how in Quantization},
    }
    fitting = [f"{choice} ({_gib(bytes_)})" for choice, bytes_ in choices.items() if bytes_ <= free]
    remedy = (
        f"It would fit with {' or '.join(fitting)}."
        if fitting
        else "It does not fit in bfloat16, int8 or nf4 either: choose a smaller backbone or a "
        "larger device."
    )
    raise BackboneError(
        f"This {config.model_type} backbone needs {_gib(needed)} on {device} "
        f"({str(dtype).removeprefix('torch.')}, quantization {quantization.value}), but "
        f"{_gib(free)} are free. {remedy} (backbone.check_memory=false tries all the same.)"
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
