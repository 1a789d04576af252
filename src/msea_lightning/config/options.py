"""Typed options: a dataclass per component, with help texts, ranges and checks."""

from __future__ import annotations

import copy
import dataclasses
import enum
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msea_lightning.config.errors import ConfigError


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with its help text and its legal range.

    Args:
        default: The default value; a list, a dict or a dataclass type becomes a factory.
        help: One line, with the unit where there is one.
        low: Smallest legal value (inclusive).
        high: Largest legal value (inclusive).
        above: The value must be greater than this.
        below: The value must be less than this.
    """
    metadata = {"help": help, "low": low, "high": high, "above": above, "below": below}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    if isinstance(default, type) and dataclasses.is_dataclass(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


Root = TypeVar("Root")


def to_typed(config: DictConfig, root: type[Root]) -> Root:
    """Turns a composed config into checked, plain, typed objects.

    The plain container is merged once more into a fresh structured config, because keys added
    on the command line with ``+`` pass the schema that Hydra merged into.

    Args:
        config: What Hydra composed.
        root: The dataclass of the entry point, such as :class:`TrainConfig`.

    Raises:
        ConfigError: naming the option, the value and what is legal.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        merged = OmegaConf.merge(OmegaConf.structured(root), plain)
        missing = OmegaConf.missing_keys(merged)
        for info in options(root):
            if info.key in missing:
                raise ConfigError(f"{info.key} is missing: give {info.key}=... ({info.help}).")
        typed = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        key = getattr(error, "full_key", None)
        raise ConfigError(f"option {key}: {reason}" if key else reason) from error
    assert isinstance(typed, root)
    check(typed)
    return typed


def check(config: Any, where: str = "") -> None:
    """Checks ranges and cross-field rules of a config object and of all objects inside it.

    Raises:
        ConfigError: naming the option, the value and what is legal.
    """
    for item in dataclasses.fields(config):
        key = f"{where}.{item.name}" if where else item.name
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            check(value, key)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _check_range(key, value, item.metadata)
    rule = getattr(config, "check", None)
    if rule is not None:
        rule(where)


def legal_range(metadata: typing.Mapping[str, Any]) -> str:
    """The range in a field's metadata (see :func:`option`) in words; empty where there is none."""
    words = {"low": "at least", "above": "greater than", "high": "at most", "below": "less than"}
    return " and ".join(
        f"{word} {metadata[name]}" for name, word in words.items() if metadata.get(name) is not None
    )


def _check_range(key: str, value: float, metadata: typing.Mapping[str, Any]) -> None:
    low, high = metadata.get("low"), metadata.get("high")
    above, below = metadata.get("above"), metadata.get("below")
    fits = (
        (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
        and (below is None or value < below)
        and math.isfinite(value)
    )
    if not fits:
        raise ConfigError(f"{key}={value} is out of range: {legal_range(metadata) or 'finite'}.")


@dataclass(frozen=True)
class OptionInfo:
    """One option as shown in ``--help`` and in error messages."""

    key: str
    type: str
    range: str
    default: Any
    help: str


def options(root: type[Any], where: str = "") -> Iterator[OptionInfo]:
    """Walks over all options below a config dataclass, in the order of their definition."""
    hints = typing.get_type_hints(root)
    for item in dataclasses.fields(root):
        key = f"{where}.{item.name}" if where else item.name
        hint = hints[item.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from options(hint, key)
            continue
        default = (
            item.default
            if item.default is not dataclasses.MISSING
            else typing.cast("Any", item.default_factory)()
        )
        yield OptionInfo(
            key=key,
            type=type_name(hint),
            range=legal_range(item.metadata),
            default=default,
            help=item.metadata.get("help", ""),
        )


def type_name(hint: Any) -> str:
    """A type as a user reads it: ``int``, ``greedy|median|mean``, ``text or null``."""
    if isinstance(hint, types.UnionType):
        return " or ".join(type_name(part) for part in hint.__args__)
    if hint is type(None):
        return "null"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "|".join(member.name for member in hint)
    if dataclasses.is_dataclass(hint):
        return f"{{{', '.join(item.name for item in dataclasses.fields(hint))}}}"
    names = {str: "text", bool: "true|false", int: "int", float: "float"}
    origin = typing.get_origin(hint)
    if origin is list:
        return f"list of {type_name(hint.__args__[0])}"
    if origin is dict:
        return "mapping"
    return names.get(hint, getattr(hint, "__name__", str(hint)))
