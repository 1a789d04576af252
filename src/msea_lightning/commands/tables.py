"""Tables in the terminal, all of one look."""

from __future__ import annotations

from rich import box
from rich.table import Table


def plain_table(title: str, *columns: str, padding: int = 1) -> Table:
    """A table without a frame, its title on the left, so many blanks after each column."""
    return Table(
        *columns,
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, padding, 0, 0),
    )
