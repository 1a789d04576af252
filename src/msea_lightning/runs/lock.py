"""Locks that keep two processes from training the same run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from msea_lightning.config.roots import TrainConfig
from msea_lightning.runs.folder import RunError
from msea_lightning.runs.identity import fingerprint

_FOLDER = ".locks"
"""Folder of the lock files, below the folder of all runs."""


def is_held(config: TrainConfig) -> bool:
    """Whether a process trains a run of exactly these options at the moment; see :func:`locked`."""
    try:
        with locked(config, patience=0):
            return False
    except Timeout:
        return True


@contextmanager
def locked(config: TrainConfig, *, patience: float) -> Iterator[None]:
    """Holds the lock of a run. The system releases it when the process ends, however it ends.

    Args:
        config: All options of the run; local places as ``with_absolute_places`` has them.
        patience: Seconds to wait where another process holds it.

    Raises:
        Timeout: where another process holds it for longer.
        RunError: where the file system has no locks.
    """
    folder = Path(config.runs) / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{fingerprint(config)[:32]}.lock", timeout=patience)
    try:
        held = lock.acquire()
    except NotImplementedError as error:
        raise RunError(
            f"runs={config.runs}: this file system has no file locks ({error}), without which two "
            "processes could train the same run. Choose a folder for runs= on another one."
        ) from error
    with held:
        yield
