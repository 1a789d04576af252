"""Writing a plugin folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.plugin.card import model_card
from msea_lightning.plugin.facts import CARD, FACTS, WEIGHTS, PluginFacts
from msea_lightning.runs.files import write_atomically, write_json


def write_plugin(
    folder: Path, facts: PluginFacts, weights: Mapping[str, Tensor], name: str | None = None
) -> None:
    """Writes a plugin, with its name on the Hub if any, into a folder, which is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{WEIGHTS}.partial"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial)
    partial.replace(folder / WEIGHTS)
    write_json(
        folder / FACTS, OmegaConf.to_container(OmegaConf.structured(facts), enum_to_str=True)
    )
    write_atomically(folder / CARD, str(model_card(facts, size(weights), name)))


def size(weights: Mapping[str, Tensor]) -> int:
    """The number of parameters of a plugin."""
    return sum(tensor.numel() for tensor in weights.values())


def plugin_weights(model: AdaptedLM) -> dict[str, Tensor]:
    """The tensors of a trained model that make its plugin, on the CPU."""
    return {
        name: tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
        if name.startswith(("adapter.", "standardizer.", "readout."))
    }
