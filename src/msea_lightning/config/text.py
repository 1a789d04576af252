"""Text from other people's files, made safe to show in a terminal, a log or a report."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from types import TracebackType

_UNSAFE = re.compile(
    "["
    "\x00-\x09\x0b-\x1f\x7f-\x9f"  # C0 without newline, DEL, C1: they move the cursor, set colours
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # change the direction of what follows
    "\u2028\u2029"  # end lines
    "\ud800-\udfff"  # half a character: cannot be encoded
    "]"
)


def visible(text: str) -> str:
    r"""The text with every character escaped that a terminal would obey instead of show.

    Newlines stay; all other control characters, the direction overrides of Unicode and lone
    surrogates are written as Python writes them: ``\x1b``, ``\u202e``.
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class VisibleFormatter(logging.Formatter):
    """A log formatter whose lines are :func:`visible`, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text without control characters."""
        return visible(super().format(record))


def say(text: str) -> None:
    """Writes a line to standard error, made :func:`visible`."""
    sys.stderr.write(f"{visible(text)}\n")
    sys.stderr.flush()


def print_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints an exception that nobody caught as ``sys.excepthook`` does, but :func:`visible`."""
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))
