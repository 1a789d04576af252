"""Your own data: ``utterances.csv`` beside the features.

``utterances.csv`` has the columns id, split, text, label and, where you have them, group (the
video, dialogue or speaker whose utterances must not be torn apart), speaker, and label_T, label_A,
label_V (labels of one modality). The features of a name (``audio``, ``vision``, any other) are in
one of these places, or nowhere:

- ``features.npz``, key ``audio``: (N, da), one row per row of the table; or (N, La, da), padded,
  with the lengths under ``audio_lengths``, else frames of zeros at either end are padding;
- ``features.npz``, keys ``audio/<id>``: (La, da) each, every frame real;
- a folder with ``audio/<id>.npy``: likewise.

``video``, ``visual`` and ``Vision`` are ``vision``: see :data:`_ALIASES`. An utterance without
features of its own, or with a length of 0, lacks them. Hidden files are ignored, and features of an
id that no row has are counted and named.

Labels that are all numbers are intensities, any others names. A label that is empty or ``nan`` is
missing.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from msea_lightning.data.files.arrays import load_array, open_archive, read_member
from msea_lightning.data.files.errors import MissingFileError, ReadError, shorten
from msea_lightning.data.files.rows import Row, read_rows
from msea_lightning.data.options import LabelKind
from msea_lightning.data.readers.checks import Frames, to_number
from msea_lightning.data.readers.reading import (
    SPLIT_NAMES,
    Advance,
    Layout,
    Record,
    Source,
    dialogue_of,
    without_hidden,
)

_TABLE = "utterances.csv"
_ARCHIVE = "features.npz"
_COLUMNS = ("id", "split", "text", "label")
_FURTHER_LABELS = {"label_t": "T", "label_a": "A", "label_v": "V"}
_FEATURES = ("audio", "vision")
_ALIASES = {"acoustic": "audio", "video": "vision", "visual": "vision"}
_LENGTHS = "_lengths"
_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
_MISSING = frozenset(("", "nan", "na", "n/a", "#n/a", "<na>", "null"))
"""Labels that spreadsheets and pandas write where there is none."""
_FORMULA_ERROR = re.compile(
    r"#(NAME\?|REF!|VALUE!|DIV/0!|NULL!|NUM!|SPILL!|CALC!|FIELD!|BLOCKED!|CONNECT!|UNKNOWN!|BUSY!)"
)

_log = logging.getLogger(__name__)


class TableLayout(Layout):
    """A table and the features beside it; of an archive only what an utterance needs is read."""

    def find(self, path: Path) -> list[Path]:
        """The table, the archive, and all arrays in folders beside them."""
        self._table = path if path.is_file() else path / _TABLE
        if not self._table.is_file():
            raise MissingFileError(f"{path} holds no {_TABLE}")
        archive = self._table.parent / _ARCHIVE
        arrays = (file for path in _folders(self._table.parent) for file in _arrays(path))
        return [self._table, *([archive] if archive.is_file() else []), *arrays]

    def sources(self, advance: Advance | None) -> Mapping[str, Source]:
        """Reads the table, and compares it with the names of the features."""
        rows = read_rows(self._table, _COLUMNS, ("group", "speaker", *_FURTHER_LABELS))
        if not rows:
            raise ReadError(
                f"{self._table} has a header and no utterance. Give it one row per utterance."
            )
        splits: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            self._refuse_formula_errors(row)
            splits.setdefault(self._split(row), []).append(index)
        if any(dialogue_of(row.values["id"]) and not row.values["group"] for row in rows):
            _log.info("the dialogues of utterances without a group are taken from their ids")
        labels = self._labels(rows)
        features = _Features(self._table.parent, [row.values["id"].strip() for row in rows])
        return {
            split: Source(
                self._table, partial(_records, rows, indices, labels, features), len(indices)
            )
            for split, indices in splits.items()
        }

    def _refuse_formula_errors(self, row: Row) -> None:
        for name, value in row.values.items():
            failed = name in ("id", "split") and value.strip() == "#N/A"
            if failed or _FORMULA_ERROR.fullmatch(value.strip()):
                raise ReadError(
                    f"{self._table}, line {row.line} has '{value.strip()}' as {name}: a "
                    "spreadsheet took the entry for a formula (those begin with = + - @) and could "
                    "not compute it. Format the column as text and enter its values again."
                )

    def _split(self, row: Row) -> str:
        name = row.values["split"].strip()
        if name.lower() not in SPLIT_NAMES:
            raise ReadError(
                f"{self._table}: utterance '{row.values['id']}' (line {row.line}) is in the "
                f"unknown split '{name}'. Splits are train, valid (also dev, val, validation) and "
                "test."
            )
        return SPLIT_NAMES[name.lower()]

    def _labels(self, rows: list[Row]) -> list[dict[str, Any]]:
        """The labels of each row: numbers where all are numbers, without those that are missing."""
        config = self.dataset.labels
        columns = {"label": "M", **_FURTHER_LABELS}
        found = [
            {
                name: text
                for column, name in columns.items()
                if (text := row.values[column].strip()) in config.names
                or text.lower() not in _MISSING
            }
            for row in rows
        ]
        without = [row for row, labels in zip(rows, found, strict=True) if "M" not in labels]
        if without:
            listed = shorten(f"line {row.line} '{row.values['label'].strip()}'" for row in without)
            _log.warning(
                "%d of %d utterances have no label (%s): they are kept without one. Where such a "
                "word is the name of an emotion, list all names in dataset.labels.names",
                *(len(without), len(rows), listed),
            )
        if config.kind is not LabelKind.infer or config.names:
            return found
        words = [
            (row.line, text)
            for row, labels in zip(rows, found, strict=True)
            for text in labels.values()
            if to_number(text) is None
        ]
        if not words:
            return [{name: float(text) for name, text in labels.items()} for labels in found]
        if len(words) < len(rows) / 2:
            reason = "most labels are numbers, but line %d has '%s': all labels are taken for names"
            _log.warning(reason, *words[0])
        return found


def _records(
    rows: list[Row], indices: list[int], labels: list[dict[str, Any]], features: _Features
) -> Iterator[Record]:
    with features.open() as fetch:
        for index in indices:
            row = rows[index]
            yield Record(
                position=f"line {row.line}",
                id=row.values["id"].strip(),
                text=row.values["text"],
                labels=labels[index],
                features={name: get(index, row.line) for name, get in fetch.items()},
                group=row.values["group"].strip() or dialogue_of(row.values["id"].strip()),
                speaker=row.values["speaker"].strip(),
            )


def _arrays(folder: Path) -> list[Path]:
    """The arrays in a folder and below it, without hidden files."""
    return without_hidden(folder, sorted(folder.rglob("*.npy")))


def _feature(name: str, where: str) -> str:
    """The feature that a folder or key is called after."""
    lower = name.lower()
    if lower in _ALIASES or lower in _FEATURES:
        return _ALIASES.get(lower, lower)
    if not _NAME.fullmatch(name):
        raise ReadError(
            f"{where}: '{name}' cannot be the name of a feature, which is a word of letters, "
            "digits and underscores, such as audio, vision or text_features. Rename or remove it."
        )
    return name


@dataclass
class _Place:
    """Where the features of one name are.

    Attributes:
        where: The place in words.
        key: The key in the archive, or the folder.
        names: What each utterance's features are called there, by its id; empty where they are in
            the order of the rows.
    """

    where: str
    key: str | Path
    names: dict[str, str] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """Adds the features of an utterance; file systems may have decomposed its accents."""
        self.names.setdefault(unicodedata.normalize("NFC", name), name)
        self.names[name] = name

    def name_of(self, identity: str) -> str | None:
        """What the features of an utterance are called; None where it has none."""
        return self.names.get(identity) or self.names.get(unicodedata.normalize("NFC", identity))


Fetch = Callable[[int, int], Frames | None]
"""Gives the features of the utterance in a row, by the row's index and line."""


class _Features:
    """The features beside a table; found and compared with its rows, but not yet read."""

    def __init__(self, folder: Path, ids: list[str]) -> None:
        self._archive = folder / _ARCHIVE
        self._ids = ids
        self._arrays: dict[str, tuple[NDArray[Any], NDArray[Any] | None]] = {}
        self._keys: list[str] = []
        if self._archive.is_file():
            with open_archive(self._archive) as archive:
                self._keys = archive.files
        places: dict[str, list[_Place]] = {}
        for place in (*self._in_archive(), *_in_folders(folder)):
            key = place.key if isinstance(place.key, str) else place.key.name
            is_folder = isinstance(place.key, Path) and key.lower() not in (*_FEATURES, *_ALIASES)
            if is_folder and not any(map(place.name_of, ids)):
                _log.warning("%s holds no .npy file that is called after an id: not read", key)
                continue
            places.setdefault(_feature(key, place.where), []).append(place)
        for name, found in places.items():
            if len(found) > 1:
                listed = "; ".join(place.where for place in found)
                raise ReadError(
                    f"the {name} features are in more than one place: {listed}. Keep one of them."
                )
            if found[0].names:
                self._compare(name, found[0])
        for name in _FEATURES:
            if name not in places:
                _log.info("%s has no %s features", folder, name)
        further = sorted(set(places) - set(_FEATURES))
        if further:
            _log.info("further features beside audio and vision: %s", ", ".join(further))
        self._places = {
            name: places[name][0] if name in places else None for name in (*_FEATURES, *further)
        }

    @contextmanager
    def open(self) -> Iterator[Mapping[str, Fetch]]:
        """What fetches the features of each name, while the archive is open."""
        with ExitStack() as stack:
            archive = stack.enter_context(open_archive(self._archive)) if self._keys else None
            yield {
                name: partial(self._fetch, name, place, archive)
                for name, place in self._places.items()
            }

    def _in_archive(self) -> list[_Place]:
        by_id: dict[str, _Place] = {}
        by_row = []
        for key in self._keys:
            name, slash, identity = key.partition("/")
            owner = key.removesuffix(_LENGTHS)
            if slash:
                where = f"{self._archive}, keys {name}/<id>"
                by_id.setdefault(name, _Place(where, name)).add(identity)
            elif owner == key:
                by_row.append(_Place(f"{self._archive}, key {name}", name))
            elif owner not in self._keys:
                raise ReadError(
                    f"{self._archive} holds {key}, but no {owner} that it could be the lengths of. "
                    "Rename or remove it."
                )
        return [*by_row, *by_id.values()]

    def _compare(self, name: str, place: _Place) -> None:
        """Says which features no row has; refuses them where no row has any."""
        used = {place.name_of(identity) for identity in self._ids} - {None}
        extra = sorted(set(place.names.values()) - used)
        if not used:
            raise ReadError(
                f"{place.where} holds {name} features of {len(extra)} utterances, none of which is "
                f"in {_TABLE}: {shorten(extra)}. Name them after the ids, such as "
                f"'{self._ids[0]}', or remove them."
            )
        if extra:
            _log.warning(
                "%s holds %s features of %d utterances that no row of %s has: %s. They are left "
                "out",
                *(place.where, name, len(extra), _TABLE, shorten(extra)),
            )

    def _fetch(
        self, name: str, place: _Place | None, archive: NpzFile | None, index: int, line: int
    ) -> Frames | None:
        if place is None:
            return None
        if not place.names:
            if name not in self._arrays:
                self._arrays[name] = self._read_rows(str(place.key), archive)
            values, lengths = self._arrays[name]
            return Frames(values[index], None if lengths is None else lengths[index])
        called = place.name_of(self._ids[index])
        if called is None:
            return None
        if isinstance(place.key, Path):
            where = f"utterance '{self._ids[index]}' (line {line})"
            return Frames.whole(load_array(place.key / f"{called}.npy", where))
        assert archive is not None
        return Frames.whole(read_member(archive, self._archive, f"{place.key}/{called}"))

    def _read_rows(
        self, key: str, archive: NpzFile | None
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """All features of a name as (N, L, d), and their lengths (N,) where they are given."""
        assert archive is not None
        values = read_member(archive, self._archive, key)
        count = len(self._ids)
        if values.ndim not in (2, 3) or len(values) != count:
            raise ReadError(
                f"{self._archive}: {key} has the shape {values.shape}, but {_TABLE} has "
                f"{count} rows; expected ({count}, features) or ({count}, frames, features). Save "
                "one row of features per row of the table, in its order, or remove it."
            )
        lengths = None
        if f"{key}{_LENGTHS}" in self._keys:
            lengths = read_member(archive, self._archive, f"{key}{_LENGTHS}")
            if lengths.shape != (count,):
                raise ReadError(
                    f"{self._archive}: {key}{_LENGTHS} has the shape {lengths.shape}, expected one "
                    f"length for each of the {count} rows of {_TABLE}. Save them anew."
                )
        if values.ndim == 2:
            values = values[:, None]
            lengths = np.ones(count, dtype=np.int64) if lengths is None else lengths
        return values, lengths


def _folders(folder: Path) -> list[Path]:
    return without_hidden(folder, sorted(path for path in folder.iterdir() if path.is_dir()))


def _in_folders(folder: Path) -> list[_Place]:
    places = []
    for path in _folders(folder):
        place = _Place(str(path), path)
        for file in _arrays(path):
            place.add(file.relative_to(path).as_posix().removesuffix(".npy"))
        if place.names:
            places.append(place)
        elif path.name.lower() in (*_FEATURES, *_ALIASES):
            _log.warning("%s holds no .npy files: no features are read from it", path)
    return places
