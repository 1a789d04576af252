"""Which language models are on this machine, where, and whether they are complete."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msea_lightning.backbone.options import BackboneConfig
from msea_lightning.config.errors import UserError
from msea_lightning.diagnosis.datasets import Resource

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GATED = ("google/", "meta-llama/")
"""Organisations of the Hub whose models can be fetched only after accepting a licence."""

Sizes = tuple[Any, ...]
"""Architecture and sizes of a language model."""

_SIZES = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads"),
)
"""Fields of ``config.json`` that tell architectures apart."""

_WEIGHTS = {
    "model.safetensors": "model.safetensors.index.json",
    "pytorch_model.bin": "pytorch_model.bin.index.json",
}
"""Weight formats: the single file, and the index where there are several."""


@dataclass(frozen=True)
class LargestModel:
    """What the largest backbone with a preset would take of this machine.

    Attributes:
        stored: Bytes of its weights, by the way they are stored, the first of them as published.
        places: Bytes of its weights at each place with ``backbone.device_map=auto``, as published.
        visiting: Bytes of the largest layer that is brought to where it is computed, 0 for none.
        flaw: Why it cannot be spread here.
    """

    name: str
    parameters: int
    stored: Mapping[str, int]
    places: Mapping[str, int] = field(default_factory=dict)
    visiting: int = 0
    flaw: str = ""


def find_largest(config: BackboneConfig, device: str) -> LargestModel:
    """What would lie where if a backbone were trained on here; nothing of it is loaded."""
    import torch

    from msea_lightning.backbone.loading.memory import Stored, parameter_count, weight_memory
    from msea_lightning.backbone.loading.spread import plan_spread
    from msea_lightning.backbone.options import Quantization

    architecture, place = _published(config), torch.device(device)
    ways = {
        "bfloat16" if how is Quantization.none else how.value: Stored(torch.bfloat16, how)
        for how in Quantization
    }
    found = LargestModel(
        config.name,
        parameter_count(architecture),
        {name: weight_memory(architecture, how, place).weights for name, how in ways.items()},
    )
    try:
        spread = plan_spread(architecture, ways["bfloat16"], place)
    except UserError as error:
        return replace(found, flaw=str(error))
    return replace(found, places=spread.named_sizes, visiting=spread.visiting)


def find_backbones(configs: Sequence[BackboneConfig], folder: Path | None = None) -> list[Resource]:
    """Where the backbones of ``conf/backbone`` are, and further checkpoints in a folder."""
    checkpoints = {} if folder is None else _checkpoints(folder)
    found = [find_backbone(config, checkpoints) for config in configs]
    known = [_sizes(_published(config)) for config in configs if config.path and checkpoints]
    for path, sizes in checkpoints.items():
        if isinstance(sizes, str):
            found.append(Resource("auto", "incomplete", str(path), flaw=sizes))
        elif sizes not in known:
            option = f"backbone=auto {shlex.quote(f'backbone.path={path}')}"
            found.append(replace(_check("auto", str(path)), option=option))
    return found


def _checkpoints(folder: Path) -> dict[Path, Sizes | str]:
    """The sizes of all checkpoints up to three folders down, or why they are not known."""
    from msea_lightning.backbone.loading.load import backbone_config

    found: dict[Path, Sizes | str] = {}
    depths = ("", "*/", "*/*/", "*/*/*/")
    files = (file for depth in depths for file in folder.glob(f"{depth}config.json"))
    for file in sorted(files):
        try:
            found[file.parent] = _sizes(backbone_config(str(file.parent)))
        except UserError as error:
            found[file.parent] = str(error)
    return found


def find_backbone(
    config: BackboneConfig, checkpoints: Mapping[Path, Sizes | str] | None = None
) -> Resource:
    """Where the checkpoint of a backbone is, and what it lacks.

    Searched are the folder that ``path`` names, the cache of the Hugging Face Hub, and a folder
    that the user names. There a checkpoint is recognised by the sizes in its ``config.json``; of
    several, one that is called like the published model is preferred.
    """
    if config.path is None:
        return Resource(config.name, "built in", place="part of the package")
    found = [_check(config.name, config.path)]
    if checkpoints:
        sizes = _sizes(_published(config))
        names = (config.path.rpartition("/")[2].lower(), config.name)
        alike = [folder for folder, other in checkpoints.items() if other == sizes]
        for folder in sorted(alike, key=lambda folder: folder.name.lower() not in names):
            option = shlex.quote(f"backbone.path={folder}")
            found.append(replace(_check(config.name, str(folder)), option=option))
    best = min(found, key=lambda one: ("complete", "incomplete", "missing").index(one.state))
    return best if best.usable else replace(best, remedy=_remedy(config.path))


def _check(name: str, path: str) -> Resource:
    """A backbone at a Hub id or in a folder: complete, incomplete or missing."""
    from msea_lightning.backbone.loading.hub import find_file
    from msea_lightning.backbone.loading.tokenizers import has_tokenizer

    find = partial(find_file, path, offline=True)
    config = find("config.json")
    lacking = [
        *([] if config is not None else ["config.json"]),
        *([] if has_tokenizer(path) else ["the tokenizer"]),
        *_lacking_weights(find),
    ]
    place = "" if config is None else str(config.parent)
    if not lacking:
        return Resource(name, "complete", place)
    if config is None and not _has_downloads(path):
        return Resource(name, "missing")
    return Resource(name, "incomplete", place, flaw=f"lacks {', '.join(lacking)}")


def _has_downloads(path: str) -> bool:
    """Whether any file of a repository of the Hub was fetched."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=path, repo_type="model")
    return any(file.is_file() for file in folder.glob("blobs/*"))


def _lacking_weights(find: Callable[[str], Path | None]) -> list[str]:
    """What the weights of a checkpoint lack; of several formats, one is enough."""
    flaws = []
    for single, index in _WEIGHTS.items():
        names = [single] if find(single) else _listed_files(find(index))
        files = [file for name in names if (file := find(name)) is not None]
        damaged = [file.name for file in files if _is_damaged(file)]
        if damaged:
            flaws.append(f"a whole {damaged[0]} (it is damaged)")
        elif len(files) < len(names):
            flaws.append(f"{len(names) - len(files)} of {len(names)} weight files")
        elif names:
            return []
    return flaws[:1] or ["the weights"]


def _listed_files(index: Path | None) -> list[str]:
    """The weight files that an index lists; none where it is missing or damaged."""
    if index is None:
        return []
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _is_damaged(file: Path) -> bool:
    """Whether a safetensors file is not as long as its header says."""
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        return False
    try:
        with safe_open(file, framework="np"):
            return False
    except (SafetensorError, OSError):
        return True


def _remedy(path: str) -> str:
    from huggingface_hub import get_token

    login = "hf auth login && " if path.startswith(GATED) and not get_token() else ""
    return f"{login}hf download {path}"


def _published(config: BackboneConfig) -> PretrainedConfig:
    """The architecture of the published model, whatever is on this machine."""
    from msea_lightning.backbone.loading.load import backbone_config
    from msea_lightning.backbone.options import Weights

    assert config.path is not None
    return backbone_config(config.path, weights=Weights.random, architecture=config.architecture)


def _sizes(config: PretrainedConfig) -> Sizes:
    return tuple(getattr(config, name, None) for name in _SIZES)
