"""Writing a plugin folder."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from omegaconf import OmegaConf
from safetensors.torch import save_file

from msea_lightning.config.text import visible
from msea_lightning.metrics import METRICS
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.plugin.facts import FACTS, WEIGHTS, Plugin, PluginFacts, backbone_title
from msea_lightning.runs.files import write_atomically, write_json


def save_plugin(folder: Path, model: AdaptedLM, facts: PluginFacts) -> None:
    """Writes a trained model as a plugin into a folder, which is made if needed."""
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith(("adapter.", "standardizer."))
    }
    write_plugin(folder, Plugin(facts, weights))


def write_plugin(folder: Path, plugin: Plugin) -> None:
    """Writes a plugin whose weights are contiguous on the CPU into a folder, made if needed."""
    facts, weights = plugin.facts, dict(plugin.weights)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{WEIGHTS}.partial"
    save_file(weights, partial)
    partial.replace(folder / WEIGHTS)
    write_json(
        folder / FACTS, OmegaConf.to_container(OmegaConf.structured(facts), enum_to_str=True)
    )
    count = sum(tensor.numel() for tensor in weights.values())
    write_atomically(folder / "README.md", visible(readme(facts, count)))


def readme(facts: PluginFacts, parameters: int) -> str:
    """The ``README.md`` of a plugin with so many parameters."""
    dims = {"audio": facts.audio_dim, "vision": facts.vision_dim}
    read = {
        name: f"{name} ({dim} values per frame)"
        for name, dim in dims.items()
        if dim is not None and facts.adapter.get(f"use_{name}", True)
    }
    template = (resources.files(__package__) / "README.md.jinja").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template).render(
        facts=facts,
        parameters=parameters,
        read=" and ".join(read.values()),
        unread={name: dim for name, dim in dims.items() if name not in read},
        base=backbone_title(facts.backbone),
        scores=[_score(name, value) for name, value in facts.test.items()],
    )


def _score(name: str, value: float | None) -> tuple[str, str]:
    """A metric's title and value."""
    info = METRICS.get(name)
    title = name if info is None else info.title
    if value is None or math.isnan(value):
        return title, "undefined"
    if info is None:
        return title, f"{value:.4f}"
    return title, info.format(value) + (" %" if info.percent else "")
