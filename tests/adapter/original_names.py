"""Recorded weights under the names that they have in the original's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_NAMES = {
    "audio_lstm": "audio_LSTM.rnn",
    "audio_proj": "audio_LSTM.linear",
    "video_lstm": "video_LSTM.rnn",
    "video_proj": "video_LSTM.linear",
    "text_proj": "text_guide_mixer.text_mlp",
    "scale8": "mutli_scale_fusion.scale1",
    "scale32": "mutli_scale_fusion.scale2",
    "scale16": "mutli_scale_fusion.scale3",
    "conv": "mutli_scale_fusion.integrating.Integrating_layer.0",
    "proj_up": "mutli_scale_fusion.multi_scale_projector",
    "proj_tokens": "mutli_scale_fusion.projector",
}


def original_names(tensors: Mapping[str, Tensor], prefix: str = "Model.") -> dict[str, Tensor]:
    """The tensors ``weight.<part>.<leaf>`` of a recorded case, renamed, and no others."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("weight."):
            part, leaf = name.removeprefix("weight.").split(".", 1)
            renamed[f"{prefix}{_NAMES[part]}.{leaf}"] = tensor
    return renamed
