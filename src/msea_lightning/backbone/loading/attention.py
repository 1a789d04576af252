"""Which implementation of attention a language model is built with."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from msea_lightning.backbone.errors import BackboneError
from msea_lightning.backbone.options import Attention

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def resolve_attention(config: PretrainedConfig, attention: Attention) -> Attention:
    """What ``auto`` stands for: PyTorch's fused attention where the architecture takes it."""
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
    takes_sdpa = kind._supports_sdpa
    if attention is Attention.auto:
        return Attention.sdpa if takes_sdpa else Attention.eager
    if attention is Attention.sdpa and not takes_sdpa:
        raise BackboneError(
            f"backbone.attention=sdpa: transformers has no such attention for {config.model_type} "
            "backbones; use backbone.attention=eager, or auto."
        )
    return attention


def check_flash_attention(device: torch.device, dtype: torch.dtype) -> None:
    """Refuses flash attention where it cannot run, naming all that is missing."""
    found = []
    if find_spec("flash_attn") is None:
        # transformers would fetch compiled code from the Hub and run it.
        found.append("the package flash-attn is not installed (pip install flash-attn)")
    if device.type != "cuda":
        found.append(f"the device is {device}, not a GPU (trainer.accelerator=gpu)")
    if dtype is torch.float32:
        found.append("the compute dtype is torch.float32 (backbone.dtype=bfloat16)")
    if found:
        raise BackboneError(
            f"backbone.attention=flash_attention_2 is not possible: {'; '.join(found)}. "
            "backbone.attention=auto works everywhere."
        )
