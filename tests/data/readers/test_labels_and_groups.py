"""Several labels by name, and the dialogue that an utterance belongs to."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msea_lightning.data.options import DatasetConfig, LabelConfig, LabelKind, Reader
from msea_lightning.data.readers import ReadError, read_files
from msea_lightning.data.splits.held_out import hold_out
from tests.data.published import (
    EMOTIONS,
    Shape,
    dialogue_content,
    mmsa_content,
    write_cherma,
    write_dialogue,
    write_mmsa,
)

SIMS = DatasetConfig(name="sims", reader=Reader.mmsa)
IEMOCAP = DatasetConfig(name="iemocap", reader=Reader.dialogue)


@pytest.mark.parametrize("main", ["regression_labels", "regression_labels_M"])
def test_labels_of_each_modality_are_read_by_name(tmp_path: Path, main: str) -> None:
    content = mmsa_content("sims")
    for part in content.values():
        labels = part.pop("regression_labels")
        part[main] = labels
        factors = {"T": 1, "A": 0, "V": -1}
        part |= {f"regression_labels_{name}": labels * factor for name, factor in factors.items()}
    found = list(read_files(write_mmsa(tmp_path, "sims", content), SIMS)["train"])
    for utterance, label in zip(found, content["train"][main], strict=True):
        assert utterance.labels == pytest.approx(
            {"M": float(label), "T": float(label), "A": 0.0, "V": -float(label)}
        )
        assert utterance.label == utterance.labels["M"]


def test_the_main_label_is_needed(tmp_path: Path) -> None:
    content = mmsa_content("sims")
    part = content["test"]
    part["regression_labels_T"] = part.pop("regression_labels")
    with pytest.raises(ReadError, match="the split 'test' lacks regression_labels; found raw_text"):
        read_files(write_mmsa(tmp_path, "sims", content), SIMS)


def test_labels_of_cherma_are_read_by_name(tmp_path: Path) -> None:
    folder = write_cherma(tmp_path, shape=Shape(6, 4, 9, 5))
    labels = LabelConfig(kind=LabelKind.emotions, names=EMOTIONS["cherma"])
    dataset = DatasetConfig(name="cherma", reader=Reader.cherma, labels=labels)
    for i, utterance in enumerate(read_files(folder, dataset)["train"]):
        main = EMOTIONS["cherma"][i % 7]
        assert utterance.labels == {"M": main, "T": "平静", "A": "悲伤", "V": "惊奇"}


NAMED: dict[str, Any] = {
    "a field of the entry": lambda item, i: item.update(dialogue_id=i // 4),
    "a field of the features": lambda item, i: item["features"].update(Dialogue_ID=str(i // 4)),
    "the id of IEMOCAP": lambda item, i: item.update(id=f"Ses01F_impro0{i // 4}_M{i:03d}"),
    "the id of MELD": lambda item, i: item.update(name=f"dia{i // 4}_utt{i % 4}"),
    "a file of IEMOCAP": lambda item, i: item.update(
        file=f"Ses01F/Ses01F_impro0{i // 4}_M{i:03d}.wav"
    ),
    "a file of MELD beside a number": lambda item, i: item.update(
        id=i, filename=f"train/dia{i // 4}_utt{i % 4}.mp4"
    ),
}


@pytest.mark.parametrize("where", NAMED)
def test_dialogues_are_not_cut_by_the_held_out_part(tmp_path: Path, where: str) -> None:
    content = dialogue_content("iemocap", counts={"train": 40, "test": 4})
    for i, item in enumerate(content["train"]):
        NAMED[where](item, i)
    found = list(read_files(write_dialogue(tmp_path, "iemocap", content), IEMOCAP)["train"])
    assert [u.id for u in found] == [f"train-{i}" for i in range(40)]
    groups = [utterance.group for utterance in found]
    assert all((groups[i] == groups[j]) == (i // 4 == j // 4) for i in range(40) for j in range(40))
    held = hold_out([str(u.label) for u in found], groups, fraction=0.2, seed=0)
    assert not {groups[i] for i in held} & {groups[i] for i in np.setdiff1d(range(40), held)}


def test_speakers_are_read(tmp_path: Path) -> None:
    content = dialogue_content("iemocap")
    for part in content.values():
        for item in part:
            item["speaker"] = "Ses01_F"
    found = read_files(write_dialogue(tmp_path, "iemocap", content), IEMOCAP)["valid"]
    assert {utterance.speaker for utterance in found} == {"Ses01_F"}


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "valid", "test")])
def test_dialogues_that_will_be_cut_are_said(
    tmp_path: Path, splits: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    content = {split: dialogue_content("iemocap")[split] for split in splits}
    with caplog.at_level(logging.WARNING):
        list(read_files(write_dialogue(tmp_path, "iemocap", content), IEMOCAP)["train"])
    assert ("names no dialogues" in caplog.text) == ("valid" not in splits)
