"""The errors that a person at the keyboard can mend."""

from __future__ import annotations


class UserError(ValueError):
    """An error that the person at the keyboard can mend.

    Its text says what is wrong, where, both values and what to do; entry points print it as one
    paragraph, without a traceback. Every package of the project derives its errors from it.
    """


class ConfigError(UserError):
    """An option that is unknown, mistyped, out of range, or at odds with another one."""
