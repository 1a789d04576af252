"""Tables, statistics and charts from run folders.

:func:`write_report` is the entry point. It reads folders (``folders``), joins the runs that differ
in the seed alone (``grouping``, ``statistics``), and shows them (``tables``, ``results``,
``formats``, ``charts``, ``page``).
"""

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
    significance_tables,
    warnings_table,
)
from msea_lightning.runs.files import write_atomically


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        page: ``report.html``.
        results: ``results.csv``, ``results.md`` and ``results.tex``.
        best: The best configuration of each data set.
        counts: How many of what there is.
    """

    page: Path
    results: tuple[Path, ...]
    best: Table
    counts: dict[str, int]


def write_report(runs: Path, out: Path | None = None) -> Report:
    """Writes ``report.html`` and ``results.csv``, ``.md`` and ``.tex`` from all run folders.

    ``results.*`` are the same byte for byte for the same results, whatever the folders are called.

    Args:
        runs: A folder with run folders anywhere beneath it.
        out: Where to write; ``runs`` itself where not given. It is made where it is missing.

    Raises:
        ReportError: if there is no such folder, no run folder in it, or ``out`` cannot be written.
    """
    folder = read_folder(runs)
    grouped = group(folder)
    layouts = paper_layouts(grouped)
    shown = [*layouts, *significance_tables(grouped), warnings_table(grouped)]
    shown = [table for table in shown if table.rows]
    problems = problems_table(folder, grouped)
    counts = {**count(grouped), "problems": len(problems.rows)}
    place = runs if out is None else out
    texts = {
        "report.html": write_page(grouped, layouts, problems, counts),
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
    return Report(page, tuple(results), best_table(grouped.configurations), counts)
