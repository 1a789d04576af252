"""The process of one variant: does the tasks of a plan, each on request, and answers with numbers.

A request is the name of a task, one a line of standard input; an answer is a line of JSON on
standard output; whatever else is printed goes to standard error. With several devices, Lightning
starts further processes with the same command line, which go through the plan without requests.
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

from msea_lightning.config.errors import UserError

_WARM_UP = 2
"""Training batches before any are timed."""


@dataclass(frozen=True)
class Plan:
    """What a worker is to do.

    Attributes:
        variant: ``original``, or any other name for ours.
        config: File with the options of the run.
        store: Folder of the data.
        published: The data as they are published; None where no variant reads them.
        tasks: Names of the tasks, in order; a task may come several times.
        steps: Training batches of a round.
        started: When the process was started, in seconds since the epoch.
    """

    variant: str
    config: str
    store: str
    published: str | None
    tasks: list[str]
    steps: int
    started: float


def tasks(plan: Plan) -> Mapping[str, Callable[[], Any]]:
    """What each task does; its result can be written as JSON.

    Args:
        plan: The plan.
    """
    import torch
    from omegaconf import DictConfig, OmegaConf

    from msea_lightning.backbone.loading.memory import peak_bytes, process_bytes
    from msea_lightning.benchmark.original import Original
    from msea_lightning.benchmark.ours import Ours
    from msea_lightning.benchmark.variant import StageClock
    from msea_lightning.config.options import to_typed
    from msea_lightning.config.roots import TrainConfig
    from msea_lightning.cost.flops import matrix_rate

    loaded = OmegaConf.load(plan.config)
    assert isinstance(loaded, DictConfig)
    config = to_typed(loaded, TrainConfig)
    published = None if plan.published is None else Path(plan.published)
    kind = Original if plan.variant == "original" else Ours
    variant = kind(config, Path(plan.store), published)
    device, batch = variant.device, config.training.batch_size
    imported = time.time() - plan.started

    def start() -> dict[str, Any]:
        clock = StageClock(device)
        variant.start(clock)
        threads = torch.get_num_threads()
        cpu = f"cpu, {threads} thread{'s' * (threads > 1)}"
        return {
            "start": time.time() - plan.started,
            "start_stages": {"import": imported, **clock.seconds()},
            "start_resident": process_bytes(device),
            "weights": variant.weight_bytes(),
            "dtype": str(variant.backbone.dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        }

    # The rounds of a task take different batches: their offsets lie evenly around the middle.
    offsets = {
        task: iter([(2 * number + 1) / (2 * rounds) for number in range(rounds)])
        for task in ("train", "evaluate")
        if (rounds := plan.tasks.count(task))
    }
    return {
        "start": start,
        "warm up train": lambda: asdict(variant.train(_WARM_UP)),
        "warm up evaluate": lambda: asdict(variant.evaluate(_WARM_UP * batch)),
        "train": lambda: asdict(variant.train(plan.steps, next(offsets["train"]))),
        "evaluate": lambda: asdict(variant.evaluate(plan.steps * batch, next(offsets["evaluate"]))),
        "peak": lambda: peak_bytes(device),
        "stages": variant.stages,
        "rate": lambda: matrix_rate(variant.backbone.dtype, device),
    }


def work(plan: Plan, requests: TextIO | None, answers: TextIO) -> None:
    """Goes through a plan.

    Args:
        plan: The plan.
        requests: Names of the tasks, one a line; None does them without being asked.
        answers: Gets an answer to each: ``{"result": ...}`` or ``{"error": text}``.
    """
    known: Mapping[str, Callable[[], Any]] = {}
    for task in plan.tasks:
        if requests is not None and requests.readline().strip() != task:
            return  # whoever asked has ended
        try:
            known = known or tasks(plan)
            answer = {"result": known[task]()}
        except Exception as error:
            brief = isinstance(error, UserError)
            answer = {"error": str(error) if brief else traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if "error" in answer:
            return


def main() -> None:
    """The command line: the file with the plan."""
    plan = Plan(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    first = "LOCAL_RANK" not in os.environ
    work(plan, sys.stdin if first else None, answers)


if __name__ == "__main__":
    main()
