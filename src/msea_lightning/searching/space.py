"""What a search tries: ranges and lists of values, by option, checked before the first run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msea_lightning.commands.compose import Composer
from msea_lightning.commands.overrides import key_of, written
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import TrainConfig
from msea_lightning.runs.identity import comparable, settled

_RANGE = re.compile(r"(?P<low>.+?)\.\.(?P<high>[^:]+)(?P<log>:log)?")

_NOTATION = (
    "Write LOW..HIGH or LOW..HIGH:log for a number between two, such as 1e-5..1e-2:log, or "
    "[A,B,...] for one of several values."
)

_VALIDATED_ON = re.compile(
    r"dataset(\.(name|reader|path|hub_\w+|columns\..+|split|split_version|labels\.(?!words).+"
    r"|metrics|expected_\w+|valid_fraction|empty_text|demo_\w+))?"
)
"""Options that decide what the runs are validated on, which has to be one thing for all."""


class SpaceError(ConfigError):
    """Something to be tried that is no option, no legal value of it, or no range."""


@dataclass(frozen=True)
class Range:
    """Numbers between two, both included.

    Attributes:
        key: The option.
        low: Smallest value.
        high: Largest value.
        log: Whether small and large ones are tried as often, by their order of magnitude.
        whole: Whether they are whole numbers.
    """

    key: str
    low: float
    high: float
    log: bool
    whole: bool

    @property
    def ends(self) -> tuple[str, ...]:
        """Its ends, as the command line has them."""
        return (self.text(self.low), self.text(self.high))

    def text(self, value: float) -> str:
        """A value of it as the command line has it."""
        return str(int(value)) if self.whole else str(value)

    def __str__(self) -> str:
        """As it is written on the command line."""
        return "..".join(self.ends) + ":log" * self.log


@dataclass(frozen=True)
class Values:
    """One of several values, as the command line has them."""

    key: str
    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """All of them."""
        return self.values

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"[{','.join(self.values)}]"


Dimension = Range | Values


def read_space(
    space: Mapping[str, Any], words: Sequence[str], composer: Composer[TrainConfig]
) -> tuple[list[Dimension], dict[str, str]]:
    """What is to be tried, sorted by option, and what of the defaults is not, with the reason.

    A default gives way to an option that the command line gives, and where what was chosen has no
    such option.

    Args:
        space: ``search.space`` as it was composed: sections of options.
        words: The overrides of the search, ``search.space...`` among them.
        composer: Composes the runs.

    Raises:
        SpaceError: naming the option, what was given, and what is legal.
    """
    asked = {key_of(word).removeprefix("search.space.") for word in words}
    fixed = {key_of(word) for word in composer.words}
    known = comparable(settled(composer.typed(composer.words))).keys() | composer.checker.groups
    found: dict[str, Dimension] = {}
    left_out: dict[str, str] = {}
    for key, value in _flat(space):
        default = not any(key == name or key.startswith(f"{name}.") for name in asked)
        if value is None:
            continue
        if key in fixed and not default:
            raise SpaceError(
                f"search.space.{key}={_shown(value)} and {key}=... are both given: leave out one, "
                "the range to keep the value, or the value to try the range."
            )
        if default and key in fixed:
            left_out[key] = "it is given"
        elif default and key not in known:
            left_out[key] = "what was chosen has no such option"
        else:
            found[key] = _dimension(key, value, composer)
    if not found:
        raise SpaceError(
            "there is nothing to try: search.space is empty. Give it something, such as "
            "search.space.training.learning_rate=1e-5..1e-2:log."
        )
    dimensions = [found[key] for key in sorted(found)]
    for one in dimensions:
        _check_comparable(one)
    _check_values(dimensions, composer)
    return dimensions, left_out


def _flat(space: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in space.items():
        key = f"{where}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _dimension(key: str, value: Any, composer: Composer[TrainConfig]) -> Dimension:
    where = f"search.space.{key}={_shown(value)}"
    info = composer.checker.options.get(key)
    if isinstance(value, list):
        values = tuple(dict.fromkeys(map(_shown, value)))
        if len(values) < 2:
            raise SpaceError(
                f"{where}: there is nothing to choose. Give {key}={''.join(values) or 'VALUE'} "
                "itself, or several values."
            )
        return Values(key, values)
    match = _RANGE.fullmatch(str(value))
    if match is None:
        raise SpaceError(f"{where}: this is neither a range nor a list of values. {_NOTATION}")
    kind = "text" if info is None else info.type.removesuffix(" or null")
    if info is not None and kind not in ("int", "float"):
        raise SpaceError(
            f"{where}: a range is for numbers, and {key} is {info.kind} ({info.help}). Give its "
            "values as a list, [A,B,...]."
        )
    try:
        numbers = [float(match[end]) for end in ("low", "high")]
    except ValueError:
        raise SpaceError(f"{where}: the ends of a range are numbers. {_NOTATION}") from None
    low, high = numbers
    whole, log = kind == "int", match["log"] is not None
    flaws = {
        "the first number has to be below the second": not low < high,
        f"{key} takes whole numbers alone": whole and any(n != round(n) for n in numbers),
        "a logarithmic scale begins above 0": log and low <= 0,
    }
    for flaw, holds in flaws.items():
        if holds:
            raise SpaceError(f"{where}: {flaw}. {_NOTATION}")
    return Range(key, low, high, log, whole)


def _check_comparable(one: Dimension) -> None:
    """Refuses options of which the values make runs that cannot be compared."""
    where = f"search.space.{one.key}={one}"
    if one.key == "seed":
        raise SpaceError(
            f"{where}: the best of several seeds is luck, and no better model. Leave it out; the "
            "search says at its end how to train the best options with several seeds."
        )
    if _VALIDATED_ON.fullmatch(one.key):
        raise SpaceError(
            f"{where}: runs that are validated on other utterances, or against other labels, "
            "cannot be compared. Search on one data set at a time."
        )


def _check_values(dimensions: Sequence[Dimension], composer: Composer[TrainConfig]) -> None:
    """Composes a run with each end of every range and each listed value: each another run."""

    def made(values: Mapping[str, str]) -> dict[str, Any] | ConfigError:
        words = [f"{key}={value}" for key, value in values.items()]
        try:
            composer.checker.parse(words, multirun=False)
            return comparable(settled(composer.typed([*composer.words, *words])))
        except ConfigError as error:
            return error

    first = {one.key: one.ends[0] for one in dimensions}
    for one in dimensions:
        runs: list[dict[str, Any]] = []
        for end in one.ends:
            together = made({**first, one.key: end})
            if not isinstance(together, ConfigError):
                if together in runs:
                    raise SpaceError(
                        f"search.space.{one.key}={one}: {one.key}={end} changes no result, "
                        f"beside {one.key}={one.ends[runs.index(together)]}. Leave it out."
                    )
                runs.append(together)
                continue
            for other in dimensions:
                for alone in other.ends:
                    if isinstance(error := made({other.key: alone}), ConfigError):
                        raise SpaceError(f"search.space.{other.key}={other}: {error}") from error
            values = " ".join(f"{key}={value}" for key, value in {**first, one.key: end}.items())
            raise SpaceError(f"search.space: {values} do not go together: {together}")


def _shown(value: Any) -> str:
    """A value as the command line has it, lists included."""
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return written(value)
