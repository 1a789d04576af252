"""Which run is which: a run is its options, not the name of its folder."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from msea_lightning.adapter.options import ADAPTERS, MAGOptions, MSEOptions
from msea_lightning.config.options import choose, options
from msea_lightning.config.roots import TrainConfig

_NOT_COMPARED = frozenset(
    {
        "ckpt",
        "runs",
        "experiment",
        "trainer",
        "training.eval_batch_size",
        "logger",
        "dataset.cache",
        "dataset.download",
        "dataset.workers",
        "backbone.check_memory",
        "backbone.compile",
        "backbone.checkpoint_activations",
    }
)
"""Options and sections that say where and how something runs, not what: they may differ between a
run and its continuation, and a run of one experiment also serves another."""

ADDED: frozenset[str] = frozenset()
"""Options and sections that are newer than release 0.1. They are part of a fingerprint only where
they differ from their default, so that earlier runs and plans keep theirs. List new ones here."""

_MAPPINGS = frozenset(info.key for info in options(TrainConfig) if info.type == "mapping")
"""Options that are mappings themselves, not sections of options."""


_NULL_IN_OTHERS = dict.fromkeys(
    f"adapter.{name}" for own in (MSEOptions(), MAGOptions()) for name in own.arguments()
)
"""Options that release 0.1 wrote into every run, null where the adapter was another one."""


def fingerprint(config: TrainConfig) -> str:
    """A hash of the resolved options that make a run what it is, as hexadecimal digits.

    Two runs with the same one have the same results. Where it runs, what it logs to, and which
    experiment asked for it have no part in it.

    Args:
        config: All options of the run; local places as :func:`with_absolute_places` has them.
    """
    return _hash(comparable(config))


def written_fingerprint(written: Mapping[str, Any]) -> str:
    """The :func:`fingerprint` of options as ``config.yaml`` holds them, without checking them.

    Options that are newer than the file have their defaults.

    Raises:
        ConfigError: for an adapter that there is not, or options of another one.
    """
    own = choose(written, TrainConfig)
    adapter = own.get("adapter", {}).get("name", "mse")
    return _hash({**_defaults(adapter), **dict(_flat(own))})


def comparable(config: TrainConfig) -> dict[str, Any]:
    """The options that make a run what it is, by dotted key, as plain values."""
    return {**_NULL_IN_OTHERS, **dict(_flat(config))}


@cache
def _defaults(adapter: str = "mse") -> dict[str, Any]:
    return comparable(TrainConfig(adapter=ADAPTERS.options(adapter)()))


def _hash(values: Mapping[str, Any]) -> str:
    defaults = _defaults()
    counted = {
        key: value
        for key, value in values.items()
        if not _is_in(key, ADDED) or value != defaults.get(key)
    }
    text = json.dumps(counted, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_in(key: str, names: frozenset[str]) -> bool:
    """Whether an option or a section that it belongs to is listed."""
    parts = key.split(".")
    return any(".".join(parts[: end + 1]) in names for end in range(len(parts)))


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The compared options of a dataclass, or of the mapping that a file has of it."""
    for name, part in _items(value):
        key = f"{where}{name}"
        if key in _NOT_COMPARED:
            continue
        if dataclasses.is_dataclass(part) or (isinstance(part, dict) and key not in _MAPPINGS):
            yield from _flat(part, f"{key}.")
        else:
            yield key, _plain(part)


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    return [(item.name, getattr(value, item.name)) for item in dataclasses.fields(value)]


def _plain(value: Any) -> Any:
    """The value of an option as JSON has it."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {name: _plain(part) for name, part in _items(value)}
    return value


def with_absolute_places(config: TrainConfig) -> TrainConfig:
    """The options with local files and folders named from the root, valid from any folder.

    The data set's are local whether they exist yet or not. What is neither there nor written as a
    path, such as ``THUDM/chatglm3-6b-base``, may be on the Hub and stays as it is.
    """

    def absolute(place: str | None) -> str | None:
        return None if place is None else str(Path(place).expanduser().resolve())

    def local(place: str | None) -> str | None:
        if place is None:
            return None
        written_as_path = place.startswith((".", "~")) or Path(place).is_absolute()
        return absolute(place) if written_as_path or Path(place).exists() else place

    backbone = replace(
        config.backbone,
        path=local(config.backbone.path),
        tokenizer=local(config.backbone.tokenizer),
    )
    dataset = replace(
        config.dataset, path=absolute(config.dataset.path), cache=absolute(config.dataset.cache)
    )
    return replace(config, backbone=backbone, dataset=dataset)
