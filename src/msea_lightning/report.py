"""``python -m msea_lightning.report runs=<folder>``: tables and charts from run folders."""

from __future__ import annotations

from pathlib import Path

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import ReportConfig


def report(config: ReportConfig) -> None:
    """Writes the report, shows the means of all variants, and says where it is."""
    from rich.console import Console

    from msea_lightning.config.text import visible
    from msea_lightning.reporting.console import print_table
    from msea_lightning.reporting.report import write_report

    runs = Path(config.runs).expanduser()
    out = None if config.out is None else Path(config.out).expanduser()
    written = write_report(runs, out)
    console = Console(soft_wrap=True)
    for table in written.tables:
        print_table(table, console)
    counts = (f"{name}: {number}" for name, number in written.counts.items())
    console.print("; ".join(counts))
    for path in (written.page, *written.results):
        console.print(visible(str(path)), markup=False, highlight=False)


def main() -> None:
    """The command line."""
    launch(report, config_name="report", root=ReportConfig)


if __name__ == "__main__":
    main()
