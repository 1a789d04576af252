"""Your own data: a table, or one for each split, beside the features.

``utterances.csv`` has the columns id, split, text, label and, where you have them, group (the
video, dialogue or speaker whose utterances must not be torn apart), speaker, and label_T, label_A,
label_V (labels of one modality). Other tables, and what their columns may be called, are in
:mod:`.columns`. The features of a name (``audio``, ``vision``, any other) are in one of these
places, or nowhere:

- ``features.npz``, key ``audio``: (N, da), one row per row of the table; or (N, La, da), padded,
  with the lengths under ``audio_lengths``, else frames of zeros at either end are padding;
- ``features.npz``, keys ``audio/<id>``: (La, da) each, every frame real;
- a folder with ``audio/<id>.npy``: likewise.

``video``, ``visual`` and ``Vision`` are ``vision``: see :data:`_ALIASES`. An utterance without
features of its own, or with a length of 0, lacks them. Hidden files are ignored, and features of an
id that no row has are counted and named.

``features.json``, where it is there, says which extractors made the features; ``python -m
msea_lightning.extract`` writes it.

Labels of one column that are all numbers are intensities, any others names; ``1,5`` is a number
where commas do not separate the columns. A label that is empty or ``nan`` is missing.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msea_lightning.data.files.arrays import load_array, open_archive, read_member
from msea_lightning.data.files.errors import ReadError, shorten
from msea_lightning.data.files.rows import Row
from msea_lightning.data.options import ColumnsConfig, LabelKind
from msea_lightning.data.readers.checks import Frames, frames, given_labels, numbers_among
from msea_lightning.data.readers.columns import LABELS, OwnRows, find_tables, read_tables
from msea_lightning.data.readers.reading import (
    SPLIT_NAMES,
    Layout,
    Record,
    Source,
    dialogue_of,
    list_files,
)
from msea_lightning.data.utterance import Label, Utterance

_ARCHIVE = "features.npz"
_NPY = "**/*.npy"
_EXTRACTORS = "features.json"
_ALIASES = {"acoustic": "audio", "video": "vision", "visual": "vision"} | {
    name: name for name in ("audio", "vision")
}
_LENGTHS = "_lengths"
# In a store, <name>_offsets says where the frames of each utterance begin.
_NAME = re.compile(r"(?!.*_offsets$)[A-Za-z]\w*", re.ASCII)
_FORMULA_ERROR = re.compile(
    r"#(NAME\?|REF!|VALUE!|DIV/0!|NULL!|NUM!|SPILL!|CALC!|FIELD!|BLOCKED!|CONNECT!|UNKNOWN!|BUSY!)"
)

_composed = partial(unicodedata.normalize, "NFC")
_log = logging.getLogger(__name__)


class TableLayout(Layout):
    """Tables and the features beside them; of an archive only what an utterance needs is read."""

    def find(self, path: Path) -> list[Path]:
        """The tables, the archive, and all arrays in folders beside them."""
        self._path = path
        tables = find_tables(path, self.dataset.columns)
        self._folder = tables[0].parent
        archive = [path for path in list_files(self._folder, "*") if path.name == _ARCHIVE]
        arrays = [file for inside in _folders(self._folder) for file in list_files(inside, _NPY)]
        facts = [path for path in list_files(self._folder, "*") if path.name == _EXTRACTORS]
        return [*tables, *facts, *archive, *arrays]

    def extractors(self) -> Mapping[str, Mapping[str, Any]]:
        """What ``features.json`` says."""
        return _extractors(self._folder)

    def sources(self) -> Mapping[str, Source]:
        """Reads the tables, and compares them with the names of the features."""
        found = self.read()
        rows, self.notes = found.rows, found.notes
        if not rows:
            raise ReadError(
                f"{self.files[0]} has a header and no utterance. Give it one row per utterance."
            )
        splits: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            splits.setdefault(_split(row), []).append(index)
        if any(dialogue_of(row.values["id"]) and not row.values["group"] for row in rows):
            _log.info("the dialogues of utterances without a group are taken from their ids")
        labels: list[dict[str, Label]] = [{} for _ in rows]
        for column, name in LABELS.items():
            for index, label in self._labels(column, rows, found.separator).items():
                labels[index][name] = label
        features = _Features(self._folder, rows)
        if self.notes:
            absent = [name for name in ("audio", "vision") if name not in features.places]
            beside = f"no {' and no '.join(absent)} features lie beside it" if absent else ""
            only = ": the model reads the text alone" if len(absent) == 2 else ""
            self.notes += [f"{beside}{only}"] * bool(absent)
        return {
            split: Source(
                rows[indices[0]].file,
                partial(_records, rows, indices, labels, features),
                len(indices),
            )
            for split, indices in splits.items()
        }

    def read(self, also: Sequence[str] = ()) -> OwnRows:
        """The rows of the tables, and how they were read; ``also`` as in :func:`read_tables`."""
        return read_tables(
            self._path,
            self.dataset.columns,
            ("id", "split", "text", "label"),
            where="dataset.columns",
            split=self.dataset.split,
            also=also,
        )

    def _labels(self, column: str, rows: list[Row], separator: str) -> Mapping[int, Label]:
        """The labels of one column by row, numbers where all are; without those missing."""
        config = self.dataset.labels
        texts = [row.values[column] for row in rows]
        found = given_labels(texts, config.names)
        without = [index for index in range(len(texts)) if index not in found]
        if column == "label" and without:
            _log.warning(
                "%d of %d utterances have no label (%s): they are kept without one. Where such a "
                "word is the name of an emotion, list all names in dataset.labels.names",
                *(len(without), len(rows)),
                shorten(f"line {rows[index].line} '{texts[index]}'" for index in without),
            )
        if config.kind is LabelKind.emotions or config.names:
            return found
        numbers = numbers_among(found, separator)
        if config.kind is LabelKind.scale or len(numbers) == len(found):
            return {**found, **numbers}
        if len(numbers) > len(found) / 2:
            first = min(found.keys() - numbers.keys())
            _log.warning(
                "most labels are numbers, but line %d has '%s': all labels are taken for names",
                *(rows[first].line, found[first]),
            )
        return found


def _split(row: Row) -> str:
    """The split of a row, in which no spreadsheet has left an error."""
    for name, value in row.values.items():
        failed = name in ("id", "split") and value == "#N/A"
        if failed or _FORMULA_ERROR.fullmatch(value.strip()):
            raise ReadError(
                f"{row.file}, line {row.line} has '{value.strip()}' as {name}: a spreadsheet took "
                "the entry for a formula (those begin with = + - @) and could not compute it. "
                "Format the column as text and enter its values again."
            )
    name = row.values["split"]
    if name.lower() not in SPLIT_NAMES:
        raise ReadError(
            f"{row.file}: utterance '{row.values['id']}' (line {row.line}) is in the unknown "
            f"split '{name}'. Splits are {', '.join(SPLIT_NAMES)}."
        )
    return SPLIT_NAMES[name.lower()]


class TableRows(AbstractContextManager["TableRows"]):
    """Tables and the features beside them, read row by row: one that is broken stops no other.

    Columns are id and text, and the others of :class:`TableLayout` where they are there. The
    archive of features stays open until the end, because to open it takes time for each of its
    keys.

    Args:
        path: A table, or the folder that holds it, or one for each split.
        columns: What its columns are called.

    Attributes:
        rows: Lines of the table.
        files: All files that are read.
        extractors: Facts of the extractors by feature, as ``features.json`` has them.
        notes: Sentences on what was recognised, and which columns were taken for what.

    Raises:
        MissingFileError: if there is no table.
        ReadError: if it is no table, or features lie where it is not clear whose they are.
    """

    def __init__(self, path: Path, columns: ColumnsConfig | None = None) -> None:
        columns = columns or ColumnsConfig()
        tables = find_tables(path, columns)
        found = read_tables(path, columns, ("id", "text"), where="columns")
        self.rows, self.notes = found.rows, found.notes
        refuse_repeated(
            (row.values["id"] for row in self.rows), ", ".join(str(table) for table in tables)
        )
        folder = tables[0].parent
        self.extractors = _extractors(folder)
        self._features = _Features(folder, self.rows)
        facts = folder / _EXTRACTORS
        self.files = [*tables, *[facts] * facts.is_file(), *self._features.files()]
        self._stack = ExitStack()
        self._archive = self._stack.enter_context(self._features.open())

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def utterance(self, index: int) -> Utterance:
        """The utterance in a row, with its features; ReadError if these cannot be read."""
        row = self.rows[index]
        where = f"{row.file}: utterance '{row.values['id']}' (line {row.line})"
        found = {
            name: self._features.fetch(name, index, self._archive, where)
            for name in self._features.places
        }
        features = {
            name: frames(name, values, where)
            for name, values in found.items()
            if values is not None
        }
        return Utterance(
            row.values["id"],
            row.values["text"],
            features=features,
            group=group_of(row),
            speaker=row.values["speaker"] or None,
        )


def group_of(row: Row) -> str | None:
    """The group of an utterance: its column's, else the dialogue in its id, else none."""
    return row.values["group"] or dialogue_of(row.values["id"])


def refuse_repeated(ids: Iterable[str], where: str) -> None:
    """Refuses a file in which utterances have the same id."""
    doubles = [f"'{identity}'" for identity, count in Counter(ids).items() if count > 1]
    if doubles:
        raise ReadError(
            f"{where}: several utterances are called {shorten(doubles)}. Give each an id of its "
            "own."
        )


def _extractors(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Facts of the extractors by feature, as ``features.json`` has them; empty where it is not."""
    file = folder / _EXTRACTORS
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["features"]
        if not all(isinstance(facts["dim"], int) for facts in found.values()):
            raise TypeError("dim is not a whole number")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ReadError(
            f"{file} does not say which extractors made the features ({error!r}). Extract "
            "them anew, or remove the file; then their origin is unknown."
        ) from error
    return dict(found)


def _records(
    rows: list[Row], indices: list[int], labels: list[dict[str, Label]], features: _Features
) -> Iterator[Record]:
    with features.open() as archive:
        for index in indices:
            row = rows[index]
            identity = row.values["id"]
            where = f"utterance '{identity}' (line {row.line})"
            yield Record(
                position=f"line {row.line}",
                id=identity,
                text=row.values["text"],
                labels=labels[index],
                features={
                    name: features.fetch(name, index, archive, where) for name in features.places
                },
                group=group_of(row),
                speaker=row.values["speaker"],
            )


class _Place(NamedTuple):
    """Where the features of one name are.

    Attributes:
        where: The place in words.
        key: The key in the archive, or the folder.
        names: What each utterance's features are called there, by its id in NFC, because file
            systems may have decomposed its accents; empty where they are in the order of the rows.
    """

    where: str
    key: str | Path
    names: dict[str, str]


class _Features:
    """The features beside tables; found and compared with their rows, but not yet read."""

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        self._archive = folder / _ARCHIVE
        self._table = ", ".join(dict.fromkeys(row.file.name for row in rows))
        self._ids = [_composed(row.values["id"]) for row in rows]
        self._arrays: dict[str, tuple[NDArray[Any], NDArray[Any] | None]] = {}
        self._keys: list[str] = []
        if self._archive.is_file():
            with open_archive(self._archive) as archive:
                self._keys = list(archive)
        self.places: dict[str, _Place] = {}
        for place in (*self._in_archive(), *self._in_folders(folder)):
            called = Path(place.key).name
            if not _NAME.fullmatch(called):
                raise ReadError(
                    f"{place.where}: '{called}' cannot be the name of a feature, which is a word "
                    "of letters, digits and underscores, such as audio, and does not end in "
                    "_offsets. Rename or remove it."
                )
            name = _ALIASES.get(called.lower(), called)
            if name in self.places:
                raise ReadError(
                    f"the {name} features are in more than one place: {self.places[name].where}; "
                    f"{place.where}. Keep one of them."
                )
            self.places[name] = place
            self._compare(name, place)

    def open(self) -> AbstractContextManager[Mapping[str, Any]]:
        """The archive; empty where there is none."""
        return open_archive(self._archive) if self._keys else nullcontext({})

    def fetch(self, name: str, index: int, archive: Mapping[str, Any], where: str) -> Frames | None:
        """The features of the utterance in a row; None where it has none."""
        _, key, names = self.places[name]
        if not names:
            if name not in self._arrays:
                self._arrays[name] = self._read_rows(str(key), archive)
            values, lengths = self._arrays[name]
            return Frames(values[index], None if lengths is None else lengths[index])
        called = names.get(self._ids[index])
        if called is None:
            return None
        if isinstance(key, Path):
            return Frames.whole(load_array(key / f"{called}.npy", where))
        return Frames.whole(read_member(archive, self._archive, f"{key}/{called}"))

    def files(self) -> list[Path]:
        """The archive, and the arrays of the rows."""
        arrays = [
            place.key / f"{called}.npy"
            for place in self.places.values()
            if isinstance(place.key, Path)
            for identity in self._ids
            if (called := place.names.get(identity)) is not None
        ]
        return [*[self._archive] * bool(self._keys), *arrays]

    def _in_archive(self) -> list[_Place]:
        by_id: dict[str, _Place] = {}
        by_row = []
        for key in self._keys:
            name, slash, identity = key.partition("/")
            owner = key.removesuffix(_LENGTHS)
            if slash:
                place = _Place(f"{self._archive}, keys {name}/<id>", name, {})
                by_id.setdefault(name, place).names[_composed(identity)] = identity
            elif owner == key or owner not in self._keys:
                by_row.append(_Place(f"{self._archive}, key {name}", name, {}))
        return [*by_row, *by_id.values()]

    def _in_folders(self, folder: Path) -> Iterator[_Place]:
        for path in _folders(folder):
            files = list_files(path, _NPY)
            called = [file.relative_to(path).as_posix().removesuffix(".npy") for file in files]
            names = {_composed(name): name for name in called}
            is_feature = path.name.lower() in _ALIASES
            if names and (is_feature or not names.keys().isdisjoint(self._ids)):
                yield _Place(str(path), path, names)
            elif names:
                _log.warning("%s holds no .npy file that is called after an id: not read", path)
            elif is_feature:
                _log.warning("%s holds no .npy files: no features are read from it", path)

    def _compare(self, name: str, place: _Place) -> None:
        """Says which features no row has; refuses them where no row has any."""
        extra = sorted(place.names[key] for key in place.names.keys() - set(self._ids))
        if extra and len(extra) == len(place.names):
            raise ReadError(
                f"{place.where} holds {name} features of {len(extra)} utterances, none of which is "
                f"in {self._table}: {shorten(extra)}. Name them after the ids, such as "
                f"'{self._ids[0]}', or remove them."
            )
        if extra:
            _log.warning(
                "%s holds %s features of %d utterances that no row of %s has: %s. They are left "
                "out",
                *(place.where, name, len(extra), self._table, shorten(extra)),
            )

    def _read_rows(
        self, key: str, archive: Mapping[str, Any]
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """All features of a name as (N, L, d), and their lengths (N,) where they are given."""
        values = read_member(archive, self._archive, key)
        count = len(self._ids)
        if values.ndim not in (2, 3) or len(values) != count:
            raise ReadError(
                f"{self._archive}: {key} has the shape {values.shape}, but {self._table} has "
                f"{count} rows; expected ({count}, features) or ({count}, frames, features). Save "
                "one row of features per row of the table, in its order, or remove it."
            )
        lengths = None
        if f"{key}{_LENGTHS}" in self._keys:
            lengths = read_member(archive, self._archive, f"{key}{_LENGTHS}")
            if lengths.shape != (count,):
                raise ReadError(
                    f"{self._archive}: {key}{_LENGTHS} has the shape {lengths.shape}, expected one "
                    f"length for each of the {count} rows of {self._table}. Save them anew."
                )
        if values.ndim == 2:
            values = values[:, None]
            lengths = np.ones(count, dtype=np.int64) if lengths is None else lengths
        return values, lengths


def _folders(folder: Path) -> list[Path]:
    return [path for path in list_files(folder, "*") if path.is_dir()]
