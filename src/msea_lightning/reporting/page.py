"""``report.html``: everything on one page that needs no network and no other file.

Its script sorts tables and does nothing else; without it everything is there as well.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from importlib import resources
from statistics import fmean
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from msea_lightning.metrics import selection_metric
from msea_lightning.metrics.options import MetricKind
from msea_lightning.paper import dataset_title
from msea_lightning.reporting.about import commands, facts, labels
from msea_lightning.reporting.charts import Chart, draw_labels, draw_part
from msea_lightning.reporting.disagreement import most_disputed
from msea_lightning.reporting.folders import Folder
from msea_lightning.reporting.grouping import Configuration, Grouped
from msea_lightning.reporting.searches import Search
from msea_lightning.reporting.tables import (
    Row,
    Table,
    make_table,
    mean_text,
    own_sizes,
    search_tables,
    seed_table,
    seeds_text,
    significance_tables,
    warnings_table,
)
from msea_lightning.reporting.variants import (
    Part,
    class_table,
    parts_of,
    variants_table,
    verdict_table,
)


class Block(NamedTuple):
    """A part of a data set's section: tables and charts below one heading, with its anchor.

    ``folded`` is a table that is opened by whoever wants to see it.
    """

    anchor: str
    heading: str
    tables: Sequence[Table]
    charts: Sequence[Chart]
    folded: Table | None


class Section(NamedTuple):
    """All there is of one data set.

    Attributes:
        anchor: Its anchor.
        title: The data set.
        facts: Names and texts of what its results are of.
        commands: What was typed.
        labels: How often each label is in each split; None where that is not known.
        blocks: Its tables and charts.
    """

    anchor: str
    title: str
    facts: Sequence[tuple[str, str]]
    commands: Sequence[str]
    labels: Chart | None
    blocks: Sequence[Block]


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


def best_table(parts: Sequence[Part], searches: Sequence[Search]) -> Table:
    """The best configuration of each data set, by its selection metric's mean on the test part.

    Those of which there are trials of a search alone are left out: they are chosen among by the
    validation part, in the search's own table.
    """
    trials = {trial.fingerprint for search in searches for trial in search.trials}
    rows = []
    for part in parts:
        if part.kind is None:
            continue
        info = selection_metric(part.kind)
        known = [
            one
            for one in part.finished
            if one.summaries[info.name].n and any(r.fingerprint not in trials for r in one.runs)
        ]
        if not known:
            continue
        choose = max if info.higher_is_better else min
        best = choose(known, key=lambda one: one.summaries[info.name].mean)
        mean = mean_text(info.name, best.summaries[info.name]) + (" %" if info.percent else "")
        rows.append((part.title, best.label, info.title, mean, seeds_text(best)))
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


def _cost_table(part: Part) -> Table:
    """Time and memory of every configuration: means over its seeds."""
    return make_table("costs", [_cost_row(one) for one in part.finished], part.title)


def _cost_row(one: Configuration) -> Row:
    epochs = [len(run.history["epoch"]) if run.history else None for run in one.runs]
    seconds = [run.epoch_seconds for run in one.runs]
    total = _mean(a and b and a * b for a, b in zip(epochs, seconds, strict=True))
    sizes = [run.size for run in one.runs if run.size is not None]
    trainable = _mean(size.trainable for size in sizes)
    means = (
        ("{:,.0f}", trainable),
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


def _disputed_tables(part: Part) -> list[Table]:
    """The most disputed utterances; none where all runs agree."""
    own = part.finished
    rows = most_disputed(own)
    if not rows:
        return []
    spread = "minority" if part.kind is MetricKind.emotion else "sd"
    columns = [*(one.label for one in own), spread]
    return [replace(make_table(spread, rows, part.title, columns), words=3 + len(own))]


def _section(part: Part, anchor: str, folder: Folder) -> Section:
    charts = draw_part(part, anchor)
    folded = {"Verdict": verdict_table(part.finished[1:], "the other variants")}
    found: list[tuple[str, list[Table]]] = [
        ("Variants", [variants_table(part)]),
        ("Verdict", [verdict_table(part.finished[:1], part.title)]),
        ("Ablations tested", significance_tables(part.configurations)),
        ("Result per seed", []),
        ("Amount of training data", []),
        ("Learning curves", []),
        ("F1 of each class", [class_table(part)]),
        ("Confusion matrices", []),
        ("Predicted and true intensity", []),
        ("Reliability of the probabilities", []),
        ("Disputed utterances", _disputed_tables(part)),
        ("Time and memory", [_cost_table(part)]),
        ("All metrics", [seed_table(part.finished, part.title)]),
    ]
    blocks = [
        Block(
            f"{anchor}-{heading.lower().replace(' ', '-')}",
            heading,
            [table for table in tables if table.rows],
            charts.get(heading, []),
            folded.get(heading),
        )
        for heading, tables in found
    ]
    return Section(
        anchor,
        part.title,
        facts(part),
        commands(part, folder),
        draw_labels(labels(part), f"{anchor}-labels"),
        [block for block in blocks if block.tables or block.charts],
    )


def write_page(
    grouped: Grouped,
    folder: Folder,
    layouts: Sequence[Table],
    problems: Table,
    counts: Mapping[str, int],
) -> str:
    """The page as HTML, with every text escaped: data sets first, then the paper's tables."""
    environment = Environment(
        loader=PackageLoader("msea_lightning.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (resources.files("msea_lightning.reporting") / "page.js").read_text(encoding="utf-8")
    parts = parts_of(grouped.configurations)
    # Anchor, heading, class, and the tables: what comes after the data sets.
    after = (
        ("paper", "The paper's tables", "", layouts),
        (
            "searches",
            "Searches",
            "",
            [table for search in folder.searches for table in search_tables(search)],
        ),
        ("sizes", "Measured sizes", "", own_sizes(grouped)),
        ("warnings", "Results with warnings", "errors", [warnings_table(grouped)]),
        ("missing", "Missing runs", "errors", [missing_table(grouped)]),
        ("problems", "Problems", "errors", [problems]),
    )
    titles = list(dict.fromkeys(part.title for part in parts))
    titles += [dataset_title(run.names.dataset) for run in grouped.size_runs]
    return environment.get_template("page.html.jinja").render(
        title=", ".join(dict.fromkeys(titles)),
        counts=counts,
        best=best_table(parts, folder.searches),
        discrepancies=sum(
            len(run.discrepancies) for one in grouped.configurations for run in one.runs
        ),
        sections=[_section(part, f"data-{number}", folder) for number, part in enumerate(parts)],
        after=[part for part in after if any(table.rows for table in part[3])],
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
