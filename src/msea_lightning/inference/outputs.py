"""Answers as rows of CSV or lines of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.inference.inputs import InputRow
from msea_lightning.plugin.answer import Answer
from msea_lightning.runs.files import csv_text, write_atomically

COLUMNS = (
    "id",
    "text",
    "label",
    "prediction",
    "probability",
    "mean",
    "median",
    "low",
    "high",
    "distribution",
    "error",
)
"""``low`` and ``high`` are the 80 % interval; ``error`` is why there is no prediction."""


class OutputError(UserError):
    """Answers that cannot be written."""


def answer_values(answer: Answer) -> dict[str, Any]:
    """What is written of an answer, in numbers with all digits."""
    low, high = answer.interval or (None, None)
    return {
        "prediction": answer.label,
        "probability": answer.probability,
        "mean": answer.mean,
        "median": answer.median,
        "low": low,
        "high": high,
        "distribution": {str(label): mass for label, mass in answer.distribution.items()},
    }


def rendered(rows: Sequence[InputRow], found: Sequence[Mapping[str, Any]], *, as_csv: bool) -> str:
    r"""The output's text: a row or line for each utterance, in their order.

    Half a character, as in the name of a file that is not UTF-8, is written as ``\udcff``.
    """
    lines = [
        {"id": row.id, "text": row.text, "label": row.label, **values}
        for row, values in zip(rows, found, strict=True)
    ]
    if not as_csv:
        kept = (
            {key: value for key, value in line.items() if key == "id" or value not in (None, "")}
            for line in lines
        )
        return _encodable("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
    for line in lines:
        if line.get("distribution") is not None:
            line["distribution"] = json.dumps(line["distribution"], ensure_ascii=False)
    return _encodable(csv_text(COLUMNS, lines))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_output(path: Path, rows: Sequence[InputRow], found: Sequence[Mapping[str, Any]]) -> None:
    """Writes all answers at once, as the suffix of the file says."""
    write_atomically(path, rendered(rows, found, as_csv=path.suffix.lower() == ".csv"))


def print_output(rows: Sequence[InputRow], found: Sequence[Mapping[str, Any]]) -> None:
    """Prints all answers as lines of JSON, in UTF-8 whatever the terminal's own encoding is.

    Raises:
        OutputError: if standard output is closed or full.
    """
    text = rendered(rows, found, as_csv=False)
    buffer = getattr(sys.stdout, "buffer", None)  # notebooks have none
    try:
        if buffer is None:
            sys.stdout.write(text)
        else:
            sys.stdout.flush()
            buffer.write(text.encode("utf-8"))
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would fail once more when Python ends.
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        raise OutputError(
            f"The answers cannot be written to standard output ({error.strerror}): give a file, "
            "output=answers.jsonl."
        ) from error


def output_path(name: str, *, overwrite: bool) -> Path:
    """The file to write; ConfigError where it exists, or is neither CSV nor lines of JSON."""
    path = Path(name).expanduser().absolute()
    if path.suffix.lower() not in (".csv", ".jsonl", ".ndjson"):
        raise ConfigError(f"output={name}: its name must end in .csv or .jsonl.")
    if not path.parent.is_dir():
        raise ConfigError(f"output={name} is in a folder that does not exist: make it first.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigError(
            f"output={name} exists already: remove it, give another name, or set overwrite=true."
        )
    return path
