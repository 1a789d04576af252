"""Tables of others, read as they are: their columns, their splits, and what is said of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msea_lightning.data.options import ColumnsConfig, DatasetConfig, Reader, Split
from msea_lightning.data.readers import MissingFileError, ReadError, Reading, read_files
from msea_lightning.data.utterance import Utterance

TABLE = DatasetConfig(name="table", reader=Reader.table)

MELD = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,StartTime"
MMSA = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode"


def write(folder: Path, **tables: str) -> Path:
    """CSV files by name, of lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text(f"{lines}\n", encoding="utf-8")
    return folder


def write_meld(folder: Path, form: str = "{}_sent_emo") -> Path:
    """Label files as MELD has them: every split counts its dialogues from 0."""
    rows = {
        "train": (
            '1,"Oh my God, he’s lost it.",Phoebe,sadness,negative,0,0,4,"00:20:57,256"',
            "2,What?,Monica,surprise,negative,0,1,4,x",
            '3,"""No!""",Joey,anger,negative,1,0,4,x',
        ),
        "dev": ("1,What?,Ross,surprise,neutral,0,0,4,x",),
        "test": ("1,Hi,Ross,joy,positive,0,0,4,x", "2,What?,Joey,joy,positive,0,1,4,x"),
    }
    tables = {form.format(name): "\n".join((MELD, *lines)) for name, lines in rows.items()}
    return write(folder, **tables)


def reading(path: Path, **changes: Any) -> Reading:
    return read_files(path, dataclasses.replace(TABLE, **changes))


def read(path: Path, **changes: Any) -> dict[str, list[Utterance]]:
    return {split: list(part) for split, part in reading(path, **changes).items()}


@pytest.mark.parametrize("form", ["{}_sent_emo", "{}"])
def test_label_files_of_meld_are_read_as_they_are(tmp_path: Path, form: str) -> None:
    folder = write_meld(tmp_path, form)
    found = read(folder)
    assert list(found) == ["train", "valid", "test"]
    first, second, third = found["train"]
    assert (first.id, first.text) == ("train/dia0_utt0", "Oh my God, he’s lost it.")
    assert (first.label, first.group, first.speaker) == ("sadness", "train/dia0", "Phoebe")
    assert (second.group, third.group, third.text) == ("train/dia0", "train/dia1", '"No!"')
    # Dialogue 0 of every split is another one, and words that come again are kept.
    assert [one.id for one in found["valid"]] == ["dev/dia0_utt0"]
    assert [one.group for one in found["test"]] == ["test/dia0"] * 2
    assert reading(folder).notes == [
        f"{', '.join(form.format(name) + '.csv' for name in ('train', 'dev', 'test'))}: read as a "
        "label file of MELD: id = dia<Dialogue_ID>_utt<Utterance_ID>, text = Utterance, group = "
        "dia<Dialogue_ID>, speaker = Speaker, label = Emotion; not read: Sr No., Sentiment, "
        "Season, StartTime",
        "ids and groups begin with their split, as in train/..., because every split counts from "
        "the beginning",
        "no audio and no vision features lie beside it: the model reads the text alone",
    ]
    sentiment = read(folder, columns=ColumnsConfig(label="Sentiment"))
    assert [one.label for one in sentiment["test"]] == ["positive"] * 2


def test_features_beside_label_files_are_found_by_their_ids(tmp_path: Path) -> None:
    folder = write_meld(tmp_path)
    (folder / "audio" / "train").mkdir(parents=True)
    np.save(folder / "audio" / "train" / "dia0_utt1.npy", np.ones((4, 3)))
    np.savez(folder / "features.npz", **{"vision/test/dia0_utt0": np.ones((2, 5))})
    found = read(folder)
    assert [list(one.features) for one in found["train"]] == [[], ["audio"], []]
    assert found["test"][0].features["vision"].shape == (2, 5)
    assert len(reading(folder).notes) == 2  # nothing is missing


def test_one_file_of_meld_has_the_ids_that_it_has_beside_the_others(tmp_path: Path) -> None:
    found = read(write_meld(tmp_path) / "test_sent_emo.csv")
    assert {split: [one.id for one in part] for split, part in found.items()} == {
        "test": ["test/dia0_utt0", "test/dia0_utt1"]
    }


def test_meld_in_one_file_with_a_column_for_the_split(tmp_path: Path) -> None:
    rows = ("1,Hi,Ross,joy,positive,0,0,4,x,train", "1,Ho,Joey,joy,positive,0,0,4,x,test")
    found = read(write(tmp_path, all="\n".join((f"{MELD},Split", *rows))))
    assert [found[split][0].id for split in found] == ["train/dia0_utt0", "test/dia0_utt0"]


def test_label_files_of_mmsa(tmp_path: Path) -> None:
    rows = (
        "video_0001,0001,我不想嫁给李茶,-1.0,-1.0,-0.8,-0.8,Negative,train",
        "video_0001,0002,好,0.4,0.2,0.0,1.0,Positive,valid",
        "video_0002,0001,好,0.8,0.2,0.0,1.0,Positive,test",
    )
    found = read(write(tmp_path, label="\n".join((MMSA, *rows))))
    first = found["train"][0]
    assert (first.id, first.group) == ("video_0001/0001", "video_0001")
    assert first.labels == {"M": -1.0, "T": -1.0, "A": -0.8, "V": -0.8}
    assert found["valid"][0].label == 0.4
    # MOSI's has no labels of single modalities, or empty ones.
    short = "video_id,clip_id,text,label,annotation,mode,label_by\nx,1,GOOD,2.4,Positive,train,0"
    assert read(write(tmp_path / "mosi", label=short))["train"][0].labels == {"M": 2.4}


@pytest.mark.parametrize(
    "header",
    ["wav_file,emotion,transcription", "path,emotion,text", "utterance_id,label,Utterance"],
)
def test_tables_of_iemocap(tmp_path: Path, header: str) -> None:
    folder = "Session1/sentences/wav/" if header.startswith("path") else ""
    rows = [f"{folder}Ses0{n}F_impro01_F000{'.wav' * bool(folder)},ang,Excuse me." for n in (1, 5)]
    # As pandas writes it, with the index in a column without a name.
    lines = [f"{number},{row}" for number, row in enumerate(rows)]
    found = read(write(tmp_path, iemocap="\n".join((f",{header}", *lines))))
    assert list(found) == ["train", "test"]
    (one,) = found["test"]
    assert (one.id, one.group, one.label) == ("Ses05F_impro01_F000", "Ses05F_impro01", "ang")
    notes = reading(tmp_path).notes
    assert notes[0].endswith("split: session 5 is test, the others are train; not read: (no name)")


def test_columns_are_named(tmp_path: Path) -> None:
    rows = ("7,1,Hi,joy,train,v1,Ann", "7,2,Ho,sad,dev,v1,Bob", "8,1,Ha,joy,test,v2,Ann")
    folder = write(tmp_path, clips="\n".join(("Dia,Utt,Words,Mood,Part,Video,Who", *rows)))
    columns = ColumnsConfig(
        id="Dia+Utt", text="words", label="Mood", split="Part", group="Video", speaker="Who"
    )
    found = read(folder, columns=columns)
    (one,) = found["train"]
    assert (one.id, one.text, one.label) == ("7_1", "Hi", "joy")
    assert (one.group, one.speaker) == ("v1", "Ann")
    assert reading(folder, columns=columns).notes[0] == (
        "clips.csv: read as a table: id = Dia_Utt, split = Part, text = Words, group = Video, "
        "speaker = Who, label = Mood"
    )


def test_columns_that_are_not_there_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, utterances="a,words,mood,part\n1,x,y,train")
    with pytest.raises(
        ReadError,
        match=r"dataset\.columns\.text=Words\+Mod: .*utterances\.csv has no column Mod; it has a, "
        r"words, mood, part\. Give one of these, or several joined by \+",
    ):
        read(folder, columns=ColumnsConfig(id="a", text="Words+Mod"))
    with pytest.raises(
        ReadError,
        match=r"has no column split and no column label; found a.*with "
        r"dataset\.columns\.split=NAME",
    ):
        read(folder, columns=ColumnsConfig(id="a", text="words"))
    other = write(tmp_path / "other", notes="when,what\n1,x")
    with pytest.raises(MissingFileError, match=r"notes\.csv has no columns id and text but when, "):
        read(other)


def test_one_table_for_each_split(tmp_path: Path) -> None:
    rows = {name: f"id,text,label\n{name}1,x,joy\n{name}2,y,sad" for name in ("train", "test")}
    found = read(write(tmp_path, **rows))
    assert {split: [one.id for one in part] for split, part in found.items()} == {
        "train": ["train1", "train2"],
        "test": ["test1", "test2"],
    }
    again = dict.fromkeys(("train", "val", "test"), "id,text,label,group\n1,x,joy,g\n2,y,sad,")
    found = read(write(tmp_path / "again", **again))
    assert [one.id for one in found["valid"]] == ["val/1", "val/2"]
    assert [one.group for one in found["valid"]] == ["val/g", None]
    write(tmp_path / "again", dev="id,text,label\n1,x,joy")
    with pytest.raises(ReadError, match=r"several tables of the split valid: dev\.csv, val\.csv"):
        read(tmp_path / "again")


def test_rows_without_a_split_are_of_the_one_that_is_given(tmp_path: Path) -> None:
    folder = write(tmp_path, utterances="id,text,label\n1,x,joy")
    with pytest.raises(ReadError, match="has no column split"):
        read(folder)
    assert list(read(folder, split=Split.test)) == ["test"]


def test_the_label_files_of_meld_have_the_published_sizes(shared: Path) -> None:
    found = read(shared / "data" / "meld_text")
    sizes = {split: len(part) for split, part in found.items()}
    assert sizes == {"train": 9989, "valid": 1109, "test": 2610}
    groups = {split: len({one.group for one in part}) for split, part in found.items()}
    assert groups == {"train": 1038, "valid": 114, "test": 280}
    assert found["valid"][0].text == "Oh my God, he’s lost it. He’s totally lost it."
