"""Log lines that several processes of one run have in common."""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def is_rank_zero() -> bool:
    """Whether this is the only process of the run, or the first of several."""
    ranks = (os.environ[name] for name in _RANK_VARIABLES if name in os.environ)
    return next(ranks, "0") == "0"


def log_once(logger: logging.Logger, message: str, *, level: int = logging.INFO) -> None:
    """Logs on rank zero alone, so that a run on several devices says everything once."""
    if is_rank_zero():
        logger.log(level, "%s", message)


@functools.cache
def log_console() -> Console:
    """The console on standard error that log lines and the progress bar share in a terminal."""
    from rich.console import Console

    return Console(stderr=True)
