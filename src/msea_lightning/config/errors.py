"""The errors that a person at the keyboard can mend."""

from __future__ import annotations


class UserError(Exception):
    """An error that the person at the keyboard can mend.

    Its text says what is wrong, where, both values and what to do; entry points print it as one
    paragraph, without a traceback. Every room of the project derives its errors from it. It is no
    built-in error, so that an ``except ValueError`` does not swallow one.
    """


class ConfigError(UserError):
    """An option that is unknown, mistyped, out of range, or at odds with another one."""
