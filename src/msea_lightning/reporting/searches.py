"""What a search has left for a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from msea_lightning.metrics import METRICS, MetricInfo

FILE = "search.json"
"""In the folder of a search, ``searches/<name>`` below all runs."""


class SearchTrial(NamedTuple):
    """One trial: the options that were tried, the metric on both parts, None where there is none.

    ``fingerprint`` is that of its run; empty where its options make none. ``error`` is empty where
    it has not failed.
    """

    values: dict[str, str]
    valid: float | None
    test: float | None
    error: str
    fingerprint: str


class Search(NamedTuple):
    """A search, finished or not.

    Attributes:
        name: Its folder.
        command: What was typed, the program first.
        metric: What its trials are compared by, on the validation part.
        trials: In the order in which they were chosen.
        best: Place of the best one; None where none has ended well.
        next: The command that trains its options with several seeds; empty where there is none.
    """

    name: str
    command: tuple[str, ...]
    metric: MetricInfo
    trials: list[SearchTrial]
    best: int | None
    next: str


def read_search(path: Path) -> Search:
    """Reads a ``search.json``; raises what reading a broken file raises."""
    found = json.loads(path.read_text(encoding="utf-8"))
    trials = [
        SearchTrial(
            {str(key): str(value) for key, value in trial["values"].items()},
            trial["valid"],
            trial.get("test"),
            str(trial.get("error", "")),
            str(trial.get("fingerprint", "")),
        )
        for trial in found["trials"]
    ]
    command = tuple(map(str, found["command"]))
    metric, best, following = METRICS[found["metric"]], found["best"], found["next"] or ""
    return Search(path.parent.name, command, metric, trials, best, str(following))
