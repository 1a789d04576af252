"""Rows of a CSV file, with the line that each begins on."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from msea_lightning.data.files.errors import ReadError, shorten

_HEAD = 1 << 16
"""Bytes in which the first two rows of a table are looked for."""


class Row(NamedTuple):
    """The line that a row begins on, its fields by column, stripped but for the text; the file."""

    line: int
    values: dict[str, str]
    file: Path


class Rows(NamedTuple):
    """What a table holds.

    Attributes:
        rows: Its rows.
        separator: What separates its fields.
        ignored: Columns that were not asked for.
        columns: All columns, as they are called in its first row.
    """

    rows: list[Row]
    separator: str
    ignored: list[str]
    columns: list[str]


class Column(NamedTuple):
    """Where the values of one of our columns are.

    Attributes:
        names: Columns of the file, in any case.
        form: How their values are put together, such as ``dia{}_utt{}``; joined by underscores
            where it is empty.
    """

    names: tuple[str, ...]
    form: str = ""

    def join(self, values: Sequence[str]) -> str:
        """One value of those in the columns."""
        return self.form.format(*values) if self.form else "_".join(values)

    def __str__(self) -> str:
        return self.join([f"<{name}>" for name in self.names] if self.form else self.names)


@dataclass(frozen=True)
class Table:
    """A CSV file as it is.

    Attributes:
        columns: As they are called in its first row; none where the file is empty.
        rows: The line that each row begins on, and its fields.
    """

    path: Path
    columns: list[str]
    rows: list[tuple[int, list[str]]]
    separator: str

    def called(self, name: str) -> str | None:
        """How a column is called in the file; None where there is none."""
        if name in self.columns:
            return name
        return next((one for one in self.columns if one.lower() == name.lower()), None)

    def pick(self, columns: Mapping[str, Column]) -> list[Row]:
        """The rows with the given columns alone; ReadError where a row has not as many fields."""
        places = {
            name: [self._place(part) for part in column.names] for name, column in columns.items()
        }
        rows = []
        for line, fields in self.rows:
            if len(fields) != len(self.columns):
                raise ReadError(
                    f"{self.path}, line {line} has {len(fields)} fields, the header has "
                    f"{len(self.columns)}. Put double quotes around a field that holds the "
                    f"separator '{self.separator}', as in \"well{self.separator} no\"."
                )
            values = {}
            for name, column in columns.items():
                parts = [fields[place] for place in places[name]]
                plain = len(parts) == 1 and not column.form
                value = parts[0] if plain else column.join([part.strip() for part in parts])
                values[name] = value if name == "text" else value.strip()
            rows.append(Row(line, values, self.path))
        return rows

    def _place(self, name: str) -> int:
        """The number of a column, in any case."""
        exact = name in self.columns
        columns = self.columns if exact else [one.lower() for one in self.columns]
        wanted = name if exact else name.lower()
        if columns.count(wanted) > 1:
            raise ReadError(f"{self.path} has more than one column {name}. Keep one of them.")
        return columns.index(wanted)


def read_rows(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Rows:
    """Reads a CSV file: in UTF-8 or UTF-16, with commas, semicolons or tabs, and double quotes.

    Its first row names the columns, in any order and in any case. Optional columns are empty where
    they are missing; others are ignored.
    """
    table = read_table(path)
    if not table.columns:
        names = ", ".join(required or optional)
        raise ReadError(f"{path} is empty. Its first row names the columns: {names}.")
    missing = [name for name in required if table.called(name) is None]
    if missing:
        raise ReadError(missing_columns(table, missing))
    wanted = dict.fromkeys((*required, *optional, "text"))
    there = {name: Column((name,)) for name in wanted if table.called(name) is not None}
    empty = dict.fromkeys(wanted, "")
    rows = [Row(line, empty | values, file) for line, values, file in table.pick(there)]
    ignored = [name for name in table.columns if name.lower() not in wanted]
    return Rows(rows, table.separator, ignored, table.columns)


def missing_columns(table: Table, missing: Sequence[str]) -> str:
    """A sentence on columns that a table lacks."""
    return (
        f"{table.path} has no column {' and no column '.join(missing)}; found "
        f"{shorten(table.columns)}. The first row names the columns, separated by commas, "
        "semicolons or tabs."
    )


def read_table(path: Path) -> Table:
    """Reads a CSV file as it is."""
    try:
        raw = path.read_bytes()
        content = raw.decode(_encoding(raw))
    except FileNotFoundError as error:
        raise ReadError(f"{path}: there is no such file. Give a CSV file.") from error
    except IsADirectoryError as error:
        raise ReadError(f"{path} is a folder. Give a CSV file.") from error
    except OSError as error:
        raise ReadError(
            f"{path} cannot be read ({error.strerror}). Check the file and its permissions."
        ) from error
    except UnicodeDecodeError as error:
        if error.encoding != "utf-8":
            raise ReadError(
                f"{path} begins as UTF-16 does, and is not: {error.reason} at byte "
                f"{error.start:,}. Save it as UTF-8."
            ) from error
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ReadError(
            f"{path}, line {line} is not UTF-8 (byte {error.object[error.start]:#04x}). Save it "
            'as UTF-8; spreadsheets call it "CSV UTF-8".'
        ) from error
    return _parse(path, content)


def read_head(path: Path) -> Table:
    """The columns and the first row of a CSV file; none where it cannot be read as one."""
    with suppress(OSError, ReadError), path.open("rb") as file:
        raw = file.read(_HEAD)
        return _parse(path, raw.decode(_encoding(raw), "ignore"), most=2)
    return Table(path, [], [], ",")


def _encoding(raw: bytes) -> str:
    """UTF-8, or the UTF-16 that spreadsheets call "Unicode text", which says so at its start."""
    is_wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return "utf-16" if is_wide else "utf-8-sig"


def _parse(path: Path, content: str, most: int | None = None) -> Table:
    """All rows that are not blank, or the first of them; the first one names the columns."""
    header = re.split(r"[\r\n]", content.lstrip(), maxsplit=1)[0]

    def likeness(sign: str) -> tuple[bool, int]:
        # A column's name may hold what separates in other tables.
        names = [name.strip(' "').lower() for name in header.split(sign)]
        return "id" in names, len(names)

    separator = max(",;\t", key=likeness)
    # Strict, because otherwise a quote that is not closed swallows the rest of the file.
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = 1
    limit = csv.field_size_limit(max(len(content), 1))
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                rows.append((line, fields))
            line = reader.line_num + 1
            if len(rows) == most:
                break
    except csv.Error as error:
        raise ReadError(
            f"{path}, in the row from line {line} on: {error}. Put double quotes around a "
            "field that holds quotes, and write each of them twice."
        ) from error
    finally:
        csv.field_size_limit(limit)
    columns = [name.strip() for name in rows[0][1]] if rows else []
    return Table(path, columns, rows[1:], separator)
