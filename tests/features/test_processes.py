from __future__ import annotations

import os

import pytest

from msea_lightning.features.processes import on_processes, usable_cores


def work(task: str) -> str:
    if task == "dies":
        os._exit(1)
    if task == "fails":
        raise ValueError("this task fails")
    return f"{task} on {os.environ['OMP_NUM_THREADS']}" if task == "threads" else task


def lost(task: str) -> str:
    return f"lost {task}"


def test_a_process_that_dies_takes_its_task_alone() -> None:
    tasks = ["a", "b", "dies", "threads", *map(str, range(6))]
    expected = {*tasks, "lost dies", "threads on 1"} - {"dies", "threads"}
    assert sorted(on_processes(work, tasks, 2, lost)) == sorted(expected)


def test_an_error_ends_the_work() -> None:
    with pytest.raises(ValueError, match="this task fails"):
        list(on_processes(work, ["fails", *map(str, range(9))], 2, lost))


def test_one_worker_is_this_process() -> None:
    assert list(on_processes(id, tasks := ["a", "b"], 1, lost)) == list(map(id, tasks))


def test_only_cores_that_this_process_may_use_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1
