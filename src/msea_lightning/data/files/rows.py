"""Rows of a CSV file, with the line that each begins on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msea_lightning.data.readers.record import ReadError, shorten


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        line: The line of the file that it begins on, counted from 1.
        values: Its fields by column.
    """

    line: int
    values: dict[str, str]


def read_rows(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """Reads a CSV file: UTF-8 with or without a byte order mark, commas, double quotes.

    Args:
        path: The file; its first row names the columns, in any order and in any case.
        required: Columns that must be there.
        optional: Columns that may be there; they are empty where they are not. Others are ignored.

    Raises:
        ReadError: naming the file and the line, where it is not UTF-8, not CSV, lacks a column or
            has rows that do not fit its header.
    """
    rows = _parse(path, _decode(path))
    header = next(rows, None)
    if header is None:
        raise ReadError(f"{path} is empty. Its first row names the columns: {', '.join(required)}.")
    columns = [name.strip().lower() for name in header[1]]
    missing = [name for name in required if name not in columns]
    if missing:
        raise ReadError(
            f"{path} has no column {' and no column '.join(missing)}; found "
            f"{shorten(name.strip() for name in header[1])}. The first row names the columns, "
            "separated by commas."
        )
    wanted = [name for name in (*required, *optional) if name in columns]
    doubles = [name for name in wanted if columns.count(name) > 1]
    if doubles:
        raise ReadError(f"{path} has more than one column {doubles[0]}. Keep one of them.")
    result = []
    for line, fields in rows:
        if len(fields) != len(columns):
            raise ReadError(
                f"{path}, line {line} has {len(fields)} fields, the header has {len(columns)}. Put "
                'double quotes around a field that holds a comma, as in "well, no".'
            )
        found = dict(zip(columns, fields, strict=True))
        result.append(Row(line, {name: found.get(name, "") for name in (*required, *optional)}))
    return result


def _decode(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReadError(
            f"{path} cannot be read ({error.strerror or error}): check its permissions."
        ) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ReadError(
            f"{path}, line {line} is not UTF-8 (byte {content[error.start]:#04x}). Save the file "
            'as UTF-8; spreadsheets call it "CSV UTF-8".'
        ) from error


def _parse(path: Path, content: str) -> Iterator[tuple[int, list[str]]]:
    """Yields each row that is not blank, with the line it begins on."""
    # Strict, because otherwise a quote that is not closed swallows the rest of the file.
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ReadError(
                f"{path}, in the row from line {line} on: {error}. Put double quotes around a "
                "field that holds quotes, and write each of them twice."
            ) from error
        if any(field.strip() for field in fields):
            yield line, fields
