"""One process per run: started, its output passed on, and ended with the sweep.

A run of a sweep has a process of its own so that whatever ends it, a lack of memory included, ends
nothing else, and so that no run inherits anything from another one: threads, random numbers,
memory. No process is left behind: a run ends when its supervisor does, through the pipe at its
standard input, and a supervisor ends when the sweep that it works for does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from subprocess import CompletedProcess
from typing import IO

import psutil

from msea_lightning.config.text import visible

_SUPERVISED = "MSEA_SUPERVISED"
"""Set for a process that is to end with its supervisor."""

_SWEEP = "MSEA_SWEEP_PROCESS"
"""The process of the sweep that supervisors work for."""


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
    # Without cleaning up: a run has to survive being killed in any case.
    os._exit(1)


def supervise(
    command: Sequence[str], *, prefix: str, environment: Mapping[str, str]
) -> CompletedProcess[str]:
    """Runs a command and passes on what it writes, line by line, to standard error.

    It calls :func:`end_with_supervisor`, and has further variables in its environment.

    Returns:
        Its exit code, negative for a signal, and as ``stdout`` the last lines that it wrote.
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
    tail: deque[str] = deque(maxlen=20)
    listener = threading.Thread(target=_listen, args=(process.stdout, prefix, tail), daemon=True)
    listener.start()
    _end_with_sweep(process)
    try:
        returncode = process.wait()
    except BaseException:
        # Ctrl-C has reached it as well; it gets some seconds to end by itself.
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    finally:
        process.stdin.close()
    # What it has started in turn may keep the pipe open.
    listener.join(timeout=2)
    return CompletedProcess(command, returncode, stdout="".join(tail))


def _listen(stream: IO[str], prefix: str, tail: deque[str]) -> None:
    with stream:
        for line in stream:
            tail.append(line)
            sys.stderr.write(f"{prefix}{visible(line)}")
            sys.stderr.flush()


def _end_with_sweep(process: subprocess.Popen[str]) -> None:
    """Ends this process and the run when the sweep ends, where it is this process's parent.

    Jobs of a cluster are not: they go on without the process that has submitted them.
    """
    parent = os.getppid()
    if os.environ.get(_SWEEP) != str(parent):
        return
    sweep = psutil.Process(parent)

    def watch() -> None:
        while process.poll() is None:
            # Windows keeps the parent's number, POSIX the parent's entry until it is waited for.
            if os.getppid() != parent or not sweep.is_running():
                process.kill()
                os._exit(1)
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()
