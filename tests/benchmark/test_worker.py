"""The process of one variant: the tasks of its plan, and how it answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from msea_lightning.benchmark import ours
from msea_lightning.benchmark.run import _TASKS
from msea_lightning.benchmark.variant import Timing
from msea_lightning.benchmark.worker import Plan, known_tasks, work
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig


class Noted:
    """A variant that notes the calls of its methods."""

    device = torch.device("cpu")
    backbone = SimpleNamespace(dtype=torch.float32)
    calls: list[tuple[Any, ...]]

    def __init__(self, *_: Any) -> None:
        type(self).calls = []

    def train(self, steps: int, offset: float = 0.5) -> Timing:
        self.calls.append(("train", steps, offset))
        return Timing(1.0, steps, 2, 3.0)

    def evaluate(self, utterances: int, offset: float = 0.5) -> Timing:
        self.calls.append(("evaluate", utterances, offset))
        raise UserError("no room")

    def stages(self) -> None:
        raise ZeroDivisionError


@pytest.fixture
def plan(options: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(ours, "load_ours", Noted)
    config: Any = OmegaConf.to_container(OmegaConf.structured(options()), enum_to_str=True)
    tasks: list[tuple[str, dict[str, Any]]] = [
        ("train", {"steps": 2}),
        ("train", {"steps": 8, "offset": 0.25}),
        ("evaluate", {"utterances": 32, "offset": 0.75}),
        ("train", {"steps": 1}),
    ]
    return Plan("ours", json.loads(json.dumps(config)), "", None, tasks, started=0.0)


def answers(channel: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in channel.getvalue().splitlines()]


def test_tasks_are_done_in_order_until_one_fails(plan: Plan) -> None:
    channel = io.StringIO()
    work(plan, io.StringIO("\n" * 4), channel)
    assert Noted.calls == [("train", 2, 0.5), ("train", 8, 0.25), ("evaluate", 32, 0.75)]
    *rounds, last = answers(channel)
    assert rounds[1] == {
        "result": {"seconds": 1.0, "utterances": 8, "tokens": 2, "operations": 3.0}
    }
    # A user's error is a sentence.
    assert last == {"error": "no room"}


def test_a_bug_comes_with_its_traceback(plan: Plan) -> None:
    channel = io.StringIO()
    plan.tasks[:] = [("stages", {}), ("train", {"steps": 1})]
    work(plan, io.StringIO("\n\n"), channel)
    (answer,) = answers(channel)
    assert answer["error"].rstrip().endswith("ZeroDivisionError")
    assert "Traceback" in answer["error"]


def test_a_worker_ends_without_further_requests(plan: Plan) -> None:
    channel = io.StringIO()
    work(plan, io.StringIO("\n"), channel)
    assert len(answers(channel)) == 1


def test_further_devices_do_the_tasks_without_requests(plan: Plan) -> None:
    channel = io.StringIO()
    del plan.tasks[2:]
    work(plan, None, channel)
    assert [answer["result"]["utterances"] for answer in answers(channel)] == [2, 8]


def test_every_task_is_one_that_the_benchmark_gives(plan: Plan) -> None:
    timed = {task for tasks in _TASKS.values() for task in tasks}
    assert set(known_tasks(plan)) == {"start", "stages", "rate", "peak", *timed}
