"""The user's table of labels and transcripts, matched with the clips that it names."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from msea_lightning.data.files.errors import shorten
from msea_lightning.data.files.rows import Row, read_rows
from msea_lightning.data.readers.checks import (
    decimal_point,
    given_labels,
    numbers_among,
    to_number,
)
from msea_lightning.data.readers.reading import SPLIT_NAMES
from msea_lightning.features.clips import Clip, Part
from msea_lightning.features.contract import FeatureError

KEPT = ("label", "label_t", "label_a", "label_v", "split", "group", "speaker")
"""Columns that reach the table as they are."""

_OPTIONAL = ("id", "file", "text", "start", "end", *KEPT)

_LABELS = tuple(name for name in KEPT if name.startswith("label"))

_LIKE_FILE = ("filename", "file_name", "path", "name", "clip", "video", "audio", "wav")
"""What columns are called elsewhere that name the clip."""

_CUE = re.compile(r"(.+)#\d+")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labels:
    """What the user's table says.

    Attributes:
        rows: The utterances of each clip, by its id.
        split: Whether rows say which split they are in.
    """

    rows: dict[str, list[Part]]
    split: bool


def read_labels(path: Path, clips: Sequence[Clip]) -> Labels:
    """Reads a table with a row per utterance, and says which rows and clips have no counterpart.

    A row names its clip in the column ``file`` or ``id``: its path in the folder of clips with or
    without suffix, or its name alone where that is unique; ``clip#3`` is the third cue of its
    subtitles. Columns ``start`` and ``end`` (seconds) make a row a part of its clip. Others are
    ``label``, ``text``, ``split``, ``group``, ``speaker``, ``label_T``, ``label_A``, ``label_V``.

    Raises:
        FeatureError: naming the line and what is wrong with it, or where no row names a clip.
        ReadError: where the file is no table.
    """
    rows, separator, ignored, header = read_rows(path, (), _OPTIONAL)
    _check_columns(path, header)
    if ignored:
        _log.warning(
            "columns of %s that are not read: %s. Those that are: %s",
            *(path, shorten(ignored), ", ".join(_OPTIONAL)),
        )
    find = _Finder(clips)
    matched: list[Row] = []
    meant: list[str] = []
    lost = []
    for row in rows:
        called = row.values["file"] or row.values["id"]
        if not called:
            raise FeatureError(
                f"{path}, line {row.line}: there is neither an id nor a file. Name the clip in the "
                "column id or file."
            )
        found = find(called)
        if len(found) == 1:
            matched.append(row)
            meant.append(found[0].id)
        elif found:
            either = " or ".join(clip.file for clip in found)
            lost.append(f"{called} (which may be {either}: write the folder too)")
        else:
            lost.append(called)
    if not matched:
        raise FeatureError(
            f"none of the {len(rows)} rows of {path} names one clip: {shorten(lost, 3)}. Clips are "
            f"called {shorten((clip.file for clip in clips), 3)}; write that in the column file, "
            "with or without suffix."
        )
    if lost:
        _log.warning("%d rows of %s do not name one clip: %s", len(lost), path, shorten(lost))
    named: dict[str, list[Row]] = {}
    for clip_id, row in zip(meant, _with_labels(path, matched, separator), strict=True):
        named.setdefault(clip_id, []).append(row)
    without = [clip.file for clip in clips if clip.id not in named]
    if without:
        _log.warning(
            "%d clips have no row in %s and are left out: %s", len(without), path, shorten(without)
        )
    parts = {
        clip: [
            _part(path, row, clip, number if len(its) > 1 else None, separator)
            for number, row in enumerate(its, start=1)
        ]
        for clip, its in named.items()
    }
    _check(path, parts, matched)
    every = [part.columns for its in parts.values() for part in its]
    return Labels(
        parts,
        split=any(columns["split"] for columns in every),
    )


class _Finder:
    """The clips that a row may mean."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._exact: dict[str, list[Clip]] = {}
        self._names: dict[str, list[Clip]] = {}
        for clip in clips:
            path = PurePosixPath(_composed(clip.file))
            self._exact.update({path.as_posix(): [clip], clip.id: [clip]})
            for name in {path.name, path.stem.strip()}:
                self._names.setdefault(name, []).append(clip)

    def __call__(self, called: str) -> list[Clip]:
        name = _composed(called).replace("\\", "/").removeprefix("./")
        cue = _CUE.fullmatch(name)
        for candidate in (name, cue[1] if cue else name):
            found = self._exact.get(candidate) or self._names.get(candidate)
            if found:
                return found
        return []


def _composed(name: str) -> str:
    """A name as rows and clips have it: in NFC, without blanks at its ends."""
    return unicodedata.normalize("NFC", name).strip()


def _check_columns(path: Path, header: Sequence[str]) -> None:
    """Refuses a table in which no column names the clips."""
    found = [name.lower() for name in header]
    if "file" in found or "id" in found:
        return
    likely = next((name for name in header if name.lower() in _LIKE_FILE), None)
    advice = f"Call '{likely}' file" if likely else "Name the clip of each row in a column file"
    raise FeatureError(
        f"{path} has no column file and no column id, only {shorten(header)}. {advice}."
    )


def _with_labels(path: Path, rows: Sequence[Row], separator: str) -> list[Row]:
    """The rows with labels as a table separated by commas has them, empty where they are missing.

    Numbers have a point where all labels of their column are numbers.
    """
    values = [dict(row.values) for row in rows]
    for name in _LABELS:
        texts = [row.values[name] for row in rows]
        found = given_labels(texts)
        if len(numbers_among(found, separator)) == len(found):
            found = {index: decimal_point(text, separator) for index, text in found.items()}
        without = [index for index, text in enumerate(texts) if text and index not in found]
        if without:
            _log.warning(
                "%d rows of %s have no %s: %s",
                *(len(without), path, name),
                shorten(f"line {rows[index].line} '{texts[index]}'" for index in without),
            )
        for index, row in enumerate(values):
            row[name] = found.get(index, "")
    return [row._replace(values=changed) for row, changed in zip(rows, values, strict=True)]


def _part(path: Path, row: Row, clip: str, number: int | None, separator: str) -> Part:
    """The utterance of a row; ``number`` where it is one of several of its clip."""
    values = row.values
    times = []
    for name in ("start", "end"):
        text = values[name]
        time = to_number(decimal_point(text, separator)) if text else None
        if text and (time is None or not 0 <= time < float("inf")):
            raise FeatureError(
                f"{path}, line {row.line}: {name} is '{text}', expected seconds such as 2.5."
            )
        times.append(time)
    start, end = times
    if end is not None and (start or 0.0) >= end:
        raise FeatureError(
            f"{path}, line {row.line}: it begins at {start or 0:g} s and ends at {end:g} s. "
            "Correct its times."
        )
    cue = _CUE.fullmatch(values["id"])
    if number is not None and cue is None and start is None and end is None:
        raise FeatureError(
            f"{path}, line {row.line}: there are several rows of the clip {clip}, and this one "
            "does not say which part of it is meant. Give start or end, or remove the row."
        )
    if values["file"] and values["id"]:
        identity = values["id"]
    elif cue:
        identity = f"{clip}#{values['id'].rpartition('#')[2]}"
    else:
        identity = clip if number is None else f"{clip}#{number}"
    columns = {name: values[name] for name in KEPT}
    if number is not None and not columns["group"]:
        columns["group"] = clip
    return Part(identity, start, end, values["text"].strip() or None, columns)


def _check(path: Path, parts: dict[str, list[Part]], rows: Sequence[Row]) -> None:
    """Refuses ids that are double or no file names, and splits that there are not."""
    seen: set[str] = set()
    for part in (part for found in parts.values() for part in found):
        if part.id in seen:
            raise FeatureError(
                f"{path}: the id '{part.id}' occurs more than once. Give each utterance its own, "
                "or leave the column id out where the column file names the clips."
            )
        seen.add(part.id)
        bad = [name for name in part.id.split("/") if not name.strip() or name.startswith(".")]
        if bad or "\\" in part.id or not part.id.isprintable():
            raise FeatureError(
                f"{path}: the id '{part.id}' cannot be the name of a file, which its features "
                "have. Use printable characters, no \\, and no name that begins with a dot."
            )
    splits = {row.line: row.values["split"] for row in rows}
    for line, split in splits.items() if any(splits.values()) else ():
        if split.lower() not in SPLIT_NAMES:
            raise FeatureError(
                f"{path}, line {line}: the split is '{split}'; splits are "
                f"{', '.join(SPLIT_NAMES)}. Give every row one, or none."
            )
