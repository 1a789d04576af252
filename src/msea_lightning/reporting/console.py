"""Tables of a report in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from msea_lightning.config.text import visible
from msea_lightning.reporting.tables import Table


def print_table(table: Table, console: Console) -> None:
    """Prints a table in the console's width.

    Words are folded where they take more than half of it. Columns of numbers that do not fit beside
    them go into a grid of their own below, with the words again. Nothing without rows.
    """
    if not table.rows:
        return
    texts = [[visible(text) for text in row] for row in (table.columns, *table.rows)]
    widths = [max(map(cell_len, column)) + 3 for column in zip(*texts, strict=True)]
    most = max(12, console.width // 2 // table.words)
    words = sum(min(width, most) for width in widths[: table.words])
    console.print(Text(visible(table.title), style="bold"))
    numbers = range(table.words, len(widths))
    for kept in _blocks([widths[index] for index in numbers], console.width - words):
        grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        for index in (*range(table.words), *(numbers[place] for place in kept)):
            is_word = index < table.words
            grid.add_column(
                Text(texts[0][index]),
                justify="left" if is_word else "right",
                overflow="fold",
                max_width=most - 2 if is_word else None,
                no_wrap=not is_word,
            )
        for row in texts[1:]:
            grid.add_row(
                *(Text(row[index]) for index in range(table.words)),
                *(Text(row[numbers[place]]) for place in kept),
            )
        console.print(grid)


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Places of columns that fit beside each other, in order; at least one in each block."""
    blocks: list[list[int]] = [[]]
    for place, width in enumerate(widths):
        if blocks[-1] and sum(widths[other] for other in blocks[-1]) + width > room:
            blocks.append([])
        blocks[-1].append(place)
    return blocks
