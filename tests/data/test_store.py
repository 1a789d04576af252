"""The store: what is written is read back, nothing else is read, and nothing half-written stays."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
import re
import resource
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from msea_lightning.config.errors import UserError
from msea_lightning.data.store import Store, StoreError, store_lock, write_store
from msea_lightning.data.utterance import DataError, Utterance
from tests.data.corpus import corpus, stored, utterance
from tests.places import ROOT

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def data_sets(draw: st.DrawFn) -> dict[str, list[Utterance]]:
    """Data sets of any legal content: absent modalities, odd texts, one type of label."""
    labels: st.SearchStrategy[Any] = draw(st.sampled_from([numbers, texts]))
    # Any feature has a width of its own; a third one is nothing special.
    named = draw(st.lists(st.sampled_from(["audio", "vision", "text_features"]), unique=True))
    widths = {name: draw(st.integers(1, 3)) for name in named}

    def features(modality: str, length: int) -> NDArray[np.float32] | None:
        if length < 0:
            return None
        values = np.random.default_rng(length).normal(size=(length, widths[modality]))
        return values.astype(np.float32)

    identities = draw(st.lists(texts, min_size=1, max_size=12, unique=True))
    names = draw(st.lists(st.sampled_from(["train", "valid", "test"]), min_size=1, unique=True))
    splits: dict[str, list[Utterance]] = {}
    for number, identity in enumerate(identities):
        splits.setdefault(names[number % len(names)], []).append(
            Utterance(
                id=identity,
                text=draw(texts),
                labels=draw(
                    st.dictionaries(st.sampled_from(["M", "T", "A", "V"]), labels, max_size=4)
                ),
                features={
                    name: frames
                    for name in widths
                    if (frames := features(name, draw(st.integers(-1, 4)))) is not None
                },
                group=draw(st.none() | texts),
                speaker=draw(st.none() | texts),
            )
        )
    return splits


def same_frames(
    stored_frames: NDArray[np.float32] | None, frames: NDArray[np.float32] | None
) -> bool:
    """Whether frames came back; no frames are an absent modality."""
    if frames is None or len(frames) == 0:
        return stored_frames is None
    return (
        stored_frames is not None
        and stored_frames.dtype == np.float32
        and np.array_equal(stored_frames, frames)
    )


@given(splits=data_sets())
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, splits: dict[str, list[Utterance]]
) -> None:
    store = stored(tmp_path_factory.mktemp("any"), splits)
    assert list(store.splits) == [name for name in ("train", "valid", "test") if name in splits]
    everything = [one for utterances in splits.values() for one in utterances]
    assert store.dims == {
        name: frames.shape[1]
        for one in everything
        for name, frames in one.features.items()
        if len(frames)
    }
    assert list(store.dims) == sorted(store.dims)
    for name, utterances in splits.items():
        split = store.splits[name]
        assert len(split) == len(utterances)
        for index, original in enumerate(utterances):
            found = split[index]
            assert (found.id, found.text) == (original.id, original.text)
            assert found.labels == original.labels
            assert {n: labels[index] for n, labels in split.labels.items()} == {
                n: original.labels.get(n) for n in split.labels
            }
            assert found.label == split.labels["M"][index]
            assert (found.group, found.speaker) == (original.group, original.speaker)
            for feature in store.dims:
                frames = original.features.get(feature)
                assert same_frames(found.features.get(feature), frames)
                lengths = split.lengths[feature]
                assert lengths[index] == (0 if frames is None else len(frames))
                assert lengths.dtype == np.int64


def test_files_are_json_and_safetensors_only(tmp_path: Path) -> None:
    splits = corpus({"train": 4, "test": 2})
    store = write_store(tmp_path / "store", splits, info={"source": "a.csv", "size": 12})
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "store.json",
        "test.jsonl",
        "test.safetensors",
        "train.jsonl",
        "train.safetensors",
    ]
    tensors = safetensors.numpy.load_file(store.folder / "train.safetensors")
    whole = np.concatenate(
        [
            one.features.get("audio")
            for one in splits["train"]
            if one.features.get("audio") is not None
        ]
    )
    assert np.array_equal(tensors["audio"], whole)
    assert set(tensors) == {"audio", "audio_offsets", "vision", "vision_offsets"}
    assert tensors["vision_offsets"].dtype == np.int64
    assert store.info == {"source": "a.csv", "size": 12}


def test_a_modality_of_another_split_only_keeps_its_width(tmp_path: Path) -> None:
    store = stored(
        tmp_path, {"train": [utterance("a", vision=None)], "test": [utterance("b", audio=None)]}
    )
    assert store.splits["train"].dims == {"audio": 4, "vision": 5}
    assert store.splits["train"].lengths["vision"].tolist() == [0]
    assert store.splits["test"].present == {"audio": 0, "vision": 1}
    assert store.splits["train"][0].features.get("vision") is None
    assert store.splits["test"][0].features.get("audio") is None


def test_numbers_are_stored_as_float32_and_negative_zero_as_zero(tmp_path: Path) -> None:
    audio = np.arange(6, dtype=np.float64).reshape(3, 2)[::2]
    split = stored(
        tmp_path,
        {
            "train": [
                utterance("a", label=-0.0, audio=audio),
                utterance("b", label=np.float32(0.2), audio=None),
                utterance("c", label=2, audio=None),
            ]
        },
    ).splits["train"]
    assert split.targets == [0.0, float(np.float32(0.2)), 2.0]
    assert math.copysign(1, float(split.targets[0])) == 1
    assert all(type(label) is float for label in split.targets)
    found = split[0].features.get("audio")
    assert found is not None
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 1], [4, 5]]


def test_a_selection_reads_its_own_utterances(tmp_path: Path) -> None:
    split = stored(tmp_path, corpus({"train": 9})).splits["train"]
    some = split.select([7, 2])
    assert some.ids == ["train-7", "train-2"]
    lengths = split.lengths["audio"]
    assert some.lengths["audio"].tolist() == [lengths[7], lengths[2]]
    assert split.positions.tolist() == [0, 1, 2] * 3
    assert some.positions.tolist() == [1, 2]
    assert same_frames(some[1].features.get("vision"), split[2].features.get("vision"))
    assert same_frames(some.select([1])[0].features.get("vision"), split[2].features.get("vision"))
    assert [one.id for one in some] == some.ids


WHERE = r"utterance 'b' \(train, number 2 in data\.pkl\)"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (utterance("b", label="happy"), f"{WHERE} has the label 'happy', but utterance 'a'.* 0.5"),
        (
            utterance("b", audio=np.zeros((2, 7), np.float32)),
            f"{WHERE} has 7 audio features per frame, but utterance 'a' .* has 4",
        ),
    ],
)
def test_refused_utterances(tmp_path: Path, second: Utterance, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        write_store(
            tmp_path / "store",
            {"train": [utterance("a"), second]},
            info={},
            files={"train": "data.pkl"},
        )
    assert not (tmp_path / "store").exists()


def test_checks_hold_across_splits(tmp_path: Path) -> None:
    train = [utterance("a")]
    wide = utterance("b", vision=np.zeros((1, 6), np.float32))
    with pytest.raises(StoreError, match=r"has 6 vision .* 'a' \(train, number 1\) has 5\."):
        stored(tmp_path, {"train": train, "test": [wide]})
    with pytest.raises(StoreError, match=r"has the label 'x', but .* \(train, number 1\) has 0\.5"):
        stored(tmp_path, {"train": train, "test": [utterance("b", label="x")]})


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the split 'valid' has no utterance"):
        stored(tmp_path, {"train": [utterance("a")], "valid": []})


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Utterance]:
        yield utterance("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, {"train": interrupted()})
    assert list(tmp_path.iterdir()) == []
    stored(tmp_path, {"train": [utterance("old")]})
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, {"train": interrupted()})
    assert Store.open(tmp_path / "store").splits["train"].ids == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.data.corpus import stored, utterance

def utterances():
    yield utterance("a")
    os.kill(os.getpid(), signal.SIGKILL)

stored(Path(sys.argv[1]), {"train": utterances()})
"""


def test_a_killed_writer_leaves_nothing_that_looks_like_a_store(tmp_path: Path) -> None:
    root = ROOT
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / ".store.partial").exists()
    assert not Store.exists(tmp_path / "store")
    assert stored(tmp_path, {"train": [utterance("b")]}).splits["train"].ids == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def write_slowly(folder: Path, name: str, start: Any, failures: Any) -> None:
    """One of several writers of the same store."""
    start.wait()
    try:
        with store_lock(folder / "store"):
            if not Store.exists(folder / "store"):
                utterances = corpus({"train": 300})["train"]
                write_store(folder / "store", {"train": utterances}, info={"writer": name})
    except BaseException as error:
        failures.put(repr(error))
        raise


def test_two_processes_may_write_the_same_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, failures = context.Barrier(2), context.Queue()
    writers = [
        context.Process(target=write_slowly, args=(tmp_path, name, start, failures))
        for name in ("one", "two")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    store = Store.open(tmp_path / "store")
    assert store.info["writer"] in ("one", "two")
    assert len(store.splits["train"]) == 300
    assert sum(1 for _ in store.splits["train"]) == 300


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("years of work")
    with pytest.raises(OSError, match="not empty"):
        stored(tmp_path, {"train": [utterance("a")]})
    assert [path.name for path in tmp_path.rglob("*")] == ["store", "thesis.txt"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert len(stored(tmp_path, {"train": [utterance("a")]}).splits["train"]) == 1


def cut(path: Path) -> None:
    """Takes the last bytes of a file away."""
    path.write_bytes(path.read_bytes()[:-9])


def set_version(path: Path) -> None:
    """Makes a store of a format to come."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("store.json", Path.unlink, "holds no prepared data set: store.json is missing"),
        ("store.json", set_version, "of format 99, but .* reads the formats .1, 2.. Delete the"),
        ("store.json", cut, "is damaged .* Delete the folder"),
        ("train.safetensors", cut, "is damaged .* Delete the folder"),
        ("train.safetensors", Path.unlink, "is damaged .* Delete the folder"),
        ("train.jsonl", cut, "is damaged .* Delete the folder"),
        ("train.jsonl", lambda path: path.write_text(""), "0 utterances, store.json says 3"),
    ],
)
def test_refused_stores(
    tmp_path: Path, name: str, harm: Callable[[Path], Any], message: str
) -> None:
    folder = stored(tmp_path, corpus({"train": 3})).folder
    harm(folder / name)
    with pytest.raises(StoreError, match=message) as caught:
        Store.open(folder)
    assert re.search(re.escape(str(folder)), str(caught.value))
    assert isinstance(caught.value, UserError)


def test_reading_an_utterance_reads_nothing_else(tmp_path: Path) -> None:
    """A file of 16 GiB, nearly all of it a hole, in which the last utterance lies."""
    folder = stored(tmp_path, {"train": [utterance("a"), utterance("b")]}).folder
    hole = 2**32 // 4
    frames = np.arange(12, dtype=np.float32).reshape(3, 4)
    offsets = np.array([0, hole, hole + 3], dtype=np.int64)
    header: dict[str, Any] = {
        "audio": {"dtype": "F32", "shape": [hole + 3, 4], "data_offsets": [0, 16 * (hole + 3)]}
    }
    end = 16 * (hole + 3)
    for name, values in (("audio_offsets", offsets), ("vision_offsets", np.zeros(3, np.int64))):
        header[name] = {"dtype": "I64", "shape": [3], "data_offsets": [end, end + values.nbytes]}
        end += values.nbytes
    encoded = json.dumps(header).encode()
    with (folder / "train.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.seek(16 * hole, 1)
        file.write(frames.tobytes() + offsets.tobytes() + bytes(24))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    split = Store.open(folder).splits["train"]
    assert same_frames(split[1].features.get("audio"), frames)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert (folder / "train.safetensors").stat().st_size > 2**34
    assert grown < 64 * 1024


def test_writing_holds_no_more_than_an_utterance_in_memory(tmp_path: Path) -> None:
    def utterances() -> Iterator[Utterance]:
        for number in range(64):
            yield utterance(f"{number}", audio=np.zeros((256, 1024), np.float32))  # 1 MiB each

    tracemalloc.start()
    try:
        stored(tmp_path, {"train": utterances()})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20  # a few utterances and copying buffers of 1 MiB


def test_other_processes_read_too(tmp_path: Path) -> None:
    split = stored(tmp_path, corpus({"train": 5})).splits["train"]
    expected = split[3]
    copied = pickle.loads(pickle.dumps(split))
    assert same_frames(copied[3].features.get("audio"), expected.features.get("audio"))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply(split.__getitem__, (3,))
    assert same_frames(found.features.get("vision"), expected.features.get("vision"))


def test_stores_of_release_0_1_are_read() -> None:
    store = Store.open(ROOT / "tests/release/store")
    assert store.dims == {"audio": 12, "vision": 10}
    assert {name: len(split) for name, split in store.splits.items()} == {
        "train": 42,
        "valid": 9,
        "test": 9,
    }
    train = store.splits["train"]
    assert list(train.labels) == ["M"]
    assert [int(lengths.sum()) for lengths in train.lengths.values()] == [1234, 795]
    line = json.loads((store.folder / "train.jsonl").read_text().splitlines()[3])
    assert train[3].labels == {"M": line["label"]}
    assert train[3].features["audio"].shape == (train.lengths["audio"][3], 12)
    assert train.positions.tolist()[:3] == [0, 1, 2]


def test_unlabelled_utterances_are_stored_and_refused_where_labels_are_needed(
    tmp_path: Path,
) -> None:
    split = stored(tmp_path, {"train": [utterance("a"), utterance("b", label=None)]}).splits[
        "train"
    ]
    assert split.labels == {"M": [0.5, None]}
    assert split[1].labels == {}
    with pytest.raises(DataError, match=r"'b' is unlabelled \(1 of these 2\).* Label it"):
        _ = split.targets
