"""Typed options: a dataclass per component, with help texts, ranges and checks."""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import math
import operator
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.registry import Registry


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Registry[Any] | None = None,
    presets: Registry[Any] | None = None,
    literal: bool = False,
    called: Sequence[str] = (),
) -> Any:
    """A dataclass field with its help text and its legal range.

    Args:
        default: The default value; a list, a dict or a dataclass type becomes a factory.
        help: One line, with the unit where there is one.
        low: Smallest legal value (inclusive).
        high: Largest legal value (inclusive).
        above: The value must be greater than this.
        below: The value must be less than this.
        choices: The field holds the options of one of these classes, chosen by its ``name``.
        presets: Objects of the field's class that have a name on the command line.
        literal: On the command line the value is one text, whatever signs are in it; for options
            of a root, not of a section.
        called: Keys by which users of Lightning know it; they are refused with the option's own.
    """
    metadata: dict[str, Any] = {"help": help, "choices": choices, "presets": presets}
    metadata |= {"literal": literal, "called": called}
    metadata |= {"low": low, "high": high, "above": above, "below": below}
    if isinstance(default, list | dict):
        return field(default_factory=functools.partial(copy.copy, default), metadata=metadata)
    if isinstance(default, type) and dataclasses.is_dataclass(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


Root = TypeVar("Root")


def registries(root: type[Any], key: str = "choices") -> dict[str, Registry[Any]]:
    """The fields of a root that have ``choices`` (or ``presets``), by name; see :func:`option`."""
    metadata = {item.name: item.metadata for item in dataclasses.fields(root)}
    return {name: data[key] for name, data in metadata.items() if data.get(key) is not None}


def groups(root: type[Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The choices on the command line that come from registries: group, name, and its values.

    A choice among classes has the options of all others as null, whatever was set before.
    """
    for group, registry in registries(root).items():
        own = {name: _own_types(registry.options(name)) for name in registry.names()}
        for name in own:
            others = [key for types in own.values() for key in types if key not in own[name]]
            yield group, name, {"name": name, **dict.fromkeys(others)}
    for group, registry in registries(root, "presets").items():
        for name in registry.names():
            yield group, name, dataclasses.asdict(registry.options(name))


def registered(root: type[Any]) -> tuple[Any, ...]:
    """What :func:`groups` and :func:`schema` of a root are made of, to compare it."""
    classes = [(w, n, r.options(n)) for w, r in registries(root).items() for n in r.names()]
    presets = registries(root, "presets")
    values = [(w, n, repr(r.options(n))) for w, r in presets.items() for n in r.names()]
    return (*classes, *values)


def schema(root: type[Root]) -> type[Root]:
    """The dataclass that Hydra composes for a root.

    Recipes and backbones set options of an adapter without knowing which one is chosen. So every
    such field takes the options of all choices here, missing (``???``) where nothing sets them;
    :func:`to_typed` keeps those of the chosen one.
    """
    wide = []
    for where, registry in registries(root).items():
        types: dict[str, Any] = {}
        for name in registry.names():
            for key, hint in _own_types(registry.options(name)).items():
                types[key] = hint if types.get(key, hint) == hint else Any
        fields: list[Any] = [("name", str, field(default=_default_name(root, where)))]
        fields += [(key, hint | None, field(default=MISSING)) for key, hint in types.items()]
        bases = (typing.get_type_hints(root)[where],)
        section = dataclasses.make_dataclass(registry.kind, fields, bases=bases)
        wide.append((where, section, field(default_factory=section)))
    return dataclasses.make_dataclass(root.__name__, wide, bases=(root,))


def choose(values: typing.Mapping[str, Any], root: type[Any]) -> dict[str, Any]:
    """Plain values of a root, each choice with nothing but the options that it has.

    Options that the chosen adapter lacks have to be null, missing or absent.
    """
    chosen = dict(values)
    for where, registry in registries(root).items():
        given = {"name": _default_name(root, where), **(values.get(where) or {})}
        name = given["name"]
        own = _own_types(registry.options(name))
        for key in [key for key in given if key not in ("name", *own)]:
            owners = [n for n in registry.names() if key in _own_types(registry.options(n))]
            if owners and (value := given.pop(key)) not in (None, MISSING):
                raise ConfigError(
                    f"{where}.{key}={value} has no effect on {name}; it is an option of "
                    f"{', '.join(owners)}. Leave it out, or choose {where}={owners[0]}."
                )
        chosen[where] = {key: value for key, value in given.items() if value != MISSING}
    return chosen


def to_typed(config: DictConfig, root: type[Root]) -> Root:
    """Turns what Hydra composed into checked, plain, typed objects.

    The plain container is merged once more into a fresh structured config, because keys added
    on the command line with ``+`` pass the schema that Hydra merged into.

    Raises:
        ConfigError: naming the option, the value and what is legal.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True)
        values = choose(typing.cast("dict[str, Any]", plain), root)
        base = OmegaConf.structured(root)
        for where, registry in registries(root).items():
            base[where] = OmegaConf.structured(registry.options(values[where]["name"]))
        merged = OmegaConf.merge(base, values)
        missing = OmegaConf.missing_keys(merged)
        for info in options(root):
            if info.key in missing:
                asked = info.key.removesuffix(".name")  # as dataset=mosei chooses dataset.name
                raise ConfigError(f"{asked} is missing: give {asked}=... ({info.help}).")
        typed = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        key = getattr(error, "full_key", None)
        raise ConfigError(f"option {key}: {reason}" if key else reason) from error
    assert isinstance(typed, root)
    check(typed)
    return typed


def _default_name(root: type[Any], where: str) -> str:
    """What is chosen where nothing is given."""
    (item,) = (item for item in dataclasses.fields(root) if item.name == where)
    return str(typing.cast("Any", item.default_factory)().name)


@functools.cache
def _own_types(options: type[Any]) -> dict[str, Any]:
    """The types of a choice's own options, by name."""
    hints = typing.get_type_hints(options)
    return {item.name: hints[item.name] for item in dataclasses.fields(options)[1:]}


def check(config: Any, where: str = "") -> None:
    """Checks ranges and cross-field rules of a config object and of all objects inside it."""
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


_BOUNDS = {
    "low": ("at least", operator.ge),
    "above": ("greater than", operator.gt),
    "high": ("at most", operator.le),
    "below": ("less than", operator.lt),
}


def legal_range(metadata: typing.Mapping[str, Any]) -> str:
    """The range in a field's metadata (see :func:`option`) in words; empty where there is none."""
    return " and ".join(
        f"{words} {metadata[name]}"
        for name, (words, _) in _BOUNDS.items()
        if metadata.get(name) is not None
    )


def _check_range(key: str, value: float, metadata: typing.Mapping[str, Any]) -> None:
    fits = all(
        compare(value, metadata[name])
        for name, (_, compare) in _BOUNDS.items()
        if metadata.get(name) is not None
    )
    if not fits or not math.isfinite(value):
        raise ConfigError(f"{key}={value} is out of range: {legal_range(metadata) or 'finite'}.")


@dataclass(frozen=True)
class OptionInfo:
    """One option as shown in ``--help`` and in error messages."""

    key: str
    type: str
    range: str
    default: Any
    help: str
    literal: bool = False
    called: Sequence[str] = ()

    @property
    def kind(self) -> str:
        """Type and range in words."""
        return ", ".join(part for part in (self.type, self.range) if part)


def options(root: type[Any], where: str = "") -> Iterator[OptionInfo]:
    """Walks over all options below a config dataclass, in the order of their definition.

    Of a field with choices, those of all choices; their help texts say whose they are.
    """
    hints = typing.get_type_hints(root)
    for item in dataclasses.fields(root):
        key = f"{where}.{item.name}" if where else item.name
        hint = hints[item.name]
        if item.metadata.get("choices") is not None:
            yield from _options_of_choices(item.metadata["choices"], key)
            continue
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from options(hint, key)
            continue
        default = item.default
        if default is dataclasses.MISSING:
            default = typing.cast("Any", item.default_factory)()
        range_, help_ = legal_range(item.metadata), item.metadata.get("help", "")
        literal, called = item.metadata.get("literal", False), item.metadata.get("called", ())
        yield OptionInfo(key, type_name(hint), range_, default, help_, literal, called)


def _options_of_choices(registry: Registry[type[Any]], where: str) -> Iterator[OptionInfo]:
    found: dict[str, OptionInfo] = {}
    for name in registry.names():
        for info in options(registry.options(name), where):
            if info.key == f"{where}.name":
                found.setdefault(info.key, info)
                continue
            first, text = found.get(info.key), f"{name}: {info.help}"
            if first is not None:  # each has its own range, which is checked when it is chosen
                text = f"{first.help}; {text} [{info.kind}]"
            found[info.key] = dataclasses.replace(first or info, help=text)
    yield from found.values()


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
