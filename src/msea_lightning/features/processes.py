"""Tasks on all cores: a process that dies takes its clip with it, and no other one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_processes(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    lost: Callable[[Task], Result],
) -> Iterator[Result]:
    """Results of tasks in the order in which they are ready.

    Args:
        function: A function of a module.
        tasks: What it is called with.
        workers: Processes; with 1 everything runs in this one.
        lost: The result of a task whose process died.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    waiting = deque(tasks)
    while waiting:
        suspects = yield from _until_one_dies(function, waiting, workers)
        # Which of them it was shows when each has a process of its own.
        for task in suspects:
            alone = deque([task])
            if (yield from _until_one_dies(function, alone, 1)):
                yield lost(task)


def _until_one_dies(
    function: Callable[[Task], Result], waiting: deque[Task], workers: int
) -> Generator[Result, None, list[Task]]:
    """Works on tasks until none is left or a process dies; returns those that were under way."""
    with _Pool(workers) as pool:
        running: dict[Future[Result], Task] = {}
        while waiting or running:
            try:
                while waiting and len(running) < 2 * workers:
                    running[pool.submit(function, waiting[0])] = waiting[0]
                    waiting.popleft()
            except BrokenProcessPool:
                return list(running.values())
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                if not isinstance(future.exception(), BrokenProcessPool):
                    running.pop(future)
                    yield future.result()
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                return list(running.values())
    return []


class _Pool(ProcessPoolExecutor):
    """Fresh processes of one thread each, which end with this one."""

    def __init__(self, workers: int) -> None:
        super().__init__(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
        )

    def __enter__(self) -> _Pool:
        # The variables are read when libraries are loaded, before the initializer runs.
        self._before = {name: os.environ.get(name) for name in _THREADS}
        os.environ.update(dict.fromkeys(_THREADS, "1"))
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:  # what is under way would be finished first
            for process in list(self._processes.values()):
                process.terminate()
        self.shutdown(cancel_futures=True)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin() -> None:
    """Leaves interruptions to the parent, and ends as soon as the parent has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
