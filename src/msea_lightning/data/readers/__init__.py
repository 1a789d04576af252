"""Readers of published files, one :class:`~.reading.Layout` each, chosen by ``dataset.reader``."""

from __future__ import annotations

from pathlib import Path

from msea_lightning.data.files.errors import MissingFileError, ReadError
from msea_lightning.data.options import READERS, DatasetConfig
from msea_lightning.data.readers.reading import Layout, Reading

__all__ = ["MissingFileError", "ReadError", "Reading", "find_files", "read_files"]


def find_files(path: Path, dataset: DatasetConfig) -> list[Path]:
    """All files that :func:`read_files` would read, in a published file or folder."""
    return _layout(path, dataset).files


def read_files(path: Path, dataset: DatasetConfig) -> Reading:
    """Opens a published file or folder."""
    layout = _layout(path, dataset)
    return Reading(dataset, layout.sources(), layout.extractors(), layout.notes)


def _layout(path: Path, dataset: DatasetConfig) -> Layout:
    if not path.exists():
        raise MissingFileError(f"{path} does not exist")
    layout: Layout = READERS.load(dataset.reader.value)(path, dataset)
    return layout
