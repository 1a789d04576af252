"""Errors of published files, and how they name many things at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from reprlib import repr as short_repr
from typing import Any

from msea_lightning.config.errors import UserError


class ReadError(UserError):
    """A published file that is not as its layout says."""


class MissingFileError(ReadError):
    """A published file that is not there.

    Its text is the first half of a sentence, such as ``<folder> holds no train.json``: whoever
    looks for the files adds where they are published.
    """


def show_value(value: Any) -> str:
    """A value in a file for an error message; of what may hold others without end the type."""
    simple = isinstance(value, str | bytes | int | float) and not is_huge(value)
    return short_repr(value) if simple else f"<{type(value).__name__}>"


def is_huge(value: Any) -> bool:
    """Whether it is an integer beyond all floats, which Python may refuse to write out too."""
    return isinstance(value, int) and value.bit_length() > sys.float_info.max_exp


def shorten(names: Iterable[str], shown: int = 10) -> str:
    """A list of names for an error message: the first of them, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return (", ".join(listed[:shown]) or "none") + more
