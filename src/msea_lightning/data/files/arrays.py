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
    """Loads an ``.npy`` file.

    Args:
        path: The file.
        where: The utterance that it belongs to, for the error message.

    Raises:
        ReadError: where it is damaged, or holds pickled objects.
    """
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except _BROKEN as error:
        found = stand_in(path)
        reason = found or f"is not a NumPy array of numbers ({error}). Save it anew with numpy.save"
        raise ReadError(f"{where}: {path} {reason}.") from error


@contextmanager
def open_archive(path: Path) -> Iterator[NpzFile]:
    """Opens an ``.npz`` file, of which each array is read when it is asked for.

    Raises:
        ReadError: where it is damaged, or no such file.
    """
    with ExitStack() as stack:
        try:
            # Opened here, because numpy.load leaves the file open when it is no archive.
            archive = np.load(stack.enter_context(path.open("rb")), allow_pickle=False)
        except _BROKEN as error:
            raise _refusal(path, error) from error
        if not isinstance(archive, NpzFile):
            raise ReadError(f"{path} holds one array. Save all of them with numpy.savez.")
        yield stack.enter_context(archive)


def read_member(archive: Mapping[str, Any], path: Path, key: str) -> NDArray[Any]:
    """Reads one array of an ``.npz`` file.

    Raises:
        ReadError: where it is damaged, or holds pickled objects.
    """
    try:
        values = archive[key]
    except _BROKEN as error:
        raise _refusal(path, error, key) from error
    if not isinstance(values, np.ndarray):
        raise ReadError(f"{path}: {key} is not a NumPy array. Save the file with numpy.savez.")
    return values


def _refusal(path: Path, error: BaseException, key: str | None = None) -> ReadError:
    found = stand_in(path)
    if found is not None:
        return ReadError(f"{path} {found}.")
    what = f"{path}: {key}" if key else f"{path}"
    kind = "NumPy array of numbers" if key else "NumPy archive"
    return ReadError(
        f"{what} is not a {kind}, or incomplete ({error}). Save the file anew with numpy.savez, "
        "without arrays of objects."
    )
