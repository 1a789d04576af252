"""MELD's own three CSV files."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import check
from msea_lightning.data.options import ColumnsConfig, DatasetConfig, Reader, Split
from msea_lightning.data.prepare import PrepareError, at_place, locate, prepare_store
from msea_lightning.data.readers import MissingFileError, ReadError, find_files, read_files
from tests.data.published import EMOTIONS
from tests.data.readers.test_columns import write

MELD = DatasetConfig(
    name="meld",
    reader=Reader.meld_csv,
    hub_id="someone/meld",
    expected_train=9989,
)
HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,"
    "EndTime"
)


def write_meld(folder: Path) -> Path:
    """Three files as the authors have them, with their control characters and gaps."""
    rows = {
        "train": (
            '1,"Oh my God, he\u0092s lost it.",Phoebe,sadness,negative,0,0,4,7,"00:20:57,256",'
            '"00:21:00,256"',
            '2,What?,Monica,surprise,negative,0,1,4,7,"00:20:50,000","00:20:51,000"',
            '3,What?,Monica,fear,negative,0,3,4,7,"00:21:03,000","00:21:05,000"',
            '4,"""No!""",Joey,anger,negative,1,0,5,1,x,x',
        ),
        "dev": ('1,What?,Ross,surprise,neutral,0,0,4,7,"00:00:00,000","0:00:01,000"',),
        "test": ("1,\u0085,The Interviewer\u0092s,joy,positive,0,0,4,7,0:00:01,00:00:02.5",),
    }
    tables = {f"{name}_sent_emo": "\n".join((HEADER, *lines)) for name, lines in rows.items()}
    return write(folder, **tables)


def test_the_three_files_are_read_in_their_order_and_repaired(tmp_path: Path) -> None:
    folder = write_meld(tmp_path)
    (folder / "audio" / "train").mkdir(parents=True)
    np.save(folder / "audio" / "train" / "dia0_utt3.npy", np.ones((4, 3)))
    reading = read_files(folder / "train_sent_emo.csv", MELD)
    found = {split: list(part) for split, part in reading.items()}
    train = found["train"]
    assert [(one.id, one.text, one.speaker, one.group) for one in train] == [
        ("train/dia0_utt0", "Oh my God, he’s lost it.", "Phoebe", "train/dia0"),
        ("train/dia0_utt1", "What?", "Monica", "train/dia0"),
        ("train/dia0_utt3", "What?", "Monica", "train/dia0"),
        ("train/dia1_utt0", '"No!"', "Joey", "train/dia1"),
    ]
    assert [list(one.features) for one in train] == [[], [], ["audio"], []]
    assert (found["test"][0].text, found["test"][0].speaker) == ("…", "The Interviewer’s")
    assert found["valid"][0].group == "dev/dia0"
    notes = "\n".join(reading.notes)
    assert "not read: Sr No., Sentiment\n" in notes
    assert "3 texts and names had punctuation of Windows-1252" in notes
    assert "1 of 4 dialogues lack utterances" in notes
    assert "2 episodes, 0.0 hours of speech; 1 utterances begin" in notes


def test_the_counts_are_those_that_are_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = dataclasses.replace(
        MELD, path=str(write_meld(tmp_path / "files")), cache=str(tmp_path / "cache")
    )
    with caplog.at_level(logging.WARNING):
        prepare_store(dataset)
    assert "meld has 4 utterances in train, published are 9989" in caplog.text


def test_what_is_not_meld_is_refused(tmp_path: Path) -> None:
    other = write(tmp_path / "other", train="id,text,label\na,x,joy", test="id,text,label\nb,x,joy")
    with pytest.raises(ReadError, match=r"no label files of MELD.* read a table of your own"):
        find_files(other, MELD)
    folder = write_meld(tmp_path / "files")
    (folder / "test_sent_emo.csv").unlink()
    with pytest.raises(MissingFileError, match=r"holds no test_sent_emo\.csv"):
        find_files(folder, MELD)
    with pytest.raises(
        PrepareError, match=r"path is not set\. Give the folder with train_sent_emo"
    ):
        locate(dataclasses.replace(MELD, cache=str(tmp_path)))
    with pytest.raises(ConfigError, match="fetches features of someone/meld"):
        check(dataclasses.replace(MELD, download=True), "dataset")


def test_a_run_is_evaluated_on_the_files_at_another_place(tmp_path: Path) -> None:
    folder = write_meld(tmp_path)
    moved = at_place(MELD, str(folder), ColumnsConfig(), Split.test)
    assert (moved.reader, moved.path, moved.name) == (Reader.meld_csv, str(folder), "meld")
    sentiment = at_place(MELD, str(folder), ColumnsConfig(label="Sentiment"), Split.test)
    assert sentiment.reader is Reader.table


def test_the_published_files(shared: Path) -> None:
    reading = read_files(shared / "data" / "meld_text", MELD)
    assert reading.sizes == {"train": 9989, "valid": 1109, "test": 2610}
    found = {split: list(part) for split, part in reading.items()}
    assert {one.label for one in found["train"]} == set(EMOTIONS["meld"])
    texts = [one.text for one in found["train"]]
    assert texts[1:3] == [
        "You must’ve had your hands full.",
        "That I did. That I did.",
    ]
    notes = "\n".join(reading.notes)
    assert "76 of 1,432 dialogues lack utterances" in notes
    assert "12.1 hours of speech; 31 utterances begin" in notes
