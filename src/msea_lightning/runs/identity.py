"""Runs are identified by a hash of their resolved options, not by the name of their folder."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from msea_lightning.adapter.options import AblationConfig, NoAdapterOptions
from msea_lightning.config.options import choose, options, registries
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.options import EmptyText, Reader
from msea_lightning.model.options import ReadoutKind
from msea_lightning.paper import published_prompts

_NOT_COMPARED = {
    *("ckpt", "runs", "experiment", "method", "logger", "trainer", "training.eval_batch_size"),
    *("dataset.cache", "dataset.download", "dataset.workers"),
    *("backbone.check_memory", "backbone.compile", "backbone.checkpoint_activations"),
    *("backbone.cache", "backbone.cache_limit"),
    *("backbone.device_map", "backbone.max_memory", "backbone.offload_folder"),
}
"""Options and sections that say where and how something runs, not what: they may differ between a
run and its continuation, and a run of one experiment also serves another."""

_DEPARTURES = (
    *("adapter.normalization", "adapter.anchored", "adapter.token_rank", "readout"),
    *("training.loss", "training.ordinal", "training.class_weights"),
    *("prompt.order", "prompt.calibrate", "prompt.context"),
    *("dataset.labels.words", "dataset.text_case"),
)
"""Options of what the paper does in one way; their defaults are the paper's."""

METHOD_OPTIONS = (*_DEPARTURES, "prompt.task", "training.schedule_epochs")
"""Options that a method sets (``conf/method``)."""

_MAPPINGS = frozenset(info.key for info in options(TrainConfig) if info.type == "mapping")
"""Options that are mappings themselves, not sections of options."""


def fingerprint(config: TrainConfig) -> str:
    """A hash of the resolved options that make a run what it is, as hexadecimal digits.

    Two runs with the same one have the same results. Where it runs, what it logs to, and which
    experiment asked for it have no part in it, nor has an option at its default: a new option
    leaves the fingerprints of earlier runs as they are. Local places have to be absolute
    (:func:`with_absolute_places`).
    """
    return _hash(comparable(config))


def written_fingerprint(written: Mapping[str, Any]) -> str:
    """The :func:`fingerprint` of options as ``config.yaml`` holds them, hardly checked."""
    values = dict(_flat(choose(written, TrainConfig)))
    values.setdefault("dataset.split_version", 1)  # which release 0.1 did not write
    return _hash(_effective(values))


def comparable(config: TrainConfig) -> dict[str, Any]:
    """The options that make a run what it is, by dotted key, as plain values."""
    return _effective(dict(_flat(_plain(config))))


def departures(config: TrainConfig) -> dict[str, Any]:
    """The options in which a run differs from the published method, with their values.

    A run that trains nothing differs by ``training.schedule_epochs``; on a data set of the paper
    one also differs that reads other data of it, or another task prompt.
    """
    values = comparable(config)
    published = _defaults(
        tuple((where, values[f"{where}.name"]) for where in registries(TrainConfig))
    )
    found = {
        key: values[key]
        for key in _DEPARTURES
        if key in values and values[key] != published.get(key)
    }
    if config.training.schedule_epochs == 0:
        found["training.schedule_epochs"] = 0
    if prompts := published_prompts(config.dataset.name):
        if config.dataset.reader is Reader.meld_csv:
            found["dataset.reader"] = Reader.meld_csv.value
        if config.dataset.features is not None:
            found["dataset.features"] = config.dataset.features
        if config.prompt.task not in prompts:
            found["prompt.task"] = "another"
    return found


def _effective(values: dict[str, Any]) -> dict[str, Any]:
    """The options with those made equal that lead to the same run.

    The version of a split counts only where one is drawn. A run that there is had no empty texts to
    refuse, and ``auto`` gives the same.
    """
    if values.get("dataset.reader") == "demo" or values.get("dataset.expected_valid"):
        values.pop("dataset.split_version", None)
    if values.get("dataset.empty_text") == EmptyText.refuse.value:
        values["dataset.empty_text"] = EmptyText.auto.value
    return values


def _hash(values: Mapping[str, Any]) -> str:
    names = {
        where: values.get(f"{where}.name", getattr(TrainConfig(), where).name)
        for where in registries(TrainConfig)
    }
    defaults = _defaults(tuple(names.items()))
    counted = {key: value for key, value in values.items() if value != defaults.get(key)}
    counted |= {f"{where}.name": name for where, name in names.items()}
    text = json.dumps(counted, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _defaults(names: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The defaults of all options, given what is chosen by name."""
    found = registries(TrainConfig)
    chosen: dict[str, Any] = {where: found[where].options(name)() for where, name in names}
    return dict(_flat(_plain(TrainConfig(**chosen))))


def _plain(config: TrainConfig) -> dict[str, Any]:
    """The options as ``config.yaml`` holds them."""

    def section(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: item.value if isinstance(item, enum.Enum) else item for key, item in items}

    return dataclasses.asdict(config, dict_factory=section)


def _flat(section: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """The compared options of a section, by dotted key."""
    for name, value in section.items():
        key = f"{where}{name}"
        if key in _NOT_COMPARED:
            continue
        if isinstance(value, dict) and key not in _MAPPINGS:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def settled(config: TrainConfig) -> TrainConfig:
    """The options with all that follows from others.

    Places are those of :func:`with_absolute_places`. Where nothing is trained, the language model
    answers alone: an adapter with random weights would only disturb it, and a linear readout means
    nothing untrained.
    """
    config = with_absolute_places(config)
    if config.training.schedule_epochs > 0:
        return config
    return replace(
        config,
        adapter=NoAdapterOptions(),
        ablation=AblationConfig(),
        readout=ReadoutKind.tokens,
        method=None if config.readout is ReadoutKind.linear else config.method,
    )


def with_absolute_places(config: TrainConfig) -> TrainConfig:
    """The options with local files and folders named from the root, valid from any folder.

    The data set's are local whether they exist yet or not. What is neither there nor written as a
    path, such as ``THUDM/chatglm3-6b-base``, may be on the Hub and stays as it is.
    """

    def absolute(place: str | None) -> str | None:
        return place and str(Path(place).expanduser().resolve())

    def local(place: str | None) -> str | None:
        if place is None:
            return None
        is_path = place.startswith((".", "~")) or Path(place).is_absolute() or Path(place).exists()
        return absolute(place) if is_path else place

    data, backbone = config.dataset, config.backbone
    return replace(
        config,
        dataset=replace(data, path=absolute(data.path), cache=absolute(data.cache)),
        backbone=replace(backbone, path=local(backbone.path), tokenizer=local(backbone.tokenizer)),
    )
