"""Readers: every published layout arrives as it is; every flaw is named with its utterance."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msea_lightning.config.errors import UserError
from msea_lightning.data.options import DatasetConfig, LabelConfig, LabelKind, Reader, Repair
from msea_lightning.data.readers import (
    MissingFileError,
    ReadError,
    Reading,
    checks,
    find_files,
    read_files,
)
from msea_lightning.data.readers.checks import Frames
from msea_lightning.data.utterance import Utterance
from tests.data.published import (
    COUNTS,
    EMOTIONS,
    HUB_FILES,
    SHAPES,
    Shape,
    dialogue_content,
    mmsa_content,
    table_rows,
    write_cherma,
    write_dialogue,
    write_mmsa,
    write_table,
)

SMALL = Shape(6, 4, 9, 5)


def config(name: str, reader: Reader, **changes: Any) -> DatasetConfig:
    """The options of a published data set, as conf/ has them."""
    shape = SHAPES.get(name)
    labels = LabelConfig()
    if name in EMOTIONS and name != "iemocap":
        labels = LabelConfig(kind=LabelKind.emotions, names=EMOTIONS[name])
    elif shape is not None and shape.bound:
        labels = LabelConfig(kind=LabelKind.scale, low=-shape.bound, high=shape.bound, step=0.1)
    known = name in HUB_FILES or name in ("meld", "cherma")
    base = DatasetConfig(
        name=name,
        reader=reader,
        hub_file=HUB_FILES.get(name),
        labels=labels,
        audio_dim=shape.audio_dim if shape and known else None,
        vision_dim=shape.vision_dim if shape and known else None,
    )
    return dataclasses.replace(base, **changes)


def utterances(reading: Reading) -> dict[str, list[Utterance]]:
    return {split: list(part) for split, part in reading.items()}


# --- The layout of MMSA -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mosei", "simsv2", "mosi", "sims"])
def test_mmsa_files_arrive_trimmed_and_whole(tmp_path: Path, name: str) -> None:
    content = mmsa_content(name)
    reading = read_files(write_mmsa(tmp_path, name, content), config(name, Reader.mmsa))
    found = utterances(reading)
    assert {split: len(part) for split, part in found.items()} == COUNTS
    assert reading.sizes == COUNTS
    for split, part in found.items():
        for i, utterance in enumerate(part):
            source = content[split]
            assert utterance.id == f"{split}Video{i // 2}$_${i}"
            assert utterance.group == f"{split}Video{i // 2}"
            assert utterance.text == f"{split} words {i}, said aloud"
            assert utterance.label == pytest.approx(float(source["regression_labels"][i]))
            assert isinstance(utterance.label, float)
            for modality in ("audio", "vision"):
                features = utterance.features[modality]
                assert features.dtype == np.float32
                assert features.flags.c_contiguous
                length = source[f"{modality}_lengths"][i]
                np.testing.assert_array_equal(
                    features, source[modality][i, :length].astype(np.float32)
                )


MmsaChange = Callable[[dict[str, Any]], None]


def as_published_elsewhere() -> dict[str, MmsaChange]:
    """Ways in which files of this layout differ; none changes what is read."""

    def set_all(key: str, make: Callable[[Any], Any]) -> MmsaChange:
        def change(content: dict[str, Any]) -> None:
            for part in content.values():
                part[key] = make(part[key])

        return change

    def rename_valid(content: dict[str, Any]) -> None:
        content["dev"] = content.pop("valid")

    return {
        "labels (N, 1)": set_all("regression_labels", lambda v: v[:, None]),
        "labels float64": set_all("regression_labels", lambda v: v.astype(np.float64)),
        "labels as a list": set_all("regression_labels", lambda v: v.tolist()),
        "ids as an array": set_all("id", np.array),
        "ids as bytes": set_all("id", lambda v: np.array([i.encode() for i in v])),
        "ids as objects": set_all("id", lambda v: np.array(v, dtype=object)),
        "lengths as an array": set_all("audio_lengths", np.array),
        "lengths (N, 1)": set_all("vision_lengths", lambda v: np.array(v)[:, None]),
        "lengths as floats": set_all("vision_lengths", lambda v: np.array(v, dtype=float)),
        "float32": set_all("audio", lambda v: v.astype(np.float32)),
        "features in Fortran order": set_all("vision", np.asfortranarray),
        "features as a list": set_all("audio", list),
        "text as objects": set_all("raw_text", lambda v: v.astype(object)),
        "text as a list": set_all("raw_text", list),
        "no lengths": lambda content: [part.pop("audio_lengths") for part in content.values()],  # type: ignore[dict-item]
        "valid called dev": rename_valid,
        "something beside the splits": lambda content: content.update(about="MMSA"),
    }


@pytest.mark.parametrize("name", as_published_elsewhere())
def test_variants_of_the_mmsa_layout_read_alike(tmp_path: Path, name: str) -> None:
    content = mmsa_content("mosi")
    dataset = config("mosi", Reader.mmsa)
    plain = utterances(read_files(write_mmsa(tmp_path / "plain", "mosi", content), dataset))
    as_published_elsewhere()[name](content)
    found = utterances(read_files(write_mmsa(tmp_path / "other", "mosi", content), dataset))
    assert list(found) == ["train", "valid", "test"]
    for split, part in plain.items():
        for one, other in zip(part, found[split], strict=True):
            assert one.label == pytest.approx(other.label)
            assert (one.id, one.text, one.group) == (other.id, other.text, other.group)
            np.testing.assert_array_equal(one.features["audio"], other.features["audio"])
            np.testing.assert_array_equal(one.features["vision"], other.features["vision"])


def test_zeros_at_both_ends_are_padding_where_no_lengths_are_given(tmp_path: Path) -> None:
    content = mmsa_content("mosi")
    train = content["train"]
    del train["audio_lengths"]
    train["audio"][0] = 0
    train["audio"][0, 100:120] = 1
    train["audio"][0, 105] = 0  # a silent frame between others is not padding
    train["audio"][1] = 0
    reading = read_files(write_mmsa(tmp_path, "mosi", content), config("mosi", Reader.mmsa))
    found = list(reading["train"])
    assert "audio" in found[0].features
    assert found[0].features["audio"].shape == (20, 5)
    assert "audio" not in found[1].features
    assert "vision" in found[1].features


def test_a_length_of_zero_is_an_absent_modality(tmp_path: Path) -> None:
    content = mmsa_content("mosi")
    content["test"]["vision_lengths"][2] = 0
    reading = read_files(write_mmsa(tmp_path, "mosi", content), config("mosi", Reader.mmsa))
    assert ["vision" in utterance.features for utterance in reading["test"]] == [
        True,
        True,
        False,
        True,
    ]


def test_ids_of_several_parts_and_ids_with_a_slash(tmp_path: Path) -> None:
    content = mmsa_content("mosi")
    content["train"]["id"] = np.array([[f"v{i}", "0.1", "2"] for i in range(6)])
    content["test"]["id"] = [f"aqgy{i}/0001" for i in range(4)]
    reading = read_files(write_mmsa(tmp_path, "mosi", content), config("mosi", Reader.mmsa))
    assert next(iter(reading["train"])).id == "v0_0.1_2"
    assert next(iter(reading["test"])).group == "aqgy0"


def test_a_split_can_be_read_twice(tmp_path: Path) -> None:
    reading = read_files(write_mmsa(tmp_path, "mosi"), config("mosi", Reader.mmsa))
    first, second = list(reading["train"]), list(reading["train"])
    assert [u.id for u in first] == [u.id for u in second]
    np.testing.assert_array_equal(first[0].features["audio"], second[0].features["audio"])


def test_a_file_without_a_valid_split_is_read_without_one(tmp_path: Path) -> None:
    content = mmsa_content("mosi")
    del content["valid"]
    reading = read_files(write_mmsa(tmp_path, "mosi", content), config("mosi", Reader.mmsa))
    assert list(reading) == ["train", "test"]


def test_the_one_file_is_found_in_its_folder(tmp_path: Path) -> None:
    dataset = config("mosei", Reader.mmsa)
    path = write_mmsa(tmp_path / "Processed", "mosei")
    (tmp_path / "other.pkl").write_bytes(b"")
    assert find_files(tmp_path, dataset) == [path]
    with pytest.raises(ReadError, match=r"holds 2 pickles \(.*\), and one is needed"):
        find_files(tmp_path, config("mosi", Reader.mmsa))
    with pytest.raises(MissingFileError, match=r"holds no unaligned_50\.pkl"):
        find_files(write_table(tmp_path / "table", table_rows()), dataset)
    with pytest.raises(MissingFileError, match="does not exist"):
        find_files(tmp_path / "nowhere", dataset)


def test_hidden_files_beside_pickles_are_ignored(tmp_path: Path) -> None:
    mosi, meld = write_mmsa(tmp_path / "a", "mosi"), write_dialogue(tmp_path / "b", "meld")
    for hidden in (mosi.parent / "._unaligned.pkl", meld / "._meld_train.pkl"):
        hidden.write_bytes(b"\0")
    assert find_files(tmp_path / "a", config("mosi", Reader.mmsa)) == [mosi]
    assert len(find_files(meld, config("other", Reader.dialogue))) == 3


# --- The layout of MELD, CHERMA and IEMOCAP ---------------------------------------------------


@pytest.mark.parametrize("name", ["meld", "cherma", "iemocap"])
def test_dialogue_files_arrive_trimmed_and_whole(tmp_path: Path, name: str) -> None:
    counts = {"train": 8, "valid": 2, "test": 2} if name != "cherma" else COUNTS
    content = dialogue_content(name, counts=counts)
    folder = write_dialogue(tmp_path, name, content)
    reading = read_files(folder, config(name, Reader.dialogue))
    found = utterances(reading)
    assert {split: len(part) for split, part in found.items()} == counts
    assert reading.files["valid"] == str(folder / f"{name}_valid.pkl")
    for split, part in found.items():
        for i, utterance in enumerate(part):
            item = content[split][i]
            features = item["features"]
            assert utterance.id == f"{split}-{i}"
            assert utterance.text == features["text"]
            assert utterance.label == item["label"]
            np.testing.assert_array_equal(
                utterance.features["audio"],
                features["audio"][: features["audio_len"]].astype(np.float32),
            )
            np.testing.assert_array_equal(
                utterance.features["vision"],
                features["video"][: features["video_len"]].astype(np.float32),
            )


def test_dialogue_files_are_found_by_whatever_name_they_have(tmp_path: Path) -> None:
    dataset = config("meld", Reader.dialogue)
    folder = write_dialogue(tmp_path / "a", "meld", called={"valid": "dev"})
    assert list(read_files(folder, dataset)) == ["train", "valid", "test"]
    assert list(read_files(folder / "meld_test.pkl", dataset)) == ["train", "valid", "test"]
    assert list(read_files(tmp_path, dataset)) == ["train", "valid", "test"]
    assert len(find_files(folder, config("other", Reader.dialogue))) == 3
    write_dialogue(folder, "iemocap")
    assert {file.name.split("_")[0] for file in find_files(folder, dataset)} == {"meld"}
    with pytest.raises(ReadError, match="holds the files of iemocap, meld, none of other"):
        find_files(folder, config("other", Reader.dialogue))
    (folder / "meld_test.pkl").unlink()
    with pytest.raises(MissingFileError, match=r"holds no meld_test\.pkl"):
        find_files(folder, dataset)
    with pytest.raises(ReadError, match=r"x\.pkl is not called <name>_train\.pkl"):
        find_files(write_mmsa(tmp_path / "b", "mosi").rename(folder / "x.pkl"), dataset)


def test_a_modality_that_is_none_is_absent(tmp_path: Path) -> None:
    content = dialogue_content("meld")
    content["train"][1]["features"]["video"] = None
    del content["train"][2]["features"]["audio_len"]
    reading = read_files(write_dialogue(tmp_path, "meld", content), config("meld", Reader.dialogue))
    found = list(reading["train"])
    assert "vision" not in found[1].features
    length = dialogue_content("meld")["train"][2]["features"]["audio_len"]
    assert "audio" in found[2].features
    assert len(found[2].features["audio"]) == length


# --- CHERMA as its authors publish it ---------------------------------------------------------


@pytest.mark.parametrize("words", ["text", "transcript"])
def test_the_authors_layout_of_cherma(tmp_path: Path, words: str) -> None:
    folder = write_cherma(tmp_path, words=words)
    reading = read_files(folder, config("cherma", Reader.cherma))
    found = utterances(reading)
    assert {split: len(part) for split, part in found.items()} == COUNTS == reading.sizes
    for i, utterance in enumerate(found["valid"]):
        stem = f"valid_{i:04d}"
        assert (utterance.id, utterance.text) == (stem, f"第{i}句话。")
        assert utterance.label == EMOTIONS["cherma"][i % 7]  # video_label: the whole utterance's
        audio = np.load(folder / "audio" / "dev" / f"{stem}.npy")
        vision = np.load(folder / "visual" / "dev" / f"{stem}.mp4.npy")
        np.testing.assert_array_equal(utterance.features["audio"], audio)
        np.testing.assert_array_equal(utterance.features["vision"], vision)
    assert len(find_files(folder, config("cherma", Reader.cherma))) == 3 + 2 * 13


def small_cherma(folder: Path, words: str | None = "text") -> tuple[Path, DatasetConfig]:
    dataset = config("cherma", Reader.cherma, audio_dim=6, vision_dim=4)
    return write_cherma(folder, words=words, shape=SMALL), dataset


def test_transcripts_of_cherma_beside_the_json_files(tmp_path: Path) -> None:
    folder, dataset = small_cherma(tmp_path, words=None)
    lines = [f"{split}_{i:04d},话{i}" for split, count in COUNTS.items() for i in range(count)]
    (folder / "transcripts.csv").write_text("id,text\n" + "\n".join(lines), encoding="utf-8")
    assert [u.text for u in read_files(folder, dataset)["test"]] == ["话0", "话1", "话2", "话3"]
    assert folder / "transcripts.csv" in find_files(folder, dataset)


def test_cherma_without_transcripts_says_where_to_put_them(tmp_path: Path) -> None:
    folder, dataset = small_cherma(tmp_path, words=None)
    with pytest.raises(ReadError, match=r"'train_0000' \(train, number 1\) has no transcript") as e:
        list(read_files(folder, dataset)["train"])
    assert "audio_file, video_file" in str(e.value)
    assert f"Write {folder / 'transcripts.csv'} with the columns id and text" in str(e.value)


def test_flaws_of_the_authors_layout_are_named(tmp_path: Path) -> None:
    folder, dataset = small_cherma(tmp_path)
    (folder / "visual" / "test" / "test_0001.mp4.npy").unlink()
    with pytest.raises(
        ReadError, match=r"'test_0001' .* lacks .*visual.test.test_0001\.mp4\.npy\. Fetch"
    ):
        list(read_files(folder, dataset)["test"])
    np.save(folder / "audio" / "dev" / "valid_0000.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(ReadError, match=r"'valid_0000' .*valid_0000\.npy is not a NumPy array"):
        list(read_files(folder, dataset)["valid"])
    (folder / "audio" / "train" / "train_0000.npy").write_bytes(b"")
    with pytest.raises(ReadError, match=r"'train_0000' .*train_0000\.npy is empty"):
        list(read_files(folder, dataset)["train"])
    entries = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    del entries[0]["video_label"]
    (folder / "test.json").write_text(json.dumps(entries))
    with pytest.raises(ReadError, match=r"number 1 \(test\) lacks video_label; found audio_file"):
        list(read_files(folder, dataset)["test"])
    (folder / "test.json").write_text('{"a": 1}')
    with pytest.raises(ReadError, match="holds a JSON dict, expected a list"):
        read_files(folder, dataset)
    (folder / "test.json").write_text("[{")
    with pytest.raises(ReadError, match=r"test\.json is not a JSON file in UTF-8"):
        read_files(folder, dataset)
    (folder / "test.json").unlink()
    with pytest.raises(MissingFileError, match=r"holds no test\.json"):
        read_files(folder, dataset)


# --- Your own table ---------------------------------------------------------------------------

TABLE = config("table", Reader.table)


@pytest.mark.parametrize("form", ["keys", "padded", "files"])
def test_tables_with_frames_arrive_whole(tmp_path: Path, form: str) -> None:
    rows = table_rows()
    folder = write_table(tmp_path, rows, form=form)
    for path in (folder, folder / "utterances.csv"):
        found = utterances(read_files(path, TABLE))
        assert list(found) == ["train", "valid", "test"]
        read = [utterance for part in found.values() for utterance in part]
        for row, utterance in zip(rows, read, strict=True):
            assert (utterance.id, utterance.text, utterance.label) == (row.id, row.text, row.label)
            assert (utterance.group, utterance.speaker) == (row.group, row.speaker)
            assert row.audio is not None
            np.testing.assert_array_equal(utterance.features["audio"], row.audio.astype(np.float32))
            np.testing.assert_array_equal(utterance.features["vision"], row.vision)


def test_tables_with_one_vector_per_row(tmp_path: Path) -> None:
    rows = table_rows()
    found = list(read_files(write_table(tmp_path, rows, form="means"), TABLE)["train"])
    assert rows[1].audio is not None
    assert "audio" in found[1].features
    assert found[1].features["audio"].shape == (1, 5)
    np.testing.assert_allclose(found[1].features["audio"][0], rows[1].audio.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("form", ["keys", "padded", "means", "files"])
@pytest.mark.parametrize("modalities", [("audio",), ("vision",), ()])
def test_tables_may_lack_modalities(tmp_path: Path, form: str, modalities: tuple[str, ...]) -> None:
    folder = write_table(tmp_path, table_rows(), form=form, modalities=modalities)
    reading = read_files(folder, TABLE)
    for utterance in reading["train"]:
        assert ("audio" in utterance.features) == ("audio" in modalities)
        assert ("vision" in utterance.features) == ("vision" in modalities)


def test_utterances_of_a_table_may_lack_modalities(tmp_path: Path) -> None:
    rows = table_rows()
    rows[0] = dataclasses.replace(rows[0], audio=None)
    rows[1] = dataclasses.replace(rows[1], audio=np.zeros((0, 5)), vision=np.arange(3.0))
    for form in ("keys", "files"):
        reading = read_files(write_table(tmp_path / form, rows, form=form), TABLE)
        found = list(reading["train"])
        assert ["audio" in utterance.features for utterance in found[:3]] == [False, False, True]
        assert "vision" in found[1].features
        assert found[1].features["vision"].tolist() == [[0, 1, 2]]


def test_padded_features_without_lengths(tmp_path: Path) -> None:
    rows = table_rows()
    folder = write_table(tmp_path, rows, form="padded", modalities=("audio",))
    arrays = dict(np.load(folder / "features.npz"))
    del arrays["audio_lengths"]
    np.savez(folder / "features.npz", **arrays)
    found = list(read_files(folder, TABLE)["train"])
    for row, utterance in zip(rows, found, strict=False):
        assert row.audio is not None
        np.testing.assert_array_equal(utterance.features["audio"], row.audio.astype(np.float32))


def test_one_modality_in_the_archive_the_other_in_files(tmp_path: Path) -> None:
    write_table(tmp_path, table_rows(), form="padded", modalities=("audio",))
    write_table(tmp_path, table_rows(), form="files", modalities=("vision",))
    (utterance, *_) = read_files(tmp_path, TABLE)["test"]
    assert "audio" in utterance.features
    assert "vision" in utterance.features
    assert len(find_files(tmp_path, TABLE)) == 2 + 12


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("1", "-0.5", "+2.25"), [1.0, -0.5, 2.25]),
        (("1", " 2 ", "3e-1"), [1.0, 2.0, 0.3]),
        (("joy", " joy ", "1"), ["joy", "joy", "1"]),
    ],
)
def test_labels_that_are_all_numbers_are_intensities(
    tmp_path: Path, labels: tuple[str, ...], expected: list[Any]
) -> None:
    folder = write_table(tmp_path, table_rows(labels=labels), modalities=())
    found = [utterance.label for utterance in read_files(folder, TABLE)["train"]][:3]
    assert found == expected


def test_numbers_are_names_where_names_are_configured(tmp_path: Path) -> None:
    folder = write_table(tmp_path, table_rows(labels=("0", "1")), modalities=())
    labels = LabelConfig(kind=LabelKind.emotions, names=["0", "1"])
    dataset = dataclasses.replace(TABLE, labels=labels)
    assert next(iter(read_files(folder, dataset)["train"])).label == "0"


def test_a_name_among_numbers_is_said_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_table(tmp_path, table_rows(labels=("0", "1", "2", "unsure")), modalities=())
    with caplog.at_level(logging.WARNING):
        read_files(folder, TABLE)
    assert "line 5 has 'unsure': all labels are taken for names" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_tables_as_spreadsheets_write_them(tmp_path: Path, encoding: str) -> None:
    content = (
        "\ufeffID , Split,text,LABEL,note\r\n"
        'a,Train,"Well, ""no""\r\nnot at all",joy,x\r\n'
        "\r\n"
        " b ,dev, spaces stay ,sad,\r\n"
        "c,test,第一句，好。,joy,\r\n"
    )
    (tmp_path / "utterances.csv").write_bytes(content.encode(encoding))
    found = utterances(read_files(tmp_path, TABLE))
    assert found["train"][0].text == 'Well, "no"\r\nnot at all'
    assert (found["valid"][0].id, found["valid"][0].text) == ("b", " spaces stay ")
    assert found["test"][0].text == "第一句，好。"
    assert found["test"][0].group is None


TABLE_FLAWS = {
    "column": (b"id,split,words\na,train,x\n", r"has no column text and no column label; found id"),
    "empty": (b"", r" is empty\. Its first row"),
    "header only": (b"id,split,text,label\n", "has a header and no utterance"),
    "twice": (b"id,split,text,label,id\na,train,x,y,b\n", "more than one column id"),
    "fields": (
        b"id,split,text,label\na,train,well, no,joy\n",
        r"line 2 has 5 fields, the header has 4\. Put double quotes",
    ),
    "quote": (b'id,split,text,label\na,train,"no end,joy\nb,test,x,y\n', "row from line 2 on"),
    "latin": (
        "id,split,text,label\na,train,fine,joy\nb,train,café,joy\n".encode("latin1"),
        r"line 3 is not UTF-8 \(byte 0xe9\)",
    ),
    "wide": ("\ufeffid,text".encode("utf-16-le") + b"x", "begins as UTF-16 does, and is not"),
    "split": (
        b"id,split,text,label\na,dev2,x,y\n",
        r"'a' \(line 2\) is in the unknown split",
    ),
    "id": (b"id,split,text,label\n,train,x,y\n", r"'' \(train, line 2\) has no id"),
    "inf": (
        b"id,split,text,label\na,train,x,-inf\n",
        r"'a' .* has the label -inf. Give it a finite",
    ),
    "text": (b'id,split,text,label\na,train," ",y\n', r"'a' \(train, line 2\) has an empty text"),
    "double": (
        b'id,split,text,label\na,train,"x\nx",y\na,test,x,y\n',
        r"1 ids occur more than once: 'a' \(train, line 2; test, line 4\)\. Ids are unique",
    ),
}


@pytest.mark.parametrize("name", TABLE_FLAWS)
def test_flaws_of_a_table_are_named_with_their_line(tmp_path: Path, name: str) -> None:
    content, reason = TABLE_FLAWS[name]
    path = tmp_path / "utterances.csv"
    path.write_bytes(content)
    with pytest.raises(ReadError, match=rf"(?s)^{re.escape(str(path))}.*{reason}"):
        utterances(read_files(tmp_path, TABLE))


def archive_flaws() -> dict[str, tuple[Callable[[dict[str, Any]], Any], str]]:
    return {
        "key": (lambda a: a.update(labels=np.ones(12)), r"labels has the shape \(12,\), but"),
        "lengths": (lambda a: a.update(pitch_lengths=np.ones(12)), "pitch_lengths has the shape"),
        "name": (lambda a: a.update({"my pitch": np.ones((12, 1))}), "'my pitch' cannot be the na"),
        "no row": (lambda a: a.update({"pitch/z": np.ones((2, 5))}), "1 utterances, none .*: z"),
        "another name": (
            lambda a: a.update(Video=np.ones((12, 5))),
            r"vision features are in more than one place: .*key Video.*; .*keys vision/<id>|"
            r"vision features are in more than one place: .*keys vision/<id>; .*key Video",
        ),
        "two places": (lambda a: a.update(audio=np.ones((12, 5))), "audio features are in more"),
        "objects": (
            lambda a: a.update({"audio/clip.1": np.array([None])}),
            r"audio/clip\.1 is not a NumPy array of numbers",
        ),
        "shape": (
            lambda a: a.update({"audio/clip.1": np.ones((2, 5, 1))}),
            r"'clip\.1' .* has audio features of type .* and shape \(2, 5, 1\), expected numbers",
        ),
        "text": (
            lambda a: a.update({"audio/clip.1": np.array([["a"]])}),
            r"'clip\.1' .* has audio features of type <U1 and shape \(1, 1\), expected numbers",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", archive_flaws())
def test_flaws_of_an_archive_are_named(tmp_path: Path, name: str) -> None:
    change, reason = archive_flaws()[name]
    folder = write_table(tmp_path, table_rows())
    arrays = dict(np.load(folder / "features.npz"))
    change(arrays)
    np.savez(folder / "features.npz", **arrays)
    with pytest.raises(ReadError, match=reason):
        utterances(read_files(folder, TABLE))


def test_flaws_of_padded_arrays_are_named(tmp_path: Path) -> None:
    folder = write_table(tmp_path, table_rows(), form="padded", modalities=("audio",))
    arrays = dict(np.load(folder / "features.npz"))
    for changes, reason in (
        ({"audio": arrays["audio"][:5]}, r"audio has the shape \(5, \d, 5\), but .* has 12 rows"),
        ({"audio": np.ones(12)}, r"audio has the shape \(12,\)"),
        ({"audio_lengths": np.ones(3)}, r"audio_lengths has the shape \(3,\), expected one length"),
        ({"audio_lengths": np.full(12, 99)}, r"has the audio length 99, but \d frames"),
        ({"audio_lengths": np.full(12, -1)}, r"has the audio length -1, but \d frames"),
        (
            {"audio_lengths": np.full(12, 1.5)},
            r"has the audio length 1\.5, but \d frames .* expected a whole",
        ),
    ):
        np.savez(folder / "features.npz", **(arrays | changes))
        with pytest.raises(ReadError, match=reason):
            utterances(read_files(folder, TABLE))


def test_something_else_in_place_of_the_archive_is_named(tmp_path: Path) -> None:
    folder = write_table(tmp_path, table_rows())
    whole = (folder / "features.npz").read_bytes()
    for content, reason in (
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-LFS pointer"),
        (b"<html></html>", "is a web page"),
        (pickle.dumps({"a": 1}), "is not a NumPy archive, or incomplete"),
        (whole[: len(whole) // 2], "is not a NumPy archive, or incomplete"),
        (whole.replace(b"clip.1", b"clip.9", 1), "is not a NumPy array|incomplete|no row"),
    ):
        (folder / "features.npz").write_bytes(content)
        with pytest.raises(ReadError, match=rf"features\.npz.*{reason}"):
            utterances(read_files(folder, TABLE))
    np.save(folder / "one.npy", np.ones(3))
    (folder / "one.npy").rename(folder / "features.npz")
    with pytest.raises(ReadError, match="holds one array"):
        read_files(folder, TABLE)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"holds no utterances\.csv"):
        find_files(tmp_path, TABLE)


def test_real_mosi(shared: Path) -> None:
    reading = read_files(shared / "data" / "mosi_utterance", TABLE)
    found = utterances(reading)
    assert {split: len(part) for split, part in found.items()} == {"train": 1447, "test": 752}
    archive = np.load(shared / "data" / "mosi_utterance" / "features.npz")
    first = found["train"][0]
    assert (first.id, first.group, first.label) == ("1DmNV9C1hbY_10", "1DmNV9C1hbY", "positive")
    assert first.text == "KIDS ARE GONNA LOVE THE FILM"
    np.testing.assert_array_equal(first.features["audio"], archive["audio"][:1])
    np.testing.assert_array_equal(first.features["vision"], archive["vision"][:1])


# --- Flaws that every layout can have ---------------------------------------------------------


def flawed_mmsa() -> dict[str, tuple[Callable[[dict[str, Any]], Any], str]]:
    where = r"'validVideo0\$_\$1' \(valid, number 2\) has "

    def set_in(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda content: content["valid"][key].__setitem__(1, value)

    def poke(modality: str, value: float) -> Callable[[dict[str, Any]], Any]:
        return lambda content: content["valid"][modality][1, 0].__setitem__(2, value)

    def without(key: str) -> Callable[[dict[str, Any]], Any]:
        return lambda content: content["valid"].pop(key)

    def wider(content: dict[str, Any]) -> None:
        content["valid"]["audio"] = np.zeros((3, 500, 75))

    return {
        "missing key": (without("vision"), "the split 'valid' lacks vision; found raw_text, audio"),
        "none": (lambda c: c["valid"].update(audio=None), "the split 'valid' lacks audio"),
        "missing split": (lambda c: c.pop("test"), "lacks test; found train, valid"),
        "no split": (lambda c: c.update(valid=[1]), "the split 'valid' is a list, expected"),
        "one value": (lambda c: c["valid"].update(id=np.array("a")), "3 of raw_text, but 0 of id"),
        "sizes": (lambda c: c["valid"]["id"].pop(), "3 of raw_text, but 2 of id"),
        "width": (wider, r"'validVideo0\$_\$0' .* has 75 audio features per frame, but dataset.a"),
        "length": (set_in("audio_lengths", 501), where + "the audio length 501, but 500 frames"),
        "negative length": (set_in("audio_lengths", -1), where + "the audio length -1"),
        "half a length": (set_in("audio_lengths", 2.5), where + r"the audio length 2\.5, but 500"),
        "no length": (set_in("audio_lengths", "long"), where + "the audio length 'long', but"),
        "high label": (set_in("regression_labels", 3.2), where + r"the label 3\.2, out of range"),
        "low label": (set_in("regression_labels", -9), where + "the label -9, out of range from"),
        "huge label": (
            lambda c: c["valid"].update(regression_labels=[0, 10**9999, 0]),
            where + "the label inf. Give it a",
        ),
        "NaN label": (set_in("regression_labels", np.nan), where + "the label nan. Give it a"),
        "text": (set_in("raw_text", " \n"), where + "an empty text"),
        "id twice": (
            set_in("id", "trainVideo0$_$1"),
            r"1 ids occur more than once: 'trainVideo0\$_\$1' \(train, number 2; valid, number 2\)",
        ),
        "id": (set_in("id", ""), r"'' \(valid, number 2\) has no id"),
        "NaN": (poke("vision", np.nan), where + r"1 of \d+ vision features that .* as nan"),
        "inf": (poke("audio", -np.inf), where + r"1 of \d+ audio features that .* as -inf"),
        "huge": (poke("audio", 1e39), where + r"1 of \d+ audio features that .* as 1e\+39"),
    }  # fmt: skip


@pytest.mark.parametrize("name", flawed_mmsa())
def test_every_flaw_is_named_with_file_split_and_utterance(tmp_path: Path, name: str) -> None:
    change, reason = flawed_mmsa()[name]
    content = mmsa_content("mosei")
    content["valid"]["audio_lengths"] = [500, 400, 9]
    change(content)
    path = write_mmsa(tmp_path, "mosei", content)
    with pytest.raises(ReadError, match=reason) as error:
        utterances(read_files(path, config("mosei", Reader.mmsa)))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_frames_without_numbers_are_none() -> None:
    nothing = np.empty((10**12, 0))
    assert checks.frames("audio", Frames(nothing, None), "here").shape == (0, 0)
    with pytest.raises(ReadError, match="here has the audio length 1000000000000, but 0 frames"):
        checks.frames("audio", Frames.whole(nothing), "here")


def test_a_huge_number_is_no_id() -> None:
    with pytest.raises(ReadError, match="the id <int> is neither"):
        checks.identity(10**9999)


def flawed_dialogue() -> dict[str, tuple[Callable[[list[Any]], Any], str]]:
    return {
        "no dict": (lambda items: items.__setitem__(1, 5), "is a int, expected label, features"),
        "label": (lambda items: items[1].pop("label"), "lacks label; found features"),
        "features": (
            lambda items: items[1]["features"].pop("video"),
            "features, lacks video; found text, audio",
        ),
        "unknown label": (
            lambda items: items[1].update(label="bored"),
            r"has the unknown label 'bored'; dataset\.labels\.names lists neutral, surprise",
        ),
        "number": (lambda items: items[1].update(label=3), "has the unknown label 3"),
        "huge number": (lambda items: items[1].update(label=10**9999), "the unknown label inf"),
        "no label": (lambda items: items[1].update(label=None), "has no label"),
        "words": (
            lambda items: items[1]["features"].update(text=np.ones(3)),
            "has a text of type list, expected words",
        ),
        "half a character": (
            lambda items: items[1]["features"].update(text="a\ud800"),
            r"has a text that is not valid Unicode \(.* character 2\): save or send it as UTF-8",
        ),
        "ragged": (
            lambda items: items[1]["features"].update(audio=[[1.0], [1.0, 2.0]]),
            "has audio features that are not a table of numbers",
        ),
        "width": (
            lambda items: items[1]["features"].update(audio=np.ones((157, 65))),
            "has 65 audio features per frame, but dataset.audio_dim is 64",
        ),
    }


@pytest.mark.parametrize("name", flawed_dialogue())
def test_flaws_of_dialogues_are_named_with_the_utterance(tmp_path: Path, name: str) -> None:
    change, reason = flawed_dialogue()[name]
    content = dialogue_content("meld")
    change(content["valid"])
    folder = write_dialogue(tmp_path, "meld", content)
    where = re.escape(f"{folder / 'meld_valid.pkl'}: utterance 'valid-1' (valid, number 2)")
    with pytest.raises(ReadError, match=f"^{where}.*{reason}"):
        utterances(read_files(folder, config("meld", Reader.dialogue)))


def endless(kind: str) -> Any:
    """Forty levels, each of which holds the one before it twice; or a list that holds itself."""
    value: Any = []
    if kind == "itself":
        value.append(value)
        return value
    for _ in range(40):
        pair = [value, value]
        value = {0: value, 1: value} if kind == "dict" else pair
        if kind == "array":
            value = np.empty(2, dtype=object)
            value[:] = pair
    return value


@pytest.mark.parametrize("kind", ["list", "dict", "array", "itself"])
@pytest.mark.parametrize("key", ["label", "text", "audio", "audio_len", "speaker"])
@pytest.mark.parametrize("inside", [False, True])
def test_values_that_hold_others_without_end_are_refused(
    tmp_path: Path, kind: str, key: str, inside: bool
) -> None:
    """To show, compare or convert one of them would take years."""
    content = dialogue_content("meld")
    item = content["train"][0]
    place = item if key in ("label", "speaker") else item["features"]
    place[key] = [endless(kind)] if inside else endless(kind)
    reading = read_files(write_dialogue(tmp_path, "meld", content), config("meld", Reader.dialogue))
    with pytest.raises(ReadError) as error:
        list(reading["train"])
    assert len(str(error.value)) < 400


def test_repairs_are_counted_and_padding_is_not_looked_at(tmp_path: Path) -> None:
    content = mmsa_content("mosei")
    train = content["train"]
    train["audio"][:] = 1
    train["audio_lengths"] = [500, 400, 9, 8, 7, 6]
    train["audio"][0, :2, :3] = -np.inf
    train["audio"][1, 0, 0] = 1e300
    train["audio"][1, 450] = np.nan  # beyond the length
    train["vision"][2, 0, 1] = np.nan
    path = write_mmsa(tmp_path, "mosei", content)
    reading = read_files(path, config("mosei", Reader.mmsa, repair=Repair.zero))
    found = list(reading["train"])
    assert reading.counts["train"]["repaired_values"] == {"audio": 7, "vision": 1}
    assert "audio" in found[0].features
    assert not found[0].features["audio"][:2, :3].any()
    assert found[0].features["audio"][2:].all()
    assert all(
        np.isfinite(u.features["audio"]).all() and np.isfinite(u.features["vision"]).all()
        for u in found
    )
    with pytest.raises(ReadError, match=r"dataset\.repair=zero"):
        list(read_files(path, config("mosei", Reader.mmsa))["train"])


def test_a_program_in_a_published_file_is_refused(tmp_path: Path) -> None:
    content = mmsa_content("mosi")
    content["train"]["path"] = tmp_path
    path = write_mmsa(tmp_path, "mosi", content)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} asks for pathlib"):
        read_files(path, config("mosi", Reader.mmsa))


def test_another_layout_than_the_readers_is_named(tmp_path: Path) -> None:
    meld = write_dialogue(tmp_path, "meld") / "meld_train.pkl"
    with pytest.raises(ReadError, match=r"meld_train\.pkl is a list, expected train, test"):
        read_files(meld, config("mosi", Reader.mmsa))
