"""``.npy`` files that anybody may have written."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from msea_lightning.data.files.arrays import load_array, open_archive, read_array, read_member
from msea_lightning.data.files.errors import ReadError


def with_header(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin-1") + data


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="<f4").reshape(2, 3),
        np.arange(6, dtype=">i8").reshape(3, 2).T,
        np.zeros((0, 4), dtype=np.float16),
        np.array(2, dtype=np.uint8),
    ],
    ids=["floats", "fortran", "empty", "scalar"],
)
def test_what_numpy_saves_is_read(array: Any, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(saved(array))
    for found in (read_array(io.BytesIO(saved(array)), "it"), load_array(tmp_path / "a.npy", "u")):
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert (found == array).all()


def test_another_writer_may_order_its_header_as_it_likes() -> None:
    header = '{"shape": (1, 2), "descr": "<f4", "fortran_order": False}\n'
    found = read_array(io.BytesIO(with_header(header, b"\0" * 8)), "it")
    assert found.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("{(\n", "no plain array"),  # NumPy raises a TokenError
        ("{[]:1}", "no plain array"),  # a TypeError
        ("foo()", "no plain array"),  # a ValueError with an address in it
        ("-" * 9000 + "1", "no plain array"),  # a MemoryError that says nothing
        # Python ends where NumPy looks at this type.
        ("{'descr': 'M8[ns/0]', 'fortran_order': False, 'shape': (1,)}", "no plain array"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "no plain array"),
        (f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 401},)}}", "no plain array"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", "EOF|read all"),
        ("{'descr': '<f3', 'fortran_order': False, 'shape': (2,)}", "descr"),
        ("{'descr': '<f4'}", "keys"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "Object arrays cannot"),
    ],
)
def test_a_header_that_is_none_is_refused(header: str, reason: str, tmp_path: Path) -> None:
    content = with_header(header)
    with pytest.raises(ReadError, match=rf"^it is not a NumPy array .*\(.*{reason}"):
        read_array(io.BytesIO(content), "it")
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ReadError, match=rf"^u1: \S+a\.npy is not a NumPy array .*\(.*{reason}"):
        load_array(tmp_path / "a.npy", "u1")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("audio.npy", content)
    with (
        open_archive(tmp_path / "a.npz") as arrays,
        pytest.raises(ReadError, match=rf"a\.npz: audio is not a NumPy array .*\(.*{reason}"),
    ):
        read_member(arrays, tmp_path / "a.npz", "audio")


@given(
    content=st.binary(max_size=80) | st.text("{}[]()'\",:-<f40 \n", max_size=80).map(with_header)
)
@example(content=b"")
@example(content=b"\x93NUMPY\x07\x00")
@example(content=b"\x93NUMPY\x02\x00\xff\xff\xff\xff")
def test_whatever_is_sent_is_read_or_refused_with_a_reason(content: bytes) -> None:
    with pytest.raises(ReadError) as caught:
        read_array(io.BytesIO(content), "it")
    assert "incomplete ()" not in str(caught.value)
    assert " at 0x" not in str(caught.value)
