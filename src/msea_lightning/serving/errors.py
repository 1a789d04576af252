"""What a server tells its callers, besides that a request is wrong."""

from __future__ import annotations

from msea_lightning.config.errors import UserError


class EngineError(UserError):
    """An engine that computes another language model, or refuses what it is asked."""


class UnavailableError(UserError):
    """No answer now, perhaps later: the engine is down, too slow, or there is too much to do."""
