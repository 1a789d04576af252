"""The adapters by name."""

from __future__ import annotations

from msea_lightning.adapter.chfn import CHFNAdapter
from msea_lightning.adapter.contract import Adapter, AdapterError
from msea_lightning.adapter.mag import MAGAdapter
from msea_lightning.adapter.mse import MSEAdapter

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
