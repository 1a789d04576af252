"""Adapters: trainable plugins that let a frozen language model read audio and vision.

Every adapter keeps one contract, ``forward(text, text_mask, audio, audio_lengths, vision,
vision_lengths) -> (prefix, text)``, described at :class:`Adapter`.
"""

from __future__ import annotations

from msea_lightning.adapter.chfn import CHFNAdapter
from msea_lightning.adapter.contract import Adapter, AdapterError
from msea_lightning.adapter.mag import MAGAdapter
from msea_lightning.adapter.mse import MSEAdapter
from msea_lightning.adapter.standardize import FeatureStandardizer

__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterError",
    "CHFNAdapter",
    "FeatureStandardizer",
    "MAGAdapter",
    "MSEAdapter",
    "adapter_class",
    "adapter_name",
]

ADAPTERS: dict[str, type[Adapter]] = {"mse": MSEAdapter, "mag": MAGAdapter, "chfn": CHFNAdapter}
"""``adapter.name`` to the adapter."""


def adapter_class(name: str) -> type[Adapter]:
    """The adapter of a name.

    Raises:
        AdapterError: if there is none.
    """
    if name not in ADAPTERS:
        raise AdapterError(f"there is no adapter {name}; there are: {', '.join(ADAPTERS)}.")
    return ADAPTERS[name]


def adapter_name(adapter: Adapter) -> str:
    """The name of an adapter, by which :func:`adapter_class` finds its class."""
    (name,) = (name for name, kind in ADAPTERS.items() if kind is type(adapter))
    return name
