"""The process of one variant: the tasks of its plan, and how it answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from msea_lightning.benchmark import ours
from msea_lightning.benchmark.variant import Timing
from msea_lightning.benchmark.worker import Plan, tasks, work
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig

TASKS = ("warm up train", "train", "train", "train", "warm up evaluate", "evaluate", "evaluate")


class Noted:
    """A variant that notes the calls of its methods."""

    calls: list[tuple[Any, ...]]

    device = torch.device("cpu")

    def __init__(self, *_: Any) -> None:
        type(self).calls = []

    def train(self, steps: int, offset: float = 0.5) -> Timing:
        self.calls.append(("train", steps, offset))
        return Timing(1.0, steps, 2, 3.0)

    def evaluate(self, utterances: int, offset: float = 0.5) -> Timing:
        self.calls.append(("evaluate", utterances, offset))
        if offset > 0.5:
            raise UserError("no room")
        return Timing(1.0, utterances, 2, 3.0)

    def stages(self) -> None:
        raise ZeroDivisionError


@pytest.fixture
def plan(
    options: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Plan:
    monkeypatch.setattr(ours, "Ours", Noted)
    file = tmp_path / "options.yaml"
    config = options("training.batch_size=4")
    file.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return Plan("ours", str(file), "", None, list(TASKS), steps=8, started=0.0)


def answers(channel: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in channel.getvalue().splitlines()]


def test_offsets_of_rounds_lie_around_the_middle(plan: Plan) -> None:
    channel = io.StringIO()
    work(plan, io.StringIO("\n".join(TASKS)), channel)
    assert Noted.calls == [
        ("train", 2, 0.5),
        ("train", 8, pytest.approx(1 / 6)),
        ("train", 8, 0.5),
        ("train", 8, pytest.approx(5 / 6)),
        ("evaluate", 8, 0.5),
        ("evaluate", 32, 0.25),
        ("evaluate", 32, 0.75),
    ]
    *rounds, last = answers(channel)
    assert rounds[1] == {
        "result": {"seconds": 1.0, "utterances": 8, "tokens": 2, "operations": 3.0}
    }
    # A user's error is a sentence.
    assert last == {"error": "no room"}


def test_a_bug_comes_with_its_traceback(plan: Plan) -> None:
    channel = io.StringIO()
    plan.tasks[:] = ["stages", "train"]
    work(plan, io.StringIO("stages\ntrain\n"), channel)
    (answer,) = answers(channel)
    assert answer["error"].rstrip().endswith("ZeroDivisionError")
    assert "Traceback" in answer["error"]


def test_a_worker_ends_without_further_requests(plan: Plan) -> None:
    channel = io.StringIO()
    work(plan, io.StringIO("warm up train\n"), channel)
    assert len(answers(channel)) == 1


def test_further_devices_do_the_tasks_without_requests(plan: Plan) -> None:
    channel = io.StringIO()
    plan.tasks[:] = ["train", "warm up train"]
    work(plan, None, channel)
    assert [answer["result"]["utterances"] for answer in answers(channel)] == [8, 2]


def test_every_task_is_one_that_the_benchmark_gives(plan: Plan) -> None:
    assert set(tasks(plan)) == {"start", "stages", "rate", "peak", *TASKS}
