"""ChatGLM3 and first-generation Qwen from their original checkpoints, as native models.

Both architectures are special cases of ones that transformers implements: ChatGLM3 of GLM, Qwen of
Qwen2 with as many key as query heads. What differs are the names of the weights, the fused
query-key-value projection, and the names of the options. The mapping was verified against the
outputs of the original implementations (``tests/vectors/backbones``). No code of a checkpoint runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from msea_lightning.backbone.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from transformers.core_model_loading import WeightConverter, WeightRenaming

IGNORED_WEIGHTS = frozenset({"transformer.rotary_pos_emb.inv_freq"})
"""Buffers of the original checkpoints that the native models compute themselves."""

_MUST_HOLD: Mapping[str, Mapping[str, tuple[Any, Any]]] = {
    "chatglm": {
        "rmsnorm": (True, True),
        "post_layer_norm": (True, True),
        "multi_query_attention": (True, False),
        "add_bias_linear": (False, False),
        "apply_residual_connection_post_layernorm": (False, False),
        "quantization_bit": (0, 0),
    },
    "qwen": {"no_bias": (True, True), "rotary_pct": (1.0, 1.0)},
}
"""By family and option: the value for which the native architecture is the same, and the
original's default."""

_FIELDS: Mapping[str, Mapping[str, str]] = {
    "chatglm": {
        "vocab_size": "padded_vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "ffn_hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_attention_heads",
        "num_key_value_heads": "multi_query_group_num",
        "head_dim": "kv_channels",
        "rms_norm_eps": "layernorm_epsilon",
        "attention_bias": "add_qkv_bias",
        "max_position_embeddings": "seq_length",
    },
    "qwen": {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "rms_norm_eps": "layer_norm_epsilon",
        # Beyond it the original stretches the rotation and scales the queries (dynamic NTK,
        # log n), which Qwen2 does not; the length is therefore a limit.
        "max_position_embeddings": "seq_length",
    },
}
"""By family: the original's name of each field of the native config."""

_registering = threading.Lock()


def original_family(fields: Mapping[str, Any]) -> str | None:
    """Which original format a ``config.json`` is in: ``chatglm``, ``qwen``, or None of them."""
    if (model_type := fields.get("model_type")) is not None:
        return str(model_type) if model_type in _FIELDS else None
    for name in map(str.lower, fields.get("architectures") or []):
        if name.startswith("chatglm"):
            return "chatglm"
        if name == "qwenlmheadmodel":
            return "qwen"
    return None


def native_config(place: str, fields: Mapping[str, Any]) -> PretrainedConfig:
    """The native config of an original checkpoint, from the fields of its ``config.json``.

    Raises:
        BackboneError: if a field is missing or has a value for which the native architecture would
            compute something else.
    """
    family = original_family(fields)
    assert family is not None
    for field, (value, default) in _MUST_HOLD[family].items():
        found = fields.get(field, default)
        if (found or 0) != value:
            raise BackboneError(
                f"The {family} checkpoint {place} has {field}={found} in its config.json; only "
                f"{field}={value} is the architecture that transformers implements. Give another "
                "checkpoint as backbone.path (quantise with backbone.quantization instead)."
            )
    names = _FIELDS[family]
    missing = sorted(original for original in names.values() if fields.get(original) is None)
    if missing:
        raise BackboneError(
            f"The config.json of {place} says that it is a {family} checkpoint, but has no "
            f"{', '.join(missing)}. Copy the original file again; if it is complete, it belongs to "
            "another generation of the family, which transformers does not implement."
        )
    native = {name: fields[original] for name, original in names.items()}
    native["tie_word_embeddings"] = _given(fields, "tie_word_embeddings", False)
    make = _glm_config if family == "chatglm" else _qwen2_config
    return make(place, fields, native)


@contextmanager
def original_weights(family: str) -> Iterator[None]:
    """Lets transformers read the weights of an original checkpoint while the context is open.

    The names are registered for this time only: afterwards, native checkpoints of the same
    architectures load, and models save, as if nothing had been registered.
    """
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )

    model_type, mapping = (
        ("glm", _chatglm_weights()) if family == "chatglm" else ("qwen2", _qwen_weights())
    )
    with _registering:
        before = get_checkpoint_conversion_mapping(model_type) or []
        register_checkpoint_conversion_mapping(model_type, [*before, *mapping], overwrite=True)
        try:
            yield
        finally:
            register_checkpoint_conversion_mapping(model_type, before, overwrite=True)


def _glm_config(place: str, fields: Mapping[str, Any], native: dict[str, Any]) -> PretrainedConfig:
    from transformers import GlmConfig

    return GlmConfig(
        **native,
        # The 32k variant stretches the rotation by rope_ratio; only half of every head rotates.
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0 * _given(fields, "rope_ratio", 1),
            "partial_rotary_factor": 0.5,
        },
        # GlmConfig's own defaults belong to GLM-4 and lie beyond this vocabulary.
        pad_token_id=_given(fields, "pad_token_id", 0),
        eos_token_id=_given(fields, "eos_token_id", 2),
    )


def _qwen2_config(
    place: str, fields: Mapping[str, Any], native: dict[str, Any]
) -> PretrainedConfig:
    from transformers import Qwen2Config

    heads, width = native["num_attention_heads"], native["hidden_size"]
    channels = _given(fields, "kv_channels", width // heads)
    if channels * heads != width:
        raise BackboneError(
            f"The qwen checkpoint {place} has kv_channels={channels} and "
            f"num_attention_heads={heads}, whose product is not hidden_size={width}: "
            "transformers has no such architecture. Check its config.json."
        )
    inner, odd = divmod(native.pop("intermediate_size"), 2)
    if odd:
        raise BackboneError(
            f"The qwen checkpoint {place} has intermediate_size={2 * inner + 1}, which counts the "
            "gate and the value together and must be even. Check its config.json."
        )
    return Qwen2Config(
        **native,
        intermediate_size=inner,
        num_key_value_heads=heads,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(_given(fields, "rotary_emb_base", 10000)),
        },
        use_sliding_window=False,
        bos_token_id=fields.get("bos_token_id"),
        eos_token_id=fields.get("eos_token_id"),
        pad_token_id=fields.get("pad_token_id"),
    )


def _given(fields: Mapping[str, Any], name: str, default: Any) -> Any:
    """A field, or what the original takes where the file does not say."""
    value = fields.get(name)
    return default if value is None else value


def _chatglm_weights() -> list[WeightConverter | WeightRenaming]:
    from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

    return [
        # Rows of all query heads, then of the key heads, then of the value heads.
        WeightConverter(
            "self_attention.query_key_value",
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            operations=[Split(dim=0)],
        ),
        WeightRenaming("transformer.embedding.word_embeddings", "model.embed_tokens"),
        WeightRenaming("transformer.encoder.final_layernorm", "model.norm"),
        WeightRenaming("transformer.output_layer", "lm_head"),
        WeightRenaming("transformer.encoder.layers", "model.layers"),
        WeightRenaming("self_attention.dense", "self_attn.o_proj"),
        # The gate first, then the value, in both.
        WeightRenaming("mlp.dense_h_to_4h", "mlp.gate_up_proj"),
        WeightRenaming("mlp.dense_4h_to_h", "mlp.down_proj"),
    ]


def _qwen_weights() -> list[WeightConverter | WeightRenaming]:
    from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

    return [
        WeightConverter(
            "attn.c_attn",
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            operations=[Chunk(dim=0)],
        ),
        WeightRenaming("transformer.wte", "model.embed_tokens"),
        WeightRenaming("transformer.ln_f", "model.norm"),
        WeightRenaming("transformer.h", "model.layers"),
        WeightRenaming("ln_1", "input_layernorm"),
        WeightRenaming("ln_2", "post_attention_layernorm"),
        WeightRenaming("attn.c_proj", "self_attn.o_proj"),
        # Qwen's second matrix is the gate, its first one the value.
        WeightRenaming("mlp.w2", "mlp.gate_proj"),
        WeightRenaming("mlp.w1", "mlp.up_proj"),
        WeightRenaming("mlp.c_proj", "mlp.down_proj"),
    ]
