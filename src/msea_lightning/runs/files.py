"""Writing files so that each is either absent or complete."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msea_lightning.config.errors import ConfigError


def write_atomically(path: Path, text: str) -> None:
    """Writes a UTF-8 text file through a temporary one, whatever else writes it meanwhile."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, values: Any) -> None:
    """Writes JSON atomically; what is undefined (NaN) becomes null."""
    write_atomically(path, json.dumps(_defined(values), indent=2, ensure_ascii=False) + "\n")


def json_target(option: str, name: str | None, *, replaces: bool) -> Path | None:
    """The file that an option names for numbers, which may exist where it ``replaces`` one."""
    if name is None:
        return None
    target = Path(name).expanduser()
    flaws = {
        "is a folder": target.is_dir(),
        "is in a folder that does not exist": not target.absolute().parent.is_dir(),
        "exists already": target.exists() and not replaces,
    }
    flaw = next((words for words, holds in flaws.items() if holds), None)
    if flaw:
        raise ConfigError(
            f"{option}={target} {flaw}: give a new file in a folder that exists, such as "
            f"{option}=numbers.json; with -m one for each job."
        )
    return target


def _defined(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _defined(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV file atomically; see :func:`csv_text`."""
    write_atomically(path, csv_text(columns, rows))


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A CSV file with a header; a missing value is an empty field."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
