"""Where the work on many clips or utterances runs: on this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from msea_lightning.features.options import Engine
from msea_lightning.features.packages import load_package
from msea_lightning.features.processes import on_processes

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    engine: Engine,
    workers: int,
    lost: Callable[[Task], Result],
) -> Iterator[Result]:
    """Results of tasks in the order in which they are ready.

    Args:
        function: A function of a module; what it loads it keeps for the next task.
        tasks: What it is called with: plain data, made as it is needed where all runs in this
            process. Files that they name are there on all machines.
        engine: Where it is called.
        workers: Processes on this machine; with 1 everything runs in this one. Ray decides itself.
        lost: The result of a task whose process died.
    """
    if engine is Engine.local:
        yield from on_processes(function, tasks, workers, lost)
    elif waiting := list(tasks):
        yield from _on_ray(function, waiting)


def progress_bar() -> Progress:
    """How far the work is, on standard error; silent where nobody is watching."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    # A bar in a file or a pipe is thousands of lines.
    disable = not console.is_terminal
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=disable)


def _on_ray(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """Results of map tasks of Ray Data."""
    ray = load_package("ray", extra="ray")
    data = load_package("ray.data", extra="ray")
    pickles = load_package("ray.cloudpickle", extra="ray")
    if not ray.is_initialized():
        ray.init(logging_level="ERROR", log_to_driver=False)
    data.DataContext.get_current().enable_progress_bars = False

    def call(row: dict[str, Any]) -> dict[str, Any]:
        return {"result": pickles.dumps(function(pickles.loads(row["task"])))}

    rows = [{"task": pickles.dumps(task)} for task in tasks]
    for row in data.from_items(rows, override_num_blocks=len(rows)).map(call).iter_rows():
        yield pickles.loads(row["result"])
