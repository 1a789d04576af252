"""Reports: run folders are read, joined where only their seeds differ, and shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msea_lightning.config.text import visible
from msea_lightning.reporting.folders import ReportError, read_folder
from msea_lightning.reporting.formats import as_latex, as_markdown
from msea_lightning.reporting.grouping import group
from msea_lightning.reporting.page import best_table, count, problems_table, write_page
from msea_lightning.reporting.results import results_csv
from msea_lightning.reporting.tables import (
    Table,
    paper_layouts,
    search_tables,
    significance_tables,
    warnings_table,
)
from msea_lightning.reporting.variants import parts_of, short_table, variants_table
from msea_lightning.runs.files import write_atomically


@dataclass(frozen=True)
class Report:
    """A written report: ``report.html``, then ``results.csv``, ``.md`` and ``.tex``.

    ``best`` is the best configuration of each data set, ``tables`` are the means of each data set's
    variants, for a terminal, ``counts`` how many of what there is.
    """

    page: Path
    results: tuple[Path, ...]
    best: Table
    tables: tuple[Table, ...]
    counts: dict[str, int]


def write_report(runs: Path, out: Path | None = None) -> Report:
    """Writes ``report.html`` and ``results.csv``, ``.md`` and ``.tex`` from all run folders.

    ``results.*`` are the same byte for byte for the same results, whatever the folders beneath
    ``runs`` are called. ``out`` is ``runs`` itself where not given.
    """
    folder = read_folder(runs)
    grouped = group(folder)
    layouts = paper_layouts(grouped)
    parts = parts_of(grouped.configurations)
    shown = [
        *map(variants_table, parts),
        *layouts,
        *significance_tables(grouped.configurations),
        *(table for search in folder.searches for table in search_tables(search)),
        warnings_table(grouped),
    ]
    shown = [table for table in shown if table.rows]
    problems = problems_table(folder, grouped)
    counts = {**count(grouped), "problems": len(problems.rows)}
    place = runs if out is None else out
    texts = {
        "report.html": write_page(grouped, folder, layouts, problems, counts),
        "results.csv": results_csv(grouped, layouts),
        "results.md": as_markdown(shown),
        "results.tex": as_latex(shown),
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomically(place / name, visible(text))
    except OSError as error:
        raise ReportError(
            f"the report cannot be written into {place}: {error}. Give another folder with out=."
        ) from error
    page, *results = (place / name for name in texts)
    return Report(
        page,
        tuple(results),
        best_table(parts, folder.searches),
        tuple(map(short_table, parts)),
        counts,
    )
