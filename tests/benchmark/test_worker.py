"""The process of one variant: its tasks, and how it answers."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from msea_lightning.benchmark import ours, worker
from msea_lightning.benchmark.variant import Timing
from msea_lightning.benchmark.worker import answer, load_tasks, work
from msea_lightning.commands.allocator import SETTING
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig


class Noted:
    """A variant that notes the calls of its methods."""

    device = torch.device("cpu")
    backbone = SimpleNamespace(dtype=torch.float32)
    calls: list[tuple[Any, ...]]

    def __init__(self, *_: Any) -> None:
        type(self).calls = []

    def train(self, batches: int, offset: float = 0.5) -> Timing:
        self.calls.append(("train", batches, offset))
        return Timing(1.0, batches, 2, 3.0)

    def evaluate(self, batches: int, offset: float = 0.5) -> Timing:
        self.calls.append(("evaluate", batches, offset))
        raise UserError("no room")

    def stages(self) -> None:
        raise ZeroDivisionError


@pytest.fixture
def load(
    options: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[], Any]:
    monkeypatch.setattr(ours, "load_ours", Noted)
    return lambda: load_tasks("ours", options(), tmp_path, None, 0.0)


def answers(load: Callable[[], Any], *requests: tuple[str, dict[str, Any]]) -> list[Any]:
    """What is answered to requests until the worker ends, or whoever asks does."""
    asking, working = Pipe()
    for request in requests:
        asking.send(request)
    closed = SimpleNamespace(
        send=working.send, recv=lambda: working.recv() if working.poll() else ended()
    )
    answer(closed, load)  # type: ignore[arg-type]
    found = []
    while asking.poll():
        found.append(asking.recv())
    return found


def ended() -> None:
    raise EOFError


def test_tasks_are_done_in_order_until_one_fails(load: Callable[[], Any]) -> None:
    first, second, last = answers(
        load,
        ("train", {"batches": 2}),
        ("train", {"batches": 8, "offset": 0.25}),
        ("evaluate", {"batches": 32, "offset": 0.75}),
        ("train", {"batches": 1}),
    )
    assert Noted.calls == [("train", 2, 0.5), ("train", 8, 0.25), ("evaluate", 32, 0.75)]
    assert first == (Timing(1.0, 2, 2, 3.0), None)
    assert second == (Timing(1.0, 8, 2, 3.0), None)
    # A user's error is a sentence.
    assert last == (None, "no room")


def test_a_bug_comes_with_its_traceback(load: Callable[[], Any]) -> None:
    ((result, error),) = answers(load, ("stages", {}), ("train", {"batches": 1}))
    assert result is None
    assert error.rstrip().endswith("ZeroDivisionError")
    assert "Traceback" in error


def test_a_worker_ends_without_further_requests(load: Callable[[], Any]) -> None:
    assert len(answers(load, ("train", {"batches": 1}))) == 1


def test_every_task_is_one_that_the_benchmark_gives(load: Callable[[], Any]) -> None:
    assert set(load()) == {"start", "stages", "rate", "peak", "train", "evaluate"}


@pytest.mark.parametrize(
    ("variant", "given", "expected"),
    [("original", None, "0"), ("ours", None, "1"), ("backbone.dtype=bfloat16", "0", "0")],
)
def test_memory_is_asked_for_as_each_variant_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
    given: str | None,
    expected: str,
) -> None:
    monkeypatch.setenv(SETTING, "1")  # so that it is put back
    if given is None:
        monkeypatch.delenv(SETTING)
    else:
        monkeypatch.setenv(SETTING, given)
    found = []
    monkeypatch.setattr(worker, "answer", lambda *_: found.append(worker.os.environ[SETTING]))
    monkeypatch.setattr(worker.os, "dup2", lambda *_: None)
    work(SimpleNamespace(), tmp_path / "log", variant)  # type: ignore[arg-type]
    assert found == [expected]
