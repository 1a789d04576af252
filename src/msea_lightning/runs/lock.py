"""Locks that keep two processes from training the same run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from msea_lightning.config.roots import TrainConfig
from msea_lightning.runs.folder import RunError
from msea_lightning.runs.identity import fingerprint


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

    Raises:
        Timeout: where another process holds it for longer than ``patience`` seconds.
    """
    folder = Path(config.runs) / ".locks"
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
