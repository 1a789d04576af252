"""What a run says on the console when it has ended."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from msea_lightning.adapter.options import ABLATIONS
from msea_lightning.config.roots import TrainConfig
from msea_lightning.config.text import visible
from msea_lightning.metrics import METRICS, MetricInfo
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.options import MODELS
from msea_lightning.paper import FULL, model_title, paper_result
from msea_lightning.runs.folder import RunFolder
from msea_lightning.runs.identity import departures
from msea_lightning.training.verdict import Verdict

_NARROW = 9
"""Least characters of a line of a heading."""


def show_results(
    options: TrainConfig,
    results: Mapping[str, Mapping[str, Any]],
    intervals: Mapping[str, tuple[float, float]],
    verdict: Verdict | None = None,
) -> None:
    """Prints the metrics of one or more splits, and what stands beside them, in 80 columns.

    Args:
        options: Of the run.
        results: Split to its metrics.
        intervals: Of the metrics of the first split.
        verdict: On the test part, which is the first split.
    """
    simple = verdict.references if verdict is not None else []
    title, paper = _title(options)
    columns: dict[str, Mapping[str, Any]] = {}
    for place, (split, values) in enumerate(results.items()):
        columns[split] = values
        if place == 0:
            columns["95 % interval"] = intervals
    columns |= {one.name: one.test for one in simple}
    if paper:
        columns["paper (test)"] = paper
    rows = {}
    for name in next(iter(results.values())):
        if name in METRICS:
            info = METRICS[name]
            heading = f"{info.title} [%]" if info.percent else info.title
            rows[heading] = [_written(info, values.get(name)) for values in columns.values()]
    _print(_table(title, ["metric", *columns], rows))
    if verdict is not None:
        _show_classes(verdict)
        console = Console()
        for sentence in verdict.sentences:
            console.print(visible(sentence), markup=False, highlight=False)


def show_next(run: RunFolder, options: TrainConfig) -> None:
    """Prints where the run is, and the commands that one may want next, to be copied."""
    folder = shlex.quote(str(run.path))
    commands = {
        "report": f"runs={shlex.quote(options.runs)}",
        "evaluate": f"run={folder} split=valid",
    }
    if run.plugin.exists():
        plugin = shlex.quote(str(run.plugin))
        commands["predict"] = f"plugin={plugin} text='Well done!'"
        commands["app"] = f"plugin={plugin}"
    console = Console(soft_wrap=True)
    lines = [f"run folder: {run.path}", "next:"]
    lines += [f"  python -m msea_lightning.{name} {words}" for name, words in commands.items()]
    for line in lines:
        console.print(visible(line), markup=False, highlight=False)


def run_title(options: TrainConfig) -> str:
    """Model and data set of a run in words: ``MSE-Adapter with Qwen-1.8B on MELD, w/o A``."""
    if options.model.name != MODELS.name_of(AdaptedLM):
        return f"{options.model.name} on {options.dataset.name}"
    title = model_title(options.adapter.name, options.backbone.name)
    left_out = options.ablation.name
    ending = "" if left_out == FULL else f", {ABLATIONS.title(left_out)}"
    differing = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in departures(options).items()
    ]
    ending += f", with {', '.join(differing)}" if differing else ""
    return f"{title} on {options.dataset.name}{ending}"


def _title(options: TrainConfig) -> tuple[str, Mapping[str, str]]:
    """The title of a run's results, and the paper's numbers where it has them."""
    if options.model.name != MODELS.name_of(AdaptedLM) or departures(options):
        return run_title(options), {}
    names = options.backbone.name, options.adapter.name, options.ablation.name
    return run_title(options), paper_result(options.dataset.name, *names)


def _written(info: MetricInfo, value: Any) -> str:
    """A metric, an interval, or what the paper prints; empty where there is none."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, tuple):
        return " to ".join(info.format(bound) for bound in value)
    return info.format(value)


def _show_classes(verdict: Verdict) -> None:
    rows = {
        name: [
            f"{one.utterances:,}",
            *("-" if value != value else f"{100 * value:.1f}" for value in one[:3]),
        ]
        for name, one in verdict.classes.items()
    }
    headings = ["class in test", "utterances", "precision [%]", "recall [%]", "F1 [%]"]
    _print(_table("", headings, rows))


def _table(title: str, headings: list[str], rows: Mapping[str, list[str]]) -> Table:
    shown = Text(visible(title), style="bold")
    table = Table(title=shown if title else None, title_justify="left", box=SIMPLE_HEAD)
    table.min_width = len(shown) if len(shown) <= 80 else None
    table.pad_edge = False
    table.padding = (0, 1)
    for place, heading in enumerate(headings):
        entries = [name if place == 0 else texts[place - 1] for name, texts in rows.items()]
        # Headings are folded, so that numbers need not be.
        width = max([_NARROW, *(len(visible(entry)) for entry in entries)])
        table.add_column(
            Text(textwrap.fill(visible(heading), width, break_long_words=False)),
            justify="right" if place else "left",
            overflow="fold",
        )
    for name, texts in rows.items():
        table.add_row(*(Text(visible(text), no_wrap=True) for text in (name, *texts)))
    return table


def _print(table: Table) -> None:
    Console().print(table)
