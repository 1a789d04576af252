"""Speed and memory of variants, side by side on generated data."""

from __future__ import annotations

from msea_lightning.config.errors import UserError


class BenchError(UserError):
    """A benchmark that cannot be run."""
