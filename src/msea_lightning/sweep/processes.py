"""One process per cell: what starts it, gives it a GPU, listens to it, and ends with it.

A cell has a process of its own so that whatever ends it, a lack of memory included, ends nothing
else, and so that no cell inherits anything from another one: threads, random numbers, memory.
Nobody is left behind: a cell ends when its supervisor does, through the pipe at its standard input,
and a supervisor ends when the sweep that it works for does.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

_SUPERVISED = "MSEA_SUPERVISED"
"""Set for a process that is to end with its supervisor."""

_SWEEP = "MSEA_SWEEP_PROCESS"
"""The process of the sweep that supervisors work for."""

_LAST_LINES = 20
"""Lines of a cell's output that are kept, for the case that it leaves no other word."""

_PATIENCE = 30
"""Seconds for a cell to end by itself after Ctrl-C."""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        returncode: Its exit code; negative for a signal.
        tail: The last lines that it wrote.
    """

    returncode: int
    tail: str

    @property
    def signal(self) -> str | None:
        """Name of the signal that ended it, if one did."""
        return signal.Signals(-self.returncode).name if self.returncode < 0 else None


def lead_sweep() -> None:
    """Makes this process the one that supervisors in its child processes end with."""
    os.environ[_SWEEP] = str(os.getpid())


def end_with_supervisor() -> None:
    """Ends this process as soon as its supervisor is gone, where it has one."""
    if os.environ.pop(_SUPERVISED, None) is not None:
        threading.Thread(target=_wait_for_the_end_of_input, daemon=True).start()


def _wait_for_the_end_of_input() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    # As abrupt as being killed, which a run has to survive in any case.
    os._exit(1)


def supervise(command: Sequence[str], *, prefix: str, environment: Mapping[str, str]) -> Ended:
    """Runs a command and passes on what it writes, line by line, to standard error.

    Args:
        command: The command; it calls :func:`end_with_supervisor`.
        prefix: What to put in front of its lines.
        environment: Further variables of its environment.

    Returns:
        How it ended.
    """
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", _SUPERVISED: "1", **environment}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=variables,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None
    assert process.stdin is not None
    tail: deque[str] = deque(maxlen=_LAST_LINES)
    listener = threading.Thread(target=_listen, args=(process.stdout, prefix, tail), daemon=True)
    listener.start()
    _end_with_sweep(process)
    try:
        returncode = process.wait()
    except BaseException:
        # Ctrl-C has reached it as well.
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    finally:
        process.stdin.close()
    # What it has started in turn may keep the pipe open.
    listener.join(timeout=2)
    return Ended(returncode, "".join(tail))


def _listen(stream: IO[str], prefix: str, tail: deque[str]) -> None:
    with stream:
        for line in stream:
            tail.append(line)
            sys.stderr.write(f"{prefix}{line}")
            sys.stderr.flush()


def _end_with_sweep(process: subprocess.Popen[str]) -> None:
    """Ends this process and the cell when the sweep ends, where it is this process's parent.

    Jobs of a cluster are not: they go on without the process that has submitted them.
    """
    sweep = os.getppid()
    if os.environ.get(_SWEEP) != str(sweep):
        return

    def watch() -> None:
        while process.poll() is None:
            if os.getppid() != sweep:
                process.kill()
                os._exit(1)
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def gpu_of_its_own() -> Iterator[dict[str, str]]:
    """Takes one of the GPUs that this process may use, and waits while all are taken.

    Yields:
        The variables of the environment that give a process this GPU alone; none without GPUs.
    """
    gpus = visible_gpus()
    if not gpus:
        yield {}
        return
    folder = Path(tempfile.gettempdir()) / f"msea_lightning-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    # A hash, because the name of a part of a GPU holds characters that file names do not.
    locks = {
        entry: FileLock(folder / f"gpu-{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock")
        for entry, name in gpus.items()
    }
    entry = _first_free(locks)
    try:
        yield {"CUDA_VISIBLE_DEVICES": entry}
    finally:
        locks[entry].release()


def _first_free(locks: Mapping[str, FileLock]) -> str:
    while True:
        for entry, lock in locks.items():
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return entry
        time.sleep(1)


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
