"""Writing a plugin folder."""

from __future__ import annotations

import math
from pathlib import Path

from omegaconf import OmegaConf
from safetensors.torch import save_file

from msea_lightning.config.text import visible
from msea_lightning.metrics import METRICS
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.plugin.facts import FACTS, WEIGHTS, PluginFacts, backbone_title
from msea_lightning.runs.files import write_atomically, write_json


def save_plugin(folder: Path, model: AdaptedLM, facts: PluginFacts) -> None:
    """Writes a trained model as a plugin into a folder, which is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith(("adapter.", "standardizer."))
    }
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
    read, unread = [], ""
    for name, dim in (("audio", facts.audio_dim), ("vision", facts.vision_dim)):
        if dim is None:
            unread += f" It does not read {name}, which its data did not have."
        elif not facts.adapter.get(f"use_{name}", True):
            unread += f" It does not read {name}, which was left out of it."
        else:
            read.append(f"{name} ({dim} values per frame)")
    places = {
        "file": ', "<place of that language model>"',
        "tokenizer_file": ', tokenizer="<place of its tokenizer>"',
    }
    missing = "".join(place for key, place in places.items() if facts.backbone.get(key))
    scores = "\n".join(
        f"| {METRICS[name].title if name in METRICS else name} | {_written(name, value)} |"
        for name, value in facts.test.items()
    )
    return f"""# Plugin ({facts.adapter_name}): {facts.dataset} on {facts.backbone.get("name")}

{parameters:,} numbers that let a frozen language model read {" and ".join(read) or "no features"} \
beside text.{unread}

Base model: {backbone_title(facts.backbone)}. The features must be of the same kind as those of \
{facts.dataset}.

| test metric | value |
|---|---|
{scores}

```python
from msea_lightning.plugin import attach, load_plugin, load_plugin_backbone

plugin = load_plugin("<this folder>")
model = attach(plugin, load_plugin_backbone(plugin{missing}))
answers = model.answers(batch)
```
"""


def _written(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "undefined"
    info = METRICS.get(name)
    return f"{value:.4f}" if info is None else info.format(value) + (" %" if info.percent else "")
