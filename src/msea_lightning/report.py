"""``python -m msea_lightning.report runs=<folder>``: tables and charts from run folders."""

from __future__ import annotations

from pathlib import Path

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import ReportConfig


def report(config: ReportConfig) -> None:
    """Writes the report and says where it is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from msea_lightning.config.text import visible
    from msea_lightning.reporting.report import write_report

    runs = Path(config.runs).expanduser()
    out = None if config.out is None else Path(config.out).expanduser()
    written = write_report(runs, out)
    console = Console(soft_wrap=True)
    table = Table(*written.best.columns, title=written.best.title, title_justify="left")
    for row in written.best.rows:
        table.add_row(*(escape(visible(text)) for text in row))
    if table.rows:
        console.print(table)
    counts = (f"{name}: {number}" for name, number in written.counts.items())
    console.print("; ".join(counts))
    for path in (written.page, *written.results):
        console.print(visible(str(path)), markup=False, highlight=False)


def main() -> None:
    """The command line."""
    launch(report, config_name="report", root=ReportConfig)


if __name__ == "__main__":
    main()
