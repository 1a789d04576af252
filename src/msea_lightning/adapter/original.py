"""Weights of adapters that the original implementation trained: their names, and sizes from shapes.

Two schemes of names are understood, that of the original's checkpoints
(``Model.audio_LSTM.rnn.weight_ih_l0``) and a plain one (``audio_lstm.weight_ih_l0``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
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

_FAMILIES = {
    "chatglm3": ("transformer.rotary_pos_emb.", "transformer.encoder.", "transformer.embedding."),
    "llama2": ("model.layers.", "model.embed_tokens."),
    "qwen": ("transformer.h.", "transformer.wte."),
}
"""Backbone to the beginnings of its tensors' names, below ``LLM.model.``."""

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

_PROJECTORS = {
    "mutli_scale_fusion.multi_scale_projector.": "proj_up.",
    "mutli_scale_fusion.projector.": "proj_tokens.",
}
"""The two that are told apart by their shapes, as the original names them."""

_SHOWN = 5
"""Names in an error."""


def is_frozen(name: str) -> bool:
    """Whether a name in a checkpoint is one of the frozen language model's."""
    return _WRAPPERS.sub("", name, count=1).startswith(_IGNORED)


def frozen_family(names: Iterable[str]) -> str | None:
    """The backbone whose tensors are among the names of a checkpoint; None where none is known.

    A checkpoint holds its parameters only if they were saved on purpose, but the buffers always:
    ChatGLM3 has one, ``Model.LLM.model.transformer.rotary_pos_emb.inv_freq``.
    """
    for name in filter(is_frozen, names):
        inside = name.partition("LLM.model.")[2]
        for family, parts in _FAMILIES.items():
            if inside.startswith(parts):
                return family
    return None


def names_in(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Name here of each of the adapter's weights to its name in a checkpoint.

    Names of the frozen language model are left out, unknown ones stay as they are.

    Raises:
        AdapterError: if something is no tensor, or there are two tensors of one weight.
    """
    names: dict[str, str] = {}
    for original, tensor in state_dict.items():
        if is_frozen(original):
            continue
        if not isinstance(tensor, Tensor):
            raise AdapterError(
                f"{NOT_ORIGINAL} Here {original!r} is no tensor: {type(tensor).__name__}."
            )
        name = _WRAPPERS.sub("", original, count=1)
        if projector := _TOKEN_PROJECTORS.match(name):
            leaf = name[projector.end() :]
            matrix = state_dict.get(original.removesuffix(leaf) + "weight", tensor)
            name = ("proj_tokens." if matrix.shape[1:] == (1,) else "proj_up.") + leaf
        for prefix, ours in _NAMES.items():
            if name.startswith(prefix):
                name = ours + name.removeprefix(prefix)
                break
        if name in names:
            raise AdapterError(
                f"{names[name]!r} and {original!r} are the same weight: keep one of them."
            )
        names[name] = original
    return names


def check_names(names: Mapping[str, str], needed: Collection[str]) -> None:
    """Refuses a checkpoint that lacks one of the ``needed`` weights, or has others besides."""
    missing = [_original_name(name) for name in needed if name not in names]
    others = [original for name, original in names.items() if name not in needed]
    if missing or others:
        raise AdapterError(
            NOT_ORIGINAL
            + (f" Missing: {_listed(missing)}." if missing else "")
            + (f" Unknown: {_listed(others)}." if others else "")
        )


def _original_name(name: str) -> str:
    """What the original calls one of the adapter's weights."""
    for original, ours in {**_NAMES, **_PROJECTORS}.items():
        if name.startswith(ours):
            return original + name.removeprefix(ours)
    return name


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The adapter's arguments from the shapes of its weights."""
    try:
        hidden, text_dim = weights["text_proj.weight"].shape
        audio_gates, audio_dim = weights["audio.lstm.weight_ih_l0"].shape
        vision_gates, vision_dim = weights["vision.lstm.weight_ih_l0"].shape
        pseudo_tokens, _ = weights["proj_tokens.weight"].shape
    except KeyError as error:
        missing = _original_name(error.args[0])
        raise AdapterError(f"{NOT_ORIGINAL} Missing: {missing!r}.") from error
    except ValueError as error:  # no matrix
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
