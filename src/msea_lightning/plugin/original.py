"""Plugins from checkpoints of the original implementation.

It saves ``<model>-<data set>-<task>.pth``, such as ``cmcm-mosei-regression.pth``: the state dict of
its whole model without the parameters that were frozen. Sizes are in the shapes; what else a plugin
has to say is in the original's configuration files, and here in the options of the data set and the
backbone, and in :func:`msea_lightning.paper.original_prompt`.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from msea_lightning.adapter import AdapterError, MSEAdapter
from msea_lightning.adapter.original import frozen_family, is_frozen
from msea_lightning.backbone import backbone_config
from msea_lightning.backbone.loading.load import backbone_place
from msea_lightning.backbone.options import BackboneConfig
from msea_lightning.data.options import DatasetConfig
from msea_lightning.language.options import Decode, SegmentConfig
from msea_lightning.paper import original_prompt, paper_table
from msea_lightning.plugin.attaching import attach
from msea_lightning.plugin.checkpoint import read_checkpoint
from msea_lightning.plugin.facts import (
    FORMAT,
    PluginError,
    PluginFacts,
    PromptFacts,
    backbone_facts,
    is_local,
    language_of,
    sha256,
)
from msea_lightning.plugin.plugin import Plugin, load_plugin_backbone

_WIDTHS = {"chatglm3": 4096, "llama2": 4096, "qwen": 2048}
"""The backbones of the original, and their widths."""


@dataclass(frozen=True)
class Imported:
    """A plugin from a checkpoint, and how many of its tensors were used, and left out as frozen."""

    plugin: Plugin
    used: int
    frozen: int


def import_plugin(
    checkpoint: Path,
    dataset: DatasetConfig,
    backbone: BackboneConfig,
    *,
    task: str | None = None,
    decode: Decode = Decode.greedy,
) -> Imported:
    """Makes a plugin of what the original implementation saved.

    It reads sequences as the original does: texts are padded to ``dataset.text_tokens``, and the
    padding is attended to and averaged. Where ``backbone.path`` is on this machine, the language
    model is loaded, the plugin is tried on it, and has its fingerprint. From the Hub nothing is
    fetched, and the fingerprint is empty; attaching the plugin says so.

    Args:
        checkpoint: A ``.pth`` file, or ``.safetensors`` with the same names.
        dataset: The data set that it was trained on, its labels known.
        backbone: The language model that it was trained with.
        task: The task prompt; the original's for the two where not given.
        decode: How an answer is picked.

    Raises:
        PluginError: if the file is no such checkpoint, holds other tensors than the adapter's and
            the frozen language model's, or does not fit the data set or the backbone.
    """
    state_dict = read_checkpoint(checkpoint)
    try:
        adapter = MSEAdapter.from_original(state_dict)
    except AdapterError as error:
        raise PluginError(f"{checkpoint}: {error}") from error
    weights = {f"adapter.{name}": tensor for name, tensor in adapter.state_dict().items()}
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise PluginError(
            f"{checkpoint} holds weights that are NaN or infinite: its training diverged. Give the "
            "checkpoint of another run."
        )
    sizes = adapter.options()
    _check_backbone(checkpoint, frozen_family(state_dict), sizes["text_dim"], backbone)
    _check_features(checkpoint, (sizes["audio_dim"], sizes["vision_dim"]), dataset)
    facts = PluginFacts(
        format=FORMAT,
        dataset=dataset.name,
        adapter=sizes,
        labels=dataset.labels,
        signed_labels=bool(backbone.signed_labels),
        metrics=dataset.metrics,
        decode=decode,
        prompt=PromptFacts(
            layout=_layout(backbone),
            language=dataset.language,
            task=task or _task(dataset.name, backbone.name),
            text_tokens=dataset.text_tokens,
            pad_token=backbone.pad_token,
            pad_to=dataset.text_tokens,
            attend_padding=True,
            text_case=dataset.text_case,
        ),
        audio_dim=sizes["audio_dim"],
        vision_dim=sizes["vision_dim"],
        backbone=backbone_facts(backbone, None),
        fingerprint={},
        test={},
        imported_from=f"{checkpoint.name}, SHA-256 {sha256(checkpoint)}",
        dataset_id=dataset.hub_id,
        language=language_of(dataset),
    )
    plugin = Plugin(facts, weights)
    if _is_here(backbone):
        plugin = _tried(plugin, backbone)
    frozen = sum(map(is_frozen, state_dict))
    return Imported(plugin, len(state_dict) - frozen, frozen)


def check_new(folder: Path) -> None:
    """Refuses a folder that is there already."""
    if folder.exists():
        raise PluginError(
            f"{folder} exists already: give another folder with output=..., or remove it."
        )


def write_new(folder: Path, plugin: Plugin) -> None:
    """Writes a plugin into a folder that is not there yet, whole or not at all."""
    check_new(folder)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        plugin.save_pretrained(partial)
        partial.rename(folder)
    except OSError as error:
        raise PluginError(f"{folder} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_here(backbone: BackboneConfig) -> bool:
    return backbone.path is not None and is_local(backbone.path)


def _tried(plugin: Plugin, backbone: BackboneConfig) -> Plugin:
    """The plugin with the fingerprint of its language model, which reads its sequences."""
    # As precise as a fingerprint is; float32 would take twice the memory.
    model = load_plugin_backbone(
        plugin, backbone.path, tokenizer=backbone.tokenizer, dtype="bfloat16"
    )
    plugin = replace(plugin, facts=replace(plugin.facts, fingerprint=model.fingerprint()))
    attach(plugin, model)
    return plugin


def _layout(backbone: BackboneConfig) -> list[SegmentConfig]:
    """The segments of the original's sequences."""
    first, second, *rest = backbone.layout
    # Unlike LLaMA's, Qwen's tokenizer puts no special token in front of the wrapping string, so
    # that the original's sequences begin with one <|im_start|> and not with two.
    return [first, *rest] if backbone.name == "qwen" and first == second else backbone.layout


def _task(dataset: str, backbone: str) -> str:
    prompt = original_prompt(dataset, backbone)
    if prompt is None:
        raise PluginError(
            f"The original has no task prompt for dataset={dataset} backbone={backbone}: give "
            "prompt.task='...', the task_specific_prompt that it was trained with."
        )
    return prompt


def _check_backbone(
    checkpoint: Path, family: str | None, width: int, backbone: BackboneConfig
) -> None:
    """Refuses another language model than that of the checkpoint."""
    if family not in (None, backbone.name) and backbone.name in _WIDTHS:
        raise PluginError(
            f"{checkpoint} holds tensors of the frozen {family}, but backbone={backbone.name}. "
            f"Give backbone={family}."
        )
    expected = backbone.architecture.get("hidden_size")
    if _is_here(backbone):
        expected = backbone_config(backbone_place(backbone.path)).get_text_config().hidden_size
    if expected not in (None, width):
        likely = [name for name, own in _WIDTHS.items() if own == width]
        which = f"probably {' or '.join(likely)}" if likely else "which is none of the original's"
        raise PluginError(
            f"{checkpoint} was trained with a language model of width {width}, but backbone="
            f"{backbone.name} has {expected}: give the one that it was trained with, {which}."
        )


def _check_features(checkpoint: Path, found: tuple[int, int], dataset: DatasetConfig) -> None:
    """Refuses features of another data set than that of the checkpoint."""
    expected = (dataset.audio_dim, dataset.vision_dim)
    if all(own in (None, dim) for own, dim in zip(expected, found, strict=True)):
        return
    likely = [
        row["dataset"]
        for row in paper_table("datasets")
        if (int(row["audio_dim"]), int(row["vision_dim"])) == found
    ]
    audio, vision = found
    raise PluginError(
        f"{checkpoint} reads {audio} values per audio frame and {vision} per vision frame, but "
        f"dataset={dataset.name} has {expected[0]} and {expected[1]}: it was trained on "
        f"{'another data set, probably ' + likely[0] if likely else 'other features'}. Give "
        f"{f'dataset={likely[0]}' if likely else 'that data set'}, or where the features of "
        f"{dataset.name} were your own, dataset.audio_dim={audio} dataset.vision_dim={vision}."
    )
