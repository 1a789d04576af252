"""MSE-Adapter: a small trainable plugin that lets a frozen language model read audio and vision."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msea_lightning.data.utterance import Utterance
    from msea_lightning.plugin import Answer, Plugin, Predictor

__version__ = "0.1.0"

__all__ = ["Answer", "Plugin", "Predictor", "Utterance"]

_HOMES = {
    "Answer": "msea_lightning.plugin",
    "Plugin": "msea_lightning.plugin",
    "Predictor": "msea_lightning.plugin",
    "Utterance": "msea_lightning.data.utterance",
}


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use: the command line starts without PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
