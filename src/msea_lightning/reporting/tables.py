"""What a table is, the paper's tables with our numbers beside, and the tests of the ablations.

Of the paper's numbers none is computed: they are those of :mod:`msea_lightning.paper`. Rows are the
registered adapters and ablations, and what runs add.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import TypeAlias

import yaml

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
from msea_lightning.reporting.folders import Size, metric_info
from msea_lightning.reporting.grouping import (
    Configuration,
    Grouped,
    by_kind,
    names_order,
    percent,
    short_key,
)
from msea_lightning.reporting.searches import Search
from msea_lightning.reporting.statistics import Summary
from msea_lightning.runs.folder import Names
from msea_lightning.runs.identity import departures

UNKNOWN = ""
"""Stands for the metrics of a data set of which no run is finished, so that none is known."""

MISSING = "missing"
"""What a table shows for a configuration without a finished run."""

PAPER, OURS = "paper", "ours"
"""Where the numbers of a row come from; others are ``cited``, ``difference`` and ``warning``."""

Row: TypeAlias = tuple[str, ...]
"""A text for each column."""


@dataclass(frozen=True)
class Table:
    """A table of finished texts; :func:`make_table` makes it of its entry in ``tables.yaml``.

    Attributes:
        title: Its title, different from that of any other table.
        note: What a reader has to know.
        columns: Headings.
        rows: Its rows.
        words: Number of columns from the left that hold words, not numbers.
        classes: Class of each row in the page; none where it is empty.
        number: The paper's number of its layout, such as ``table2``.
        configurations: What the rows are of.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: Sequence[Row]
    words: int = 2
    classes: Sequence[str] = ()
    number: str = ""
    configurations: Sequence[Configuration] = field(default=(), repr=False)

    @property
    def numbers(self) -> int:
        """Number of columns from the right that hold numbers."""
        return len(self.columns) - self.words

    @property
    def key(self) -> str:
        """Its anchor in the page and label in LaTeX."""
        return re.sub(r"\W+", "-", self.title).strip("-").lower()


_ENTRIES = yaml.safe_load(
    (resources.files("msea_lightning.reporting") / "tables.yaml").read_text(encoding="utf-8")
)


def make_table(
    name: str, rows: Sequence[Row], subject: str = "", more: Sequence[str] = ()
) -> Table:
    """A table of an entry in ``tables.yaml``, with what it is of and the headings that vary."""
    entry = dict(_ENTRIES[name])
    title = entry.pop("title").format(subject)
    columns = (*entry.pop("columns"), *more)
    state = entry.pop("state", None)
    classes = [] if state is None else [row[columns.index(state)] for row in rows]
    return Table(title=title, columns=columns, rows=rows, classes=classes, **entry)


def search_tables(search: Search) -> list[Table]:
    """The trials of a search, and why some of them failed."""
    keys = sorted({key for trial in search.trials for key in trial.values})
    info = search.metric
    rows = []
    for place, trial in enumerate(search.trials):
        state = "failed" if trial.error else "begun" if trial.valid is None else "finished"
        state = "best" if place == search.best else state
        scores = (math.nan if score is None else score for score in (trial.valid, trial.test))
        values = (trial.values.get(key, "") for key in keys)
        rows.append((str(place + 1), state, *map(info.format, scores), *values))
    headings = [f"{part} {info.title}" for part in ("Valid", "Test")]
    table = make_table(
        "search", rows, search.name, [*headings, *(short_key(key, keys) for key in keys)]
    )
    if search.next:
        command = f"The options of the best trial with five seeds: {search.next}"
        table = replace(table, note=f"{table.note} {command}")
    failed = [
        (str(place), trial.error) for place, trial in enumerate(search.trials, 1) if trial.error
    ]
    return [table, make_table("search_failed", failed, search.name)]


def paper_text(names: Names, metric: str) -> str:
    """The paper's number as it is printed there; empty where it has none.

    It reports all training data alone.
    """
    if names.train_fraction != 1:
        return ""
    found = paper_result(names.dataset, names.backbone, names.adapter, names.ablation)
    return found.get(metric, "")


def paper_difference(one: Configuration, metric: str) -> float:
    """Our mean minus the paper's number, in the unit of the tables; NaN where one is missing.

    A run that is not of the published method has none.
    """
    text, summary = paper_text(one.names, metric), one.summaries.get(metric)
    if departures(one.config):
        return math.nan
    return summary.mean - float(text) if text and summary is not None else math.nan


def mean_text(metric: str, summary: Summary) -> str:
    """Mean ± standard deviation as the paper writes its numbers."""
    text = number_text(metric, summary.mean)
    if summary.n > 1:
        text += f" ± {number_text(metric, summary.sd)}"
    return f"{text} (n={summary.n})" if summary.n and summary.undefined else text


def number_text(metric: str, value: float, *, sign: str = "", undefined: str = "undefined") -> str:
    """One number of a metric with the paper's decimals, in the unit of the tables."""
    if math.isnan(value):
        return undefined
    return f"{value:{sign}.{2 if metric_info(metric).percent else 3}f}"


def seeds_text(one: Configuration) -> str:
    """How many seeds are finished, and of how many where that is not all."""
    n = len(one.runs)
    return f"{n} of {n + len(one.missing)} seeds" if one.missing else str(n)


def _difference_text(metric: str, value: float) -> str:
    return number_text(metric, value, sign="+", undefined="")


def p_text(value: float) -> str:
    """A p value with three digits that count; empty where there is none."""
    if math.isnan(value):
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.3g}"


def _heading(metric: str) -> str:
    return "Result" if metric == UNKNOWN else metric_info(metric).title


def table_metrics(configurations: Sequence[Configuration]) -> tuple[str, ...]:
    """The metrics that the paper reports for their data set; of another one all that it has.

    One without a name where no run of it is finished.
    """
    _, rows = result_rows(configurations[0].names.dataset)
    if rows:
        return tuple(name for name in rows[0] if name not in ("model", "cited"))
    kinds = {one.kind for one in configurations}
    known = (name for kind in METRIC_NAMES if kind in kinds for name in METRIC_NAMES[kind])
    return tuple(dict.fromkeys(known)) or (UNKNOWN,)


@dataclass(frozen=True)
class _Part:
    """What the tables of one data set and one kind of metrics are made of.

    ``kind`` is None where no run is finished; the data set is ``mixed`` where it has several.
    """

    dataset: str
    kind: MetricKind | None
    mixed: bool
    configurations: list[Configuration]
    sizes: list[tuple[Names, Size]]

    @property
    def metrics(self) -> tuple[str, ...]:
        return table_metrics(self.configurations)

    @property
    def whole(self) -> list[Configuration]:
        """The full models that all training data made."""
        return [one for one in self.configurations if one.is_whole]

    def table(
        self,
        number: str,
        labels: Mapping[Names, str],
        own: Sequence[Configuration],
        *,
        above: Sequence[Row] = (),
        title: str = "",
        note: str = "{}",
        first: str = "Model",
        sizes: bool = False,
    ) -> Table:
        """A table in the layout of the paper's ``number``, with a column per metric.

        Its rows are those ``above`` and of all names that have ``labels``, with the configurations
        among ``own`` that go by them; with ``sizes`` it has a column of trainable parameters.
        """
        kind = f" ({self.kind.value})" if self.mixed and self.kind is not None else ""
        rows = list(above)
        for names, label in labels.items():
            for row in self.rows(names, label, [one for one in own if one.names == names]):
                rows.append((*row, self._parameters(names, row[1])) if sizes else row)
        columns = [*map(_heading, self.metrics), *(["Paras [M]"] if sizes else [])]
        subject = f"{number}: {dataset_title(self.dataset)}{title}{kind}"
        table = make_table("paper", rows, subject, columns)
        return replace(
            table,
            note=note.format(table.note),
            columns=(first, *table.columns),
            classes=[row[1] for row in rows],
            number=re.sub(r"(\w+?)s? (\d+).*", r"\1\2", number).lower(),
            configurations=own,
        )

    def _parameters(self, names: Names, source: str) -> str:
        """Trainable parameters in millions: the paper's, or those of our runs."""
        if source == PAPER:
            return paper_parameters(names.adapter, names.backbone, names.dataset)
        if source != OURS:
            return ""
        counted = [size.trainable for other, size in self.sizes if other == names]
        return _joined(map(_millions, counted)) or MISSING

    def rows(self, names: Names, label: str, own: Sequence[Configuration]) -> list[Row]:
        """The paper's row where it has one, then ours and the difference for each configuration."""
        paper = [paper_text(names, metric) for metric in self.metrics]
        rows: list[Row] = [(label, PAPER, "", *paper)] if any(paper) else []
        for one in own:
            name = label if not one.options else f"{label} ({', '.join(one.options)})"
            entries = [
                mean_text(metric, one.summaries[metric]) if metric in one.summaries else MISSING
                for metric in self.metrics
            ]
            rows.append((name, OURS, seeds_text(one), *entries))
            differences = [
                _difference_text(metric, paper_difference(one, metric)) for metric in self.metrics
            ]
            if any(differences):
                rows.append((name, "difference", "", *differences))
            if warnings := sum(bool(run.warnings) for run in one.runs):
                text = f"see warnings: {warnings} of {len(one.runs)} runs"
                rows.append((name, "warning", "", text, *[""] * (len(self.metrics) - 1)))
        return rows


def paper_layouts(grouped: Grouped) -> list[Table]:
    """Every table of the paper of which the runs have a data set together with a backbone."""
    groups = by_kind(grouped.configurations)
    datasets = [dataset for dataset, _ in groups]
    parts = [
        _Part(dataset, kind, datasets.count(dataset) > 1, own, grouped.sizes)
        for (dataset, kind), own in groups.items()
        if any(_is_in_paper(one.names) for one in own)
    ]
    in_paper = [(names, size) for names, size in grouped.sizes if _is_in_paper(names)]
    tables = [_size_table(in_paper, "Tables 1 and 10: ")] if in_paper else []
    for build in (_main_table, _ablation_tables, _adapter_table, _volume_table):
        tables += [table for part in parts for table in build(part)]
    return tables


def _is_in_paper(names: Names) -> bool:
    """Whether the paper has the data set, and the backbone."""
    known = names.backbone in paper_titles("backbone")
    return known and names.dataset in paper_titles("dataset")


def own_sizes(grouped: Grouped) -> list[Table]:
    """What runs that only measure found of what the paper does not have."""
    own = [(names, size) for names, size in grouped.measured if not _is_in_paper(names)]
    return [_size_table(own, "Measured sizes: ")] if own else []


def _main_table(part: _Part) -> list[Table]:
    """Tables 2 and 3: the full models, without the adapters of Tables 5 and 10."""
    main, *others = ADAPTERS.names()
    full = [one for one in part.whole if one.names.adapter not in others]
    if not full:
        return []
    number, published = result_rows(part.dataset)
    cited = [
        (row["model"], "cited", "", *(row[metric] for metric in part.metrics))
        for row in published
        if row["cited"] == "yes"
    ]
    models = [Names(part.dataset, main, backbone) for backbone in paper_titles("backbone")]
    labels = {names: names.model for names in (*models, *(one.names for one in full))}
    note = "Cited: numbers that the paper quotes from others. {}"
    return [part.table(number, labels, full, above=cited, note=note)]


def _ablation_tables(part: _Part) -> list[Table]:
    """Table 4: what each part contributes, per model."""
    whole = [one for one in part.configurations if one.names.train_fraction == 1]
    models = dict.fromkeys(one.names[1:3] for one in whole if one.names.ablation != FULL)
    tables = []
    for adapter, backbone in models:
        own = [one for one in whole if one.names[1:3] == (adapter, backbone)]
        is_main = adapter == ADAPTERS.names()[0]
        listed = ABLATIONS.names() if is_main else ()
        variants = dict.fromkeys([*listed, *(one.names.ablation for one in own)])
        labels = {}
        # The full model is the last row of Table 4.
        for ablation in sorted(variants, key=lambda name: name == FULL):
            names = Names(part.dataset, adapter, backbone, ablation)
            is_other = ablation == FULL and not is_main
            labels[names] = names.model if is_other else ABLATIONS.title(ablation)
        note = "{}"
        if is_main:
            note += (
                " The paper's Table 4 is of ChatGLM3-6B on MELD and SIMS-V2 alone; what is more of "
                "the full model is from Tables 2 and 3."
            )
        title = f", {model_title(adapter, backbone)}"
        table = part.table("Table 4", labels, own, title=title, note=note, first="Variant")
        tables.append(table)
    return tables


def _adapter_table(part: _Part) -> list[Table]:
    """Tables 5 and 10: other adapters in front of the same frozen backbone."""
    main, *others = ADAPTERS.names()
    backbones = dict.fromkeys(
        one.names.backbone for one in part.whole if one.names.adapter in others
    )
    own = [one for one in part.whole if one.names.backbone in backbones]
    there = {one.names for one in own}
    labels = {
        names: names.model
        for backbone in backbones
        for adapter in (*others, main)
        if (names := Names(part.dataset, adapter, backbone)) in there
        or paper_text(names, part.metrics[0])
    }
    note = "{} Paras: trainable parameters in millions."
    return [part.table("Tables 5 and 10", labels, own, note=note, sizes=True)] if own else []


def _volume_table(part: _Part) -> list[Table]:
    """Figure 4 as a table: parts of the training data, per model."""
    own = [one for series in volume_series(part.configurations) for one in series]
    labels = {one.names: f"{one.variant}, {percent(one.names.train_fraction)}" for one in own}
    return [part.table("Figure 4", labels, own)] if own else []


def volume_series(configurations: Sequence[Configuration]) -> list[list[Configuration]]:
    """Configurations that differ in the part of the training data alone, smallest part first."""
    series: dict[object, list[Configuration]] = {}
    for one in configurations:
        series.setdefault((one.names[:-1], one.options), []).append(one)
    varied = (own for own in series.values() if any(c.names.train_fraction != 1 for c in own))
    return [sorted(own, key=lambda one: one.names.train_fraction) for own in varied]


def _size_table(sizes: Sequence[tuple[Names, Size]], place: str = "") -> Table:
    """Trainable parameters, the paper's too, and the memory that training is estimated to take."""
    datasets = list(dict.fromkeys(names.dataset for names, _ in sizes))
    models = sorted({names._replace(dataset="") for names, _ in sizes}, key=names_order)
    rows: list[Row] = []
    for model in models:
        paper = [paper_parameters(model.adapter, model.backbone, dataset) for dataset in datasets]
        if any(paper):
            rows.append((model.model, PAPER, *paper))
        found = [
            [size for names, size in sizes if names == model._replace(dataset=dataset)]
            for dataset in datasets
        ]
        ours = [_joined(_millions(size.trainable) for size in own) for own in found]
        rows.append((model.model, OURS, *ours))
        memory = [_gib(size.estimated for size in own) for own in found]
        if any(memory):
            rows.append((model.model, "memory", *memory))
    return make_table("sizes", rows, place, [*map(dataset_title, datasets)])


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts))


def _gib(sizes: Iterable[int | None]) -> str:
    """The least and the most memory, where seeds or options differ."""
    known = sorted(size for size in sizes if size is not None)
    return _joined(f"{size / 2**30:.2f} GiB" for size in (*known[:1], *known[-1:]))


def _millions(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:.2f}"


def significance_tables(configurations: Iterable[Configuration]) -> list[Table]:
    """The tests of the ablations, per data set and full model."""
    families: dict[tuple[str, ...], list[Configuration]] = {}
    for one in configurations:
        if one.tests:
            families.setdefault(one.names[:3], []).append(one)
    tables = []
    for (dataset, adapter, backbone), own in families.items():
        rows = [
            (
                one.label.removesuffix(f", {one.names.model}"),
                _heading(metric),
                str(len(test.seeds)),
                _difference_text(metric, test.difference),
                p_text(test.p) or test.reason,
                p_text(test.holm),
            )
            for one in own
            for metric, test in one.tests.items()
            if metric in table_metrics(own)
        ]
        subject = f"{dataset_title(dataset)}, {model_title(adapter, backbone)}"
        tables.append(make_table("tests", rows, subject))
    return tables


def warnings_table(grouped: Grouped) -> Table:
    """What runs say of results that are worth little, such as one answer to every utterance."""
    rows = [
        (dataset_title(one.names.dataset), one.label, str(run.config.seed), text)
        for one in grouped.configurations
        for run in one.runs
        for text in run.warnings
    ]
    return make_table("warnings", rows)


def seed_table(configurations: Sequence[Configuration], title: str) -> Table:
    """Every metric of every configuration: mean, spread, interval, best and median run."""
    rows = [
        (
            one.label,
            _heading(metric),
            str(summary.n),
            mean_text(metric, summary),
            interval_text(one, metric),
            _of_seed(metric, summary, summary.best),
            _of_seed(metric, summary, summary.median),
            number_text(metric, min(summary.values.values(), default=math.nan)),
            number_text(metric, max(summary.values.values(), default=math.nan)),
        )
        for one in configurations
        for metric, summary in one.summaries.items()
    ]
    return make_table("seeds", rows, title)


def interval_text(one: Configuration, metric: str) -> str:
    """The ends of the 95 % interval; empty where there is none."""
    low, high = one.intervals.get(metric, (math.nan, math.nan))
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{number_text(metric, low)} to {number_text(metric, high)}"


def _of_seed(metric: str, summary: Summary, seed: int | None) -> str:
    return "" if seed is None else f"{number_text(metric, summary.values[seed])} ({seed})"
