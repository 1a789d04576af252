"""The process of one variant: the turns that it takes, and how it answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from msea_lightning.benchmark import ours
from msea_lightning.benchmark.subject import Round
from msea_lightning.benchmark.worker import Order, doings, work
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig

TURNS = ("warm train", "train", "train", "train", "warm evaluate", "evaluate", "evaluate")


class Noted:
    """A variant that notes what it is told."""

    calls: list[tuple[Any, ...]]

    def __init__(self, *_: Any) -> None:
        type(self).calls = []

    def train(self, steps: int, beginning: float = 0.5) -> Round:
        self.calls.append(("train", steps, beginning))
        return Round(1.0, steps, 2, 3.0)

    def evaluate(self, utterances: int, beginning: float = 0.5) -> Round:
        self.calls.append(("evaluate", utterances, beginning))
        if beginning > 0.5:
            raise UserError("no room")
        return Round(1.0, utterances, 2, 3.0)

    def stages(self) -> None:
        raise ZeroDivisionError


@pytest.fixture
def order(
    options: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Order:
    monkeypatch.setattr(ours, "Ours", Noted)
    file = tmp_path / "options.yaml"
    config = options("training.batch_size=4")
    file.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return Order("ours", str(file), "", None, list(TURNS), steps=8, started=0.0)


def answers(channel: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in channel.getvalue().splitlines()]


def test_rounds_begin_at_places_around_the_middle(order: Order) -> None:
    channel = io.StringIO()
    work(order, io.StringIO("\n".join(TURNS)), channel)
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
    # What the user can mend is told in a sentence.
    assert last == {"error": "no room"}


def test_what_nobody_foresaw_is_told_with_its_place(order: Order) -> None:
    channel = io.StringIO()
    order.turns[:] = ["stages", "train"]
    work(order, io.StringIO("stages\ntrain\n"), channel)
    (answer,) = answers(channel)
    assert answer["error"].rstrip().endswith("ZeroDivisionError")
    assert "Traceback" in answer["error"]


def test_a_worker_ends_with_who_tells_it(order: Order) -> None:
    channel = io.StringIO()
    work(order, io.StringIO("warm train\n"), channel)
    assert len(answers(channel)) == 1


def test_further_devices_take_the_turns_by_themselves(order: Order) -> None:
    channel = io.StringIO()
    order.turns[:] = ["train", "warm train"]
    work(order, None, channel)
    assert [answer["result"]["utterances"] for answer in answers(channel)] == [8, 2]


def test_every_turn_is_one_that_the_benchmark_gives(order: Order) -> None:
    assert set(doings(order)) == {"start", "stages", "rate", "peak", *TURNS}
