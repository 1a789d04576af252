"""The error of the benchmark."""

from __future__ import annotations

from msea_lightning.config.errors import UserError


class BenchError(UserError):
    """A benchmark that cannot be run."""
