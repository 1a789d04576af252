"""Overrides of the command line, parsed by Hydra and checked against the options that there are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import options, registries, schema

_QUOTED = re.compile(r"'([^'\\]|\\.)*'" + "|" + r'"([^"\\]|\\.)*"', re.DOTALL)
"""A value that Hydra reads as one quoted text."""


class Checker:
    """Parses the overrides of a command, and refuses those that cannot be meant.

    Hydra itself says little about a misspelt or mistyped option, and accepts some without a word.

    Attributes:
        options: All options by their dotted key.
        groups: Sections that are chosen as a whole, as in ``dataset=mosei``.
    """

    def __init__(self, root: type[Any], loader: ConfigLoader) -> None:
        self.options = {info.key: info for info in options(root)}
        self._names = list(dict.fromkeys(key.partition(".")[0] for key in self.options))
        groups = set(loader.list_groups(""))
        self.groups = [name for name in self._names if name in groups]
        chosen = {**registries(root), **registries(root, "presets")}
        self._chosen_names = {f"{group}.name" for group in chosen}
        self._schema = schema(root)
        self._loader = loader
        self._parser = OverridesParser.create(config_loader=loader)
        self._folders: list[Path] = []

    def parse(
        self, lines: Sequence[str], *, multirun: bool, launches: bool = False
    ) -> list[Override]:
        """Parses overrides, Hydra's among them, and refuses illegal and contradicting ones.

        With ``multirun`` one of them may name several values, with ``launches`` options of Hydra's
        launchers have a use.
        """
        overrides = [self._parse_line(line) for line in lines]
        for override in overrides:
            if override.key_or_group == "hydra.searchpath":
                self._folders += _searched_folders(override)
        first: dict[str, Override] = {}
        for override in overrides:
            key = override.key_or_group
            if key in first:
                raise ConfigError(
                    f"{key} is given twice, as {first[key].input_line} and {override.input_line}; "
                    "give it once (several values to try: with commas, and -m)."
                )
            first[key] = override
            if override.is_hydra_override():
                _check_hydra(override, launches, {"runs", "seed"} <= self.options.keys())
                continue
            if override.is_sweep_override() and not multirun:
                self._refuse_values(override)
            self._check(override)
        return overrides

    def choices(self, group: str) -> list[str]:
        """What can be chosen in a group, also of the folders of ``hydra.searchpath``."""
        more = [path.stem for folder in self._folders for path in (folder / group).glob("*.yaml")]
        return sorted({*self._loader.get_group_options(group), *more})

    def _parse_line(self, line: str) -> Override:
        """Parses one override; the value of a text option may hold characters that Hydra splits.

        A list of one text may be written without brackets.
        """
        key, equals, value = line.partition("=")
        kind = self.options[key].type if key in self.options else ""
        if self._lies_in("mapping", key.lstrip("+")):
            line = f"++{line.lstrip('+')}"  # what is in a mapping need not be there before
        single = kind.startswith("list of text") and not value.startswith("[")
        quoted = QuotedString(value, Quote.single).with_quotes()
        if key in self.options and self.options[key].literal and not _QUOTED.fullmatch(value):
            return self._parser.parse_overrides([f"{key}={quoted}"])[0]
        try:
            override = self._parser.parse_overrides([line])[0]
            if single and isinstance(override.value(), str):
                return self._parser.parse_overrides([f"{key}=[{value}]"])[0]
            return override
        except OverrideParseException:
            if kind.startswith("text") or single:
                written_value = f"[{quoted}]" if single else quoted
                return self._parser.parse_overrides([f"{key}={written_value}"])[0]
            reason = f"the value cannot be read; in quotes it is one text: \"{key}='{value}'\""
            if kind.startswith("list"):
                reason = (
                    "the list cannot be read; texts with signs such as = are in quotes, and the "
                    f"whole for the shell: '{key}=[a,\"b=c\"]'"
                )
            if not equals:
                reason = f"options are written key=value, such as seed=3.{self._listed(key)}"
            raise ConfigError(f"{line}: {reason}") from None

    def _check(self, override: Override) -> None:
        """Refuses an override of something that there is not, or with a value of a wrong type."""
        key, line = override.key_or_group, override.input_line
        if override.package is not None:
            raise ConfigError(f"{line}: '@' has no use here; write {key}=...")
        if override.type is OverrideType.DEL:
            raise ConfigError(
                f"{line}: nothing can be deleted from the configuration; give {key} another value."
            )
        values = [override.value()]
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                raise ConfigError(f"{line}: an interval has no values to try; use range or commas.")
            values = list(override.sweep_iterator())
        choices = self.choices(key) if key in self.groups else None
        for value in (item.text if isinstance(item, QuotedString) else item for item in values):
            if choices is None:
                self._check_value(str(line), key, value)
            elif value not in choices:
                raise ConfigError(
                    f"{key}={written(value)}: there is no such choice."
                    f"{_similar(str(value), choices)} Choices of {key}: {', '.join(choices)}."
                )
        if override.type is not OverrideType.CHANGE and not self._lies_in("mapping", key):
            raise ConfigError(f"{line}: {key} is there already; leave the + out.")

    def _check_value(self, line: str, key: str, value: Any) -> None:
        """Refuses an unknown option, a section, and a value of a wrong type."""
        info = self.options.get(key)
        if key in self._chosen_names:
            raise ConfigError(f"{line}: leave out .name; write {line.replace('.name', '', 1)}.")
        if info is None and any(name.startswith(f"{key}.") for name in self.options):
            raise ConfigError(
                f"{line}: {key} is a section, give one of its options.{self._listed(key)}"
            )
        if info is None and self._lies_in("list", key):
            return  # an element, which composing checks
        if info is not None and info.literal and isinstance(value, str):
            return
        try:
            OmegaConf.update(OmegaConf.structured(self._schema), key, value)
            fits = info is None or value is not None or "null" in info.type
        except OmegaConfBaseException:
            fits = False
        if fits:
            return
        if info is None:
            ours = [other for other in self.options.values() if key in other.called]
            if ours:
                # How a mapping is written is in its help.
                mapping = ours[0].type == "mapping"
                write = "" if mapping else f" Write {ours[0].key}=<{ours[0].kind}>."
                raise ConfigError(f"{line}: {key} is {ours[0].key} here ({ours[0].help}).{write}")
            raise ConfigError(f"{line}: there is no option {key}.{self._guess(key)}")
        guess = _similar(str(value), info.type.split("|")) if "|" in info.type else ""
        raise ConfigError(
            f"{key}={written(value)}: this is not a possible value; expected "
            f"{info.kind} ({info.help}).{guess}"
        )

    def _refuse_values(self, override: Override) -> NoReturn:
        """Refuses several values for one option where there is only one run."""
        line = str(override.input_line).lstrip("+")
        key, _, value = line.partition("=")
        hints = {
            "list": f" A list is written {key}=[{value}].",
            "text": f" One text with commas needs two pairs of quotes: \"{key}='{value}'\".",
        }
        kind = self.options[key].type.partition(" ")[0] if key in self.options else ""
        kind = "list" if self._lies_in("mapping", key) else kind
        raise ConfigError(
            f"{line}: these are several values; add -m to run once with each.{hints.get(kind, '')}"
        )

    def _lies_in(self, kind: str, key: str) -> bool:
        """Whether a key is an option of a kind (mapping or list), or lies in one."""
        return any(
            info.type.startswith(kind) and f"{key}.".startswith(f"{name}.")
            for name, info in self.options.items()
        )

    def _guess(self, key: str) -> str:
        """What was probably meant by an unknown key, and what there is."""

        def likeness(name: str) -> float:
            pairs = [(key, name), (key.rpartition(".")[2], name.rpartition(".")[2])]
            return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

        inside = [name for name in self.options if name.startswith(f"{key.partition('.')[0]}.")]
        best = max(inside or (*self._names, *self.options), key=likeness)
        guess = f" Did you mean {best}?" if likeness(best) > 0.7 else ""
        return f"{guess}{self._listed(key)}"

    def _listed(self, key: str) -> str:
        """The options of a key's section; where it has none, the names at the top."""
        section = key
        while section:
            start = f"{section}."
            inside = [name.removeprefix(start) for name in self.options if name.startswith(start)]
            if inside:
                names = dict.fromkeys(name.partition(".")[0] for name in inside)
                return f" Options of {section}: {', '.join(names)}."
            section = section.rpartition(".")[0]
        return f" There are: {', '.join(self._names)}; --help lists all options."


def key_of(word: str) -> str:
    """What an override is for."""
    return word.lstrip("+~").partition("=")[0]


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _searched_folders(override: Override) -> list[Path]:
    """The folders of ``hydra.searchpath``, which Hydra itself would only warn of."""
    values = [str(value) for value in cast("list[Any]", override.value())]
    folders = [Path(v.removeprefix("file://")) for v in values if not v.startswith("pkg://")]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{override.input_line}: there is no folder {folder}.")
    return folders


def _check_hydra(override: Override, launches: bool, makes_runs: bool) -> None:
    """Refuses options of Hydra that nothing here reads."""
    key, line = override.key_or_group, override.input_line
    is_basic = key == "hydra/sweeper" and override.value() == "basic"
    if key.startswith(("hydra/sweeper", "hydra.sweeper")) and not is_basic:
        raise ConfigError(
            f"{line}: the runs of a sweep are planned before the first one begins, so that "
            "finished ones are skipped and several sweeps can share them; no other sweeper than "
            "Hydra's basic one does that. Leave it out, and give the values with commas and -m."
        )
    if key == "hydra.searchpath":
        return
    if not is_basic and not key.startswith(("hydra/launcher", "hydra.launcher")):
        raise ConfigError(
            f"{line}: {key} has no effect, because run folders, working folder and logs are not "
            f"Hydra's. {_instead(override, makes_runs)} Of Hydra there are hydra/launcher, "
            "hydra.launcher and hydra.searchpath."
        )
    if not launches:
        raise ConfigError(
            f"{line}: this is for the runs of python -m msea_lightning.train -m; this command "
            "launches nothing. Leave it out."
        )
    if override.is_sweep_override():
        raise ConfigError(f"{line}: all runs are launched in one way; give {key} one value.")


def _instead(override: Override, makes_runs: bool) -> str:
    """What to write instead of an option of Hydra's that has no effect."""
    key = override.key_or_group
    if key == "hydra.mode":
        return "Write -m for every combination of values, and nothing for a single run."
    if key not in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir") or not makes_runs:
        return "Leave it out."
    folder = "FOLDER" if key.endswith("subdir") else written(override.value())
    return (
        f"Write runs={folder}: each run has a folder of its own below it, "
        f"{folder}/<dataset>/<adapter>-<backbone>/<time>/seed-<n>."
    )


def _similar(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, words, n=2)
    return f" Did you mean {' or '.join(close)}?" if close else ""
