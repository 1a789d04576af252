"""A published architecture in another width and depth, to measure with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MULTIPLE = 16
"""Inner widths are rounded to it, as published ones are multiples of it."""

_PER_LAYER = ("layer_types", "no_rope_layers")
"""Fields of a config that have an entry for each layer."""


def resized(
    architecture: Mapping[str, Any], *, hidden_size: int | None, num_layers: int | None
) -> dict[str, Any]:
    """The fields of a transformers config with another width or number of layers; None leaves them.

    Heads keep their width as far as they can, and there are as many of them as fit; the inner width
    and the number of key and value heads keep their ratio. The vocabulary stays as it is.
    """
    fields = dict(architecture)
    if hidden_size is not None:
        width, heads = int(fields["hidden_size"]), int(fields["num_attention_heads"])
        key_heads = int(fields.get("num_key_value_heads") or heads)
        if fields.get("head_dim"):
            # Heads with a width of their own: together they need not be as wide as the model.
            new_heads = max(1, round(heads * hidden_size / width))
        else:
            new_heads = _divisor(hidden_size, max(1, hidden_size * heads // width))
        inner = fields["intermediate_size"] * hidden_size / width
        fields |= {
            "hidden_size": hidden_size,
            "intermediate_size": max(1, round(inner / _MULTIPLE)) * _MULTIPLE,
            "num_attention_heads": new_heads,
            "num_key_value_heads": _divisor(new_heads, max(1, key_heads * new_heads // heads)),
        }
    if num_layers is not None:
        fields["num_hidden_layers"] = num_layers
        for name in _PER_LAYER:
            if isinstance(fields.get(name), list):
                fields[name] = fields[name][:num_layers]
    return fields


def _divisor(number: int, at_most: int) -> int:
    """The largest divisor of a number that is no larger than another one."""
    return next(value for value in range(at_most, 0, -1) if number % value == 0)
