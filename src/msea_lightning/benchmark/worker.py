"""The process of one variant: loads it, and does the tasks that it is asked to do."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from msea_lightning.commands.allocator import SETTING
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig

ORIGINAL = "original"
"""The name of the variant that is not this framework."""

Tasks = Mapping[str, Callable[..., Any]]


def work(channel: Connection, log: Path, variant: str, *arguments: Any) -> None:
    """What the process does; all that is printed meanwhile goes into a log."""
    with log.open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    # Our commands set it at their start, and the original knows nothing of it.
    os.environ[SETTING] = "0" if variant == ORIGINAL else os.environ.get(SETTING, "1")
    answer(channel, partial(load_tasks, variant, *arguments))


def answer(channel: Connection, load: Callable[[], Tasks]) -> None:
    """Answers requests until one fails, or nobody asks any more.

    A request is the name of a task and its keyword arguments; the answer is a result and None, or
    None and the text of an error. The tasks are loaded at the first request.
    """
    tasks: Tasks = {}
    try:
        while True:
            task, arguments = channel.recv()
            tasks = tasks or load()
            channel.send((tasks[task](**arguments), None))
    except EOFError:
        return
    except UserError as error:
        channel.send((None, str(error)))
    except Exception:
        channel.send((None, traceback.format_exc()))


def load_tasks(
    name: str, config: TrainConfig, store: Path, published: Path | None, started: float
) -> Tasks:
    """Loads a variant whose process was started then, and says what each task does."""
    import torch

    from msea_lightning.backbone import resolve_device
    from msea_lightning.backbone.loading.memory import peak_bytes, process_bytes
    from msea_lightning.benchmark.original import load_original
    from msea_lightning.benchmark.ours import load_ours
    from msea_lightning.benchmark.variant import StageClock, Variant
    from msea_lightning.cost.rate import matrix_rate

    clock = StageClock(resolve_device(config.trainer.accelerator))
    imported = time.time() - started
    with clock.during("load"):
        if name == ORIGINAL:
            assert published is not None
            variant: Variant = load_original(config, published)
        else:
            variant = load_ours(config, store)
    device, dtype = variant.device, variant.backbone.dtype

    def start() -> dict[str, Any]:
        with clock.during("first step"):
            variant.first_step()
        threads = torch.get_num_threads()
        cpu = f"cpu, {threads} thread{'s' * (threads > 1)}"
        return {
            "start": time.time() - started,
            "start_stages": {"import": imported, **clock.seconds},
            "start_resident": process_bytes(device),
            "weights": variant.backbone.model.get_memory_footprint(),
            "dtype": str(dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        }

    return {
        "start": start,
        "train": variant.train,
        "evaluate": variant.evaluate,
        "peak": partial(peak_bytes, device),
        "stages": variant.stages,
        "rate": partial(matrix_rate, dtype, device),
    }
