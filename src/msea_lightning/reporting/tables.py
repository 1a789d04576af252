"""The paper's tables with our numbers beside its own, and the tests of the ablations.

A :class:`Table` holds finished texts. Of the paper's numbers none is computed: they are those of
:mod:`msea_lightning.paper`. Rows are the registered adapters and ablations, and what runs add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from msea_lightning.adapter.options import ABLATIONS, ADAPTERS
from msea_lightning.metrics import METRIC_NAMES
from msea_lightning.metrics.options import MetricKind
from msea_lightning.paper import (
    FULL,
    dataset_title,
    model_title,
    paper_parameters,
    paper_result,
    paper_titles,
    result_rows,
)
from msea_lightning.reporting.folders import Names, Size, metric_info
from msea_lightning.reporting.grouping import (
    Configuration,
    Grouped,
    by_dataset,
    by_kind,
    names_order,
    percent,
)
from msea_lightning.reporting.statistics import Summary

UNKNOWN = ""
"""Stands for the metrics of a data set of which no run is finished, so that none is known."""

MISSING = "missing"
"""What a table shows for a configuration without a finished run."""

CITED, PAPER, OURS, DIFFERENCE, WARNING = "cited", "paper", "ours", "difference", "warning"
"""Where the numbers of a row come from; also the row's class in the page."""

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


class Row(NamedTuple):
    """A row: where its numbers come from (``cited`` to ``warning``, or empty), a text a column."""

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
        configurations: What the rows are of.
    """

    key: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    words: int = 2
    configurations: tuple[Configuration, ...] = field(default=(), repr=False)

    @property
    def number(self) -> str:
        """The paper's number of its layout, such as ``table2``."""
        return self.key.partition("-")[0]


def paper_text(names: Names, metric: str) -> str:
    """The paper's number as it is printed there; empty where it has none.

    It reports all training data alone.
    """
    if names.train_fraction != 1:
        return ""
    found = paper_result(names.dataset, names.backbone, names.adapter, names.ablation) or {}
    return metric_info(metric).format(found[metric]) if metric in found else ""


def mean_text(metric: str, summary: Summary) -> str:
    """Mean ± standard deviation as the paper writes its numbers."""
    if not summary.n:
        return "undefined"
    text = number_text(metric, summary.mean)
    if summary.n > 1:
        text += f" ± {number_text(metric, summary.sd)}"
    return f"{text} (n={summary.n})" if summary.undefined else text


def number_text(metric: str, value: float) -> str:
    """One number of a metric, in the unit of the tables."""
    return "undefined" if math.isnan(value) else f"{value:.{digits(metric)}f}"


def seeds_text(one: Configuration) -> str:
    """How many seeds are finished, and of how many where that is not all."""
    n = len(one.runs)
    return f"{n} of {n + len(one.missing)} seeds" if one.missing else str(n)


def p_text(value: float | None) -> str:
    """A p value with three digits that count; empty where there is none."""
    if value is None:
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.3g}"


def digits(metric: str) -> int:
    """Decimals of a metric in the paper's tables."""
    return 2 if metric_info(metric).percent else 3


def heading(metric: str) -> str:
    """Title of a metric."""
    return "Result" if metric == UNKNOWN else metric_info(metric).title


def table_metrics(dataset: str, configurations: Sequence[Configuration]) -> tuple[str, ...]:
    """The metrics that the paper reports for a data set; of another one all that it has.

    One without a name where no run of it is finished.
    """
    _, rows = result_rows(dataset)
    if rows:
        return tuple(name for name in rows[0] if name not in ("model", "cited"))
    kinds = {one.kind for one in configurations if one.kind is not None}
    known = (name for kind in METRIC_NAMES if kind in kinds for name in METRIC_NAMES[kind])
    return tuple(dict.fromkeys(known)) or (UNKNOWN,)


def paper_difference(one: Configuration, metric: str) -> float | None:
    """Our mean minus the paper's number, in the unit of the tables."""
    text, summary = paper_text(one.names, metric), one.summaries.get(metric)
    if not text or summary is None or not summary.n:
        return None
    return summary.mean - float(text)


@dataclass(frozen=True)
class _Part:
    """What the tables of one data set and one kind of metrics are made of."""

    dataset: str
    configurations: list[Configuration]
    metrics: tuple[str, ...]
    sizes: list[tuple[Names, Size]]

    @property
    def in_paper(self) -> bool:
        return self.dataset in paper_titles("dataset")

    def table(
        self,
        number: str,
        rows: Iterable[Row],
        own: Iterable[Configuration],
        *,
        shown: str = "",
        key: str = "",
        title: str = "",
        note: str = _SEEDS,
        first: str = "Model",
        last: Sequence[str] = (),
    ) -> Table:
        """A table in the layout of the paper's, with a column per metric."""
        place = (shown or number) if self.in_paper else f"Layout of {number}"
        return Table(
            key=f"{number.lower().replace(' ', '')}-{self.dataset}{key}",
            title=f"{place}: {dataset_title(self.dataset)}{title}",
            note=note,
            columns=(first, "Source", "n", *map(heading, self.metrics), *last),
            rows=tuple(rows),
            configurations=tuple(own),
        )

    def rows(self, names: Names, label: str, own: Sequence[Configuration]) -> list[Row]:
        """The paper's row where it has one, then ours and the difference for each configuration."""
        paper = [paper_text(names, metric) for metric in self.metrics]
        rows = [Row(PAPER, (label, PAPER, "", *paper))] if any(paper) else []
        for one in own:
            name = label if not one.options else f"{label} ({', '.join(one.options)})"
            entries = [
                mean_text(metric, one.summaries[metric]) if metric in one.summaries else MISSING
                for metric in self.metrics
            ]
            rows.append(Row(OURS, (name, OURS, seeds_text(one), *entries)))
            differences = [
                ""
                if (value := paper_difference(one, metric)) is None
                else f"{value:+.{digits(metric)}f}"
                for metric in self.metrics
            ]
            if any(differences):
                rows.append(Row(DIFFERENCE, (name, DIFFERENCE, "", *differences)))
            if warnings := sum(bool(run.warnings) for run in one.runs):
                text = f"see warnings: {warnings} of {len(one.runs)} runs"
                blank = [""] * (len(self.metrics) - 1)
                rows.append(Row(WARNING, (name, WARNING, "", text, *blank)))
        if not own:
            rows.append(Row(OURS, (label, OURS, "0", *(MISSING for _ in self.metrics))))
        return rows


def paper_layouts(grouped: Grouped) -> list[Table]:
    """Every table of the paper that the runs touch, per data set, and the same for other data."""
    tables = _size_table(grouped.sizes)
    builders: tuple[Callable[[_Part], list[Table]], ...] = (
        _main_table,
        _ablation_tables,
        _adapter_table,
        _volume_table,
    )
    parts = by_kind(grouped.configurations)
    for own in parts:
        dataset = own[0].names.dataset
        part = _Part(dataset, own, table_metrics(dataset, own), grouped.sizes)
        built = [table for build in builders for table in build(part)]
        kind = _kind(own)
        if kind is not None and sum(other[0].names.dataset == dataset for other in parts) > 1:
            built = [
                replace(t, key=f"{t.key}-{kind.value}", title=f"{t.title} ({kind.value})")
                for t in built
            ]
        tables += built
    # In the paper's order: Table 2 of all data sets, then Table 3, and so on.
    order = ("table1", "table2", "table3", "table4", "table5", "table10", "figure4")
    return sorted(tables, key=lambda table: order.index(table.number))


def _kind(configurations: Sequence[Configuration]) -> MetricKind | None:
    return next((one.kind for one in configurations if one.kind is not None), None)


def _main_adapter() -> str:
    """The adapter of Tables 2 to 4, which is registered first."""
    return ADAPTERS.names()[0]


def _main_table(part: _Part) -> list[Table]:
    """Tables 2 and 3: the full models, without the adapters of Tables 5 and 10."""
    full = [
        one
        for one in part.configurations
        if one.is_whole and one.names.adapter not in ADAPTERS.names()[1:]
    ]
    if not full:
        return []
    number, published = result_rows(part.dataset)
    rows = [
        Row(CITED, (row["model"], CITED, "", *(row[metric] for metric in part.metrics)))
        for row in published
        if row["cited"] == "yes"
    ]
    backbones = list(paper_titles("backbone")) if published else []
    models = [Names(part.dataset, _main_adapter(), backbone) for backbone in backbones]
    for names in dict.fromkeys([*models, *(one.names for one in full)]):
        rows += part.rows(names, names.model, [one for one in full if one.names == names])
    if not number:
        number = "Table 3" if _kind(full) is MetricKind.emotion else "Table 2"
    note = f"Cited: numbers that the paper quotes from others. {_SEEDS}" if published else _SEEDS
    return [part.table(number, rows, full, note=note)]


def _ablation_tables(part: _Part) -> list[Table]:
    """Table 4: what each part contributes, per model."""
    whole = [one for one in part.configurations if one.names.train_fraction == 1]
    models = dict.fromkeys(one.names[1:3] for one in whole if one.names.ablation != FULL)
    tables = []
    for adapter, backbone in models:
        own = [one for one in whole if one.names[1:3] == (adapter, backbone)]
        is_main = adapter == _main_adapter()
        listed = ABLATIONS.names() if is_main else ()
        variants = dict.fromkeys([*listed, *(one.names.ablation for one in own)])
        rows = []
        # The full model is the last row of Table 4.
        for ablation in sorted(variants, key=lambda name: name == FULL):
            names = Names(part.dataset, adapter, backbone, ablation)
            label = ABLATIONS.title(ablation)
            if ablation == FULL and not is_main:
                label = names.model
            rows += part.rows(names, label, [one for one in own if one.names == names])
        note = _SEEDS
        if part.in_paper and is_main:
            note += (
                " The paper's Table 4 is of ChatGLM3-6B on MELD and SIMS-V2 alone; what is more of "
                "the full model is from Tables 2 and 3."
            )
        key, title = f"-{adapter}-{backbone}", f", {model_title(adapter, backbone)}"
        table = part.table("Table 4", rows, own, key=key, title=title, note=note, first="Variant")
        tables.append(table)
    return tables


def _adapter_table(part: _Part) -> list[Table]:
    """Tables 5 and 10: other adapters in front of the same frozen backbone."""
    full = [one for one in part.configurations if one.is_whole]
    main, *others = ADAPTERS.names()
    backbones = dict.fromkeys(one.names.backbone for one in full if one.names.adapter in others)
    if not backbones:
        return []
    rows = []
    for backbone in backbones:
        for adapter in [*others, main]:
            names = Names(part.dataset, adapter, backbone)
            own = [one for one in full if one.names == names]
            in_paper = paper_text(names, part.metrics[0]) != ""
            if not own and not (part.in_paper and in_paper):
                continue
            counted = [size.trainable for other, size in part.sizes if other == names]
            last = {
                PAPER: paper_parameters(adapter, backbone, part.dataset),
                OURS: _joined(map(_millions, counted)) or MISSING,
            }
            rows += [
                Row(row.source, (*row.entries, last.get(row.source, "")))
                for row in part.rows(names, names.model, own)
            ]
    own = [one for one in full if one.names.backbone in backbones]
    note = f"{_SEEDS} Paras: trainable parameters in millions."
    return [
        part.table("Table 5", rows, own, shown="Tables 5 and 10", note=note, last=["Paras [M]"])
    ]


def _volume_table(part: _Part) -> list[Table]:
    """Figure 4 as a table: parts of the training data, per model."""
    own = [one for series in volume_series(part.configurations) for one in series]
    rows = [
        row
        for one in own
        for row in part.rows(
            one.names, f"{one.variant}, {percent(one.names.train_fraction)}", [one]
        )
    ]
    return [part.table("Figure 4", rows, own)] if own else []


def volume_series(configurations: Sequence[Configuration]) -> list[list[Configuration]]:
    """Configurations that differ in the part of the training data alone, smallest part first."""
    series: dict[object, list[Configuration]] = {}
    for one in configurations:
        series.setdefault((one.names[:-1], one.options), []).append(one)
    varied = (own for own in series.values() if any(c.names.train_fraction != 1 for c in own))
    return [sorted(own, key=lambda one: one.names.train_fraction) for own in varied]


def _size_table(sizes: Sequence[tuple[Names, Size]]) -> list[Table]:
    """Tables 1 and 10: trainable parameters, and the memory that training is estimated to take."""
    if not sizes:
        return []
    in_order = sorted((names for names, _ in sizes), key=names_order)
    datasets = list(dict.fromkeys(names.dataset for names in in_order))
    models = sorted(in_order, key=lambda names: names_order(names._replace(dataset="")))
    rows = []
    for adapter, backbone in dict.fromkeys(names[1:3] for names in models):
        title = model_title(adapter, backbone)
        paper = [paper_parameters(adapter, backbone, dataset) for dataset in datasets]
        if any(paper):
            rows.append(Row(PAPER, (title, PAPER, *paper)))
        found = [
            [size for names, size in sizes if names[:3] == (dataset, adapter, backbone)]
            for dataset in datasets
        ]
        # Only what the paper reports is missed.
        ours = [
            _joined(_millions(size.trainable) for size in own) or (MISSING if there else "")
            for own, there in zip(found, paper, strict=True)
        ]
        rows.append(Row(OURS, (title, OURS, *ours)))
        memory = [_gib_range(size.estimated for size in own) for own in found]
        if any(memory):
            rows.append(Row(DIFFERENCE, (title, "memory", *memory)))
    return [
        Table(
            key="table1-parameters",
            title="Tables 1 and 10: trainable parameters in millions, and memory",
            note=(
                "Ours: counted in the built model. Memory: estimated before training, backbone, "
                "adapter and largest batch together. Several numbers in one place are of runs with "
                "other options than those of the recipe."
            ),
            columns=("Model", "Source", *map(dataset_title, datasets)),
            rows=tuple(rows),
        )
    ]


def _gib_range(sizes: Iterable[int | None]) -> str:
    """Memory in GiB, from the least to the most where seeds or options differ."""
    known = sorted(size for size in sizes if size is not None)
    texts = dict.fromkeys(f"{size / 2**30:.2f}" for size in (*known[:1], *known[-1:]))
    return f"{' to '.join(texts)} GiB" if texts else ""


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts))


def _millions(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:.2f}"


def significance_tables(grouped: Grouped) -> list[Table]:
    """The tests of the ablations, per data set and full model."""
    families: dict[tuple[str, ...], list[Configuration]] = {}
    for one in grouped.configurations:
        if one.tests:
            families.setdefault(one.names[:3], []).append(one)
    tables = []
    for (dataset, adapter, backbone), own in families.items():
        metrics = table_metrics(dataset, own)
        rows = [
            Row(
                "",
                (
                    one.label.removeprefix(f"{one.names.model}, "),
                    heading(metric),
                    str(len(test.seeds)),
                    "" if math.isnan(test.difference) else f"{test.difference:+.{digits(metric)}f}",
                    p_text(test.p) or test.reason or "",
                    p_text(test.holm),
                ),
            )
            for one in own
            for metric, test in one.tests.items()
            if metric in metrics
        ]
        tables.append(
            Table(
                key=f"test-{dataset}-{adapter}-{backbone}",
                title=(
                    f"Ablations against the full model: {dataset_title(dataset)}, "
                    f"{model_title(adapter, backbone)}"
                ),
                note=_TEST,
                columns=("Variant", "Metric", "Pairs", "Mean difference", "p", "p (Holm)"),
                rows=tuple(rows),
            )
        )
    return tables


def warnings_table(grouped: Grouped) -> Table:
    """What runs say of results that are worth little, such as one answer to every utterance."""
    rows = [
        Row("", (dataset_title(one.names.dataset), one.label, str(run.config.seed), text))
        for one in grouped.configurations
        for run in one.runs
        for text in run.warnings
    ]
    return Table(
        key="warnings-runs",
        title="Results with warnings",
        note="From metrics.json: a class that is never answered, a modality that is absent, or one "
        "answer to everything, beside the share of the most frequent class.",
        columns=("Data set", "Model", "Seed", "What is the matter"),
        rows=tuple(rows),
        words=4,
    )


def seed_tables(grouped: Grouped) -> list[Table]:
    """Every metric of every configuration: mean, spread, best and median run."""
    tables = []
    for dataset, own in by_dataset(one for one in grouped.configurations if one.runs).items():
        rows = [
            Row(
                "",
                (
                    one.label,
                    heading(metric),
                    str(summary.n),
                    mean_text(metric, summary),
                    _of_seed(metric, summary, summary.best),
                    _of_seed(metric, summary, summary.median),
                    number_text(metric, min(summary.values.values(), default=math.nan)),
                    number_text(metric, max(summary.values.values(), default=math.nan)),
                ),
            )
            for one in own
            for metric, summary in one.summaries.items()
        ]
        tables.append(
            Table(
                key=f"seeds-{dataset}",
                title=f"All metrics: {dataset_title(dataset)}",
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
