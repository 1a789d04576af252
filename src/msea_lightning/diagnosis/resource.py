"""A data set or language model, and where it was found on this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resource:
    """A choice of ``conf/dataset`` or ``conf/backbone``, and where it was found.

    Attributes:
        name: The choice.
        state: ``built in``, ``prepared``, ``found`` (data set) or ``complete`` (backbone) where a
            run can use it; ``incomplete``; ``missing``; ``yours`` for data of the user.
        place: Where it is.
        option: What a command needs to use it there; empty where it finds it by itself.
        flaw: What an incomplete one lacks.
        remedy: The command that gets what is missing.
    """

    name: str
    state: str
    place: str = ""
    option: str = ""
    flaw: str = ""
    remedy: str = ""

    @property
    def usable(self) -> bool:
        """Whether a run can use it as it is."""
        return self.state in ("built in", "prepared", "found", "complete")
