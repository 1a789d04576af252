"""Things that can be chosen by name, such as adapters, each registered in one place."""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

from msea_lightning.config.errors import ConfigError

Options = TypeVar("Options")
Registered = TypeVar("Registered")


@dataclass
class Choice:
    """The options of one of several things; its name says of which one."""

    registered_as: ClassVar[str] = ""

    name: str = field(default="", metadata={"help": "which one, also in run folders and reports"})

    def __post_init__(self) -> None:
        """Fills in the name."""
        self.name = self.name or self.registered_as

    def arguments(self) -> dict[str, Any]:
        """All options but the name, by the names of the arguments of what is chosen."""
        names = (item.name for item in dataclasses.fields(self) if item.name != "name")
        return {name: getattr(self, name) for name in names}


class _Entry(NamedTuple):
    options: Any
    target: str
    title: str


class Registry(Generic[Options]):
    """The choices of one kind, in the order of their registration.

    An entry is what the command line needs to know, usually a :class:`Choice`, and its target: the
    dotted path of the class or function that it configures. The target is imported when
    :meth:`load` asks for it, so that options load without PyTorch::

        @ADAPTERS.register("mag", "msea_lightning.adapter.mag.MAGAdapter", title="MAG")
        @dataclass
        class MAGOptions(AdapterOptions): ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, _Entry] = {}

    def register(
        self, name: str, target: str = "", *, title: str = ""
    ) -> Callable[[Registered], Registered]:
        """Registers what it decorates.

        Args:
            name: The name on the command line.
            target: Dotted path of the class or function; empty where there is none.
            title: Its name in the paper's tables and in reports; the name where not given.
        """
        if name in self._entries:
            raise ValueError(f"there are two of {self.kind} {name}")

        def add(options: Registered) -> Registered:
            if isinstance(options, type) and issubclass(options, Choice):
                options.registered_as = name
            self._entries[name] = _Entry(options, target, title or name)
            return options

        return add

    def names(self) -> tuple[str, ...]:
        """All names."""
        return tuple(self._entries)

    def options(self, name: str) -> Options:
        """What was registered under a name; ConfigError if nothing was."""
        return cast("Options", self._entry(name).options)

    def title(self, name: str) -> str:
        """What tables call an entry; any other name as it is."""
        return self._entries[name].title if name in self._entries else name

    def load(self, name: str) -> Any:
        """Imports the class or function of a name; ConfigError if nothing has it."""
        return pkgutil.resolve_name(self._entry(name).target)

    def name_of(self, thing: object) -> str:
        """The name of what is registered or loaded, or of an instance; ConfigError if none is."""
        kind = thing if isinstance(thing, type) else type(thing)
        path = f"{kind.__module__}.{kind.__qualname__}"
        for name, entry in self._entries.items():
            if entry.options in (thing, kind) or entry.target == path:
                return name
        raise self._refused(f"{path} is not registered as {self.kind}")

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise self._refused(f"there is no {self.kind} {name}")
        return self._entries[name]

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(f"{why}; there are: {', '.join(self._entries)}.")
