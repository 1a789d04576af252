"""The process of one variant: does the tasks of a plan, each on request, and answers with numbers.

A request is a line of standard input, an answer a line of JSON on standard output; whatever else is
printed goes to standard error. With several devices, Lightning starts further processes with the
same command line, which go through the plan without requests.
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


@dataclass(frozen=True)
class Plan:
    """What a worker is to do.

    Attributes:
        variant: ``original``, or any other name for ours.
        config: The options of the run, as plain values.
        store: Folder of the data.
        published: The data as they are published; None where no variant reads them.
        tasks: The tasks in order: the name of each, and its arguments.
        started: When the process was started, in seconds since the epoch.
    """

    variant: str
    config: dict[str, Any]
    store: str
    published: str | None
    tasks: list[tuple[str, dict[str, Any]]]
    started: float


def known_tasks(plan: Plan) -> Mapping[str, Callable[..., Any]]:
    """Loads the variant of a plan, and says what each task does; results can be written as JSON."""
    import torch
    from omegaconf import OmegaConf

    from msea_lightning.backbone import resolve_device
    from msea_lightning.backbone.loading.memory import peak_bytes, process_bytes
    from msea_lightning.benchmark.original import load_original
    from msea_lightning.benchmark.ours import load_ours
    from msea_lightning.benchmark.variant import StageClock, Variant
    from msea_lightning.config.options import to_typed
    from msea_lightning.config.roots import TrainConfig
    from msea_lightning.cost.rate import matrix_rate

    config = to_typed(OmegaConf.create(plan.config), TrainConfig)
    clock = StageClock(resolve_device(config.trainer.accelerator))
    imported = time.time() - plan.started
    with clock.during("load"):
        if plan.variant == "original":
            assert plan.published is not None
            variant: Variant = load_original(config, Path(plan.published))
        else:
            variant = load_ours(config, Path(plan.store))
    device, dtype = variant.device, variant.backbone.dtype

    def start() -> dict[str, Any]:
        with clock.during("first step"):
            variant.first_step()
        threads = torch.get_num_threads()
        cpu = f"cpu, {threads} thread{'s' * (threads > 1)}"
        return {
            "start": time.time() - plan.started,
            "start_stages": {"import": imported, **clock.seconds},
            "start_resident": process_bytes(device),
            "weights": variant.weight_bytes(),
            "dtype": str(dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        }

    return {
        "start": start,
        "train": lambda **which: asdict(variant.train(**which)),
        "evaluate": lambda **which: asdict(variant.evaluate(**which)),
        "peak": lambda: peak_bytes(device),
        "stages": variant.stages,
        "rate": lambda: matrix_rate(dtype, device),
    }


def work(plan: Plan, requests: TextIO | None, answers: TextIO) -> None:
    """Goes through a plan.

    Args:
        plan: The plan.
        requests: A line for each task; None does them without being asked.
        answers: Gets an answer to each: ``{"result": ...}`` or ``{"error": text}``.
    """
    known: Mapping[str, Callable[..., Any]] = {}
    for task, arguments in plan.tasks:
        if requests is not None and not requests.readline():
            return  # whoever asked has ended
        try:
            known = known or known_tasks(plan)
            answer = {"result": known[task](**arguments)}
        except UserError as error:
            answer = {"error": str(error)}
        except Exception:
            answer = {"error": traceback.format_exc()}
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
