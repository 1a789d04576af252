"""Reading a plugin folder, and loading the language model that it was trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from msea_lightning.backbone import BackboneError, FrozenBackbone, load_backbone, resolve_device
from msea_lightning.backbone.options import Accelerator, Weights
from msea_lightning.config.errors import ConfigError, first_line
from msea_lightning.config.options import check
from msea_lightning.language.options import PromptConfig
from msea_lightning.plugin.facts import (
    FACTS,
    FORMAT,
    WEIGHTS,
    PluginError,
    PluginFacts,
    backbone_title,
    is_local,
)
from msea_lightning.plugin.hub import fetch

_OPTIONS = r"\bbackbone\.(?=(path|tokenizer|quantization|dtype)\b)"


def read_plugin(place: str | Path, **download: Any) -> tuple[PluginFacts, dict[str, Tensor]]:
    """What a plugin folder, here or on the Hugging Face Hub, says, and its weights.

    Raises:
        PluginError: if a file is missing, broken, or of another format, or cannot be fetched.
    """
    if not str(place):
        raise PluginError(
            "The name of the plugin is empty: give the plugin/ folder of a finished run, or the "
            "name of a plugin on the Hugging Face Hub."
        )
    folder = Path(place).expanduser()
    if folder.is_file():
        raise PluginError(f"{place} is a file: give the folder that it is in, {folder.parent}.")
    if not folder.is_dir():
        folder = fetch(str(place), **download)
    for name in (FACTS, WEIGHTS):
        if not (folder / name).is_file():
            raise PluginError(
                f"{place} is not a complete plugin: {name} is missing. Give the plugin/ folder "
                "of a finished run, or the name of a plugin on the Hugging Face Hub."
            )
    try:
        values = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        version = values.get("format")
        if version != FORMAT:
            raise PluginError(
                f"{folder / FACTS} has format version {version}, this release reads {FORMAT}: "
                "use the release of msea_lightning that wrote it, or train the plugin again."
            )
        if unknown := values.keys() - {item.name for item in fields(PluginFacts)}:
            raise PluginError(
                f"{folder / FACTS} says {', '.join(sorted(unknown))}, which this release does not "
                "know: use the release of msea_lightning that wrote it."
            )
        facts = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PluginFacts), values))
        weights = load_file(folder / WEIGHTS)
    except (ValueError, AttributeError, OmegaConfBaseException, SafetensorError) as error:
        raise PluginError(
            f"The plugin in {folder} cannot be read: {str(error).splitlines()[0]}. Copy the whole "
            "plugin/ folder of the run again."
        ) from error
    assert isinstance(facts, PluginFacts)
    prompt = facts.prompt
    try:
        check(
            PromptConfig(
                context=prompt.context,
                context_tokens=prompt.context_tokens,
                context_template=prompt.context_template,
            ),
            "prompt",
        )
    except ConfigError as error:
        raise PluginError(
            f"{folder / FACTS} cannot be right: {error} Copy the whole plugin/ folder of the run "
            "again."
        ) from error
    return facts, weights


def load_recorded_backbone(
    plugin: PluginFacts,
    path: str | Path | None = None,
    *,
    tokenizer: str | None = None,
    quantization: str | None = None,
    dtype: str | None = None,
    device: torch.device | str = "auto",
    embeddings_only: bool = False,
) -> FrozenBackbone:
    """Loads the language model that a plugin was trained on, stored as it was then.

    For arguments and errors see :meth:`~msea_lightning.plugin.Plugin.load`. With
    ``embeddings_only`` nothing but its input embeddings stays in memory, on the CPU.
    """
    facts = plugin.backbone
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
            "it is here: tokenizer=..."
        )
    recorded = facts.get("quantization", "none")
    try:
        return load_backbone(
            path,
            tokenizer=tokenizer or facts.get("tokenizer"),
            quantization="none" if embeddings_only else quantization or recorded,
            double_quantization=facts.get("double_quantization", True),
            dtype=dtype or facts.get("dtype", "auto"),
            pad_token=plugin.prompt.pad_token,
            device="cpu" if embeddings_only else _device(device),
            embeddings_only=embeddings_only,
        )
    except BackboneError as error:
        # It names options of the command line, which are arguments here.
        raise BackboneError(re.sub(_OPTIONS, "", str(error))) from error


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
        f"The plugin was trained on {backbone_title(facts)}{named}. Say where it is here: path=..."
    )


def _device(device: torch.device | str) -> torch.device:
    """The device; BackboneError where PyTorch knows or sees none of that name."""
    if device in ("auto", "gpu"):
        return resolve_device(Accelerator(device))
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(
            f"device={device}: PyTorch has no such device here ({first_line(error)}). Give auto, "
            "cpu, or cuda where there is a GPU."
        ) from error
    return found
