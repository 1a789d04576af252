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
from msea_lightning.data.readers.checks import to_number
from msea_lightning.data.readers.reading import SPLIT_NAMES
from msea_lightning.features.clips import Clip, Part
from msea_lightning.features.contract import FeatureError

KEPT = ("label", "label_t", "label_a", "label_v", "split", "group", "speaker")
"""Columns that reach the table as they are."""

_OPTIONAL = ("id", "file", "text", "start", "end", *KEPT)

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
    rows, separator, ignored = read_rows(path, (), _OPTIONAL)
    if ignored:
        _log.warning(
            "columns of %s that are not read: %s. Those that are: %s",
            *(path, shorten(ignored), ", ".join(_OPTIONAL)),
        )
    find = _Finder(clips)
    named: dict[str, list[Row]] = {}
    lost = []
    for row in rows:
        called = row.values["file"] or row.values["id"]
        if not called:
            raise FeatureError(
                f"{path}, line {row.line}: there is neither an id nor a file. Name the clip in the "
                "column id or file."
            )
        clip = find(called)
        if clip is None:
            lost.append(called)
        else:
            named.setdefault(clip.id, []).append(row)
    if not named:
        raise FeatureError(
            f"none of the {len(rows)} rows of {path} names a clip: {shorten(lost, 3)}. Clips are "
            f"called {shorten((clip.file for clip in clips), 3)}; write that in the column file, "
            "with or without suffix."
        )
    if lost:
        _log.warning("%d rows of %s name no clip: %s", len(lost), path, shorten(lost))
    without = [clip.file for clip in clips if clip.id not in named]
    if without:
        _log.warning(
            "%d clips have no row in %s and are left out: %s", len(without), path, shorten(without)
        )
    parts = {
        clip: [
            _part(path, row, clip, number if len(found) > 1 else None, separator)
            for number, row in enumerate(found, start=1)
        ]
        for clip, found in named.items()
    }
    _check(path, parts, [row for found in named.values() for row in found])
    every = [part.columns for found in parts.values() for part in found]
    return Labels(
        parts,
        split=any(columns["split"] for columns in every),
    )


class _Finder:
    """The clip that a row means."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._exact = {clip.file: clip for clip in clips} | {clip.id: clip for clip in clips}
        names: dict[str, list[Clip]] = {}
        for clip in clips:
            path = PurePosixPath(clip.file)
            for name in {path.name, path.stem}:
                names.setdefault(name, []).append(clip)
        self._names = {name: found[0] for name, found in names.items() if len(found) == 1}

    def __call__(self, called: str) -> Clip | None:
        name = unicodedata.normalize("NFC", called).replace("\\", "/").removeprefix("./")
        cue = _CUE.fullmatch(name)
        for candidate in (name, cue[1] if cue else name):
            found = self._exact.get(candidate) or self._names.get(candidate)
            if found is not None:
                return found
        return None


def _part(path: Path, row: Row, clip: str, number: int | None, separator: str) -> Part:
    """The utterance of a row; ``number`` where it is one of several of its clip."""
    values = row.values
    times = []
    for name in ("start", "end"):
        text = values[name] if separator == "," else values[name].replace(",", ".")
        time = to_number(text) if text else None
        if text and (time is None or not 0 <= time < float("inf")):
            raise FeatureError(
                f"{path}, line {row.line}: {name} is '{values[name]}', expected seconds such as "
                "2.5."
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
