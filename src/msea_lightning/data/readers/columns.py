"""Which tables there are in a folder, and which of their columns is what.

A column is, in this order: the one that an option names (``dataset.columns.text=Utterance``, or
several joined by ``+``), the one that a known label file has for it, or the one called like ours.
Known label files are recognised by their columns: those of MELD (a file per split), of MMSA
(``label.csv`` of CH-SIMS, MOSI and MOSEI), and tables of IEMOCAP's utterances. A table that has our
columns id and text is none of them.

The split of a row is in a column, or in the file's name, as in ``train_sent_emo.csv``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from msea_lightning.data.files.errors import MissingFileError, ReadError, shorten
from msea_lightning.data.files.rows import (
    Column,
    Row,
    Table,
    missing_columns,
    read_head,
    read_table,
)
from msea_lightning.data.options import ColumnsConfig, Split
from msea_lightning.data.readers.reading import SPLIT_NAMES, list_files

TABLE = "utterances.csv"

LABELS = {"label": "M", "label_t": "T", "label_a": "A", "label_v": "V"}
"""Columns of labels, and what the labels are called in an utterance."""

_COLUMNS = ("id", "split", "text", "group", "speaker", *LABELS)

_WORDS = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Known:
    """A label file that is published, or in wide use.

    Attributes:
        title: What it is called in messages.
        columns: Where our columns are.
        identity: An utterance's id, of what the file has for it.
        split_of: The split of an utterance by its id, where neither a column nor the file's name
            says it; ``rule`` says the same in words.
        per_file: Whether the ids of every file begin anew, so that the split is a part of them.
    """

    title: str
    columns: Mapping[str, Column]
    identity: Callable[[str], str] = str
    split_of: Callable[[str], str] | None = None
    rule: str = ""
    per_file: bool = False


_MELD = Known(
    "a label file of MELD",
    {
        "id": Column(("Dialogue_ID", "Utterance_ID"), "dia{}_utt{}"),
        "text": Column(("Utterance",)),
        "label": Column(("Emotion",)),
        "group": Column(("Dialogue_ID",), "dia{}"),
        "speaker": Column(("Speaker",)),
    },
    per_file=True,
)

_MMSA = Known(
    "a label file of MMSA (CH-SIMS, MOSI, MOSEI)",
    {
        "id": Column(("video_id", "clip_id"), "{}/{}"),
        "text": Column(("text",)),
        "label": Column(("label",)),
        "split": Column(("mode",)),
        "group": Column(("video_id",)),
    },
)

_IEMOCAP_TURN = re.compile(r"(.*[/\\])?Ses0\d[FM]_\w+_[FM]\w*\d+(\.\w+)?")
_IEMOCAP_IDS = (
    *("utterance_id", "utt_id", "turn_name", "wav_file", "file_name", "filename", "file", "path"),
    *("audio_path", "wav_path", "name", "id"),
)
_IEMOCAP_TEXTS = ("transcription", "transcript", "utterance", "sentence", "to_translate", "text")
_IEMOCAP_LABELS = ("emotion", "major_emotion", "label")


def _iemocap(table: Table) -> Known | None:
    """The columns of a table of IEMOCAP's utterances, which many projects made for themselves."""
    first = dict(zip(table.columns, table.rows[0][1], strict=False)) if table.rows else {}
    ids = [
        called
        for name in _IEMOCAP_IDS
        if (called := table.called(name)) and _IEMOCAP_TURN.fullmatch(first[called].strip())
    ]
    texts = [called for name in _IEMOCAP_TEXTS if (called := table.called(name))]
    labels = [called for name in _IEMOCAP_LABELS if (called := table.called(name))]
    if not ids or not texts:
        return None
    found = {"id": ids[0], "text": texts[0], **({"label": labels[0]} if labels else {})}
    return Known(
        "a table of IEMOCAP's utterances",
        {name: Column((called,)) for name, called in found.items()},
        identity=lambda path: PurePosixPath(path.replace("\\", "/")).stem,
        split_of=lambda identity: "test" if identity.startswith("Ses05") else "train",
        rule="session 5 is test, the others are train",
    )


class _Place(NamedTuple):
    """A table, and the split in its name as it is written there; empty where there is none."""

    path: Path
    split: str


@dataclass(frozen=True)
class OwnRows:
    """The rows of one or several tables in one order.

    Attributes:
        rows: With all our columns; those that no table has are empty.
        separator: What separates fields; a comma where any table has commas.
        notes: Sentences on what was recognised and taken for what; none on a plain table of ours.
    """

    rows: list[Row]
    separator: str
    notes: list[str]


def find_tables(path: Path, columns: ColumnsConfig) -> list[Path]:
    """The tables that a path stands for: a file, ``utterances.csv`` of a folder, or its others.

    Without ``utterances.csv`` they are the files of a folder that are called after splits, such as
    ``train.csv``, or the only one; each with a column for id and text.

    Raises:
        MissingFileError: if there is no table.
        ReadError: if there are several of a split.
    """
    return [place.path for place in _places(path, columns)]


def read_tables(
    path: Path,
    columns: ColumnsConfig,
    needed: Sequence[str],
    *,
    where: str,
    split: Split | None = None,
    also: Sequence[str] = (),
) -> OwnRows:
    """Reads the tables of :func:`find_tables`.

    Args:
        path: A table, or a folder with one or several.
        columns: What the options say about columns.
        needed: Columns that have to be there; the split of a file's name counts as one.
        where: The section of these options, for error messages.
        split: The split of all rows, where nothing else says it.
        also: Further columns, whose values rows have under these names; those that no table has are
            empty.

    Raises:
        ReadError: naming the columns that there are, where one is missing.
    """
    places = _places(path, columns)
    tables = [read_table(place.path) for place in places]
    chosen = [_Choice(table, columns, where, also) for table in tables]
    parts = []
    for place, choice in zip(places, chosen, strict=True):
        by_name = place.split if "split" not in choice.columns else ""
        parts.append(choice.rows(needed, by_name or (split.value if split else "")))
    ids = Counter(row.values["id"] for rows in parts for row in rows)
    repeated = len(parts) > 1 and max(ids.values(), default=0) > 1
    apart = False
    for place, choice, rows in zip(places, chosen, parts, strict=True):
        if repeated or (choice.known is not None and choice.known.per_file):
            apart |= _tell_apart(rows, "" if "split" in choice.columns else place.split)
    files = [f"{place.path.name}" for place in places]
    notes = _notes(files, chosen, apart=apart)
    commas = any(table.separator == "," for table in tables)
    separator = "," if commas else tables[0].separator
    return OwnRows([row for rows in parts for row in rows], separator, notes)


def _tell_apart(rows: Sequence[Row], split: str) -> bool:
    """Puts the split in front of ids and groups; the given one, or that of each row, if any."""
    for row in rows:
        for name in ("id", "group"):
            if row.values[name] and (word := split or row.values["split"]):
                row.values[name] = f"{word}/{row.values[name]}"
    return any(split or row.values["split"] for row in rows)


class _Choice:
    """Which columns of a table are what."""

    def __init__(
        self, table: Table, config: ColumnsConfig, where: str, also: Sequence[str] = ()
    ) -> None:
        self.table = table
        self.also = also
        self.known = _recognised(table)
        self.columns: dict[str, Column] = {}
        self.given = False
        for name in _COLUMNS:
            wanted = getattr(config, name, None)
            if wanted is not None:
                self.given = True
                self.columns[name] = _column(table, wanted, f"{where}.{name}")
            elif self.known is not None and self._has(name, self.known):
                self.columns[name] = self.known.columns[name]
            elif table.called(name) is not None:
                self.columns[name] = Column((name,))
        self.where = where

    def _has(self, name: str, known: Known) -> bool:
        parts = known.columns[name].names if name in known.columns else ()
        return bool(parts) and all(self.table.called(part) is not None for part in parts)

    def rows(self, needed: Sequence[str], split: str) -> list[Row]:
        """The rows; of a table that says no split they are all of the given one."""
        table, known = self.table, self.known
        if not table.columns:
            raise ReadError(
                f"{table.path} is empty. Its first row names the columns: {', '.join(needed)}."
            )
        by_rule = known.split_of if known is not None else None
        missing = [name for name in needed if name not in self.columns]
        if "split" in missing and (split or by_rule):
            missing.remove("split")
        if missing:
            option = f"{self.where}.{missing[0]}"
            raise ReadError(
                f"{missing_columns(table, missing)} A column that is called otherwise is given "
                f"with {option}=NAME."
            )
        empty = dict.fromkeys((*_COLUMNS, *self.also), "")
        there = {name: Column((name,)) for name in self.also if table.called(name) is not None}
        picked = table.pick(self.columns | there)
        rows = [Row(row.line, empty | row.values, row.file) for row in picked]
        plain_id = known is None or self.columns["id"] != known.columns["id"]
        for row in rows:
            if known is not None and not plain_id:
                row.values["id"] = known.identity(row.values["id"])
            if "split" not in self.columns:
                rule = by_rule(row.values["id"]) if by_rule else ""
                row.values["split"] = split or rule
        return rows

    def words(self) -> str:
        """Which columns were taken for what, and which are not read."""
        taken = [f"{name} = {self._words(name)}" for name in self.columns]
        if "split" not in self.columns and self.known is not None and self.known.rule:
            taken.append(f"split: {self.known.rule}")
        parts = [part for column in self.columns.values() for part in column.names]
        read = {part.lower() for part in (*parts, *self.also)}
        unread = [name or "(no name)" for name in self.table.columns if name.lower() not in read]
        ending = f"; not read: {', '.join(unread)}" if unread else ""
        return f"{', '.join(taken)}{ending}"

    def _words(self, name: str) -> str:
        column = self.columns[name]
        called = [self.table.called(part) or part for part in column.names]
        return str(Column(tuple(called), column.form))


def _column(table: Table, wanted: str, option: str) -> Column:
    """The column that an option names; where it names several, their values are joined by ``_``."""
    names = [wanted] if table.called(wanted) is not None else wanted.split("+")
    called = [table.called(name.strip()) for name in names]
    lacking = [name.strip() for name, there in zip(names, called, strict=True) if there is None]
    if lacking:
        raise ReadError(
            f"{option}={wanted}: {table.path} has no column {' and no column '.join(lacking)}; it "
            f"has {shorten(table.columns, 20)}. Give one of these, or several joined by +."
        )
    return Column(tuple(name for name in called if name is not None))


def _recognised(table: Table) -> Known | None:
    """The known label file that a table is, by its columns."""
    if table.called("id") is not None and table.called("text") is not None:
        return None
    for known in (_MELD, _MMSA):
        parts = (*known.columns["id"].names, *known.columns["text"].names)
        if all(table.called(part) is not None for part in parts):
            return known
    return _iemocap(table)


def _places(path: Path, columns: ColumnsConfig) -> list[_Place]:
    if path.is_file():
        return [_Place(path, split_in(path))]
    if (path / TABLE).exists() or (path / TABLE).is_symlink():
        return [_Place(path / TABLE, "")]
    files = list_files(path, "*.csv")
    by_split: dict[str, list[_Place]] = {}
    for file in files:
        if split := split_in(file):
            by_split.setdefault(SPLIT_NAMES[split], []).append(_Place(file, split))
    for split, found in by_split.items():
        if len(found) > 1:
            named = ", ".join(place.path.name for place in found)
            raise ReadError(
                f"{path} holds several tables of the split {split}: {named}. Keep one for each "
                "split in a folder, or give one file."
            )
    order = [name for name in dict.fromkeys(SPLIT_NAMES.values()) if name in by_split]
    places = [by_split[split][0] for split in order]
    if not places and len(files) == 1:
        places = [_Place(files[0], "")]
    if not places:
        named = f" and no train.csv, but {shorten(file.name for file in files)}" if files else ""
        raise MissingFileError(f"{path} holds no {TABLE}{named}")
    for place in places:
        _refuse_other(place.path, columns)
    return places


def _refuse_other(file: Path, columns: ColumnsConfig) -> None:
    """Refuses a CSV file of something else; what is wrong with a table is said when it is read."""
    head = read_head(file)
    known = _recognised(head)
    named = [
        getattr(columns, name) is not None or known is not None or head.called(name) is not None
        for name in ("id", "text")
    ]
    if head.columns and not all(named):
        raise MissingFileError(
            f"{file.parent} holds no {TABLE}, and {file.name} has no columns id and text but "
            f"{shorten(head.columns)}; others are given with dataset.columns.id=NAME and "
            "dataset.columns.text=NAME"
        )


def split_in(file: Path) -> str:
    """The split in a file's name as it is written there, such as dev; empty where there is none."""
    words = _WORDS.split(file.stem.lower())
    return next((word for word in words if word in SPLIT_NAMES), "")


def has_splits(path: Path, columns: ColumnsConfig) -> bool:
    """Whether the tables of a path say the splits of their rows, by a column or their names."""
    for place in _places(path, columns):
        choice = _Choice(read_head(place.path), columns, "columns")
        by_rule = choice.known is not None and choice.known.split_of is not None
        if not place.split and "split" not in choice.columns and not by_rule:
            return False
    return True


def describe(path: Path, columns: ColumnsConfig) -> str:
    """What the tables of a path are, such as ``a label file of MELD``; empty for one of ours."""
    known = _recognised(read_head(find_tables(path, columns)[0]))
    return "" if known is None else known.title


def are_of_meld(path: Path) -> bool:
    """Whether a path has tables, and all of them are label files of MELD."""
    try:
        tables = find_tables(path, ColumnsConfig())
    except ReadError:
        return False
    return all(_recognised(read_head(table)) is _MELD for table in tables)


def _notes(files: Sequence[str], chosen: Sequence[_Choice], *, apart: bool) -> list[str]:
    notes: dict[str, list[str]] = {}
    plain = len(files) == 1 and chosen[0].known is None and not chosen[0].given
    if plain:
        return []
    for file, choice in zip(files, chosen, strict=True):
        title = "a table" if choice.known is None else choice.known.title
        notes.setdefault(f"{title}: {choice.words()}", []).append(file)
    found = [f"{', '.join(named)}: read as {text}" for text, named in notes.items()]
    if apart:
        found.append(
            "ids and groups begin with their split, as in train/..., because every split counts "
            "from the beginning"
        )
    return found
