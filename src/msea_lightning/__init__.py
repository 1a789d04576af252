"""MSE-Adapter: a small trainable plugin that lets a frozen language model read audio and vision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msea_lightning.config.lazy import lazy

if TYPE_CHECKING:
    from msea_lightning.data.utterance import Utterance as Utterance
    from msea_lightning.plugin.answer import Answer as Answer
    from msea_lightning.plugin.plugin import Plugin as Plugin
    from msea_lightning.plugin.predictor import Predictor as Predictor

__version__ = "0.1.0"

__getattr__ = lazy(
    __name__,
    {
        "Answer": "plugin.answer",
        "Plugin": "plugin.plugin",
        "Predictor": "plugin.predictor",
        "Utterance": "data.utterance",
    },
)
