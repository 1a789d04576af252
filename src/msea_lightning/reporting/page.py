"""``report.html``: everything on one page that needs no network, no script and no other file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from statistics import fmean

from jinja2 import Environment, PackageLoader, StrictUndefined

from msea_lightning.metrics import selection_metric
from msea_lightning.metrics.options import MetricKind
from msea_lightning.paper import dataset_title
from msea_lightning.reporting.charts import draw_all
from msea_lightning.reporting.disagreement import most_disputed
from msea_lightning.reporting.folders import Folder
from msea_lightning.reporting.grouping import Configuration, Grouped, by_dataset, by_kind
from msea_lightning.reporting.tables import (
    Row,
    Table,
    make_table,
    mean_text,
    seed_tables,
    seeds_text,
    significance_tables,
    warnings_table,
)


def count(grouped: Grouped) -> dict[str, int]:
    """How many of what there is; what is missing was planned or begun and is not finished."""
    missing = [run for one in grouped.configurations for run in one.missing]
    missing += grouped.missing_sizes
    runs = [run for one in grouped.configurations for run in one.runs]
    return {
        "finished runs": len(runs),
        "configurations": sum(bool(one.runs) for one in grouped.configurations),
        "seeds": len({run.config.seed for run in runs}),
        "sizes": len({names for names, _ in grouped.sizes}),
        "missing": len(missing),
        "of these failed": sum(run.error is not None for run in missing),
    }


def best_table(configurations: Sequence[Configuration]) -> Table:
    """The best configuration of each data set, by its selection metric's mean on the test part."""
    rows = []
    for (dataset, kind), part in by_kind(configurations).items():
        if kind is None:
            continue
        info = selection_metric(kind)
        known = [one for one in part if one.runs and one.summaries[info.name].n]
        if not known:
            continue
        choose = max if info.higher_is_better else min
        best = choose(known, key=lambda one: one.summaries[info.name].mean)
        mean = mean_text(info.name, best.summaries[info.name]) + (" %" if info.percent else "")
        rows.append((dataset_title(dataset), best.label, info.title, mean, seeds_text(best)))
    return make_table("best", rows)


def missing_table(grouped: Grouped) -> Table:
    """Runs that were planned or begun and are not finished, with what stopped them."""
    found = [(one.label, run) for one in grouped.configurations for run in one.missing]
    found += [(f"{run.names.model}, size only", run) for run in grouped.missing_sizes]
    rows = [
        (dataset_title(run.names.dataset), label, str(run.config.seed), *run.missing)
        for label, run in found
    ]
    return make_table("missing", rows)


def problems_table(folder: Folder, grouped: Grouped) -> Table:
    """Files that are missing, broken or at odds with each other."""
    found = list(folder.unreadable.items())
    runs = [run for one in grouped.configurations for run in one.runs]
    for run in (*runs, *grouped.size_runs):
        found += [(run.name, problem) for problem in (*run.problems, *run.discrepancies)]
    return make_table("problems", found)


def cost_tables(grouped: Grouped) -> list[Table]:
    """Time and memory of every configuration: means over its seeds."""
    finished = [one for one in grouped.configurations if one.runs]
    return [
        make_table("costs", [_cost_row(one) for one in own], dataset_title(dataset))
        for dataset, own in by_dataset(finished).items()
    ]


def _cost_row(one: Configuration) -> Row:
    epochs = [len(run.history["epoch"]) if run.history else None for run in one.runs]
    seconds = [run.epoch_seconds for run in one.runs]
    total = _mean(a and b and a * b for a, b in zip(epochs, seconds, strict=True))
    sizes = [run.size for run in one.runs if run.size is not None]
    means = (
        ("{:.1f}", _mean(epochs)),
        ("{:.1f} s", _mean(seconds)),
        ("{}", None if total is None else timedelta(seconds=round(total))),
        ("{:.2f} GiB", _mean(size.estimated and size.estimated / 2**30 for size in sizes)),
        ("{:.2f} GiB", _mean(size.measured and size.measured / 2**30 for size in sizes)),
    )
    texts = ("unknown" if mean is None else text.format(mean) for text, mean in means)
    return (one.label, str(len(one.runs)), *texts)


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def disputed_tables(grouped: Grouped) -> list[Table]:
    """The most disputed utterances per data set and kind of labels; none where all runs agree."""
    tables = []
    for (dataset, kind), part in by_kind(grouped.configurations).items():
        own = [one for one in part if one.kind is not None]
        if rows := most_disputed(own):
            spread = "minority" if kind is MetricKind.emotion else "sd"
            columns = [*(one.label for one in own), spread]
            table = make_table(spread, rows, dataset_title(dataset), columns)
            tables.append(replace(table, words=3 + len(own)))
    return tables


def write_page(
    grouped: Grouped, layouts: Sequence[Table], problems: Table, counts: Mapping[str, int]
) -> str:
    """The page as HTML, with every text escaped, and the paper's tables among others."""
    environment = Environment(
        loader=PackageLoader("msea_lightning.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Anchor, heading, class, and the tables: what is shown before and after the charts.
    before = (
        ("problems", "Problems", "errors", [problems]),
        ("missing", "Missing runs", "errors", [missing_table(grouped)]),
        ("warnings", "Results with warnings", "errors", [warnings_table(grouped)]),
        ("tables", "Tables", "", layouts),
        ("tests", "Ablations tested", "", significance_tables(grouped)),
    )
    after = (
        ("disputed", "Disputed utterances", "disputed", disputed_tables(grouped)),
        ("costs", "Time and memory", "", cost_tables(grouped)),
        ("seeds", "All metrics", "", seed_tables(grouped)),
    )
    return environment.get_template("page.html.jinja").render(
        counts=counts,
        best=best_table(grouped.configurations),
        discrepancies=sum(
            len(run.discrepancies) for one in grouped.configurations for run in one.runs
        ),
        before=[part for part in before if any(table.rows for table in part[3])],
        after=[part for part in after if part[3]],
        charts=draw_all(grouped.configurations),
        dataset_title=dataset_title,
    )
