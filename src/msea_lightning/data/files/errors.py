"""Errors of published files, and how they name many things at once."""

from __future__ import annotations

from collections.abc import Iterable

from msea_lightning.config.errors import UserError

_SHOWN = 10


class ReadError(UserError):
    """A published file that is not as its layout says."""


class MissingFileError(ReadError):
    """A published file that is not there.

    Its text is the first half of a sentence, such as ``<folder> holds no train.json``: whoever
    looks for the files adds where they are published.
    """


def shorten(names: Iterable[str], shown: int = _SHOWN) -> str:
    """A list of names for an error message: the first of them, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return (", ".join(listed[:shown]) or "none") + more
