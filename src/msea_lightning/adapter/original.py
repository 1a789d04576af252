"""Weights of adapters that the original implementation trained: their names, and sizes from shapes.

Two schemes of names are understood, that of the original's checkpoints
(``Model.audio_LSTM.rnn.weight_ih_l0``) and a plain one (``audio_lstm.weight_ih_l0``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from msea_lightning.adapter.contract import AdapterError

NOT_ORIGINAL = (
    "this is not a checkpoint of the unchanged original adapter (single-layer, one-directional "
    "LSTMs). Give the whole state dict of the original model, for example "
    "torch.load(path, weights_only=True)."
)

_IGNORED = ("LLM.", "language_model.")
"""Where checkpoints of the original implementation keep their frozen language model."""

_WRAPPERS = re.compile(r"(module\.)?(Model\.)?(weight\.)?")
"""Before the original's names: DataParallel, its model registry, files of weights and results."""

_TOKEN_PROJECTORS = re.compile(r"mutli_scale_fusion\.(multi_scale_projector|projector)\.")
"""Told apart by their shapes: one is (D, H), the other (N, 1)."""

_NAMES = {
    "audio_LSTM.rnn.": "audio.lstm.",
    "audio_LSTM.linear.": "audio.proj.",
    "video_LSTM.rnn.": "vision.lstm.",
    "video_LSTM.linear.": "vision.proj.",
    "text_guide_mixer.text_mlp.": "text_proj.",
    "mutli_scale_fusion.scale1.": "scales.0.",
    "mutli_scale_fusion.scale2.": "scales.1.",
    "mutli_scale_fusion.scale3.": "scales.2.",
    "mutli_scale_fusion.integrating.Integrating_layer.0.": "conv.",
    "audio_lstm.": "audio.lstm.",
    "audio_proj.": "audio.proj.",
    "video_lstm.": "vision.lstm.",
    "video_proj.": "vision.proj.",
    "scale8.": "scales.0.",
    "scale32.": "scales.1.",
    "scale16.": "scales.2.",
}
"""Name in one of the schemes to the name here, where it differs."""


def renamed_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's weights under the names that they have here; unknown names as they are."""
    weights = {}
    for original, tensor in state_dict.items():
        name = _WRAPPERS.sub("", original, count=1)
        if name.startswith(_IGNORED):
            continue
        if projector := _TOKEN_PROJECTORS.match(name):
            leaf = name[projector.end() :]
            matrix = state_dict.get(original.removesuffix(leaf) + "weight", tensor)
            name = ("proj_tokens." if matrix.shape[1:] == (1,) else "proj_up.") + leaf
        for prefix, ours in _NAMES.items():
            if name.startswith(prefix):
                name = ours + name.removeprefix(prefix)
                break
        weights[name] = tensor
    return weights


def sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The adapter's arguments from the shapes of its weights."""
    try:
        hidden, text_dim = weights["text_proj.weight"].shape
        audio_gates, audio_dim = weights["audio.lstm.weight_ih_l0"].shape
        vision_gates, vision_dim = weights["vision.lstm.weight_ih_l0"].shape
        pseudo_tokens, _ = weights["proj_tokens.weight"].shape
    except (KeyError, ValueError) as error:  # missing, or no matrix
        raise AdapterError(f"{NOT_ORIGINAL} Its sizes cannot be read: {error!r}.") from error
    return {
        "text_dim": text_dim,
        "audio_dim": audio_dim,
        "vision_dim": vision_dim,
        "audio_hidden": audio_gates // 4,
        "vision_hidden": vision_gates // 4,
        "pseudo_tokens": pseudo_tokens,
        "hidden": hidden,
    }
