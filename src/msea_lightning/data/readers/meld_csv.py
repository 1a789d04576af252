"""MELD as its authors publish it: three CSV files, to begin with when there are no features.

``train_sent_emo.csv``, ``dev_sent_emo.csv`` and ``test_sent_emo.csv`` (or without ``_sent_emo``) in
a folder, with the columns ``Utterance``, ``Speaker``, ``Emotion``, ``Dialogue_ID``,
``Utterance_ID`` and, where they are there, ``Season``, ``Episode``, ``StartTime`` and ``EndTime``.
They are read as the reader of own tables reads them (:mod:`.table`): an utterance is called
``train/dia0_utt3`` after the split in its file's name, and features lie in
``audio/train/dia0_utt3.npy`` and its like, or there are none. Rows keep their order, which is that
of the dialogues; words that come again are utterances of their own.

The authors' files hold punctuation of Windows-1252 as control characters (U+0092 for the
apostrophe): it is repaired. Season, episode and times are in no answer; they show what the order
of the utterances is worth, which a note says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from msea_lightning.data.files.errors import MissingFileError, ReadError
from msea_lightning.data.files.rows import Row
from msea_lightning.data.readers.columns import OwnRows, are_of_meld, find_tables, split_in
from msea_lightning.data.readers.reading import NEEDED_SPLITS, SPLIT_NAMES
from msea_lightning.data.readers.table import TableLayout

_SCENE = ("Season", "Episode", "StartTime", "EndTime")
_NUMBERS = re.compile(r".*dia(\d+)_utt(\d+)")
_TIME = re.compile(r"(\d+):(\d\d):(\d\d(?:[.,]\d+)?)", re.ASCII)


class Meld_CsvLayout(TableLayout):
    """The three label files of MELD, and the features beside them."""

    def find(self, path: Path) -> list[Path]:
        """The label files, and all features beside them; a file stands for its folder."""
        path = path.parent if path.is_file() else path
        found = super().find(path)
        tables = find_tables(path, self.dataset.columns)
        if not are_of_meld(path):
            raise ReadError(
                f"{path}: {', '.join(table.name for table in tables)} are no label files of MELD, "
                "which have the columns Utterance, Speaker, Emotion, Dialogue_ID and Utterance_ID. "
                "Check dataset.path, or read a table of your own with dataset=table."
            )
        splits = {SPLIT_NAMES.get(split_in(table), "") for table in tables}
        if missing := [split for split in NEEDED_SPLITS if split not in splits]:
            named = " and no ".join(f"{split}_sent_emo.csv" for split in missing)
            raise MissingFileError(f"{path} holds no {named}")
        return found

    def read(self, also: Sequence[str] = _SCENE) -> OwnRows:
        """The rows, with their texts and speakers repaired; notes on that and on the dialogues."""
        found = super().read(also)
        repaired = 0
        for row in found.rows:
            for name in ("text", "speaker"):
                text = repair(row.values[name])
                repaired += text != row.values[name]
                row.values[name] = text
        if repaired:
            found.notes.append(
                f"{repaired:,} texts and names had punctuation of Windows-1252 as control "
                "characters (U+0092 for an apostrophe): repaired"
            )
        found.notes.extend(_about_dialogues(found.rows))
        return found


def repair(text: str) -> str:
    """The text with the punctuation of Windows-1252 that was decoded as control characters."""
    return text.translate(_WINDOWS)


_WINDOWS = {
    code: character
    for code in range(0x80, 0xA0)
    if (character := bytes([code]).decode("cp1252", "ignore"))
}


def _about_dialogues(rows: Sequence[Row]) -> list[str]:
    """Sentences on dialogues that lack utterances, and on what the times say of their order."""
    dialogues: dict[str, list[Row]] = {}
    for row in rows:
        dialogues.setdefault(row.values["group"], []).append(row)
    lacking = sum(
        [_number(row) for row in dialogue] != list(range(len(dialogue)))
        for dialogue in dialogues.values()
    )
    notes = []
    if lacking:
        notes.append(
            f"{lacking:,} of {len(dialogues):,} dialogues lack utterances, or have them in another "
            "order than their numbers: those that are there follow one another as in the file"
        )
    episodes = {(row.values["Season"], row.values["Episode"]) for row in rows} - {("", "")}
    spoken = [(_seconds(row.values["StartTime"]), _seconds(row.values["EndTime"])) for row in rows]
    hours = sum(end - start for start, end in spoken if end > start) / 3600
    back = sum(
        _seconds(later.values["StartTime"]) < _seconds(earlier.values["StartTime"])
        for dialogue in dialogues.values()
        for earlier, later in pairwise(dialogue)
    )
    if episodes and hours:
        notes.append(
            f"the dialogues are of {len(episodes):,} episodes, {hours:.1f} hours of speech; "
            f"{back:,} utterances begin, by their times, before the one that they follow: the "
            "order of the files is kept"
        )
    return notes


def _number(row: Row) -> int | None:
    """The number of an utterance in its dialogue."""
    found = _NUMBERS.fullmatch(row.values["id"])
    return int(found[2]) if found else None


def _seconds(text: str) -> float:
    """A time such as ``00:16:16,059`` in seconds; NaN where it is none, which is before nothing."""
    found = _TIME.fullmatch(text)
    if found is None:
        return math.nan
    hours, minutes, seconds = found.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
