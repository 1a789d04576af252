"""Readers of published files, one per layout; which one is chosen by ``dataset.reader``.

Each layout has two functions: ``find_<layout>(path, dataset)`` lists the files that belong to it,
and ``read_<layout>(path, dataset)`` opens them as a :class:`Reading`: the splits, each an iterable
of utterances that are checked and trimmed to their real lengths as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msea_lightning.data.options import DatasetConfig, Reader
from msea_lightning.data.readers.cherma import find_cherma, read_cherma
from msea_lightning.data.readers.dialogue import find_dialogue, read_dialogue
from msea_lightning.data.readers.mmsa import find_mmsa, read_mmsa
from msea_lightning.data.readers.record import Counts, MissingFileError, ReadError, Reading
from msea_lightning.data.readers.table import find_table, read_table

__all__ = [
    "Counts",
    "MissingFileError",
    "ReadError",
    "Reading",
    "find_cherma",
    "find_dialogue",
    "find_files",
    "find_mmsa",
    "find_table",
    "read_cherma",
    "read_dialogue",
    "read_files",
    "read_mmsa",
    "read_table",
]

_FIND: dict[Reader, Callable[[Path, DatasetConfig], list[Path]]] = {
    Reader.mmsa: find_mmsa,
    Reader.dialogue: find_dialogue,
    Reader.cherma: find_cherma,
    Reader.table: find_table,
}


def find_files(path: Path, dataset: DatasetConfig) -> list[Path]:
    """All files that :func:`read_files` would read.

    Args:
        path: The published file or folder.
        dataset: The data set's options.

    Raises:
        MissingFileError: naming what is not there.
        ReadError: where it is not clear which files are meant.
    """
    if not path.exists():
        raise MissingFileError(f"{path} does not exist")
    return _FIND[dataset.reader](path, dataset)


def read_files(
    path: Path, dataset: DatasetConfig, *, advance: Callable[[int], None] | None = None
) -> Reading:
    """Opens published files.

    Args:
        path: The published file or folder.
        dataset: The data set's options.
        advance: Called with the number of bytes of pickles read since its last call; the other
            layouts know their number of utterances instead (``Reading.sizes``).

    Raises:
        UserError: naming the file, and where it concerns one, the utterance and the remedy.
    """
    if dataset.reader is Reader.mmsa:
        return read_mmsa(path, dataset, advance=advance)
    if dataset.reader is Reader.dialogue:
        return read_dialogue(path, dataset, advance=advance)
    if dataset.reader is Reader.cherma:
        return read_cherma(path, dataset)
    return read_table(path, dataset)
