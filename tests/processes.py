"""What tests ask of processes that they started."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import pytest


def wait_until(happened: Callable[[], bool]) -> None:
    """Waits for what takes a moment, on a busy machine more than one.

    Args:
        happened: Whether it happened; the test fails if not within half a minute.
    """
    for _ in range(600):
        if happened():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen within 30 seconds")


def is_gone(process: psutil.Process) -> bool:
    """Whether a process runs no longer, though nobody may have asked yet what became of it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
