"""Folders of clips become tables: the whole of ``python -m msea_lightning.extract``."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from msea_lightning.commands.command_line import compose, launch
from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.config.roots import ExtractConfig, TrainConfig
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.store import Store
from msea_lightning.extract import job
from msea_lightning.features import run, work
from msea_lightning.features.contract import FeatureError, MediaError
from msea_lightning.features.log_mel import LogMel
from msea_lightning.features.media import audio_blocks
from tests.features.clips import ramp, tone, write_clip
from tests.features.test_openface import write as write_openface

OPTIONS = ("features=sound", "audio.mels=16", "workers=1")

SRT = "1\n00:00:00,000 --> 00:00:00,500\nHello\n\n2\n00:00:00,500 --> 00:00:01,000\nthere\n"


def extract(*words: str) -> None:
    given = {word.partition("=")[0]: word for word in (*OPTIONS, *words)}
    run.extract_table(compose("extract", ExtractConfig, list(given.values())))


def rows_of(folder: Path, name: str = "utterances.csv") -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Six clips of two speakers, one of them with subtitles."""
    folder = tmp_path / "clips"
    for index in range(5):
        kind = ("wav", "mp4", "webm")[index % 3]
        pictures = None if kind == "wav" else ramp(5)
        path = folder / f"s{index % 2}" / f"c{index}.{kind}"
        write_clip(path, tone(0.5, hertz=200 * (1 + index % 2)), pictures)
    write_clip(folder / "film.mp4", tone(1), ramp(10))
    (folder / "film.srt").write_text(SRT)
    return folder


@pytest.fixture
def words(clips: Path, tmp_path: Path) -> list[str]:
    return [f"input={clips}", f"output={tmp_path / 'out'}"]


def test_without_labels_every_utterance_is_there_to_predict(
    words: list[str], clips: Path, tmp_path: Path
) -> None:
    extract(*words)
    rows = rows_of(tmp_path / "out")
    ids = ["film#1", "film#2", "s0/c0", "s0/c2", "s0/c4", "s1/c1", "s1/c3"]
    assert [row["id"] for row in rows] == ids
    assert {(row["split"], row["label"]) for row in rows} == {("test", "")}
    assert [row["text"] for row in rows] == ["Hello", "there", *[""] * 5]
    assert [(row["start"], row["end"], row["group"]) for row in rows[:3]] == [
        ("0", "0.5", "film"),
        ("0.5", "1", "film"),
        ("", "", ""),
    ]
    frames = np.load(tmp_path / "out" / "audio" / "film#2.npy")
    expected = LogMel(mels=16).extract(audio_blocks(clips / "film.mp4", 16000, 0.5, 1.0))
    assert np.array_equal(frames, expected)
    known = rows_of(tmp_path / "out", "clips.csv")
    assert [row["reason"] for row in known] == [""] * 6
    assert [row["utterances"] for row in known] == ["2", *["1"] * 5]
    facts = json.loads((tmp_path / "out" / "features.json").read_text())
    assert facts["features"]["audio"]["settings"]["mels"] == 16


def test_a_table_with_labels_is_trained_on_as_it_is(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    words_of = ("words", "more words", "", "words again", "")
    lines = [
        f"c{index},{'happy' if index % 2 else 'sad'},{said}" for index, said in enumerate(words_of)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,text", *lines]))
    extract(*words, f"labels={tmp_path / 'labels.csv'}", "test_fraction=0.4")
    assert "no column split: 2 of 5 labelled utterances are held out" in caplog.text
    assert "1 clips have no row" in caplog.text
    assert f"dataset=table dataset.path={tmp_path / 'out'}" in caplog.text
    assert "2 utterances have no words" in caplog.text
    assert "empty_text" not in caplog.text
    rows = rows_of(tmp_path / "out")
    assert sorted(row["split"] for row in rows) == ["test"] * 2 + ["train"] * 3
    path, cache = f"dataset.path={tmp_path / 'out'}", f"dataset.cache={tmp_path / 'cache'}"
    dataset = compose("train", TrainConfig, ["dataset=table", path, cache]).dataset
    data = UtteranceDataModule(dataset, batch_size=2, seed=0)
    data.setup()
    assert data.dims == {"audio": 16}
    assert data.extractors["audio"]["name"] == "log_mel"
    assert "have no words: kept" in caplog.text
    (store,) = (tmp_path / "cache" / "stores").glob("table-*")
    assert Store.open(store).extractors == data.extractors


def test_splits_of_the_labels_are_kept_and_groups_are_not_torn_apart(
    words: list[str], tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,label,split\nc0,1,train\nc1,2,dev\nc2,3,test\n")
    extract(*words, f"labels={table}")
    assert [row["split"] for row in rows_of(tmp_path / "out")] == ["train", "test", "dev"]
    groups = [f"c{index},{index % 2},g{index % 2}" for index in range(5)]
    table.write_text("\n".join(["file,label,group", *groups, "film,,g9"]))
    extract(*words, f"labels={table}", "test_fraction=0.5")
    rows = {row["id"]: row for row in rows_of(tmp_path / "out")}
    by_group: dict[str, set[str]] = {}
    for row in rows.values():
        by_group.setdefault(row["group"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in by_group.values())
    assert {"train", "test"} == set.union(*by_group.values())
    assert rows["film"]["split"] == "test"  # without a label it is not scored
    table.write_text("file,label,group\nc0,1,g\nc1,2,g\n")
    with pytest.raises(FeatureError, match=r"no test part can be held out.*column split"):
        extract(*words, f"labels={table}")


def test_bad_clips_are_listed_and_stop_nothing(
    words: list[str], clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "empty.mp4").write_bytes(b"")
    (clips / "noise.mp4").write_bytes(b"noise" * 999)
    half = write_clip(clips / "half.mkv", tone(4)).read_bytes()
    (clips / "half.mkv").write_bytes(half[: len(half) // 2])
    (clips / "film.srt").write_text(SRT + "\n3\n00:01:00,000 --> 00:01:01,000\nbehind\n")
    (clips / "s0" / "c0.srt").write_text("no subtitles")
    with pytest.raises(SystemExit, match="1"):
        launch(job, config_name="extract", root=ExtractConfig, arguments=[*OPTIONS, *words])
    said = capsys.readouterr().err
    assert "something is wrong with 5 of 9 clips; the others are in the table" in said
    assert "1 of 3 utterances: " in said
    known = {row["file"]: row for row in rows_of(tmp_path / "out", "clips.csv")}
    assert "is empty (0 bytes)" in known["empty.mp4"]["reason"]
    assert "cannot be decoded" in known["noise.mp4"]["reason"]
    assert "breaks off at 1.9 s; its header says 4.0 s" in known["half.mkv"]["reason"]
    assert known["half.mkv"]["seconds"].startswith("1.9")
    assert "is no SRT file" in known["s0/c0.wav"]["reason"]
    assert "holds too little from 60 s to 61 s" in known["film.mp4"]["reason"]
    assert known["film.mp4"]["utterances"] == "2"
    assert len(rows_of(tmp_path / "out")) == 6


def test_an_interrupted_extraction_ends_as_an_undisturbed_one(
    words: list[str], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(*words)
    undisturbed = files_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    done: list[str] = []

    def until(end: int) -> Callable[[work.ClipTask], dict[str, Any]]:
        def work_on(task: work.ClipTask) -> dict[str, Any]:
            if len(done) == end:
                raise KeyboardInterrupt
            done.append(task.file)
            return work.extract_clip(task)

        return work_on

    monkeypatch.setattr(run, "extract_clip", until(2))
    with pytest.raises(KeyboardInterrupt):
        extract(*words)
    assert not (tmp_path / "out" / "utterances.csv").exists()
    # What a killed process leaves: a line and a file that are not finished.
    with (tmp_path / "out" / ".clips.jsonl").open("a") as records:
        records.write('{"file": "s0/c')
    (tmp_path / "out" / "audio" / ".0123.partial").write_bytes(b"half")
    monkeypatch.setattr(run, "extract_clip", until(99))
    extract(*words)
    assert sorted(done) == sorted({*done})
    assert files_of(tmp_path / "out") == undisturbed
    monkeypatch.setattr(run, "extract_clip", until(0))
    extract(*words)  # nothing is left to do
    assert files_of(tmp_path / "out") == undisturbed


def test_what_has_changed_is_extracted_anew_and_what_is_gone_is_removed(
    words: list[str], clips: Path, tmp_path: Path
) -> None:
    extract(*words)
    write_clip(clips / "s0" / "c0.wav", tone(0.25))
    (clips / "s1" / "c1.mp4").unlink()
    (clips / "film.srt").unlink()
    (tmp_path / "out" / "audio" / "s1" / "c3.npy").unlink()
    extract(*words)
    arrays = {path for path in files_of(tmp_path / "out") if path.endswith(".npy")}
    assert arrays == {f"audio/{row['id']}.npy" for row in rows_of(tmp_path / "out")}
    assert [row["id"] for row in rows_of(tmp_path / "out")] == [
        *("film", "s0/c0", "s0/c2", "s0/c4", "s1/c3")
    ]
    assert np.load(tmp_path / "out" / "audio" / "s0" / "c0.npy").shape == (8, 16)


def test_words_are_recognised_where_nobody_wrote_them_down(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FakeWhisper:
        def __init__(self, name: str) -> None:
            self.name = name

        def transcribe(self, audio: Any, language: str | None) -> tuple[Any, None]:
            return [SimpleNamespace(text=f"{len(audio)} {self.name} {language}")], None

    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=FakeWhisper))
    monkeypatch.setattr(work, "_recogniser", work.SpeechRecognizer)
    extract(*words)
    extract(*words, "transcribe=small", "language=en")
    texts = {row["id"]: row["text"] for row in rows_of(tmp_path / "out")}
    assert texts["film#1"] == "Hello"
    assert texts["s0/c0"] == "8000 small en"
    extract(*words, "transcribe=large")
    assert rows_of(tmp_path / "out")[2]["text"] == "8000 large None"


def test_labels_of_spreadsheets_are_intensities_as_in_training(
    words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text("file;label\nc0;1,5\nc1;-2\nc2;0,5\nc3;1\nc4;nan\n")
    extract(*words, f"labels={tmp_path / 'labels.csv'}")
    rows = {row["id"]: row for row in rows_of(tmp_path / "out")}
    assert [rows[name]["label"] for name in sorted(rows)] == ["1.5", "0.5", "", "-2", "1"]
    assert rows["s0/c4"]["split"] == "test"
    (tmp_path / "labels.csv").write_text("file,label\nc0,1\nc1,nan\n")
    with pytest.raises(FeatureError, match="a single utterance has a label"):
        extract(*words, f"labels={tmp_path / 'labels.csv'}")


def test_two_utterances_of_one_id_are_refused(words: list[str], clips: Path) -> None:
    write_clip(clips / "film#1.wav", tone(0.2))
    with pytest.raises(FeatureError, match=r"of film#1\.wav and one of film\.mp4 .*'film#1'"):
        extract(*words)


def test_ids_that_cannot_be_files_stop_no_other_clip(
    words: list[str], clips: Path, tmp_path: Path
) -> None:
    write_clip(clips / "X.npy" / "z.wav", tone(0.2))
    write_clip(clips / "X.wav", tone(0.2))
    write_clip(clips / f"{'y' * 251}.wav", tone(1))
    (clips / f"{'y' * 251}.srt").write_text(SRT)
    with pytest.raises(MediaError, match="something is wrong with 2 of 9 clips"):
        extract(*words)
    reasons = {row["file"]: row["reason"] for row in rows_of(tmp_path / "out", "clips.csv")}
    assert "the features of another id are a file where those of this" in reasons["X.wav"]
    assert "the id is too long for the name of a file" in reasons[f"{'y' * 251}.wav"]
    assert len(rows_of(tmp_path / "out")) == 8


def test_features_of_openface_that_changed_are_read_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clip = write_clip(tmp_path / "clips" / "clip.wav", tone(1))
    words = [f"input={clip.parent}", f"output={tmp_path / 'out'}", "audio=none", "vision=openface"]

    def seen() -> float:
        config = compose("extract", ExtractConfig, [*words, "workers=1"])
        run.extract_table(config)
        return float(np.load(tmp_path / "out" / "vision" / "clip.npy")[0, 0])

    write_openface(clip, [0.0, 0.1])
    first = seen()
    assert seen() == first
    assert "1 of 1 clips are done already" in caplog.text
    table = clip.with_suffix(".csv")
    table.write_text(table.read_text().replace("0.674", "0.5"))
    assert seen() == pytest.approx(0.5)


def test_another_folder_of_clips_is_refused_and_a_moved_one_is_not(
    words: list[str], clips: Path, tmp_path: Path
) -> None:
    extract(*words)
    before = files_of(tmp_path / "out")
    write_clip(tmp_path / "b" / "film.mp4", tone(0.3))
    with pytest.raises(FeatureError, match=rf"clips in {clips}, and input=.*b is another folder"):
        extract(f"input={tmp_path / 'b'}", words[1])
    assert files_of(tmp_path / "out") == before
    clips.rename(tmp_path / "moved")
    extract(f"input={tmp_path / 'moved'}", words[1])
    after = files_of(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {".input"}


def test_an_output_that_cannot_be_written_is_refused(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureError, match=r"output=.*x cannot be written \(Not a directory\)"):
        extract(words[0], f"output={tmp_path / 'file' / 'x'}")


def test_an_output_of_something_else_is_refused(
    words: list[str], clips: Path, tmp_path: Path
) -> None:
    extract(*words)
    with pytest.raises(FeatureError, match=r"with other extractors.*mels=16.*mels=8.*expected"):
        extract(*words, "audio.mels=8")
    with pytest.raises(FeatureError, match="holds features of audio=log_mel, not of audio=log_mel"):
        extract(*words, "vision=openface")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(FeatureError, match="holds files that are not of an extraction"):
        extract(words[0], f"output={tmp_path / 'other'}")
    with pytest.raises(ConfigError, match="is the folder of the clips"):
        extract(words[0], f"output={clips}")
    with pytest.raises(ConfigError, match="there is nothing to extract"):
        run.extract_table(compose("extract", ExtractConfig, [*words, "audio=none", "vision=none"]))


def test_one_clip_that_fails_in_an_unknown_way_is_a_bad_clip(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: LogMel, blocks: Any) -> Any:
        if len(list(blocks)) > 20:
            raise ZeroDivisionError("a defect")
        return np.ones((3, 16), np.float32)

    monkeypatch.setattr(LogMel, "extract", fail)
    with pytest.raises(MediaError, match=r"ZeroDivisionError: a defect"):
        extract(*words)
    assert 0 < len(rows_of(tmp_path / "out")) < 7


def test_a_full_disk_ends_the_extraction(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        extract(*words)


def test_several_processes_do_what_one_does(words: list[str], tmp_path: Path) -> None:
    extract(*words)
    alone = files_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    extract(*words, "workers=2")
    assert {name: alone[name] for name in alone if not name.startswith(".")} == {
        name: content
        for name, content in files_of(tmp_path / "out").items()
        if not name.startswith(".")
    }
