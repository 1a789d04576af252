"""``results.csv``: all results in tidy form."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msea_lightning.paper import paper_parameters
from msea_lightning.reporting.folders import metric_info
from msea_lightning.reporting.grouping import Configuration, Grouped, by_dataset
from msea_lightning.reporting.tables import (
    UNKNOWN,
    Table,
    paper_difference,
    paper_text,
    table_metrics,
)
from msea_lightning.runs.files import csv_text
from msea_lightning.runs.folder import Names
from msea_lightning.runs.identity import departures

RESULTS_COLUMNS = (
    *("tables", *Names._fields, "options"),
    *(
        "metric",
        "unit",
        "n",
        "seeds",
        "mean",
        "sd",
        "low",
        "high",
        "best",
        "best_seed",
        "median",
        "median_seed",
    ),
    *("min", "max", "paper", "difference", "p_value", "p_holm"),
    *("missing_seeds", "undefined_seeds"),
)
"""Columns of ``results.csv``."""


def results_csv(grouped: Grouped, layouts: Sequence[Table]) -> str:
    """One row per configuration and metric of the test part, and per measured size.

    Numbers have full precision; shares are in percent, as in the paper. What is undefined or does
    not exist is empty.
    """
    shown: dict[str, list[str]] = {}
    for table in layouts:
        for one in table.configurations:
            shown.setdefault(one.identity, []).append(table.number)
    rows = [
        {
            **{name: str(value) for name, value in one.names._asdict().items()},
            "tables": ";".join(shown.get(one.identity, [])),
            "options": ";".join(one.options),
            **_metric_columns(one, metric),
            "missing_seeds": ";".join(str(run.config.seed) for run in one.missing),
        }
        for same in by_dataset(grouped.configurations).values()
        for one in same
        for metric in one.summaries or table_metrics(same)
    ]
    for names, size in grouped.measured:
        paper = paper_parameters(names.adapter, names.backbone, names.dataset)
        millions = (size.trainable or 0) / 1e6
        rows.append(
            {
                "tables": "table1",
                **dict(zip(names._fields[:4], names[:4], strict=True)),
                "metric": "trainable_parameters",
                "unit": "M",
                "n": "1",
                "mean": repr(millions),
                "paper": paper,
                "difference": repr(millions - float(paper)) if paper else "",
            }
        )
    return csv_text(RESULTS_COLUMNS, rows)


def _metric_columns(one: Configuration, metric: str) -> dict[str, str]:
    columns = {
        "metric": metric,
        "unit": "%" if metric != UNKNOWN and metric_info(metric).percent else "",
        "paper": "" if departures(one.config) else paper_text(one.names, metric),
        "n": "0",
    }
    summary = one.summaries.get(metric)
    if summary is None:
        return columns
    values, test = summary.values, one.tests.get(metric)
    numbers = {
        "mean": summary.mean,
        "sd": summary.sd,
        "low": one.intervals.get(metric, (None, None))[0],
        "high": one.intervals.get(metric, (None, None))[1],
        "best_seed": summary.best,
        "median_seed": summary.median,
        "min": min(values.values(), default=None),
        "max": max(values.values(), default=None),
        "difference": paper_difference(one, metric),
        "p_value": test.p if test else None,
        "p_holm": test.holm if test else None,
    }
    for name, seed in (("best", summary.best), ("median", summary.median)):
        numbers[name] = None if seed is None else values[seed]
    return {
        **columns,
        "n": str(summary.n),
        "seeds": ";".join(map(str, values)),
        "undefined_seeds": ";".join(map(str, summary.undefined)),
        **{
            name: "" if value is None or math.isnan(value) else repr(value)
            for name, value in numbers.items()
        },
    }
