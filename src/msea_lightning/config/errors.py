"""Errors that the user can fix."""

from __future__ import annotations


class UserError(Exception):
    """An error that the user can fix.

    Its text says what is wrong, where, both values and what to do; entry points print it as one
    paragraph, without a traceback. Every package of the project derives its errors from it. It is
    no ``ValueError``, so that a broad handler does not swallow it.
    """


class ConfigError(UserError):
    """An option that is unknown, mistyped, out of range, or at odds with another one."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
