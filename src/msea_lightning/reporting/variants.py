"""The table of a data set's variants beside what needs no adapter, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from msea_lightning.data.classes import confusion_classes
from msea_lightning.data.options import LabelConfig, LabelKind
from msea_lightning.metrics import METRICS, selection_metric
from msea_lightning.metrics.classes import ClassScore, class_scores
from msea_lightning.metrics.options import MetricKind
from msea_lightning.paper import dataset_title
from msea_lightning.reporting.folders import Predictions, metric_info
from msea_lightning.reporting.grouping import Configuration, by_kind, percent
from msea_lightning.reporting.statistics import Summary, summarize
from msea_lightning.reporting.tables import (
    MISSING,
    UNKNOWN,
    Row,
    Table,
    interval_text,
    make_table,
    mean_text,
    number_text,
    p_text,
    seeds_text,
    table_metrics,
)


class Part(NamedTuple):
    """Configurations whose numbers can be compared: of one data set, with the same metrics.

    ``kind`` is None where no run is finished; the title of one of several kinds of metrics of a
    data set names its kind.
    """

    title: str
    kind: MetricKind | None
    configurations: list[Configuration]

    @property
    def finished(self) -> list[Configuration]:
        """The configurations that have results."""
        return [one for one in self.configurations if one.runs]

    @property
    def metrics(self) -> list[str]:
        """The metrics of its tables, the one first that chooses an epoch."""
        names = table_metrics(self.configurations)
        first = None if self.kind is None else selection_metric(self.kind).name
        return sorted(names, key=lambda name: name != first)

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Names of emotions in the order of the options, then others."""
        found = set(names)
        listed = self.configurations[0].config.dataset.labels.names
        known = [name for name in listed if name in found]
        return [*known, *sorted(found.difference(known))]

    @property
    def predictions(self) -> list[Predictions]:
        """The answers of all its runs."""
        runs = [run for one in self.finished for run in one.runs]
        return [run.predictions for run in runs if run.predictions is not None]

    @property
    def classes(self) -> LabelConfig:
        """The label space as far as the answers show it: names, or both ends of the scale."""
        values = {value for own in self.predictions for value in (*own.labels, *own.answers)}
        if self.kind is MetricKind.emotion:
            return LabelConfig(LabelKind.emotions, names=self.in_order(values))
        known = [value for value in values if math.isfinite(value)] or [0.0]
        given = self.configurations[0].config.dataset.labels
        low = min(known) if given.low is None else given.low
        high = max(known) if given.high is None else given.high
        return LabelConfig(LabelKind.scale, low=low, high=high)


def parts_of(configurations: Sequence[Configuration]) -> list[Part]:
    """The parts of a report, in the order of the paper's data sets, then of others by name."""
    groups = by_kind(configurations)
    names = [dataset for dataset, _ in groups]
    return [
        Part(
            dataset_title(dataset)
            + (f" ({kind.value})" if kind and names.count(dataset) > 1 else ""),
            kind,
            own,
        )
        for (dataset, kind), own in groups.items()
    ]


class Comparison(NamedTuple):
    """What a data set's results are compared with: its name, and its metrics by their names."""

    name: str
    summaries: dict[str, Summary]


def comparisons(part: Part) -> list[Comparison]:
    """What runs have as references; a mean where runs of the same training data differ in it."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    runs = [(one.names.train_fraction, run) for one in part.finished for run in one.runs]
    for number, (share, run) in enumerate(runs):
        for reference in run.references:
            name = reference.name + ("" if share == 1 else f", {percent(share)}")
            for metric in set(reference.test) & set(part.metrics):
                by_run = values.setdefault(name, {}).setdefault(metric, {})
                if reference.test[metric] not in by_run.values():
                    by_run[number] = reference.test[metric]
    return [
        Comparison(
            name,
            {metric: summarize(metric_info(metric), runs) for metric, runs in by_metric.items()},
        )
        for name, by_metric in values.items()
    ]


def variants_table(part: Part) -> Table:
    """Means and spreads of all variants, with the 95 % interval and the test of the main metric."""
    main = part.metrics[0]
    has_interval = any(main in one.intervals for one in part.configurations)
    is_tested = any(main in one.tests for one in part.configurations)
    rows = []
    # What is not finished is missing at the end of the report, unless that is everything.
    shown = part.finished or part.configurations
    for one in shown:
        warned = sum(bool(run.warnings) for run in one.runs)
        entries = [_mean(one.summaries, metric, MISSING) for metric in part.metrics]
        if has_interval:
            entries.insert(1, interval_text(one, main))
        if is_tested:
            test = one.tests.get(main)
            entries += (
                ["", ""]
                if test is None
                else [
                    number_text(main, test.difference, sign="+", undefined=""),
                    p_text(test.holm) or test.reason,
                ]
            )
        n = seeds_text(one) + (f", {warned} warned" if warned else "")
        rows.append((one.label, n, *entries))
    width = 2 + len(part.metrics) + has_interval + 2 * is_tested
    for name, summaries in comparisons(part):
        entries = [_mean(summaries, metric, "") for metric in part.metrics]
        if has_interval:
            entries.insert(1, "")
        rows.append((name, "", *entries, *[""] * (width - 2 - len(entries))))
    headings = [heading(metric) for metric in part.metrics]
    if has_interval:
        headings.insert(1, "95 % interval")
    if is_tested:
        headings += [f"Δ {heading(main)}", "p (Holm)"]
    table = make_table("variants", rows, part.title, headings)
    kinds = ["variant"] * len(shown)
    kinds += ["reference"] * (len(rows) - len(kinds))
    return replace(table, classes=kinds, configurations=shown)


def short_table(part: Part) -> Table:
    """Means and spreads alone, for a terminal."""
    table = variants_table(part)
    kept = [0, 1] + [
        index
        for index, column in enumerate(table.columns)
        if column in {heading(metric) for metric in part.metrics}
    ]
    rows = [tuple(row[index] for index in kept) for row in table.rows]
    columns = tuple(table.columns[index] for index in kept)
    return replace(table, columns=columns, rows=rows)


def heading(metric: str) -> str:
    """A metric's heading with its unit."""
    if metric == UNKNOWN:
        return "Result"
    info = metric_info(metric)
    return f"{info.title} [%]" if info.percent else info.title


def _mean(summaries: dict[str, Summary], metric: str, otherwise: str) -> str:
    return mean_text(metric, summaries[metric]) if metric in summaries else otherwise


def verdict_table(configurations: Sequence[Configuration], subject: str) -> Table:
    """What runs say of how good they are; the same sentence once for all seeds that say it."""
    rows: list[Row] = []
    for one in configurations:
        seeds: dict[str, list[str]] = {}
        for run in one.runs:
            for sentence in run.verdict:
                seeds.setdefault(sentence, []).append(str(run.config.seed))
        rows += [(one.label, ", ".join(own), sentence) for sentence, own in seeds.items()]
    return make_table("verdict", rows, subject)


def class_table(part: Part) -> Table:
    """F1 of each class and variant on the test part; no rows where no run has predictions."""
    labels = part.classes
    rows: list[Row] = []
    headings: list[str] = []
    for one in part.finished:
        scores: list[dict[str, ClassScore]] = []
        for own in (run.predictions for run in one.runs if run.predictions is not None):
            assert part.kind is not None
            pairs = [pair for pair in zip(own.answers, own.labels, strict=True) if _known(pair)]
            answers, truth = (
                confusion_classes(part.kind, labels, [pair[place] for pair in pairs])
                for place in (0, 1)
            )
            scores.append(class_scores(answers[1], truth[1], truth[0]))
        if not scores:
            continue
        headings = headings or [f"{name} ({score.utterances})" for name, score in scores[0].items()]
        entries = []
        for name in scores[0]:
            f1 = {number: found[name].f1 for number, found in enumerate(scores)}
            entries.append(mean_text("f1", summarize(METRICS["f1"], f1)))
        rows.append((one.label, str(len(scores)), *entries))
    return make_table("classes", rows, part.title, headings)


def _known(pair: Sequence[float | str]) -> bool:
    return all(isinstance(value, str) or math.isfinite(value) for value in pair)
