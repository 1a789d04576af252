"""Rows of a CSV file, with the line that each begins on."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from msea_lightning.data.files.errors import ReadError, shorten


class Row(NamedTuple):
    """The line that a row begins on, and its fields by column, stripped but for the text."""

    line: int
    values: dict[str, str]


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


def read_rows(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Rows:
    """Reads a CSV file: UTF-8, separated by commas, semicolons or tabs, with double quotes.

    Its first row names the columns, in any order and in any case. Optional columns are empty where
    they are missing; others are ignored.
    """
    parsed, separator = _parse(path)
    if not parsed:
        names = ", ".join(required or optional)
        raise ReadError(f"{path} is empty. Its first row names the columns: {names}.")
    (_, header), *rows = parsed
    columns = [name.strip().lower() for name in header]
    missing = [name for name in required if name not in columns]
    if missing:
        raise ReadError(
            f"{path} has no column {' and no column '.join(missing)}; found "
            f"{shorten(name.strip() for name in header)}. The first row names the columns, "
            "separated by commas, semicolons or tabs."
        )
    doubles = [name for name in (*required, *optional) if columns.count(name) > 1]
    if doubles:
        raise ReadError(f"{path} has more than one column {doubles[0]}. Keep one of them.")
    result = []
    for line, fields in rows:
        if len(fields) != len(columns):
            raise ReadError(
                f"{path}, line {line} has {len(fields)} fields, the header has {len(columns)}. Put "
                f"double quotes around a field that holds the separator '{separator}', as in "
                f'"well{separator} no".'
            )
        found = dict(zip(columns, fields, strict=True))
        values = {name: found.get(name, "").strip() for name in (*required, *optional)}
        result.append(Row(line, values | {"text": found.get("text", "")}))
    known = {*required, *optional, "text"}
    ignored = [shown for name, shown in zip(columns, header, strict=True) if name not in known]
    return Rows(result, separator, ignored, [name.strip() for name in header])


def _parse(path: Path) -> tuple[list[tuple[int, list[str]]], str]:
    """Each row that is not blank, with the line it begins on; and the separator."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ReadError(f"{path}: there is no such file. Give a CSV file.") from error
    except IsADirectoryError as error:
        raise ReadError(f"{path} is a folder. Give a CSV file.") from error
    except OSError as error:
        raise ReadError(
            f"{path} cannot be read ({error.strerror}). Check the file and its permissions."
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ReadError(
            f"{path}, line {line} is not UTF-8 (byte {error.object[error.start]:#04x}). Save it "
            'as UTF-8; spreadsheets call it "CSV UTF-8".'
        ) from error
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
    except csv.Error as error:
        raise ReadError(
            f"{path}, in the row from line {line} on: {error}. Put double quotes around a "
            "field that holds quotes, and write each of them twice."
        ) from error
    finally:
        csv.field_size_limit(limit)
    return rows, separator
