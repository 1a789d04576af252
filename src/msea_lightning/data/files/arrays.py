"""NumPy's own files: ``.npy`` and ``.npz``, never with pickled objects in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from msea_lightning.data.files.errors import ReadError
from msea_lightning.data.files.formats import stand_in

_MOST_HEADER = 10_000
"""Most bytes of a header that NumPy reads."""

_ENTRY = (
    r"['\"]descr['\"]\s*:\s*['\"][<>|=]?[a-zA-Z?]\d{0,6}['\"]|"
    r"['\"]fortran_order['\"]\s*:\s*(?:True|False)|"
    r"['\"]shape['\"]\s*:\s*\(\s*(?:\d{1,18}L?\s*(?:,\s*|(?=\))))*\)"
)
_HEADER = re.compile(rf"\s*\{{\s*(?:(?:{_ENTRY})\s*(?:,\s*|(?=\}})))*\}}\s*")
"""The header of an array of one plain type."""


def read_array(file: BinaryIO, what: str) -> NDArray[Any]:
    """Reads a ``.npy`` file that anybody may have written.

    Args:
        file: At its start; it can be sought in.
        what: What errors call it.

    Raises:
        ReadError: if it is none, or not of one plain type.
    """
    with _explained(what, "array of numbers"):
        start = file.tell()
        version = np.lib.format.read_magic(file)
        length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
        header = file.read(min(length, _MOST_HEADER)).decode("latin-1")
        # NumPy evaluates a header, and among the types that it may name are some that end Python.
        if not _HEADER.fullmatch(header):
            raise ValueError("its header tells of no plain array")
        file.seek(start)
        return np.lib.format.read_array(file, allow_pickle=False)


def load_array(path: Path, where: str) -> NDArray[Any]:
    """Loads the ``.npy`` file of an utterance, which errors name first."""
    what = f"{where}: {path}"
    with _explained(what, "array of numbers", path), path.open("rb") as file:
        return read_array(file, what)


class Archive(Mapping[str, NDArray[Any]]):
    """The arrays of an ``.npz`` file, each read by :func:`read_array` when it is asked for."""

    def __init__(self, path: Path, found: NpzFile) -> None:
        self._path, self._found = path, found

    def __getitem__(self, key: str) -> NDArray[Any]:
        members = self._found.zip
        assert members is not None  # it is open
        with members.open(f"{key}.npy") as file:
            return read_array(cast("BinaryIO", file), f"{self._path}: {key}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._found.files)

    def __len__(self) -> int:
        return len(self._found.files)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Opens an ``.npz`` file, of which each array is read when it is asked for."""
    with ExitStack() as stack:
        with _explained(f"{path}", "archive", path):
            # Opened here, because numpy.load leaves the file open when it is no archive.
            archive = np.load(stack.enter_context(path.open("rb")), allow_pickle=False)
        if not isinstance(archive, NpzFile):
            raise ReadError(f"{path} holds one array. Save all of them with numpy.savez.")
        yield Archive(path, stack.enter_context(archive))


def read_member(archive: Mapping[str, Any], path: Path, key: str) -> NDArray[Any]:
    """Reads one array of an ``.npz`` file."""
    with _explained(f"{path}: {key}", "array of numbers", path):
        return cast("NDArray[Any]", archive[key])


@contextmanager
def _explained(what: str, kind: str, path: Path | None = None) -> Iterator[None]:
    """Turns what goes wrong while a file is read into a :class:`ReadError`."""
    try:
        yield
    # NumPy's parser of headers raises what Python's own do, and zip files add theirs.
    except Exception as error:
        flaw = None if path is None else stand_in(path)
        if flaw is None and isinstance(error, ReadError):
            raise
        flaw = flaw or (
            f"is not a NumPy {kind}, or incomplete ({_reason(error)}). Save the file anew with "
            "numpy.save or numpy.savez, without arrays of objects"
        )
        raise ReadError(f"{what} {flaw}.") from error


def _reason(error: Exception) -> str:
    """What an error says, without addresses of objects; its type where it says nothing."""
    said = re.sub(r"<(\S+) object at 0x[0-9a-f]+>", r"\1", str(error))
    return said[:200] or type(error).__name__
