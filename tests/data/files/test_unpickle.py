"""Pickles: what is data loads, whatever else is in them is refused and never run."""

from __future__ import annotations

import base64
import builtins
import collections
import copyreg
import os
import pickle
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msea_lightning.data.files.unpickle import PickleError, iterate_pickle, load_pickle

# {"a": 2 x 3 float64, "t": objects, "s": float32, "u": text, "d": dtype(">f4")}, pickled by
# NumPy 1.26.4 on Python 3.11 with the protocols 2, 4 and 5; zlib, base 64.
NUMPY_1 = {
    2: (
        "eNp1kllLw0AUhdPUaoxb3fd9q1u1rnVt9dGBCgNCX0SSNBKhpp50AhYUfGm1P8U3/4M/TGcmKaLiQOYOZO79zjnJ"
        "s/oEJZGPKIpiIGK5/t19JWmVPDt55xfZreF5RkW/9myr5JaZ51tMhxrc0t1C8BZRolTRZF1bpYJtlXXbFQcdMTnV"
        "RHO+mdeiwW7dFFpq0ChaX6BTtCVIhKgkWkN7OLLAKve8syOv8o6bNDrrry/ooognSFROO0J3Lpc7/+RLbkRh6DHr"
        "TiyfUn6vj/dMeMoGRQtrPKx9WfQ6XFAfRT/DgCkJDIOO6khLQw7XOUwxInVWMeoEwi7SGBPCxikmGsIeMflTWIZh"
        "yqxfYToI9wEzsvfjDbM2w1wAK2P+n8jLllE0PB0LIfNmG4uCmaBY4kznbwzLJk8hFjh/zmBFOFulWKshSbEucT42"
        "Gt5SwtsmxZbwFqliO+RcbmJHcHYp9hocopEmojGkZdCa+FXEh+UP9gXlgOKQ4SiwVMDxt+QTMSpDkW3EdILTP8LP"
        "TD/5BRC2vA8="
    ),
    4: (
        "eNptUN1KwzAUTrrWVRARce+wqyLihRdiB70zUEHwUiT9GRG2bqQpWFDwxung3O34EL7F0BfyDTRNirKfA8lJyHe+"
        "nzy775+UmHrCPlCO0Cuq8bQO0onMg3E1UvdcSl4j7N3JPJ0UpZJVqnCB4BkgQrfILGSBjLxgRBN8xWvsM8oc1pmh"
        "8MDLVD3NmyFneIbzN/veAXqOcRxf/ugyGyMKk3l0TFbqO2wPA9v8th+0/WiAegyoQuGKbuNB7P450Jd9cK5WVB/X"
        "VMNG9bbJ/6Adfn1gbvhKFA7slCkfcam9NzzD038ecbjpPXIJWYY40wig1RY/1Pq5OVnjYT5zmW/S+1xnSvSyqbIN"
        "YaAXW76tCn4B9T2pFw=="
    ),
    5: (
        "eNptkM1Kw0AQx7NpWgMWFD/eIacg4sGDmEJuLkQQPErJJyk0SdnsggUFL60W5tax7+BbCD6H7+Ab6OQD1LYDszPs"
        "Lr/5z/+p+/rJtDoe0QLmIxzkKptM7bAQsU1tLEYhwu4wEUUWqCSJBS7RWp1o2+LLaZtBU8y27rf1aIDQrflUIzmd"
        "xAQDPTnHxcsz3qDFO8Au0PO8q2+K+uCaxIDrvDNHYC5K+gZMIhz/0ZmpsRz5QvjE7Q9FHBZ5KYUKJeHTHuzkUfO4"
        "RK7N0GUBNtMY12eYmqBf/1PwsKbAIQWLu8qfe1L78YYxXQArMT2EXhn6Y78ypeIkZ7+ctL+5h2to2ruD83oJhalh"
        "rczWMp8yoKw5t6drHG5yg5uVE4wU7zUuRBszgV1ucU/ZPxs9sUw="
    ),
}
DATA = {
    "array": np.arange(12.0).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "big_endian": np.arange(3, dtype=">f4"),
    "empty": np.zeros((0, 3)),
    "zero_dimensional": np.array(5),
    "text": np.array(["a", "bcd", "é"]),
    "bytes": np.array([b"a", b"bc"]),
    "objects": np.array(["x", "yé", None], dtype=object),
    "bools": np.array([True, False]),
    "float64": np.float64(3),
    "float32": np.float32(1.5),
    "str_": np.str_("hé"),
    "empty_str_": np.str_(""),
    "nested": [(1, {"a": np.ones(2)}), None, True, 10**30],
    "set": {1, 2},
    "frozenset": frozenset({1}),
    "ordered": collections.OrderedDict(a=1),
    "default": collections.defaultdict(list, {"a": [1]}),
    "complex": 1j,
    "raw": b"\xff\x00",
    "empty_raw": b"",
    "bytearray": bytearray(b"xyz"),
    "chinese": "愤怒",
}
protocols = pytest.mark.parametrize("protocol", [2, 3, 4, 5])


class Trap:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def save(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@protocols
@pytest.mark.parametrize("name", DATA)
def test_data_load_as_they_were(tmp_path: Path, name: str, protocol: int) -> None:
    found = load_pickle(save(tmp_path / "a.pkl", {name: DATA[name]}, protocol))[name]
    assert type(found) is type(DATA[name])
    if isinstance(found, np.ndarray):
        assert found.shape == DATA[name].shape
        assert found.dtype.newbyteorder("=") == DATA[name].dtype.newbyteorder("=")
    np.testing.assert_equal(found, DATA[name])


@pytest.mark.parametrize("protocol", NUMPY_1)
def test_pickles_of_numpy_1_load(tmp_path: Path, protocol: int) -> None:
    content = zlib.decompress(base64.b64decode(NUMPY_1[protocol]))
    assert b"numpy.core." in content
    (tmp_path / "a.pkl").write_bytes(content)
    found = load_pickle(tmp_path / "a.pkl")
    np.testing.assert_array_equal(found["a"], np.arange(6.0).reshape(2, 3))
    assert found["t"].tolist() == ["x", "é"]
    assert (found["s"], found["u"].tolist()) == (1.5, ["ab"])


def test_text_of_variable_length_of_numpy_2_loads(tmp_path: Path) -> None:
    if not hasattr(np, "dtypes") or not hasattr(np.dtypes, "StringDType"):
        pytest.skip("NumPy 1 has no StringDType")
    text = np.array(["short", "a longer one"], dtype=np.dtypes.StringDType())
    assert load_pickle(save(tmp_path / "a.pkl", text)).tolist() == ["short", "a longer one"]


def test_pickles_of_python_2_load(tmp_path: Path) -> None:
    # {'text': 'caf\xc3\xa9', 'array': array([1.5, -2.])} as cPickle of Python 2 writes it: all text
    # and the array's data are byte strings.
    data = np.array([1.5, -2.0]).tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"U" + bytes([len(data)]) + data + b"tb"
    )
    (tmp_path / "a.pkl").write_bytes(
        b"\x80\x02}(U\x04textU\x05caf\xc3\xa9U\x05array" + array + b"u."
    )
    found = load_pickle(tmp_path / "a.pkl")
    assert found["text"] == "café"
    np.testing.assert_array_equal(found["array"], [1.5, -2.0])


def traps(marker: Path) -> dict[str, tuple[Any, str]]:
    """Objects that would write a file if they were let, and the name that gives them away."""
    command = f"echo > {marker}"
    system = f"{os.system.__module__}.system"
    code = f"open({str(marker)!r}, 'w')"
    return {
        "os.system": (Trap(os.system, command), system),
        "eval": (Trap(builtins.eval, code), "builtins.eval"),
        "exec": (Trap(builtins.exec, code), "builtins.exec"),
        "getattr": (Trap(builtins.getattr, Path, "touch"), "builtins.getattr"),
        "open": (Trap(builtins.open, str(marker), "w"), f"{builtins.open.__module__}.open"),
        "import": (Trap(builtins.__import__, "os"), "builtins.__import__"),
        "subprocess": (Trap(subprocess.Popen, command), "subprocess.Popen"),
        "numpy.load": (Trap(np.load, str(marker)), "numpy.load"),
        "path": (marker, "pathlib"),
        "in an array": (np.array([Trap(os.system, command), 1], dtype=object), system),
        "in a list": ([{"label": Trap(os.system, command)}], system),
        "as a key": ({(1, Trap(os.system, command)): 2}, system),
        "record array": (np.rec.array([(1, 2.0)]), "numpy.rec"),
        "masked array": (np.ma.ones(2), "numpy.ma"),
    }


@protocols
@pytest.mark.parametrize("name", list(traps(Path("marker"))))
def test_a_program_in_a_pickle_is_refused_by_name_and_not_run(
    tmp_path: Path, name: str, protocol: int
) -> None:
    marker = tmp_path / "marker"
    trap, culprit = traps(marker)[name]
    path = save(tmp_path / "evil.pkl", trap, protocol)
    with pytest.raises(PickleError) as refusal:
        load_pickle(path)
    assert f"{path} asks for {culprit}" in str(refusal.value)
    assert "nothing of it was run" in str(refusal.value)
    with pytest.raises(PickleError, match=r"nothing of it was run|is expected"):
        list(iterate_pickle(path))
    assert not marker.exists()


OPCODES = {
    "by INST": (b"(S'touch %s'\nios\nsystem\n.", r"os\.system"),
    "by OBJ": (b"(cos\nsystem\nS'touch %s'\no.", r"os\.system"),
    "by a dotted name": (
        b"\x80\x04\x8c\x05numpy\x8c\x15dtype.__class__.mro.x\x93.",
        r"numpy\.dtype\._",
    ),
    "of a module of another name": (
        b"cnumpy.core.multiarray\nabsolute\n.",
        r"multiarray\.absolute",
    ),
    "by a persistent id": (b"Pthe id\n.", "persistent id"),
    "by a binary persistent id": (b"\x80\x02K\x01Q.", "persistent id"),
    "attributes of a dictionary": (b"\x80\x02}}X\x01\x00\x00\x00aK\x01sb.", "attributes of a dict"),
    "attributes of a function": (b"\x80\x02c_codecs\nencode\n}b.", "attributes of a function"),
    "attributes of a class": (
        b"\x80\x02ccollections\nOrderedDict\nN}\x86b.",
        "attributes of a type",
    ),
}


@pytest.mark.parametrize("name", OPCODES)
def test_every_other_way_into_a_program_is_closed(tmp_path: Path, name: str) -> None:
    content, culprit = OPCODES[name]
    marker = tmp_path / "marker"
    path = tmp_path / "evil.pkl"
    path.write_bytes(content.replace(b"%s", bytes(marker)))
    with pytest.raises(PickleError, match=f"evil.pkl asks for .*{culprit}"):
        load_pickle(path)
    assert not marker.exists()


@pytest.fixture
def extension() -> Iterator[int]:
    code = 240
    copyreg.add_extension("os", "getcwd", code)
    yield code
    copyreg.remove_extension("os", "getcwd", code)


def test_extension_codes_are_refused_even_when_they_are_known(
    tmp_path: Path, extension: int
) -> None:
    content = b"\x80\x02\x82" + bytes([extension]) + b")R."
    assert pickle.loads(content) == str(Path.cwd())  # which also puts the function into a cache
    (tmp_path / "evil.pkl").write_bytes(content)
    with pytest.raises(PickleError, match="asks for the extension code 240"):
        load_pickle(tmp_path / "evil.pkl")


def array_pickle(dtype: bytes, state: bytes, shape: bytes, data: bytes) -> bytes:
    """An array in protocol 2, with whatever dtype, dtype state, shape and data."""
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01"
        + shape + b"cnumpy\ndtype\n(" + dtype + b"I00\nI01\ntR" + state + b"bI00\n" + data + b"tb."
    )  # fmt: skip


FLOATS = b"(K\x03S'<'\nNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
POINTER = b"C\x08AAAAAAAA"
FORGED = {
    "an object field that says it is none": array_pickle(
        b"S'V8'\n",
        b"(K\x03S'|'\nN(S'a'\nt}S'a'\n(cnumpy\ndtype\n(S'O8'\ntRK\x00tsK\x08K\x01K\x00t",
        b"(K\x01t",
        POINTER,
    ),
    "objects made of bytes": array_pickle(b"S'O8'\n", FLOATS, b"(K\x01t", POINTER),
    "more elements than bytes": array_pickle(b"S'f8'\n", FLOATS, b"(J\xff\xff\xff\x7ft", POINTER),
    "a long axis of nothing": array_pickle(
        b"S'f8'\n", FLOATS, b"(J\xff\xff\xff\x7fK\x00t", b"C\x00"
    ),
    "a negative length": array_pickle(b"S'f8'\n", FLOATS, b"(J\xff\xff\xff\xfft", POINTER),
    "bytes through another codec": (
        b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00ziptR."
    ),
    "an array of another class": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\ncomplex\n(K\x00tC\x01btR."
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_arrays_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.pkl").write_bytes(FORGED[name])
    with pytest.raises(PickleError, match=r"a\.pkl is damaged, or not a pickle"):
        load_pickle(tmp_path / "a.pkl")


def test_a_truncated_pickle_says_so_wherever_it_ends(tmp_path: Path) -> None:
    content = pickle.dumps({"train": {"audio": np.ones((3, 4)), "id": ["a", "b"]}}, 4)
    path = tmp_path / "cut.pkl"
    for end in range(2, len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(PickleError, match=rf"ends too early \({end} bytes\)|is damaged"):
            load_pickle(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(PickleError, match=r"ends too early .* the copy is incomplete"):
        load_pickle(path)


def test_a_stated_size_beyond_the_file_allocates_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04\x8e" + (2**61).to_bytes(8, "little") + b"x.")
    with pytest.raises(PickleError, match="ends too early"):
        load_pickle(tmp_path / "a.pkl")


def nested_tuples(levels: int) -> bytes:
    """A tuple that holds the one before it twice, so many levels deep."""
    return b"\x80\x04)" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(levels))


EXPLOSIONS = {
    "tuples": nested_tuples(40) + b".",
    "tuples as a key": b"\x80\x04}" + nested_tuples(40)[2:] + b"K\x01s.",
    "tuples in a frozenset": b"\x80\x04(" + nested_tuples(40)[2:] + b"\x91.",
    "frozensets": b"\x80\x04)" + b"q\x00((h\x00K\x00\x91(h\x00K\x01\x91\x91" * 40 + b".",
    "called frozensets": (
        b"\x80\x04)" + b"q\x00cbuiltins\nfrozenset\n(](h\x00h\x00\x86K\x01etR" * 40 + b"."
    ),
    "bytearray": b"cbuiltins\nbytearray\n(L6000000000L\ntR.",
    "bytes": b"cbuiltins\nbytes\n(L6000000000L\ntR.",
    "list": b"cbuiltins\nlist\n(C\x02ab\ntR.",
    "stated bytearray": b"\x80\x05\x96" + (6 * 10**9).to_bytes(8, "little") + b"x.",
    "a list as a shape": b"\x80\x04]q\x00(h\x00h\x00ecnumpy\ndtype\n(h\x00tR.",
}


@pytest.mark.parametrize("name", EXPLOSIONS)
def test_much_is_never_made_of_little(tmp_path: Path, name: str) -> None:
    """Each of these would take gigabytes, or years."""
    (tmp_path / "a.pkl").write_bytes(EXPLOSIONS[name])
    tracemalloc.start()
    with pytest.raises(PickleError, match=r"is damaged, or not a pickle|ends too early"):
        load_pickle(tmp_path / "a.pkl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 22


def test_shared_tuples_load(tmp_path: Path) -> None:
    pair = (1, ("a", 2.0))
    value = [pair, (pair, pair), {pair: 1, ("x",): (pair,)}]
    assert load_pickle(save(tmp_path / "a.pkl", value)) == value


TENSORS = {"train": {"audio": torch.arange(6.0).reshape(2, 3), "id": ["a", "b"]}}


@pytest.mark.parametrize("way", ["torch.save", "torch.save before 1.6", "pickle"])
def test_tensors_are_named_and_the_two_lines_convert_them(tmp_path: Path, way: str) -> None:
    path = tmp_path / "it's.pkl"
    if way == "pickle":
        save(path, TENSORS)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=way == "torch.save")
    with pytest.raises(PickleError, match=r"torch\.save|holds PyTorch tensors") as error:
        load_pickle(path)
    lines = [line[4:] for line in str(error.value).splitlines() if line.startswith("    ")]
    assert len(lines) == 2
    exec("\n".join(lines))
    found = load_pickle(tmp_path / "it's_numpy.pkl")
    assert found["train"]["id"] == ["a", "b"]
    np.testing.assert_array_equal(found["train"]["audio"], TENSORS["train"]["audio"])


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_spoilt_by_text_mode_is_recognised(tmp_path: Path, protocol: int) -> None:
    """A line feed within the words and the numbers of any protocol tells of the transfer."""
    value = {f"line\n{n}": np.full(10, 10, dtype=np.int8) for n in range(10)}
    content = pickle.dumps(value, protocol).replace(b"\n", b"\r\n")
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(PickleError, match=r"transferred in text mode.* binary mode"):
        load_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", range(4))
def test_names_spoilt_by_text_mode_are_no_program(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps(np.ones(3), protocol).replace(b"\n", b"\r\n")
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(PickleError, match="transferred in text mode"):
        load_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_words_with_both_line_ends_load(tmp_path: Path, protocol: int) -> None:
    value = [f"line {n}\r\n" for n in range(10)]
    assert load_pickle(save(tmp_path / "a.pkl", value, protocol)) == value


STRANGERS = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "is a git-LFS pointer.*git lfs pull.*dataset.download=true",
    ),
    "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
    "zip": (b"PK\x03\x04rest", "is a zip archive.*Unpack it"),
    "gzip": (b"\x1f\x8brest", "is a gzip archive"),
    "words": (b"not a pickle at all", "is damaged, or not a pickle"),
    "zeros": (bytes(100), "is damaged, or not a pickle"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_something_else_in_place_of_the_pickle_is_named(tmp_path: Path, name: str) -> None:
    content, reason = STRANGERS[name]
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(PickleError, match=rf"a\.pkl {reason}"):
        load_pickle(tmp_path / "a.pkl")


def test_a_folder_in_place_of_the_pickle_is_named(tmp_path: Path) -> None:
    with pytest.raises(PickleError, match="cannot be read"):
        load_pickle(tmp_path)


@protocols
@pytest.mark.parametrize("count", [0, 1, 2, 1000, 1001, 2500])
def test_items_of_a_list_come_one_by_one(tmp_path: Path, protocol: int, count: int) -> None:
    items = [
        {"text": f"t{i % 7}", "audio": np.full((2, 3), i), "n": [i, (i,)]} for i in range(count)
    ]
    found = list(iterate_pickle(save(tmp_path / "a.pkl", items, protocol)))
    np.testing.assert_equal(found, items)


def test_items_that_share_arrays_come_all_the_same(tmp_path: Path) -> None:
    shared = np.arange(2000.0)
    items = [{"audio": shared if i % 3 else np.full(2000, i)} for i in range(2500)]
    found = list(iterate_pickle(save(tmp_path / "a.pkl", items)))
    assert len(found) == 2500
    for i in (0, 1, 999, 1000, 1001, 1499, 2499):
        np.testing.assert_array_equal(found[i]["audio"], items[i]["audio"])


def test_items_that_have_been_handed_out_are_forgotten(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pkl", [{"audio": np.full(600, float(i))} for i in range(4000)])
    tracemalloc.start()
    for _ in iterate_pickle(path):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2


def test_a_pickle_of_no_list_has_no_items(tmp_path: Path) -> None:
    with pytest.raises(PickleError, match="holds a dict, where a list of utterances is expected"):
        list(iterate_pickle(save(tmp_path / "a.pkl", {"a": [1, 2]})))
