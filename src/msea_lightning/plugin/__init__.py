"""Trained plugins: save, load, attach to a language model.

A plugin folder holds ``adapter.safetensors`` (adapter weights and feature statistics, megabytes),
``plugin.json`` (everything needed to use them) and a ``README.md``. Attaching several plugins to
one language model costs their own weights only: the language model is shared and never changes.
"""

from msea_lightning.plugin.answer import Answer
from msea_lightning.plugin.attaching import attach
from msea_lightning.plugin.facts import PluginError
from msea_lightning.plugin.original import Imported, import_plugin
from msea_lightning.plugin.plugin import Plugin, load_plugin, load_plugin_backbone, save_plugin
from msea_lightning.plugin.predictor import Predictor

__all__ = [
    "Answer",
    "Imported",
    "Plugin",
    "PluginError",
    "Predictor",
    "attach",
    "import_plugin",
    "load_plugin",
    "load_plugin_backbone",
    "save_plugin",
]
