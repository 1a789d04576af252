"""``report.html``: everything on one page that needs no network, no script and no other file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from msea_lightning.metrics import selection_metric
from msea_lightning.metrics.options import MetricKind
from msea_lightning.reporting.charts import ChartGroup, draw_all, epoch_seconds, mean_or_none
from msea_lightning.reporting.disagreement import Disputed, most_disputed
from msea_lightning.reporting.folders import Folder
from msea_lightning.reporting.grouping import DATASETS, Cell, Grouped, by_kind, dataset_order
from msea_lightning.reporting.statistics import Summary
from msea_lightning.reporting.tables import (
    Row,
    Table,
    mean_text,
    seed_tables,
    seeds_text,
    significance_tables,
)


@dataclass(frozen=True)
class Counts:
    """What there is, in numbers.

    Attributes:
        finished: Finished runs that count.
        cells: Cells with at least one of them.
        seeds: Different seeds among them.
        missing: Runs that were planned or begun and are not finished.
        failed: Those of the missing that left an error.
        sizes: Models whose size was measured.
    """

    finished: int
    cells: int
    seeds: int
    missing: int
    failed: int
    sizes: int


@dataclass(frozen=True)
class Best:
    """The best full-or-ablated model of a data set by the mean of its selection metric.

    Attributes:
        dataset: Its title.
        cell: The cell.
        metric: Title of the metric.
        value: Mean ± standard deviation.
        seeds: How many.
    """

    dataset: str
    cell: str
    metric: str
    value: str
    seeds: str


@dataclass(frozen=True)
class DisputedTable:
    """The most disputed utterances of one data set.

    Attributes:
        title: Title of the data set.
        measure: What the spread is: "minority" (share of answers) or "sd".
        columns: Labels of the cells.
        rows: Utterances.
    """

    title: str
    measure: str
    columns: tuple[str, ...]
    rows: list[Disputed]


def count(grouped: Grouped) -> Counts:
    """Counts runs, cells and what is missing."""
    missing = [missing for cell in grouped.cells for missing in cell.missing]
    missing += [size.missing for size in grouped.missing_sizes]
    return Counts(
        finished=sum(len(cell.runs) for cell in grouped.cells),
        cells=sum(bool(cell.runs) for cell in grouped.cells),
        seeds=len({run.config.seed for cell in grouped.cells for run in cell.runs}),
        missing=len(missing),
        failed=sum(item.failed for item in missing),
        sizes=len({(s.dataset, s.adapter, s.backbone) for s in grouped.sizes}),
    )


def best_cells(cells: Sequence[Cell]) -> list[Best]:
    """The best cell of each data set, by the mean over seeds on the test part."""
    found = []
    for part in by_kind(cells):
        best: tuple[Cell, Summary] | None = None
        for cell in part:
            summary = cell.selection
            if cell.kind is None or summary is None:
                continue
            info = selection_metric(cell.kind)
            if best is None or info.better(summary.mean, best[1].mean):
                best = (cell, summary)
        if best is not None and best[0].kind is not None and best[1].n:
            info = selection_metric(best[0].kind)
            found.append(
                Best(
                    DATASETS.get(best[0].dataset, best[0].dataset),
                    best[0].label,
                    info.title,
                    mean_text(info.name, best[1]) + (" %" if info.percent else ""),
                    seeds_text(best[0]),
                )
            )
    return found


def missing_table(grouped: Grouped) -> Table:
    """Runs that were planned or begun and are not finished, with what stopped them."""
    found = [(c.dataset, c.label, missing) for c in grouped.cells for missing in c.missing]
    found += [(s.dataset, f"{s.model}, size only", s.missing) for s in grouped.missing_sizes]
    rows = [
        Row(
            "failed" if missing.failed else "",
            (DATASETS.get(dataset, dataset), label, str(missing.seed), missing.reason),
        )
        for dataset, label, missing in found
    ]
    return Table(
        key="missing-runs",
        title="Missing runs",
        note="Planned by a sweep or begun, and not finished.",
        columns=("Data set", "Model", "Seed", "What is known"),
        rows=tuple(rows),
        words=4,
    )


def problems_table(folder: Folder, grouped: Grouped) -> Table:
    """Files that are missing, broken or at odds with each other."""
    rows = [Row("", (name, text)) for name, text in folder.unreadable.items()]
    for cell in grouped.cells:
        for run in cell.runs:
            rows += [Row("", (run.name, problem)) for problem in run.problems]
            rows += [
                Row(
                    "",
                    (
                        run.name,
                        f"metrics.json states {item.metric} {item.stated!r}, but predictions.csv "
                        f"gives {item.recomputed!r}; the latter is used",
                    ),
                )
                for item in run.discrepancies
            ]
    rows += [
        Row("", (item.name, f"does not count: {item.counted} has the same options and is newer"))
        for item in grouped.duplicates
    ]
    return Table(
        key="problems-files",
        title="Problems",
        note="Every metric is recomputed from predictions.csv and compared with metrics.json.",
        columns=("Run", "What is wrong"),
        rows=tuple(rows),
    )


def cost_tables(grouped: Grouped) -> list[Table]:
    """Time and memory of every cell: means over its seeds."""
    tables = []
    for dataset in dataset_order(cell.dataset for cell in grouped.cells if cell.runs):
        rows = []
        for cell in grouped.cells:
            if cell.dataset != dataset or not cell.runs:
                continue
            epochs = [float(len(run.history)) for run in cell.runs if run.history]
            seconds = [epoch_seconds(run) for run in cell.runs]
            total = [
                value * len(run.history)
                for run, value in zip(cell.runs, seconds, strict=True)
                if value is not None
            ]
            memory = [run.memory for run in cell.runs if run.memory is not None]
            rows.append(
                Row(
                    "",
                    (
                        cell.label,
                        str(len(cell.runs)),
                        _number(mean_or_none(epochs), "{:.1f}"),
                        _number(mean_or_none(seconds), "{:.1f} s"),
                        _duration(mean_or_none(total)),
                        _gib(mean_or_none(item.estimated for item in memory)),
                        _gib(mean_or_none(item.measured for item in memory)),
                    ),
                )
            )
        tables.append(
            Table(
                key=f"costs-{dataset}",
                title=f"Time and memory: {DATASETS.get(dataset, dataset)}",
                note="Means over seeds; training alone. Memory is that of the device that trained.",
                columns=(
                    *("Model", "n", "Epochs", "Per epoch", "Training"),
                    *("Memory estimated", "Memory measured"),
                ),
                rows=tuple(rows),
                words=1,
            )
        )
    return tables


def _number(value: float | None, template: str) -> str:
    return "unknown" if value is None else template.format(value)


def _gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value / 2**30:.2f} GiB"


def _duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def disputed_tables(grouped: Grouped) -> list[DisputedTable]:
    """The most disputed utterances per data set and kind of labels; none where all runs agree."""
    tables = []
    for part in by_kind(grouped.cells):
        cells = [cell for cell in part if cell.kind is not None]
        rows = most_disputed(cells) if cells else []
        if rows:
            tables.append(
                DisputedTable(
                    title=DATASETS.get(cells[0].dataset, cells[0].dataset),
                    measure="minority" if cells[0].kind is MetricKind.emotion else "sd",
                    columns=tuple(cell.label for cell in cells),
                    rows=rows,
                )
            )
    return tables


def write_page(grouped: Grouped, layouts: Sequence[Table], problems: Table) -> str:
    """The page.

    Args:
        grouped: All cells.
        layouts: The paper's tables.
        problems: See :func:`problems_table`.

    Returns:
        HTML. Every text that comes from a run is escaped.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    own = resources.files("msea_lightning.reporting")
    template = (own / "page.html.jinja").read_text(encoding="utf-8")
    charts: dict[str, list[ChartGroup]] = draw_all(grouped.cells)
    return environment.from_string(template).render(
        counts=count(grouped),
        best=best_cells(grouped.cells),
        problems=problems,
        discrepancies=sum(len(run.discrepancies) for cell in grouped.cells for run in cell.runs),
        missing=missing_table(grouped),
        layouts=layouts,
        tests=significance_tables(grouped),
        seeds=seed_tables(grouped),
        costs=cost_tables(grouped),
        charts=[(name, DATASETS.get(name, name), groups) for name, groups in charts.items()],
        disputed=disputed_tables(grouped),
        style=Markup((own / "page.css").read_text("utf-8")),
    )
