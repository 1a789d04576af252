"""The process of one variant: does what it is told, and answers with numbers.

It is told on standard input, one word a line, and answers with one line of JSON on what was its
standard output when it began; whatever else is printed goes to standard error. Further processes of
one that trains on several devices repeat its command line; they are told nothing, and go through
the same turns on their own.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from omegaconf import DictConfig

from msea_lightning.config.errors import UserError

_WARM = 2
"""Training batches before any are counted."""


@dataclass(frozen=True)
class Order:
    """What a worker is to measure.

    Attributes:
        variant: ``original``, or any other name for ours.
        config: File with the options of the run.
        store: Folder of the data.
        published: The data as they are published; None where no variant reads them.
        turns: The words that it will be told, in order.
        steps: Training batches of a round.
        started: When its process was started, in seconds since the epoch.
    """

    variant: str
    config: str
    store: str
    published: str | None
    turns: list[str]
    steps: int
    started: float


def doings(order: Order) -> Mapping[str, Callable[[], Any]]:
    """What to do for each word.

    Args:
        order: What is measured.
    """
    from omegaconf import OmegaConf

    from msea_lightning.backbone import resolve_device
    from msea_lightning.backbone.loading.memory import peak_bytes, process_bytes
    from msea_lightning.benchmark.original import Original
    from msea_lightning.benchmark.ours import Ours
    from msea_lightning.benchmark.subject import Material, StageClock
    from msea_lightning.config.options import to_typed
    from msea_lightning.config.roots import TrainConfig
    from msea_lightning.cost.flops import matrix_rate

    loaded = OmegaConf.load(order.config)
    assert isinstance(loaded, DictConfig)
    config = to_typed(loaded, TrainConfig)
    published = None if order.published is None else Path(order.published)
    material = Material(Path(order.store), published)
    subject = (Original if order.variant == "original" else Ours)(config, material)
    batch = config.training.batch_size
    imported = time.time() - order.started

    def start() -> dict[str, Any]:
        clock = StageClock(resolve_device(config.trainer.accelerator))
        subject.start(clock)
        return {
            "seconds": time.time() - order.started,
            "stages": {"import": imported, **clock.seconds()},
            "resident": process_bytes(subject.device),
            "weights": subject.workload().weights,
            "dtype": str(subject.workload().dtype).removeprefix("torch."),
            "device": _name(subject.device),
        }

    # The rounds of a kind begin at different places that lie evenly around the middle.
    beginnings = {
        kind: iter([(2 * number + 1) / (2 * rounds) for number in range(rounds)])
        for kind in ("train", "evaluate")
        if (rounds := order.turns.count(kind))
    }

    def stages() -> dict[str, Any]:
        training, evaluation = subject.stages()
        return {"train": training, "evaluate": evaluation}

    return {
        "start": start,
        "warm train": lambda: asdict(subject.train(_WARM)),
        "warm evaluate": lambda: asdict(subject.evaluate(_WARM * batch)),
        "train": lambda: asdict(subject.train(order.steps, next(beginnings["train"]))),
        "evaluate": lambda: asdict(
            subject.evaluate(order.steps * batch, next(beginnings["evaluate"]))
        ),
        "stages": stages,
        "rate": lambda: matrix_rate(subject.workload().dtype, subject.device),
        "peak": lambda: peak_bytes(subject.device),
    }


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' * (threads > 1)}"


def work(order: Order, told: TextIO | None, channel: TextIO) -> None:
    """Goes through the turns.

    Args:
        order: The order.
        told: Where the words come from; None where nobody tells.
        channel: Where answers go, one for each word: ``{"result": ...}`` or ``{"error": text}``.
    """
    doing: Mapping[str, Callable[[], Any]] = {}
    for turn in order.turns:
        if told is not None and told.readline().strip() != turn:
            return  # nobody is there any more
        try:
            doing = doing or doings(order)
            answer = {"result": doing[turn]()}
        except Exception as error:
            brief = isinstance(error, UserError)
            answer = {"error": str(error) if brief else traceback.format_exc()}
        channel.write(json.dumps(answer) + "\n")
        channel.flush()
        if "error" in answer:
            return


def main() -> None:
    """The command line: the file with the order."""
    order = Order(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    first = "LOCAL_RANK" not in os.environ
    work(order, sys.stdin if first else None, channel)


if __name__ == "__main__":
    main()
