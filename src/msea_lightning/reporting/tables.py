"""The paper's tables with our numbers beside its own, and the tidy results, in every format.

A :class:`Table` holds finished texts; Markdown and LaTeX are written here, HTML by the page. Of the
paper's numbers none is computed: they are those of :mod:`msea_lightning.paper`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from msea_lightning.adapter.options import ABLATIONS, ADAPTERS
from msea_lightning.metrics import METRIC_NAMES
from msea_lightning.paper import BACKBONES, paper_result, paper_table
from msea_lightning.reporting.folders import metric_info
from msea_lightning.reporting.grouping import (
    DATASETS,
    FULL,
    Cell,
    Grouped,
    Measured,
    by_kind,
    dataset_order,
    model_title,
    percent,
)
from msea_lightning.reporting.statistics import Summary

_UNKNOWN = ""
"""Stands for the metrics of a data set of which no run is finished, so that none is known."""

MISSING = "missing"
"""What a table shows for a cell without a finished run."""

CITED, PAPER, OURS, DIFFERENCE = "cited", "paper", "ours", "difference"
"""Where the numbers of a row come from; also the row's class in the page."""

RESULTS_COLUMNS = (
    *("tables", "dataset", "adapter", "backbone", "ablation", "train_fraction", "options"),
    *("metric", "unit", "n", "seeds", "mean", "sd", "best", "best_seed", "median", "median_seed"),
    *("min", "max", "paper", "difference", "p_value", "p_holm"),
    *("missing_seeds", "undefined_seeds"),
)
"""Columns of ``results.csv``."""

_PAPER_METRICS = {
    "mosei": ("acc2", "f1", "acc7", "mae", "corr"),
    "simsv2": ("acc2", "f1", "acc2_weak", "mae", "corr"),
    "meld": ("acc", "wf1"),
    "cherma": ("acc", "wf1"),
}
"""Columns of Tables 2 and 3."""

_RESULT_FILES = {
    "mosei": "results_msa",
    "simsv2": "results_msa",
    "meld": "results_erc",
    "cherma": "results_erc",
}

_SEEDS = (
    "Ours: mean ± sample standard deviation over n seeds; without ± there is one seed. Difference: "
    "our mean minus the paper's number. Acc and F1 in percent."
)

_TEST = (
    "Two-sided paired t test of each ablation against the full model over the seeds that both have "
    "(scipy.stats.ttest_rel), and the p value after Holm's correction over the ablations of this "
    "table and metric. It assumes that the differences between the two runs of a seed are "
    "independent and normal. With as few seeds as here that cannot be checked, and a difference "
    "has to be large to be found: a high p value does not show that two models are equal."
)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        source: Where its numbers come from: cited, paper, ours or difference; or empty.
        entries: One text per column.
    """

    source: str
    entries: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table of finished texts.

    Attributes:
        key: Its anchor in the page and label in LaTeX.
        title: Its title.
        note: What a reader has to know.
        columns: Headings.
        rows: Rows, each with as many entries as there are columns.
        words: Number of columns from the left that hold words, not numbers.
        cells: Cells whose results it shows.
    """

    key: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    words: int = 2
    cells: tuple[Cell, ...] = field(default=(), repr=False)

    @property
    def number(self) -> str:
        """The paper's number of its layout, such as ``table2``."""
        return self.key.partition("-")[0]


def paper_text(cell: Cell, metric: str) -> str:
    """The paper's number for a cell as it is printed there; empty where it has none.

    It reports all training data alone.
    """
    if cell.train_fraction != 1:
        return ""
    return _paper_text((cell.dataset, cell.backbone, cell.adapter, cell.ablation), metric)


def _paper_text(names: tuple[str, str, str, str], metric: str) -> str:
    value = (paper_result(*names) or {}).get(metric)
    return "" if value is None else metric_info(metric).format(value)


def mean_text(metric: str, summary: Summary) -> str:
    """Mean ± standard deviation as the paper writes its numbers."""
    digits = _digits(metric)
    if not summary.n:
        return "undefined"
    text = f"{summary.mean:.{digits}f}"
    if summary.n > 1:
        text += f" ± {summary.sd:.{digits}f}"
    return f"{text} (n={summary.n})" if summary.undefined else text


def number_text(metric: str, value: float) -> str:
    """One number of a metric, in the unit of the tables."""
    return "undefined" if math.isnan(value) else f"{value:.{_digits(metric)}f}"


def seeds_text(cell: Cell) -> str:
    """How many seeds are finished, and of how many where that is not all."""
    n = len(cell.runs)
    return f"{n} of {cell.planned} seeds" if cell.missing else str(n)


def p_text(value: float) -> str:
    """A p value with three digits that count."""
    return "< 0.0001" if value < 1e-4 else f"{value:.3g}"


def _digits(metric: str) -> int:
    return 2 if metric_info(metric).percent else 3


def _heading(metric: str) -> str:
    return "Result" if metric == _UNKNOWN else metric_info(metric).title


def paper_layouts(grouped: Grouped) -> list[Table]:
    """Every table of the paper that the runs touch, per data set, and the same for other data."""
    tables: list[Table] = []
    sizes = _size_table(grouped.sizes)
    if sizes is not None:
        tables.append(sizes)
    builders: tuple[Callable[..., list[Table]], ...] = (
        _main_table,
        _ablation_tables,
        _adapter_table,
        _volume_tables,
    )
    parts = by_kind(grouped.cells)
    for cells in parts:
        dataset = cells[0].dataset
        metrics = table_metrics(dataset, cells)
        built = [t for build in builders for t in build(dataset, cells, metrics, grouped.sizes)]
        kind = next((cell.kind for cell in cells if cell.kind is not None), None)
        if kind is not None and sum(other[0].dataset == dataset for other in parts) > 1:
            built = [
                replace(t, key=f"{t.key}-{kind.value}", title=f"{t.title} ({kind.value})")
                for t in built
            ]
        tables += built
    # In the paper's order: Table 2 of all data sets, then Table 3, and so on.
    order = ("table1", "table2", "table3", "table4", "table5", "table10", "figure4")
    return sorted(tables, key=lambda table: order.index(table.number))


def table_metrics(dataset: str, cells: Sequence[Cell]) -> tuple[str, ...]:
    """The metrics that the paper reports for a data set; of another one all that it has.

    One without a name where no run of it is finished.
    """
    if dataset in _PAPER_METRICS:
        return _PAPER_METRICS[dataset]
    kinds = {cell.kind for cell in cells if cell.kind is not None}
    known = (name for kind in METRIC_NAMES if kind in kinds for name in METRIC_NAMES[kind])
    return tuple(dict.fromkeys(known)) or (_UNKNOWN,)


def _title(number: str, dataset: str, rest: str = "") -> str:
    place = f"{number}" if dataset in DATASETS else f"Layout of {number}"
    return f"{place}: {DATASETS.get(dataset, dataset)}{rest}"


def _cell_rows(cells: Sequence[Cell], label: str, metrics: Sequence[str]) -> list[Row]:
    """Our row, and the difference from the paper, for each of the cells of one place."""
    if not cells:
        return [Row(OURS, (label, OURS, "0", *(MISSING for _ in metrics)))]
    rows = []
    for cell in cells:
        name = label if not cell.options else f"{label} ({', '.join(cell.options)})"
        entries = [
            mean_text(metric, cell.summaries[metric]) if metric in cell.summaries else MISSING
            for metric in metrics
        ]
        rows.append(Row(OURS, (name, OURS, seeds_text(cell), *entries)))
        differences = [
            f"{difference:+.{_digits(metric)}f}"
            if (difference := paper_difference(cell, metric)) is not None
            else ""
            for metric in metrics
        ]
        if any(differences):
            rows.append(Row(DIFFERENCE, (name, DIFFERENCE, "", *differences)))
    return rows


def paper_difference(cell: Cell, metric: str) -> float | None:
    """Our mean minus the paper's number, in the unit of the tables."""
    text, summary = paper_text(cell, metric), cell.summaries.get(metric)
    if not text or summary is None or not summary.n:
        return None
    return summary.mean - float(text)


def _paper_row(label: str, names: tuple[str, str, str, str], metrics: Sequence[str]) -> list[Row]:
    texts = [_paper_text(names, metric) for metric in metrics]
    return [Row(PAPER, (label, PAPER, "", *texts))] if any(texts) else []


def _main_table(
    dataset: str, cells: Sequence[Cell], metrics: Sequence[str], sizes: Sequence[Measured]
) -> list[Table]:
    """Tables 2 and 3: the full models beside those that the paper cites."""
    full = [c for c in cells if c.ablation == FULL and c.train_fraction == 1 and _is_main(c)]
    if not full:
        return []
    rows = []
    if dataset in _RESULT_FILES:
        for row in paper_table(_RESULT_FILES[dataset]):
            if row["dataset"] == dataset and row["cited"] == "yes":
                numbers = (row[metric] for metric in metrics)
                rows.append(Row(CITED, (row["model"], CITED, "", *numbers)))
        backbones = list(BACKBONES)
    else:
        backbones = []
    places = [("mse", backbone) for backbone in backbones]
    places += [place for c in full if (place := (c.adapter, c.backbone)) not in places]
    for adapter, backbone in dict.fromkeys(places):
        own = [c for c in full if (c.adapter, c.backbone) == (adapter, backbone)]
        title = model_title(adapter, backbone)
        rows += _paper_row(title, (dataset, backbone, adapter, FULL), metrics)
        rows += _cell_rows(own, title, metrics)
    erc = set(metrics) <= set(_PAPER_METRICS["meld"]) and bool(metrics)
    number = "Table 3" if erc else "Table 2"
    note = _SEEDS
    if dataset in DATASETS:
        note = f"Cited: numbers that the paper quotes from others. {note}"
    return [
        Table(
            key=f"table{number[-1]}-{dataset}",
            title=_title(number, dataset),
            note=note,
            columns=("Model", "Source", "n", *map(_heading, metrics)),
            rows=tuple(rows),
            cells=tuple(full),
        )
    ]


def _is_main(cell: Cell) -> bool:
    """Whether a model belongs to Tables 2 and 3; MAG and CHFN belong to Tables 5 and 10."""
    return cell.adapter not in ("mag", "chfn")


def _ablation_tables(
    dataset: str, cells: Sequence[Cell], metrics: Sequence[str], sizes: Sequence[Measured]
) -> list[Table]:
    """Table 4: what each part contributes, per model."""
    whole = [cell for cell in cells if cell.train_fraction == 1]
    models = dict.fromkeys((c.adapter, c.backbone) for c in whole if c.ablation != FULL)
    tables = []
    for adapter, backbone in models:
        own = [c for c in whole if (c.adapter, c.backbone) == (adapter, backbone)]
        variants = list(ABLATIONS.names()) if adapter == "mse" else []
        variants = [*variants, *(c.ablation for c in own if c.ablation not in variants)]
        if FULL in variants:  # The last row of Table 4.
            variants = [*(name for name in variants if name != FULL), FULL]
        names = {FULL: model_title(adapter, backbone)} if adapter != "mse" else {}
        rows = []
        for ablation in dict.fromkeys(variants):
            label = names.get(ablation, ABLATIONS.title(ablation))
            rows += _paper_row(label, (dataset, backbone, adapter, ablation), metrics)
            rows += _cell_rows([c for c in own if c.ablation == ablation], label, metrics)
        note = _SEEDS
        if dataset in DATASETS and adapter == "mse":
            note += (
                " The paper's Table 4 is of ChatGLM3-6B on MELD and SIMS-V2 alone; what is more of "
                "the full model is from Tables 2 and 3."
            )
        tables.append(
            Table(
                key=f"table4-{dataset}-{adapter}-{backbone}",
                title=_title("Table 4", dataset, f", {model_title(adapter, backbone)}"),
                note=note,
                columns=("Variant", "Source", "n", *map(_heading, metrics)),
                rows=tuple(rows),
                cells=tuple(own),
            )
        )
    return tables


def _adapter_table(
    dataset: str, cells: Sequence[Cell], metrics: Sequence[str], sizes: Sequence[Measured]
) -> list[Table]:
    """Tables 5 and 10: other adapters in front of the same frozen backbone."""
    full = [cell for cell in cells if cell.ablation == FULL and cell.train_fraction == 1]
    others = dict.fromkeys(cell.backbone for cell in full if not _is_main(cell))
    if not others:
        return []
    rows = []
    for backbone in others:
        for adapter in ("mag", "chfn", "mse"):
            title = model_title(adapter, backbone)
            own = [c for c in full if (c.adapter, c.backbone) == (adapter, backbone)]
            if not own and dataset not in DATASETS:
                continue
            paper = _paper_row(title, (dataset, backbone, adapter, FULL), metrics)
            reported = _paper_parameters(adapter, backbone, dataset)
            rows += [Row(row.source, (*row.entries, reported)) for row in paper]
            counted = [
                item.size.trainable
                for item in sizes
                if (item.dataset, item.adapter, item.backbone) == (dataset, adapter, backbone)
            ]
            parameters = " / ".join(dict.fromkeys(map(_millions, counted))) or MISSING
            rows += [
                Row(row.source, (*row.entries, parameters if row.source == OURS else ""))
                for row in _cell_rows(own, title, metrics)
            ]
    number = "Tables 5 and 10" if dataset in ("mosei", "meld") else "Table 10"
    return [
        Table(
            key=f"table5-{dataset}",
            title=_title(number if dataset in DATASETS else "Table 5", dataset),
            note=f"{_SEEDS} Paras: trainable parameters in millions.",
            columns=("Model", "Source", "n", *map(_heading, metrics), "Paras [M]"),
            rows=tuple(rows),
            cells=tuple(c for c in full if c.backbone in others),
        )
    ]


def _volume_tables(
    dataset: str, cells: Sequence[Cell], metrics: Sequence[str], sizes: Sequence[Measured]
) -> list[Table]:
    """Figure 4 as a table: parts of the training data, per model."""
    series = volume_series(cells)
    if not series:
        return []
    rows = []
    for own in series:
        for cell in own:
            label = f"{_without_fraction(cell)}, {percent(cell.train_fraction)}"
            entries = _cell_rows([cell], label, metrics)
            rows += [row for row in entries if row.source == OURS]
    return [
        Table(
            key=f"figure4-{dataset}",
            title=_title("Figure 4", dataset),
            note=f"{_SEEDS} The paper prints no numbers for its Figure 4.",
            columns=("Model", "Source", "n", *map(_heading, metrics)),
            rows=tuple(rows),
            cells=tuple(cell for own in series for cell in own),
        )
    ]


def volume_series(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that differ in the part of the training data alone, smallest part first."""
    series: dict[tuple[str, str, str, tuple[str, ...]], list[Cell]] = {}
    for cell in cells:
        key = (cell.adapter, cell.backbone, cell.ablation, cell.options)
        series.setdefault(key, []).append(cell)
    varied = (own for own in series.values() if any(c.train_fraction != 1 for c in own))
    return [sorted(own, key=lambda c: c.train_fraction) for own in varied]


def _without_fraction(cell: Cell) -> str:
    if cell.ablation == FULL:
        return cell.model
    return f"{cell.model}, {ABLATIONS.title(cell.ablation)}"


def _size_table(sizes: Sequence[Measured]) -> Table | None:
    """Tables 1 and 10: trainable parameters, and the memory that training is estimated to take."""
    if not sizes:
        return None
    datasets = dataset_order(item.dataset for item in sizes)
    models = sorted(
        {(item.adapter, item.backbone) for item in sizes},
        key=lambda model: (
            ADAPTERS.names().index(model[0]),
            [*BACKBONES, model[1]].index(model[1]),
            model[1],
        ),
    )
    rows = []
    for adapter, backbone in models:
        title = model_title(adapter, backbone)
        paper = [_paper_parameters(adapter, backbone, dataset) for dataset in datasets]
        if any(paper):
            rows.append(Row(PAPER, (title, PAPER, *paper)))
        own = [
            [
                item.size
                for item in sizes
                if (item.dataset, item.adapter, item.backbone) == (dataset, adapter, backbone)
            ]
            for dataset in datasets
        ]
        counted = [_joined(_millions(size.trainable) for size in found) for found in own]
        memory = [
            _gib_range([size.memory for size in found if size.memory is not None]) for found in own
        ]
        # Only what the paper reports is missed.
        reported = [
            text if text != MISSING or there else ""
            for text, there in zip(counted, paper, strict=True)
        ]
        rows.append(Row(OURS, (title, OURS, *reported)))
        if any(memory):
            rows.append(Row(DIFFERENCE, (title, "memory", *memory)))
    return Table(
        key="table1-parameters",
        title="Tables 1 and 10: trainable parameters in millions, and memory",
        note=(
            "Ours: counted in the built model. Memory: estimated before training, backbone, "
            "adapter and largest batch together. Several numbers in one place are of runs with "
            "other options than those of the recipe."
        ),
        columns=("Model", "Source", *(DATASETS.get(name, name) for name in datasets)),
        rows=tuple(rows),
    )


def _gib_range(sizes: Sequence[int]) -> str:
    """Memory in GiB, from the least to the most where seeds or options differ."""
    texts = dict.fromkeys(f"{size / 2**30:.2f}" for size in sorted(sizes))
    ends = list(texts)[:1] + list(texts)[1:][-1:]
    return f"{' to '.join(ends)} GiB" if ends else ""


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts)) or MISSING


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}"


def _paper_parameters(adapter: str, backbone: str, dataset: str) -> str:
    for row in paper_table("trainable_parameters"):
        if row["model"] == model_title(adapter, backbone):
            return row.get(dataset, "")
    return ""


def significance_tables(grouped: Grouped) -> list[Table]:
    """The tests of the ablations, per data set and full model."""
    families: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in grouped.cells:
        if cell.tests:
            families.setdefault((cell.dataset, cell.adapter, cell.backbone), []).append(cell)
    tables = []
    for (dataset, adapter, backbone), cells in families.items():
        rows = []
        for cell in cells:
            label = cell.label.removeprefix(f"{cell.model}, ")
            for metric, test in cell.tests.items():
                if metric not in table_metrics(dataset, cells):
                    continue
                digits = _digits(metric)
                rows.append(
                    Row(
                        "",
                        (
                            label,
                            _heading(metric),
                            str(len(test.seeds)),
                            "" if math.isnan(test.difference) else f"{test.difference:+.{digits}f}",
                            test.reason or "" if test.p is None else p_text(test.p),
                            "" if test.holm is None else p_text(test.holm),
                        ),
                    )
                )
        tables.append(
            Table(
                key=f"test-{dataset}-{adapter}-{backbone}",
                title=(
                    f"Ablations against the full model: {DATASETS.get(dataset, dataset)}, "
                    f"{model_title(adapter, backbone)}"
                ),
                note=_TEST,
                columns=("Variant", "Metric", "Pairs", "Mean difference", "p", "p (Holm)"),
                rows=tuple(rows),
            )
        )
    return tables


def seed_tables(grouped: Grouped) -> list[Table]:
    """Every metric of every cell: mean, spread, best and median run."""
    tables = []
    for dataset in dataset_order(cell.dataset for cell in grouped.cells if cell.runs):
        rows = []
        for cell in grouped.cells:
            if cell.dataset != dataset:
                continue
            for metric, summary in cell.summaries.items():
                values = summary.values
                rows.append(
                    Row(
                        "",
                        (
                            cell.label,
                            _heading(metric),
                            str(summary.n),
                            mean_text(metric, summary),
                            _of_seed(metric, summary, summary.best),
                            _of_seed(metric, summary, summary.median),
                            number_text(metric, min(values.values(), default=math.nan)),
                            number_text(metric, max(values.values(), default=math.nan)),
                        ),
                    )
                )
        tables.append(
            Table(
                key=f"seeds-{dataset}",
                title=f"All metrics: {DATASETS.get(dataset, dataset)}",
                note=(
                    "Test part. Best and median: the value and its seed; of an even number of "
                    "seeds the lower of the two in the middle. Undefined values are in no mean."
                ),
                columns=("Model", "Metric", "n", "Mean ± sd", "Best", "Median", "Min", "Max"),
                rows=tuple(rows),
            )
        )
    return tables


def _of_seed(metric: str, summary: Summary, seed: int | None) -> str:
    return "" if seed is None else f"{number_text(metric, summary.values[seed])} ({seed})"


def results_csv(grouped: Grouped, layouts: Sequence[Table]) -> str:
    """The tidy results: one row per cell and metric of the test part, and per measured size.

    Numbers have full precision; shares are in percent, as in the paper. What is undefined or does
    not exist is empty. Nothing in it depends on when or where the runs were made.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, RESULTS_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    shown: dict[str, list[str]] = {}
    for table in layouts:
        for cell in table.cells:
            shown.setdefault(cell.identity, []).append(table.number)
    for cell in grouped.cells:
        same = [other for other in grouped.cells if other.dataset == cell.dataset]
        for metric in cell.summaries or table_metrics(cell.dataset, same):
            writer.writerow(
                {
                    "tables": ";".join(shown.get(cell.identity, [])),
                    "dataset": cell.dataset,
                    "adapter": cell.adapter,
                    "backbone": cell.backbone,
                    "ablation": cell.ablation,
                    "train_fraction": repr(cell.train_fraction),
                    "options": ";".join(cell.options),
                    **_metric_columns(cell, metric),
                    "missing_seeds": ";".join(str(missing.seed) for missing in cell.missing),
                }
            )
    for item in grouped.measured:
        paper = _paper_parameters(item.adapter, item.backbone, item.dataset)
        millions = item.size.trainable / 1e6
        writer.writerow(
            {
                "tables": "table1",
                "dataset": item.dataset,
                "adapter": item.adapter,
                "backbone": item.backbone,
                "ablation": FULL,
                "metric": "trainable_parameters",
                "unit": "M",
                "n": "1",
                "mean": repr(millions),
                "paper": paper,
                "difference": repr(millions - float(paper)) if paper else "",
            }
        )
    return buffer.getvalue()


def _metric_columns(cell: Cell, metric: str) -> dict[str, str]:
    columns = {
        "metric": metric,
        "unit": "%" if metric != _UNKNOWN and metric_info(metric).percent else "",
        "paper": paper_text(cell, metric),
        "n": "0",
    }
    summary = cell.summaries.get(metric)
    if summary is None:
        return columns
    values, test = summary.values, cell.tests.get(metric)
    difference = paper_difference(cell, metric)
    numbers = {
        "mean": summary.mean,
        "sd": summary.sd,
        "best": math.nan if summary.best is None else values[summary.best],
        "median": math.nan if summary.median is None else values[summary.median],
        "min": min(values.values(), default=math.nan),
        "max": max(values.values(), default=math.nan),
        "difference": math.nan if difference is None else difference,
        "p_value": math.nan if test is None or test.p is None else test.p,
        "p_holm": math.nan if test is None or test.holm is None else test.holm,
    }
    return {
        **columns,
        "n": str(summary.n),
        "seeds": ";".join(map(str, values)),
        "best_seed": "" if summary.best is None else str(summary.best),
        "median_seed": "" if summary.median is None else str(summary.median),
        "undefined_seeds": ";".join(map(str, summary.undefined)),
        **{name: "" if math.isnan(value) else repr(value) for name, value in numbers.items()},
    }


def as_markdown(tables: Sequence[Table]) -> str:
    """Tables as GitHub writes them."""
    blocks = ["# Results"]
    for table in tables:
        rows = [table.columns, *(row.entries for row in table.rows)]
        lines = ["| " + " | ".join(map(_for_markdown, entries)) + " |" for entries in rows]
        align = ["---" if index < table.words else "---:" for index in range(len(table.columns))]
        lines.insert(1, "| " + " | ".join(align) + " |")
        blocks += [f"## {_for_markdown(table.title)}", "\n".join(lines), _for_markdown(table.note)]
    return "\n\n".join(blocks) + "\n"


def _for_markdown(text: str) -> str:
    """Text that Markdown shows as it is."""
    escaped = re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_latex(tables: Sequence[Table]) -> str:
    r"""Tables for ``\input`` into a document that loads booktabs; UTF-8, so that names stay."""
    blocks = ["% Needs \\usepackage{booktabs}; names in Chinese need XeLaTeX or LuaLaTeX with CJK."]
    for table in tables:
        columns = "".join(
            "l" if index < table.words else "r" for index in range(len(table.columns))
        )
        lines = [
            r"\begin{table}[htbp]",
            r"\centering\footnotesize",
            rf"\caption{{{_for_latex(table.title)}. {_for_latex(table.note)}}}",
            rf"\label{{tab:{re.sub('[^A-Za-z0-9.-]', '-', table.key)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _latex_row(table.columns),
            r"\midrule",
            *(_latex_row(row.entries) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _latex_row(entries: Iterable[str]) -> str:
    # An entry that begins with a bracket would be read as an option of the \\ before it.
    return " & ".join(_for_latex(entry).replace("[", "{[}") for entry in entries) + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _for_latex(text: str) -> str:
    """Text that LaTeX sets as it is; a minus before a digit becomes one."""
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    return re.sub(r"^-(?=\d)", "$-$", escaped)
