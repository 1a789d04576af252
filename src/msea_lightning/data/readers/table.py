"""Your own data: ``utterances.csv`` beside the features.

``utterances.csv`` has the columns id, split, text, label and, where you have them, group (the
video, dialogue or speaker whose utterances must not be torn apart) and speaker. Features of a
modality (``audio``, ``vision``) are in one of these places, or nowhere:

- ``features.npz``, key ``audio``: (N, da), one row per row of the table; or (N, La, da), padded,
  with the lengths under ``audio_lengths``, else frames of zeros at either end are padding;
- ``features.npz``, keys ``audio/<id>``: (La, da) each, every frame real;
- a folder with ``audio/<id>.npy``: likewise.

An utterance without features of its own, or with a length of 0, lacks the modality. Features of
an id that no row has are refused, because then a file and the table do not belong together.

Labels that are all numbers are intensities, any others names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from msea_lightning.data.files.arrays import load_array, open_archive, read_member
from msea_lightning.data.files.rows import Row, read_rows
from msea_lightning.data.options import DatasetConfig, LabelKind
from msea_lightning.data.readers.record import (
    SPLIT_NAMES,
    Frames,
    MissingFileError,
    ReadError,
    Reading,
    Record,
    Source,
    shorten,
)

_TABLE = "utterances.csv"
_ARCHIVE = "features.npz"
_MODALITIES = ("audio", "vision")

_log = logging.getLogger(__name__)

Fetch = Callable[[int, Row], Frames | None]
"""Gives the features of the utterance in a row, by the row's index and content."""


def find_table(path: Path, dataset: DatasetConfig) -> list[Path]:
    """The files of the data set: the table and its features.

    Args:
        path: The folder, or the table itself.
        dataset: The data set's options.

    Raises:
        MissingFileError: where there is no table.
    """
    table = _find(path)
    archive = table.parent / _ARCHIVE
    arrays = (file for name in _MODALITIES for file in sorted((table.parent / name).rglob("*.npy")))
    return [table, *([archive] if archive.is_file() else []), *arrays]


def read_table(path: Path, dataset: DatasetConfig) -> Reading:
    """Reads a table and the features beside it; of an archive only what an utterance needs.

    Args:
        path: The folder, or the table itself.
        dataset: The data set's options.

    Raises:
        UserError: naming the file, and where it concerns one, the utterance and the remedy.
    """
    table = _find(path)
    rows = read_rows(table, ("id", "split", "text", "label"), ("group", "speaker"))
    if not rows:
        raise ReadError(f"{table} has a header and no utterance. Give it one row per utterance.")
    splits: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        splits.setdefault(_split(row, table), []).append(index)
    label = _labels(rows, dataset)
    features = _Features(table.parent, rows)
    sources = {
        split: Source(table, partial(_records, rows, indices, label, features), len(indices))
        for split, indices in splits.items()
    }
    return Reading(dataset, sources)


def _find(path: Path) -> Path:
    table = path if path.is_file() else path / _TABLE
    if not table.is_file():
        raise MissingFileError(f"{path} holds no {_TABLE}")
    return table


def _split(row: Row, table: Path) -> str:
    name = row.values["split"].strip()
    if name.lower() not in SPLIT_NAMES:
        raise ReadError(
            f"{table}: utterance '{row.values['id']}' (line {row.line}) is in the unknown split "
            f"'{name}'. Splits are train, valid (also dev, val, validation) and test."
        )
    return SPLIT_NAMES[name.lower()]


def _labels(rows: list[Row], dataset: DatasetConfig) -> Callable[[str], Any]:
    """What turns a label field into a label: numbers where all labels are numbers."""
    config = dataset.labels
    if config.kind is not LabelKind.infer or config.names:
        return str.strip
    names = [row for row in rows if not _is_number(row.values["label"])]
    if names and len(names) < len(rows) / 2:
        _log.warning(
            "most labels are numbers, but line %d has '%s': all labels are taken for names",
            names[0].line,
            names[0].values["label"],
        )
    return str.strip if names else float


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _records(
    rows: list[Row], indices: list[int], label: Callable[[str], Any], features: _Features
) -> Iterator[Record]:
    with features.open() as fetch:
        for index in indices:
            row = rows[index]
            yield Record(
                position=f"line {row.line}",
                id=row.values["id"].strip(),
                text=row.values["text"],
                label=label(row.values["label"]),
                audio=fetch["audio"](index, row),
                vision=fetch["vision"](index, row),
                group=row.values["group"].strip(),
                speaker=row.values["speaker"].strip(),
            )


@dataclass(frozen=True)
class _Place:
    """Where the features of one modality are, and how they are told apart there."""

    form: str
    """``rows``, ``keys``, ``files`` or ``nowhere``."""
    ids: frozenset[str] = frozenset()


class _Features:
    """The features beside a table; found and compared with its rows, but not yet read."""

    def __init__(self, folder: Path, rows: list[Row]) -> None:
        self._folder = folder
        self._archive = folder / _ARCHIVE
        self._row_count = len(rows)
        self._arrays: dict[str, tuple[NDArray[Any], NDArray[Any] | None]] = {}
        keys: list[str] = []
        if self._archive.is_file():
            with open_archive(self._archive) as archive:
                keys = archive.files
        self._refuse_unknown_keys(keys)
        ids = {row.values["id"].strip() for row in rows}
        self._places = {name: self._place(name, keys, ids) for name in _MODALITIES}
        for name, place in self._places.items():
            if place.form == "nowhere":
                _log.info("%s has no %s features", folder, name)

    @contextmanager
    def open(self) -> Iterator[Mapping[str, Fetch]]:
        """What fetches the features of each modality, while the archive is open."""
        with ExitStack() as stack:
            archive = None
            if any(place.form in ("rows", "keys") for place in self._places.values()):
                archive = stack.enter_context(open_archive(self._archive))
            yield {name: self._fetch(name, place, archive) for name, place in self._places.items()}

    def _refuse_unknown_keys(self, keys: list[str]) -> None:
        known = {key for name in _MODALITIES for key in (name, f"{name}_lengths")}
        unknown = [key for key in keys if key not in known and key.split("/")[0] not in _MODALITIES]
        if unknown:
            raise ReadError(
                f"{self._archive} holds {shorten(unknown)}, which dataset=table does not know: "
                "audio or audio/<id>, audio_lengths, and the same for vision. Rename or remove "
                "them."
            )

    def _place(self, modality: str, keys: list[str], ids: set[str]) -> _Place:
        prefix = f"{modality}/"
        by_id = {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
        folder = self._folder / modality
        in_files = {
            file.relative_to(folder).as_posix().removesuffix(".npy")
            for file in folder.rglob("*.npy")
        }
        found = {}
        if modality in keys:
            found[f"{self._archive}, key {modality}"] = _Place("rows")
        if by_id:
            found[f"{self._archive}, keys {prefix}<id>"] = _Place("keys", frozenset(by_id))
        if in_files:
            found[f"{folder}"] = _Place("files", frozenset(in_files))
        if len(found) > 1:
            raise ReadError(
                f"the {modality} features are in more than one place: {'; '.join(found)}. Keep one "
                "of them."
            )
        for name, place in found.items():
            extra = sorted(place.ids - ids)
            if extra:
                raise ReadError(
                    f"{name} has {modality} features of {len(extra)} utterances that no row of "
                    f"{_TABLE} has: {shorten(extra)}. Add the rows, or remove the features."
                )
            return place
        return _Place("nowhere")

    def _fetch(self, modality: str, place: _Place, archive: NpzFile | None) -> Fetch:
        if place.form == "files":
            return partial(self._from_file, modality, place)
        if archive is None or place.form == "nowhere":
            return lambda index, row: None
        if place.form == "keys":
            return partial(self._from_key, modality, place, archive)
        if modality not in self._arrays:
            self._arrays[modality] = self._read_rows(modality, archive)
        return partial(self._from_rows, *self._arrays[modality])

    def _read_rows(
        self, modality: str, archive: NpzFile
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """All features of a modality as (N, L, d), and their lengths (N,) where they are given."""
        values = read_member(archive, self._archive, modality)
        if values.ndim not in (2, 3) or len(values) != self._row_count:
            raise ReadError(
                f"{self._archive}: {modality} has the shape {values.shape}, but {_TABLE} has "
                f"{self._row_count} rows; expected ({self._row_count}, features) or "
                f"({self._row_count}, frames, features). Save one row of features per row of the "
                "table, in its order."
            )
        key = f"{modality}_lengths"
        lengths = read_member(archive, self._archive, key) if key in archive.files else None
        if lengths is not None and lengths.shape != (self._row_count,):
            raise ReadError(
                f"{self._archive}: {key} has the shape {lengths.shape}, expected one length for "
                f"each of the {self._row_count} rows of {_TABLE}. Save them anew."
            )
        if values.ndim == 2:
            values = values[:, None]
            if lengths is None:
                lengths = np.ones(self._row_count, dtype=np.int64)
        return values, lengths

    @staticmethod
    def _from_rows(
        values: NDArray[Any], lengths: NDArray[Any] | None, index: int, row: Row
    ) -> Frames:
        return Frames(values[index], None if lengths is None else lengths[index])

    def _from_key(
        self, modality: str, place: _Place, archive: NpzFile, index: int, row: Row
    ) -> Frames | None:
        identity = row.values["id"].strip()
        if identity not in place.ids:
            return None
        return _whole(read_member(archive, self._archive, f"{modality}/{identity}"))

    def _from_file(self, modality: str, place: _Place, index: int, row: Row) -> Frames | None:
        identity = row.values["id"].strip()
        if identity not in place.ids:
            return None
        where = f"utterance '{identity}' (line {row.line})"
        return _whole(load_array(self._folder / modality / f"{identity}.npy", where))


def _whole(values: NDArray[Any]) -> Frames:
    """Frames that are all real; a single vector (d,) is one frame."""
    values = values[None] if values.ndim == 1 else values
    return Frames(values, len(values) if values.ndim else 0)
