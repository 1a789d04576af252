"""A GPU for each run of a sweep."""

from __future__ import annotations

import getpass
import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_POLL = 1.0
"""Seconds between two looks for a free GPU."""


@contextmanager
def gpu_of_its_own(say: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Takes one of the GPUs that this process may use, and waits while all are taken.

    Yields the variables of the environment that give a process this GPU alone; none without GPUs.
    """
    gpus = visible_gpus()
    if not gpus:
        yield {}
        return
    # The folder of temporary files may be that of all users, whose locks cannot be opened.
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    folder = Path(tempfile.gettempdir()) / f"msea_lightning-{user}"
    folder.mkdir(exist_ok=True)
    # A hash, because the name of a part of a GPU holds characters that file names do not.
    locks = {
        entry: FileLock(folder / f"gpu-{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock")
        for entry, name in gpus.items()
    }
    entry = _take(locks)
    if entry is None:
        listed = ", ".join(locks)
        say(f"waiting for a GPU: other runs use all that are visible ({listed})")
    while entry is None:
        time.sleep(_POLL)
        entry = _take(locks)
    try:
        yield {"CUDA_VISIBLE_DEVICES": entry}
    finally:
        locks[entry].release()


def _take(locks: Mapping[str, FileLock]) -> str | None:
    for entry, lock in locks.items():
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        return entry
    return None


def visible_gpus() -> dict[str, str]:
    """The GPUs that this process may use: what CUDA_VISIBLE_DEVICES calls them, and their names.

    The name is that of the hardware where it can be asked for: jobs of a cluster that share a
    machine may each call their GPU 0.
    """
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        asked = ""
    pairs = [line.split(",") for line in asked.splitlines() if line.count(",") == 1]
    names = {index.strip(): uuid.strip() for index, uuid in pairs}
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return names
    entries = [entry.strip() for entry in listed.split(",")]
    return {entry: names.get(entry, entry) for entry in entries if entry not in ("", "-1")}
