"""NumPy's own files: ``.npy`` and ``.npz``, never with pickled objects in them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from msea_lightning.data.files.errors import ReadError
from msea_lightning.data.files.formats import stand_in

_BROKEN = (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError)


def load_array(path: Path, where: str) -> NDArray[Any]:
    """Loads the ``.npy`` file of an utterance, which errors name first."""
    with _explained(path, f"{where}: {path}", "array of numbers"), path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


@contextmanager
def open_archive(path: Path) -> Iterator[NpzFile]:
    """Opens an ``.npz`` file, of which each array is read when it is asked for."""
    with ExitStack() as stack:
        with _explained(path, f"{path}", "archive"):
            # Opened here, because numpy.load leaves the file open when it is no archive.
            archive = np.load(stack.enter_context(path.open("rb")), allow_pickle=False)
        if not isinstance(archive, NpzFile):
            raise ReadError(f"{path} holds one array. Save all of them with numpy.savez.")
        yield stack.enter_context(archive)


def read_member(archive: Mapping[str, Any], path: Path, key: str) -> NDArray[Any]:
    """Reads one array of an ``.npz`` file."""
    with _explained(path, f"{path}: {key}", "array of numbers"):
        values = archive[key]
        if not isinstance(values, np.ndarray):
            raise ValueError("it is another file in the archive")
        return values


@contextmanager
def _explained(path: Path, what: str, kind: str) -> Iterator[None]:
    """Turns what goes wrong while a file is read into a :class:`ReadError`."""
    try:
        yield
    except _BROKEN as error:
        flaw = stand_in(path) or (
            f"is not a NumPy {kind}, or incomplete ({error}). Save the file anew with numpy.save "
            "or numpy.savez, without arrays of objects"
        )
        raise ReadError(f"{what} {flaw}.") from error
