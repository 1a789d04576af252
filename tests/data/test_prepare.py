"""Preparation: one store for the same files and options, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from msea_lightning import prepare as entry
from msea_lightning.commands import command_line as cli
from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.config.options import check
from msea_lightning.config.roots import PrepareConfig
from msea_lightning.data import prepare
from msea_lightning.data.options import (
    DatasetConfig,
    DemoTask,
    LabelConfig,
    LabelKind,
    Reader,
    Repair,
)
from msea_lightning.data.prepare import PrepareError, prepare_store
from msea_lightning.data.readers import Reading, read_files
from msea_lightning.data.show import show
from msea_lightning.data.store import Store
from msea_lightning.data.utterance import Utterance
from tests.data.published import (
    COUNTS,
    Shape,
    dialogue_content,
    mmsa_content,
    table_rows,
    write_cherma,
    write_dialogue,
    write_mmsa,
    write_table,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("MSEA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def table(tmp_path: Path, cache: Path) -> DatasetConfig:
    """A small data set of one's own, to be prepared."""
    folder = write_table(tmp_path / "mine", table_rows())
    return DatasetConfig(name="mine", reader=Reader.table, path=str(folder))


def test_every_layout_becomes_a_store(tmp_path: Path, cache: Path) -> None:
    for reader, path in (
        (Reader.mmsa, write_mmsa(tmp_path / "a", "mosi")),
        (Reader.dialogue, write_dialogue(tmp_path / "b", "meld")),
        (Reader.cherma, write_cherma(tmp_path / "c", shape=Shape(6, 4, 9, 5))),
        (Reader.table, write_table(tmp_path / "d", table_rows())),
    ):
        name = "meld" if reader is Reader.dialogue else "any"
        dataset = DatasetConfig(name=name, reader=reader, path=str(path))
        before = sorted(tmp_path.rglob("*"))
        store = prepare_store(dataset)
        assert [p for p in sorted(tmp_path.rglob("*")) if cache not in (p, *p.parents)] == [
            p for p in before if cache not in (p, *p.parents)
        ]
        assert store.folder.parent == cache / "stores"
        assert store.info["source"] == str(path)
        for split, part in read_files(path, dataset).items():
            for expected, found in zip(part, store.splits[split], strict=True):
                for item in dataclasses.fields(Utterance):
                    if item.name != "features":
                        assert getattr(found, item.name) == getattr(expected, item.name)
                assert found.features.keys() == expected.features.keys()
                for name, frames in expected.features.items():
                    np.testing.assert_array_equal(found.features[name], frames)


def test_a_store_is_made_once(table: DatasetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    store = prepare_store(table)
    monkeypatch.setattr(prepare, "write_store", None)
    for change in (
        {},
        {"path": str(Path(str(table.path)) / "utterances.csv")},
        {"text_tokens": 9, "standardize": True, "expected_train": 3, "valid_fraction": 0.3},
    ):
        assert prepare_store(dataclasses.replace(table, **change)).folder == store.folder


def test_changed_files_and_options_make_another_store(table: DatasetConfig) -> None:
    folders = {prepare_store(table).folder}
    for change in (
        {"repair": Repair.zero},
        {"audio_dim": 5},
        {"labels": LabelConfig(kind=LabelKind.emotions, names=["happy", "sad", "angry"])},
        {"name": "other"},
    ):
        folders.add(prepare_store(dataclasses.replace(table, **change)).folder)
    assert len(folders) == 5
    path = Path(str(table.path)) / "utterances.csv"
    content = path.read_text(encoding="utf-8")
    path.write_text(content.replace("well, utterance 0", "well, utterance X"), encoding="utf-8")
    store = prepare_store(table)
    assert store.folder not in folders
    assert store.splits["train"].texts[0] == "well, utterance X"


def test_an_interrupted_preparation_leaves_nothing_and_runs_again(
    table: DatasetConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(reading: Reading, split: str) -> Iterator[Utterance]:
        yield next(read(reading, split))
        raise KeyboardInterrupt

    read = Reading.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(Reading, "__getitem__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_store(table)
    assert not [path for path in (cache / "stores").iterdir() if path.is_dir()]
    assert len(prepare_store(table).splits["train"]) == 6


def test_flawed_files_leave_no_store(table: DatasetConfig, cache: Path) -> None:
    path = Path(str(table.path)) / "utterances.csv"
    content = path.read_text(encoding="utf-8")
    path.write_text(content.replace('"well, utterance 11"', " "), encoding="utf-8")
    with pytest.raises(UserError, match=r"'clip\.11' \(test, line 13\) has an empty text"):
        prepare_store(table)
    assert not [found for found in (cache / "stores").iterdir() if found.is_dir()]
    path.write_text(content, encoding="utf-8")
    assert len(prepare_store(table).splits["test"]) == 4


def test_an_empty_split_is_refused_in_every_layout(tmp_path: Path, cache: Path) -> None:
    counts = COUNTS | {"valid": 0}
    shape = Shape(6, 4, 9, 5)
    mosi = write_mmsa(tmp_path / "a", "mosi", mmsa_content("mosi", counts=counts))
    meld = write_dialogue(tmp_path / "b", "meld", dialogue_content("meld", counts=counts))
    cherma = write_cherma(tmp_path / "c", counts=counts, shape=shape)
    for name, reader, path, file in (
        ("mosi", Reader.mmsa, mosi, mosi),
        ("meld", Reader.dialogue, meld, meld / "meld_valid.pkl"),
        ("cherma", Reader.cherma, cherma, cherma / "dev.json"),
    ):
        with pytest.raises(UserError, match="the split 'valid' has no utterance") as error:
            prepare_store(DatasetConfig(name=name, reader=reader, path=str(path)))
        assert str(file) in str(error.value)


def test_features_of_another_width_are_refused(table: DatasetConfig) -> None:
    path = Path(str(table.path)) / "features.npz"
    np.savez(path, **{**np.load(path), "vision/clip.1": np.ones((2, 4))})
    with pytest.raises(UserError, match=r"'clip\.1' .* has 4 vision .*'clip\.0' .* has 3"):
        prepare_store(table)


def test_two_processes_at_once_make_one_store(
    table: DatasetConfig, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import logging; logging.basicConfig(level='INFO', format='%(message)s')\n"
        "from msea_lightning.data.options import DatasetConfig, Reader\n"
        "from msea_lightning.data.prepare import prepare_store\n"
        f"dataset = DatasetConfig(name='mine', reader=Reader.table, path={table.path!r})\n"
        "print(flush=True)\n"
        "assert len(prepare_store(dataset).splits['train']) == 6\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with caplog.at_level(logging.INFO):
            assert len(prepare_store(table).splits["train"]) == 6
        said = process.communicate()[1]
    assert process.returncode == 0, said
    assert f"{said}{caplog.text}".count("preparing mine") == 1
    assert len([path for path in (cache / "stores").iterdir() if path.is_dir()]) == 1


def test_missing_files_are_explained_with_the_command_that_fetches_them(
    tmp_path: Path, cache: Path
) -> None:
    mosei = DatasetConfig(
        name="mosei", reader=Reader.mmsa, hub_id="AZYoung/MOSEI_processed", source="https://a.page"
    )
    with pytest.raises(PrepareError) as error:
        prepare_store(mosei)
    assert str(error.value) == (
        f"the files of the data set mosei are missing: {cache}/downloads/mosei does not exist. "
        "They are published at https://a.page. Fetch them with `python -m msea_lightning.prepare "
        "dataset=mosei dataset.download=true`, or get them there and put them into "
        f"{cache}/downloads/mosei, or give their file or folder with dataset.path=PATH."
    )
    there = dataclasses.replace(mosei, path=str(tmp_path), source="")
    with pytest.raises(
        PrepareError, match=r"/datasets/AZYoung/MOSEI_processed\. Fetch .* and give"
    ):
        prepare_store(there)
    meld = DatasetConfig(name="meld", reader=Reader.dialogue, path=str(tmp_path))
    with pytest.raises(
        PrepareError, match=r"holds no meld_train\.pkl and no meld_test\.pkl\. They"
    ):
        prepare_store(meld)
    mine = DatasetConfig(name="table", reader=Reader.table)
    with pytest.raises(
        PrepareError, match=r"^dataset\.path is not set\. Give the folder with your"
    ):
        prepare_store(mine)
    with pytest.raises(PrepareError, match=r"holds no utterances\.csv\. Give the folder with your"):
        prepare_store(dataclasses.replace(mine, path=str(tmp_path)))


def test_files_put_into_the_download_folder_are_found(cache: Path) -> None:
    write_mmsa(cache / "downloads" / "mosi", "mosi")
    dataset = DatasetConfig(name="mosi", reader=Reader.mmsa)
    assert len(prepare_store(dataset).splits["train"]) == COUNTS["train"]


def test_files_are_fetched_only_where_they_are_missing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def fetch(dataset: DatasetConfig, folder: Path) -> Path:
        fetched.append(folder)
        write_mmsa(folder, "mosi")
        return folder

    monkeypatch.setattr("msea_lightning.data.files.download.download", fetch)
    dataset = DatasetConfig(name="mosi", reader=Reader.mmsa, hub_id="a/b", download=True)
    prepare_store(dataset)
    prepare_store(dataset)
    elsewhere = str(write_mmsa(tmp_path / "here", "mosi"))
    prepare_store(dataclasses.replace(dataset, path=elsewhere))
    prepare_store(dataclasses.replace(dataset, path=str(tmp_path / "nowhere")))
    assert fetched == [cache / "downloads" / "mosi"]
    with pytest.raises(PrepareError, match=r"holds no meld_train\.pkl .* although a/b was fetched"):
        prepare_store(dataclasses.replace(dataset, name="meld", reader=Reader.dialogue))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../../x", "a/b", "a\\b", "/tmp/x", "a\nb", "\x1b[2J"]
)
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.name=.* cannot be the name of a folder"):
        check(PrepareConfig(dataset=DatasetConfig(name=name)))


def test_a_cache_that_cannot_be_written_is_named(table: DatasetConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    dataset = dataclasses.replace(table, cache=str(tmp_path / "file" / "cache"))
    with pytest.raises(
        PrepareError, match=r"cannot be prepared in .* Set dataset\.cache \(or MSEA_"
    ):
        prepare_store(dataset)


def test_a_full_disk_is_named(table: DatasetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare, "write_store", full)
    with pytest.raises(PrepareError, match="the disk is full; what was written has been removed"):
        prepare_store(table)


def test_the_demo_corpus_is_stored_likewise(cache: Path) -> None:
    demo = DatasetConfig(demo_utterances=60)
    store = prepare_store(demo)
    assert sum(len(part) for part in store.splits.values()) == 60
    assert store.info["source"] == "generated"
    assert prepare_store(demo).folder == store.folder
    for change in ({"demo_seed": 1}, {"demo_task": DemoTask.msa}, {"demo_utterances": 61}):
        assert prepare_store(dataclasses.replace(demo, **change)).folder != store.folder


def test_a_count_that_is_not_the_published_one_is_said(
    table: DatasetConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepare_store(dataclasses.replace(table, expected_train=16326, expected_test=4))
    assert [record.getMessage() for record in caplog.records] == [
        "mine has 6 utterances in train, published are 16326"
    ]


def shown(store: Store, dataset: DatasetConfig) -> str:
    console = Console(width=120, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115
    show(store, dataset, console)
    console.file.close()
    return console.export_text()


def test_the_summary_shows_what_was_found(tmp_path: Path, cache: Path) -> None:
    content = mmsa_content("mosei")
    del content["valid"]
    content["train"]["audio"][0, 0, :3] = -np.inf
    content["train"]["vision_lengths"][:2] = [0, 0]
    content["train"]["audio_lengths"] = [1, 2, 3, 4, 5, 500]
    content["train"]["regression_labels"] = np.array([-3, -3, 0, 0, 0, 3.0])
    dataset = DatasetConfig(
        name="mosei",
        reader=Reader.mmsa,
        path=str(write_mmsa(tmp_path / "a", "mosei", content)),
        repair=Repair.zero,
        expected_train=16326,
        expected_valid=1871,
        expected_test=4,
    )
    store = prepare_store(dataset)
    text = [" ".join(line.replace("│", " ").split()) for line in shown(store, dataset).splitlines()]
    assert "train 6 16326 3 25" in text
    assert "valid 0 1871 - -" in text
    assert "test 4 4 2 24" in text
    assert "train audio 74 1/4/500 0 3" in text
    assert any(line.startswith("train vision 35 ") and line.endswith(" 2 0") for line in text)
    assert any(line.startswith("-3.00 to -2.14 2 (33.3%)") for line in text)
    assert any(line.startswith("-0.43 to +0.43 3 (50.0%)") for line in text)
    assert any(line.startswith("There is no valid split: training holds out 15%") for line in text)
    assert f"store: {store.folder}" in text


def test_the_summary_says_what_cannot_be_trained_on(tmp_path: Path, cache: Path) -> None:
    for split, lacking in (("test", "no train"), ("train", "no test"), ("dev", "no train and no")):
        folder = tmp_path / split
        folder.mkdir()
        rows = "\n".join(f"{number},{split},so,joy" for number in range(3))
        (folder / "utterances.csv").write_text(f"id,split,text,label\n{rows}\n", encoding="utf-8")
        dataset = DatasetConfig(name=split, reader=Reader.table, path=str(folder))
        assert f"not to be trained on: there is {lacking}" in shown(prepare_store(dataset), dataset)


def test_the_command(table: DatasetConfig, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["dataset=table", f"dataset.path={table.path}"]
    cli.launch(entry.job, config_name="prepare", root=PrepareConfig, arguments=arguments)
    assert f"store:  {cache / 'stores'}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        cli.launch(
            entry.job, config_name="prepare", root=PrepareConfig, arguments=["dataset=mosei"]
        )
    assert "the files of the data set mosei are missing" in capsys.readouterr().err
