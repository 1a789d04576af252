"""ChatGLM3 and first-generation Qwen from their original checkpoints, as native models.

Both architectures are special cases of ones that transformers implements: ChatGLM3 of GLM, Qwen of
Qwen2 with as many key as query heads. What differs are the names of the weights, the fused
query-key-value projection, and the names of the options (``original.yaml``). The mapping was
verified against the outputs of the original implementations (``tests/vectors/backbones``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from msea_lightning.backbone.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IGNORED_WEIGHTS = frozenset({"transformer.rotary_pos_emb.inv_freq"})
"""Buffers of the original checkpoints that the native models compute themselves."""

_FAMILIES: Mapping[str, Mapping[str, Any]] = yaml.safe_load(
    (resources.files(__package__) / "original.yaml").read_text(encoding="utf-8")
)

_registering = threading.Lock()


def original_family(fields: Mapping[str, Any]) -> str | None:
    """Which original format a ``config.json`` is in: ``chatglm``, ``qwen``, or None of them."""
    if (model_type := fields.get("model_type")) is not None:
        return str(model_type) if model_type in _FAMILIES else None
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
    from transformers import AutoConfig

    family = original_family(fields)
    assert family is not None
    facts = _FAMILIES[family]
    given = {name: value for name, value in fields.items() if value is not None}
    for field, (value, default) in facts["must_hold"].items():
        found = given.get(field, default)
        if found != value:
            raise BackboneError(
                f"The {family} checkpoint {place} has {field}={found} in its config.json; only "
                f"{field}={value} is the architecture that transformers implements. Give another "
                "checkpoint as backbone.path (quantise with backbone.quantization instead)."
            )
    missing = sorted(set(facts["fields"].values()) - set(given))
    if missing:
        raise BackboneError(
            f"The config.json of {place} says that it is a {family} checkpoint, but has no "
            f"{', '.join(missing)}. Copy the original file again; if it is complete, it belongs to "
            "another generation of the family, which transformers does not implement."
        )
    native = {name: given[original] for name, original in facts["fields"].items()}
    native |= {name: given.get(name, default) for name, default in facts["optional"].items()}
    # The 32k variant of ChatGLM3 stretches the rotation by rope_ratio.
    theta = given.get("rotary_emb_base", 10000.0) * given.get("rope_ratio", 1)
    rope = {"rope_type": "default", "rope_theta": float(theta)}
    if family == "chatglm":
        rope["partial_rotary_factor"] = 0.5
    else:
        native["intermediate_size"] = _halved_inner_size(place, given)
    return AutoConfig.for_model(facts["native"], **native, rope_parameters=rope)


def _halved_inner_size(place: str, qwen: Mapping[str, Any]) -> int:
    """Half of the size that counts Qwen's gate and value together; other sizes are checked."""
    heads, width, inner = (
        qwen[name] for name in ("num_attention_heads", "hidden_size", "intermediate_size")
    )
    channels = qwen.get("kv_channels", width // heads)
    if channels * heads != width or inner % 2:
        raise BackboneError(
            f"The qwen checkpoint {place} has kv_channels={channels} and "
            f"num_attention_heads={heads}, whose product must be hidden_size={width}, and "
            f"intermediate_size={inner}, which must be even: transformers has no other such "
            "architecture. Check its config.json."
        )
    return int(inner // 2)


@contextmanager
def original_weights(family: str) -> Iterator[None]:
    """Lets transformers read the weights of an original checkpoint while the context is open.

    The names are registered for this time only: afterwards, native checkpoints of the same
    architectures load, and models save, as if nothing had been registered.
    """
    from transformers import conversion_mapping, core_model_loading

    facts = _FAMILIES[family]
    attention = core_model_loading.WeightConverter(
        facts["fused"],
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        operations=[getattr(core_model_loading, facts["split"])(dim=0)],
    )
    others = [core_model_loading.WeightRenaming(*names) for names in facts["weights"].items()]
    register = conversion_mapping.register_checkpoint_conversion_mapping
    with _registering:
        before = conversion_mapping.get_checkpoint_conversion_mapping(facts["native"]) or []
        register(facts["native"], [*before, attention, *others], overwrite=True)
        try:
            yield
        finally:
            register(facts["native"], before, overwrite=True)
