"""Tables as Markdown and LaTeX; the page writes HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from msea_lightning.config.text import visible
from msea_lightning.reporting.tables import Table


def as_markdown(tables: Sequence[Table]) -> str:
    """Tables as GitHub writes them."""
    blocks = ["# Results"]
    for table in tables:
        rows = [table.columns, *table.rows]
        lines = ["| " + " | ".join(map(_for_markdown, entries)) + " |" for entries in rows]
        align = table.words * ["---"] + table.numbers * ["---:"]
        lines.insert(1, "| " + " | ".join(align) + " |")
        blocks += [f"## {_for_markdown(table.title)}", "\n".join(lines), _for_markdown(table.note)]
    return "\n\n".join(blocks) + "\n"


def _for_markdown(text: str) -> str:
    """Text that Markdown shows as it is."""
    escaped = re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", visible(" ".join(text.split())))
    return html.escape(escaped, quote=False)


def as_latex(tables: Sequence[Table]) -> str:
    r"""Tables for ``\input`` into a document that loads booktabs; UTF-8, so that names stay."""
    blocks = ["% Needs \\usepackage{booktabs}; names in Chinese need XeLaTeX or LuaLaTeX with CJK."]
    for table in tables:
        lines = [
            r"\begin{table}[htbp]",
            r"\centering\footnotesize",
            rf"\caption{{{_for_latex(table.title)}. {_for_latex(table.note)}}}",
            rf"\label{{tab:{re.sub('[^A-Za-z0-9.-]', '-', table.key)}}}",
            rf"\begin{{tabular}}{{{table.words * 'l'}{table.numbers * 'r'}}}",
            r"\toprule",
            _latex_row(table.columns),
            r"\midrule",
            *map(_latex_row, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _latex_row(entries: Iterable[str]) -> str:
    # An entry that begins with a bracket would be read as an option of the \\ before it.
    return " & ".join(_for_latex(entry).replace("[", "{[}") for entry in entries) + r" \\"


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)


def _for_latex(text: str) -> str:
    """Text that LaTeX sets as it is; a minus before a digit becomes one."""
    escaped = visible(" ".join(text.split())).translate(_LATEX)
    return re.sub(r"^-(?=\d)", "$-$", escaped)
