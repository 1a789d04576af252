"""``python -m msea_lightning.report runs=<folder>``: tables and charts from run folders."""

from __future__ import annotations

from pathlib import Path

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import ReportConfig


def report(config: ReportConfig) -> None:
    """Writes the report and says where it is.

    Args:
        config: The folder of runs, and where to write.

    Raises:
        UserError: if there is no such folder, no run folder in it, or nowhere to write.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from msea_lightning.reporting import write_report
    from msea_lightning.reporting.page import best_cells

    runs = Path(config.runs).expanduser()
    out = None if config.out is None else Path(config.out).expanduser()
    written = write_report(runs, out)
    console = Console(soft_wrap=True)
    table = Table(title="best mean on the test part", title_justify="left")
    for heading in ("data set", "model", "metric", "mean ± sd", "n"):
        table.add_column(heading)
    for item in best_cells(written.cells):
        entries = (item.dataset, item.cell, item.metric, item.value, item.seeds)
        table.add_row(*(escape(text) for text in entries))
    if table.rows:
        console.print(table)
    counts = written.counts
    console.print(
        f"finished runs: {counts.finished}; cells: {counts.cells}; missing: {counts.missing}, of "
        f"these failed: {counts.failed}; problems: {written.problems}"
    )
    for path in (written.page, *written.results):
        console.print(str(path), markup=False, highlight=False)


def main() -> None:
    """The command line."""
    launch(report, config_name="report", root=ReportConfig)


if __name__ == "__main__":
    main()
