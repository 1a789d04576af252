"""What a file says about an utterance, checked and converted; one place for every layout.

Each function takes a value as it is in the file, and where it is for the error message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msea_lightning.data.files.errors import ReadError, is_huge, shorten, show_value
from msea_lightning.data.options import LabelConfig, LabelKind
from msea_lightning.data.utterance import Label, flaw_of_text

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.ASCII | re.I)
# What spreadsheets and pandas write where there is no label.
_MISSING = ("", "nan", "na", "n/a", "#n/a", "<na>", "null")


class Frames(NamedTuple):
    """A feature sequence of one utterance, as in the file.

    Attributes:
        values: (L, d) numbers, possibly padded.
        length: How many of the L frames are real, from the first on. None where the file does not
            say: then the frames before the first and after the last one that holds anything but
            zeros are padding.
    """

    values: Any
    length: Any

    @classmethod
    def whole(cls, values: NDArray[Any]) -> Frames:
        """Frames that are all real; a single vector (d,) is one frame."""
        values = values[None] if values.ndim == 1 else values
        return cls(values, len(values) if values.ndim else 0)


def members(item: Any, names: Sequence[str], where: str) -> Mapping[Any, Any]:
    """The item, which must be a dictionary that has these keys."""
    if not isinstance(item, Mapping):
        raise ReadError(
            f"{where} is a {type(item).__name__}, expected {', '.join(names)}. Check "
            "dataset.reader and dataset.path."
        )
    missing = [name for name in names if name not in item]
    if missing:
        raise ReadError(
            f"{where} lacks {', '.join(missing)}; found {shorten(map(str, item))}. Check "
            "dataset.reader, or fetch the file again."
        )
    return item


def to_number(text: str) -> float | None:
    """The number in plain decimal notation, or None; ``float`` takes ``1_0`` and other scripts."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def given_labels(texts: Sequence[str], names: Sequence[str] = ()) -> dict[int, str]:
    """The labels of a column by row, without those missing; ``names`` are labels in any case."""
    return {
        index: text
        for index, text in enumerate(texts)
        if text in names or text.lower() not in _MISSING
    }


def numbers_among(labels: Mapping[int, str], separator: str) -> dict[int, float]:
    """Those labels of a column that are numbers; where all are, they are intensities.

    They may have a decimal comma where commas do not separate the fields.
    """
    read = ((index, to_number(decimal_point(text, separator))) for index, text in labels.items())
    return {index: number for index, number in read if number is not None}


def decimal_point(text: str, separator: str) -> str:
    """A number as it is in a table, with a point where it has a decimal comma."""
    return text if separator == "," else text.replace(",", ".")


def identity(value: Any) -> str:
    """An id as text; of several parts, joined with underscores."""
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    parts = value if isinstance(value, list | tuple) else [value]
    names = [part.decode("utf-8", "replace") if isinstance(part, bytes) else part for part in parts]
    if not all(isinstance(name, str | int | float) and not is_huge(name) for name in names):
        raise ReadError(
            f"the id {show_value(value)} is neither text nor a number. Correct the file."
        )
    return "_".join(map(str, names))


def words(value: Any, where: str) -> str:
    """The transcript; empty where it has no words."""
    text = _single(value)
    if not isinstance(text, str):
        raise ReadError(
            f"{where} has a text of type {type(text).__name__}, expected words. Check "
            "dataset.reader, or give the utterance its transcript."
        )
    if flaw := flaw_of_text(text):
        raise ReadError(f"{where} has a text that is {flaw}.")
    return text if text.strip() else ""


def label(value: Any, config: LabelConfig, where: str) -> Label:
    """The label as the data set's options say: an intensity or a name."""
    value = _single(value)
    value = (value.strip() or None) if isinstance(value, str) else value
    if value is None:
        raise ReadError(f"{where} has no label. Label it or remove it.")
    if config.kind is LabelKind.emotions or (config.kind is LabelKind.infer and config.names):
        return _emotion(value, config.names, where)
    if config.kind is LabelKind.infer and isinstance(value, str):
        return value
    return _intensity(value, config, where)


def frames(name: str, found: Frames, where: str) -> NDArray[Any]:
    """The real frames (L, d) of a feature sequence, of whatever number type the file has."""
    try:
        values = _table(found.values)
    except ValueError as error:
        raise ReadError(
            f"{where} has {name} features that are not a table of numbers ({error}). Extract them "
            "anew."
        ) from error
    if values.dtype.kind not in "biuf" or values.ndim != 2:
        raise ReadError(
            f"{where} has {name} features of type {values.dtype} and shape {values.shape}, "
            "expected numbers (frames, features). Extract them anew, one row per frame."
        )
    values = values if values.shape[1] else values[:0]  # frames without numbers are none
    if found.length is None:
        # Comparing with 0 keeps NaN: a frame of NaN is broken, not padding.
        filled = np.flatnonzero((values != 0).any(axis=1))
        return values[filled[0] : filled[-1] + 1] if len(filled) else values[:0]
    length = _single(found.length)
    is_count = isinstance(length, int | float) and length == length // 1
    if not is_count or not 0 <= length <= len(values):
        raise ReadError(
            f"{where} has the {name} length {show_value(length)}, but {len(values)} frames of "
            "features; expected a whole number up to it. Correct it, or fetch the file again."
        )
    return values[: int(length)]


def _table(values: Any) -> NDArray[Any]:
    """An array of rows; in lists, no row may hold lists, which can share others without end."""
    if isinstance(values, list | tuple):
        rows = (row for row in values if isinstance(row, list | tuple))
        if any(isinstance(cell, list | tuple) for row in rows for cell in row):
            raise ValueError("there are lists in its rows")
    return np.asarray(values)


def _single(value: Any) -> Any:
    """The one value in an array or list of one; text of bytes, infinity of a huge integer."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.item() if value.size == 1 else value.tolist()
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if is_huge(value):
        return math.copysign(math.inf, value > 0 or -1)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _emotion(value: Any, names: Sequence[str], where: str) -> str:
    if isinstance(value, str | int | float):
        number = to_number(str(value))
        for name in names:
            # Class numbers: 3, 3.0 and "3" are the same name.
            if value == name or (number is not None and number == to_number(name)):
                return name
    raise ReadError(
        f"{where} has the unknown label {show_value(value)}; dataset.labels.names lists "
        f"{', '.join(names)}. Correct the label, remove the utterance, or add the name."
    )


def _intensity(value: Any, config: LabelConfig, where: str) -> float:
    number = to_number(value) if isinstance(value, str) else value
    if not isinstance(number, int | float):
        raise ReadError(
            f"{where} has the label {show_value(value)}, which is not a number, but the labels are "
            "intensities. Correct it, or set dataset.labels.kind=emotions and dataset.labels.names."
        )
    if not math.isfinite(number):
        raise ReadError(f"{where} has the label {number}. Give it a finite intensity or remove it.")
    low = -math.inf if config.low is None else config.low
    high = math.inf if config.high is None else config.high
    if not low - 1e-6 <= number <= high + 1e-6:  # float32 is off by less
        raise ReadError(
            f"{where} has the label {number:g}, out of range from {low:g} to {high:g}. Correct it, "
            "remove the utterance, or change dataset.labels.low and dataset.labels.high."
        )
    return float(number)
