"""Reading a plugin folder, and loading the language model that it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file

from msea_lightning.backbone import FrozenBackbone, load_backbone
from msea_lightning.backbone.options import Weights
from msea_lightning.plugin.facts import (
    FACTS,
    FORMAT,
    WEIGHTS,
    Plugin,
    PluginError,
    PluginFacts,
    backbone_title,
    is_local,
)


def load_plugin(folder: str | Path) -> Plugin:
    """Reads a plugin folder; PluginError if a file is missing, broken, or of another format."""
    folder = Path(folder)
    for name in (FACTS, WEIGHTS):
        if not (folder / name).is_file():
            raise PluginError(
                f"{folder} is not a complete plugin: {name} is missing. Give the plugin/ folder "
                "of a finished run."
            )
    try:
        values = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        version = values.get("format")
        if version != FORMAT:
            raise PluginError(
                f"{folder / FACTS} has format version {version}, this release reads {FORMAT}: "
                "use the release of msea_lightning that wrote it, or train the plugin again."
            )
        facts = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PluginFacts), values))
        weights = load_file(folder / WEIGHTS)
    except (ValueError, AttributeError, OmegaConfBaseException, SafetensorError) as error:
        raise PluginError(
            f"The plugin in {folder} cannot be read: {str(error).splitlines()[0]}. Copy the whole "
            "plugin/ folder of the run again."
        ) from error
    assert isinstance(facts, PluginFacts)
    return Plugin(facts, weights)


def load_plugin_backbone(
    plugin: Plugin,
    path: str | Path | None = None,
    *,
    tokenizer: str | None = None,
    quantization: str | None = None,
    dtype: str | None = None,
    device: torch.device | str = "cpu",
) -> FrozenBackbone:
    """Loads the language model that a plugin was trained on, stored as it was then.

    Args:
        plugin: The plugin.
        path: Its place here, where the plugin was trained on local files.
        tokenizer: The place of its tokenizer here, where that was a local one.
        quantization: Storage of the linear layers; as in training where not given.
        dtype: Compute dtype; as in training where not given.
        device: Where to put it.

    Raises:
        PluginError: where the plugin does not tell where its language model or tokenizer is.
        BackboneError: where that cannot be loaded.
    """
    facts = plugin.facts.backbone
    if facts.get("weights", "pretrained") == Weights.random.value:
        raise PluginError(
            "The plugin was trained on random weights (backbone.weights=random), which were for "
            "measuring. Load that language model with load_backbone(..., weights='random')."
        )
    if path is None:
        path = _recorded_path(facts)
    if tokenizer is None and (file := facts.get("tokenizer_file")) is not None:
        raise PluginError(
            f"The plugin was trained with the tokenizer {file} (a local file or folder). Say where "
            "it is here: load_plugin_backbone(plugin, path, tokenizer=...)."
        )
    return load_backbone(
        path,
        tokenizer=tokenizer or facts.get("tokenizer"),
        quantization=quantization or facts.get("quantization", "none"),
        double_quantization=facts.get("double_quantization", True),
        dtype=dtype or facts.get("dtype", "auto"),
        pad_token=plugin.facts.prompt.pad_token,
        device=device,
    )


def _recorded_path(facts: Mapping[str, Any]) -> str | None:
    """Hub id of a plugin's language model, or its path in training; None for the built-in one."""
    path: str | None = facts.get("path")
    if path is None and facts.get("file") is None and facts.get("name") == "tiny":
        return None
    # Release 0.1 wrote local paths down.
    if path is not None and (not is_local(path) or Path(path).expanduser().exists()):
        return path
    named = f", called {facts['file']}" if facts.get("file") else ""
    named += f", SHA-256 {facts['sha256']}" if facts.get("sha256") else ""
    raise PluginError(
        f"The plugin was trained on {backbone_title(facts)}{named}. Say where it is here: "
        "load_plugin_backbone(plugin, path)."
    )
