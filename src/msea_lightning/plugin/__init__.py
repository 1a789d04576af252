"""Trained plugins: save, load, attach to a language model.

A plugin folder holds ``adapter.safetensors`` (adapter weights and feature statistics, megabytes),
``plugin.json`` (everything needed to use them) and a ``README.md``. Attaching several plugins to
one language model costs their own weights only: the language model is shared and never changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msea_lightning.config.lazy import lazy

if TYPE_CHECKING:
    from msea_lightning.plugin.answer import Answer as Answer
    from msea_lightning.plugin.attaching import attach as attach
    from msea_lightning.plugin.facts import PluginError as PluginError
    from msea_lightning.plugin.original import Imported as Imported
    from msea_lightning.plugin.original import import_plugin as import_plugin
    from msea_lightning.plugin.plugin import Plugin as Plugin
    from msea_lightning.plugin.plugin import load_plugin as load_plugin
    from msea_lightning.plugin.plugin import load_plugin_backbone as load_plugin_backbone
    from msea_lightning.plugin.plugin import save_plugin as save_plugin
    from msea_lightning.plugin.predictor import Predictor as Predictor

__getattr__ = lazy(
    __name__,
    {
        "Answer": "answer",
        "Imported": "original",
        "Plugin": "plugin",
        "PluginError": "facts",
        "Predictor": "predictor",
        "attach": "attaching",
        "import_plugin": "original",
        "load_plugin": "plugin",
        "load_plugin_backbone": "plugin",
        "save_plugin": "plugin",
    },
)
