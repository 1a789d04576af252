"""The trained plugin: saved, loaded, attached to its language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msea_lightning.config.lazy import lazy

if TYPE_CHECKING:
    from msea_lightning.plugin.folder import Plugin as Plugin
    from msea_lightning.plugin.folder import PluginError as PluginError
    from msea_lightning.plugin.folder import PluginFacts as PluginFacts
    from msea_lightning.plugin.folder import PromptFacts as PromptFacts
    from msea_lightning.plugin.folder import attach as attach
    from msea_lightning.plugin.folder import describe as describe
    from msea_lightning.plugin.folder import load_plugin as load_plugin
    from msea_lightning.plugin.folder import save_plugin as save_plugin

__all__ = [
    "Plugin",
    "PluginError",
    "PluginFacts",
    "PromptFacts",
    "attach",
    "describe",
    "load_plugin",
    "save_plugin",
]

__getattr__ = lazy(
    __name__,
    {
        "Plugin": "folder",
        "PluginError": "folder",
        "PluginFacts": "folder",
        "PromptFacts": "folder",
        "attach": "folder",
        "describe": "folder",
        "load_plugin": "folder",
        "save_plugin": "folder",
    },
)
