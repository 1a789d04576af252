"""Reading pickles of published data sets without running what is in them.

A pickle is a program: ``pickle.load`` calls whatever functions the file names. The published
files hold NumPy arrays, scalars and plain containers, so :func:`load_pickle` knows these and
nothing else. Any other name is refused before it is looked up, let alone called.

NumPy's own functions are not called with what a file says either: ``numpy.dtype.__setstate__``, for
instance, believes whatever flags it is given, and a structured dtype with forged flags makes NumPy
follow pointers that the file has chosen. Shapes, dtypes and sizes are checked here and the objects
built afresh, alike for NumPy 1 (``numpy.core``) and NumPy 2 (``numpy._core``).

The base is the standard library's unpickler in Python: its C twin cannot be told to refuse
extension codes and attribute states.
"""

from __future__ import annotations

import _compat_pickle
import itertools
import math
import pickle
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from msea_lightning.config.errors import UserError
from msea_lightning.data.files.errors import ReadError, show_value
from msea_lightning.data.files.formats import (
    WRITTEN_AS_TEXT,
    instead_of_pickle,
    spoilt_by_text_mode,
    tensor_remedy,
)

_KINDS = "biufcSUO"  # dtypes that load: numbers, bytes, text and objects (text of varying length)
_NESTED = 1000  # most tuples and frozensets in one, counted as often as they can be reached in it
_EMPTY = 1 << 24  # places that an array without numbers may have along its other axes
_LARGE = 1 << 12  # bytes or characters from which on an object is not kept for later items
_FORGOTTEN = object()  # takes the place of a large object of an item that has been handed out
_ARGUMENT = object()  # a type that is an argument only, such as ndarray of _reconstruct


class PickleError(ReadError):
    """A pickle that is refused, damaged, or no pickle at all."""


class _SharedArrayError(Exception):
    """An item of a list that is read in parts uses an array of an earlier part."""


def load_pickle(path: Path) -> Any:
    """Loads NumPy arrays, scalars and plain containers; anything else is a :class:`PickleError`.

    Pickles of NumPy 1 and 2, of Python 2 and 3, in every protocol load. Byte strings of Python 2
    come back as text; arrays may be read-only.
    """
    with _open(path) as stream:
        return _Unpickler(path, stream).load()


def iterate_pickle(path: Path) -> Iterator[Any]:
    """Yields the items of a pickled list, which may hold what :func:`load_pickle` loads.

    Pickles write long lists in runs of a thousand items; one run at a time is in memory. (CHERMA's
    training file has 38 GB of padded frames.) Where items share an array, the list is read whole.
    """
    count = 0
    try:
        with _open(path) as stream:
            for item in _ListUnpickler(path, stream).items():
                yield item
                count += 1
    except _SharedArrayError:
        yield from load_pickle(path)[count:]


@contextmanager
def _open(path: Path) -> Iterator[_Stream]:
    """The file as a stream; whatever goes wrong with it becomes a :class:`PickleError`."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            found = instead_of_pickle(path)
            if found is not None:
                raise PickleError(f"{path} {found}.")
            yield _Stream(file, size)
    except (UserError, _SharedArrayError):
        raise
    except MemoryError as error:
        raise PickleError(
            f"{path} ({size / 2**30:.1f} GiB) does not fit in memory. Prepare it once on a machine "
            "with more memory and copy the store, or close other programs."
        ) from error
    except OSError as error:
        raise PickleError(f"{path} cannot be read ({error}): check its permissions.") from error
    except Exception as error:
        # A damaged pickle fails in any way that a program can fail; none of them helps a reader.
        damage = f"is damaged, or not a pickle ({type(error).__name__}: {error}). Fetch it again"
        if isinstance(error, EOFError):
            damage = f"ends too early ({size} bytes): the copy is incomplete. Fetch the file again"
        raise PickleError(f"{path} {spoilt_by_text_mode(path) or damage}.") from error


class _Stream:
    """The file with a hard end: reading past it is an error, and nothing is allocated for it."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            raise EOFError
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        if not line.endswith(b"\n"):
            raise EOFError
        return line


class _Latin1(str):
    """A byte string of Python 2 that is not UTF-8, one character a byte."""

    __slots__ = ()


class _Dtype:
    """Stands in for ``numpy.dtype``, whose state arrives after it has been made."""

    def __init__(self, spec: Any, *_: Any) -> None:
        self.dtype: np.dtype[Any] = np.dtype(_text(spec))
        if self.dtype.kind not in _KINDS:
            raise ValueError(f"arrays of {self.dtype} are not supported")

    def set_state(self, state: Any) -> None:
        """Takes byte order and item size from the state of a dtype; refuses fields."""
        if any(part is not None for part in state[2:5]):
            raise ValueError("structured arrays are not supported")
        kind = self.dtype.kind
        if kind in "SU" and state[5] >= 0:
            self.dtype = np.dtype(f"{kind}{state[5] // np.dtype(f'{kind}1').itemsize}")
        order = _text(state[1])
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(cast("Any", order))


def _set_array_state(array: NDArray[Any], state: Any) -> None:
    """Takes (version,) shape, dtype, Fortran order and data, as NumPy pickles them."""
    shape, dtype, fortran, data = state[-4:]
    dtype = _dtype(dtype)
    if not dtype.hasobject:
        data = _bytes(data)
    elif not isinstance(data, list):
        raise ValueError("an array of objects without its objects")
    shape = _shape(shape, data)
    size = math.prod(shape) * (1 if dtype.hasobject else dtype.itemsize)
    if len(data) != size:
        raise ValueError(f"an array of shape {shape} and type {dtype} with size {len(data)}")
    array.__setstate__((1, shape, dtype, bool(fortran), data))  # type: ignore[arg-type]


def _bounded(made: Any) -> Any:
    """A tuple or frozenset, refused where hashing or showing it would never end.

    Forty levels, each of which holds the one before it twice, are a few hundred bytes of a pickle.
    """
    parts, count = [made], 0
    while parts:
        inside = [part for part in parts.pop() if isinstance(part, tuple | frozenset)]
        parts += inside
        count += len(inside)
        if count > _NESTED:
            raise ValueError(f"a tuple or frozenset with more than {_NESTED} others in it")
    return made


def _reconstruct(kind: Any, *_: Any) -> NDArray[Any]:
    if kind is not _ARGUMENT:
        raise ValueError("a subclass of ndarray")
    return np.empty(0, np.int8)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    wanted = _dtype(dtype)
    if wanted.hasobject:
        return data
    raw = _bytes(data)
    return np.frombuffer(raw, wanted)[0] if raw else wanted.type()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    values, shape = np.frombuffer(_bytes(data), _dtype(dtype)), _shape(shape, data)
    if axes is not None:
        return values.reshape(shape).transpose(axes)
    return values.reshape(shape, order=order)


def _encode(text: Any = b"", encoding: str = "latin1") -> bytes:
    """Bytes made of bytes or text, never of a number: that would allocate what it says."""
    if isinstance(text, str) and encoding in ("latin1", "latin-1"):
        return text.encode("latin1")
    if not isinstance(text, bytes):
        raise ValueError(f"bytes made of {show_value(text)}, written in {show_value(encoding)}")
    return text


def _shape(shape: Any, data: Any) -> tuple[int, ...]:
    """A shape, which may not be long where there is nothing in it: looking at it takes memory."""
    shape = (shape,) if isinstance(shape, int) else shape
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {show_value(shape)}")
    if not len(data) and math.prod(n or 1 for n in shape) > _EMPTY:
        raise ValueError(f"an array of shape {shape} without numbers")
    return shape


def _dtype(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise ValueError("an array without a dtype")
    return dtype.dtype


def _bytes(data: Any) -> bytes | bytearray:
    if isinstance(data, str):  # Python 2 has no other bytes
        return data.encode("latin1" if isinstance(data, _Latin1) else "utf-8")
    if not isinstance(data, bytes | bytearray):
        raise ValueError("an array without data")
    return data


def _text(value: Any) -> str:
    if not isinstance(value, str | bytes):
        raise ValueError(f"a {type(value).__name__} in place of a name")
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    # Variable-length text of NumPy 2: kept as text objects.
    ("numpy.core._internal", "_convert_to_stringdtype_kwargs"): lambda *_: _Dtype("O"),
    ("numpy", "ndarray"): _ARGUMENT,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    # Without its factory: nothing is to be made of what a file lacks.
    ("collections", "defaultdict"): lambda *_: defaultdict(None),
    ("builtins", "set"): set,
    ("builtins", "frozenset"): lambda *args: _bounded(frozenset(*args)),
    ("builtins", "complex"): complex,
    ("builtins", "bytes"): _encode,
    ("builtins", "bytearray"): lambda *args: bytearray(_encode(*args)),
    **{("builtins", kind): _ARGUMENT for kind in ("list", "dict", "tuple", "int", "float", "str")},
}
"""Every name that a pickle may use. All of them make data of data."""


_python_pickle: Any = pickle  # its Python parts are not in the typing stubs

# The opcodes of what can be hashed although it holds others.
_IMMUTABLE = b"".join((pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET))


def _load_bounded(code: int) -> Callable[[Any], None]:
    def load(unpickler: Any) -> None:
        _python_pickle._Unpickler.dispatch[code](unpickler)
        _bounded(unpickler.stack[-1])

    return load


class _Unpickler(_python_pickle._Unpickler):  # type: ignore[misc]
    """The standard unpickler, restricted to the names in ``_KNOWN``."""

    def __init__(self, path: Path, file: _Stream) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Serves a known name; refuses any other without importing it."""
        if "\r" in module + name:
            raise PickleError(f"{self._path} {WRITTEN_AS_TEXT}.")
        if self.proto < 3:  # the names of Python 2, as the standard unpickler reads them
            names, modules = _compat_pickle.NAME_MAPPING, _compat_pickle.IMPORT_MAPPING
            module, name = names.get((module, name), (modules.get(module, module), name))
        if module.partition(".")[0] == "torch":
            raise PickleError(f"{self._path} {tensor_remedy(self._path)}")
        key = module.replace("numpy._core.", "numpy.core."), name  # NumPy 2 and 1
        if key not in _KNOWN:
            raise self._refusal(f"{module}.{name}")
        return _KNOWN[key]

    def persistent_load(self, pid: Any) -> Any:
        raise self._refusal("an object outside the file (a persistent id)")

    def get_extension(self, code: int) -> None:
        raise self._refusal(f"the extension code {code}")  # the process-wide registry of names

    def _refusal(self, what: str) -> PickleError:
        return PickleError(
            f"{self._path} asks for {what}, which no file of arrays and text needs; nothing of it "
            "was run. Pickles can carry programs: fetch the file from where it is published, or "
            "have its data saved in the layout of dataset=table."
        )

    def _decode_string(self, value: bytes) -> str:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return _Latin1(value.decode("latin1"))

    def load_build(self) -> None:
        """Sets the state of arrays and dtypes; refuses to set attributes of anything else."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, np.ndarray):
            _set_array_state(target, state)
        elif isinstance(target, _Dtype):
            target.set_state(state)
        else:
            raise self._refusal(f"attributes of a {type(target).__name__} to be set")

    def load_bytearray8(self) -> None:
        """Reads the bytes before anything is allocated for them."""
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **_python_pickle._Unpickler.dispatch,
        **{code: _load_bounded(code) for code in _IMMUTABLE},
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


class _Memo(dict[int, Any]):
    """What an item may use of the items before it."""

    def __getitem__(self, key: int) -> Any:
        value = super().__getitem__(key)
        if value is _FORGOTTEN:
            raise _SharedArrayError
        return value


class _ListUnpickler(_Unpickler):
    """Reads a list run by run, and forgets large objects of the runs before."""

    def items(self) -> Iterator[Any]:
        """The loop of :meth:`pickle.Unpickler.load`, halting at each run of items of the list."""
        self._unframer = _python_pickle._Unframer(self._file_read, self._file_readline)
        self.read, self.readline = self._unframer.read, self._unframer.readline
        self.readinto = self._unframer.readinto
        self.stack: list[Any] = []
        self.metastack: list[list[Any]] = []
        self.append = self.stack.append
        self.memo = _Memo()
        self._ready: list[Any] = []
        seen = 0
        try:
            while True:
                self.dispatch[self.read(1)[0]](self)
                if self._ready:
                    yield from self._ready
                    self._ready.clear()
                    for key, item in itertools.islice(self.memo.items(), seen, None):
                        if _is_large(item):
                            self.memo[key] = _FORGOTTEN
                    seen = len(self.memo)
        except _python_pickle._Stop as stop:
            whole = stop.value
        if not isinstance(whole, list):
            raise PickleError(
                f"{self._path} holds a {type(whole).__name__}, where a list of utterances is "
                "expected. Check dataset.reader and dataset.path."
            )

    def load_append(self) -> None:
        """Appends an item; to the list itself, sets it aside."""
        if len(self.stack) != 2 or self.metastack:
            super().load_append()
        else:
            self._ready.append(self.stack.pop())

    def load_appends(self) -> None:
        """Appends a run of items, likewise."""
        if len(self.metastack) != 1 or len(self.metastack[0]) != 1:
            super().load_appends()
        else:
            self._ready.extend(self.pop_mark())

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **_Unpickler.dispatch,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
    }


def _is_large(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.nbytes >= _LARGE
    if isinstance(value, bytes | bytearray | str):
        return len(value) >= _LARGE
    if isinstance(value, tuple):
        return any(map(_is_large, value))
    return isinstance(value, list | dict)
