"""From clips to predictions: the features of training and of prediction are the same."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msea_lightning.commands.command_line import compose
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import ExtractConfig, PredictConfig, TrainConfig
from msea_lightning.features.extraction import Extraction
from msea_lightning.features.run import extract_table
from msea_lightning.inference.inputs import open_inputs
from msea_lightning.inference.predict import PredictionError, predict
from msea_lightning.plugin import PluginError
from msea_lightning.runs.folder import RunFolder
from msea_lightning.training.fit import fit
from tests.conftest import SMALL
from tests.features.clips import tone, write_clip

pytest.importorskip("av")
pytest.importorskip("librosa")

SPLITS = ["train"] * 12 + ["valid"] * 4 + ["test"] * 5


def ask(plugin: Path, source: Path, target: Path, *words: str) -> list[dict[str, str]]:
    given = {"plugin": plugin, "input": source, "output": target}
    quoted = [f"{key}={json.dumps(str(value))}" for key, value in given.items()]
    predict(compose("predict", PredictConfig, [*quoted, *words]))
    return rows(target)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def extract(source: Path, target: Path, *words: str) -> None:
    given = {"input": source, "output": target, "labels": source / "labels.csv"}
    quoted = [f"{key}={json.dumps(str(value))}" for key, value in given.items()]
    extract_table(compose("extract", ExtractConfig, [*quoted, "vision=none", *words]))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips whose pitch says the emotion, their words beside them, and a table of labels."""
    folder = tmp_path_factory.mktemp("clips")
    lines = ["file,label,split"]
    for number, split in enumerate(SPLITS):
        name, emotion = f"clip{number:02}.wav", ["low", "high"][number % 2]
        sound = tone(0.3 + 0.05 * (number % 5), hertz=[200.0, 900.0][number % 2])
        (folder / split).mkdir(exist_ok=True)
        write_clip(folder / split / name, sound=sound)
        (folder / split / name).with_suffix(".txt").write_text(f"this is number {number}")
        lines.append(f"{split}/{name},{emotion},{split}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def trained(
    corpus: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, Path]:
    """A run on the features that were extracted from the clips, and the table of these."""
    table = tmp_path_factory.mktemp("table")
    extract(corpus, table, "workers=1")
    given = {"dataset.path": table, "runs": tmp_path_factory.mktemp("runs"), "dataset.cache": cache}
    words = [f"{key}={json.dumps(str(value))}" for key, value in given.items()]
    small = [word for word in SMALL if "demo" not in word]
    return fit(compose("train", TrainConfig, ["dataset=table", *small, *words])), table


def test_clips_are_answered_as_in_the_test_of_the_run(
    tmp_path: Path, corpus: Path, trained: tuple[RunFolder, Path]
) -> None:
    run, table = trained
    found = ask(run.plugin, corpus / "test", tmp_path / "answers.csv", "workers=1")
    expected = rows(run.path / "predictions.csv")
    assert len(expected) == 5
    for name in ("text", "prediction", "probability"):
        assert [row[name] for row in found] == [row[name] for row in expected]
    assert [f"test/{row['id']}" for row in found] == [row["id"] for row in expected]
    # From the table as well, which says what extracted its features.
    again = ask(run.plugin, table, tmp_path / "table.csv")
    test = [row for row in again if row["id"].startswith("test/")]
    assert [row["probability"] for row in test] == [row["probability"] for row in expected]


def test_broken_clips_stop_no_other(
    tmp_path: Path, corpus: Path, trained: tuple[RunFolder, Path]
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(17):
        write_clip(folder / f"good{number:02}.wav", sound=tone(0.2))
    (folder / "empty.wav").touch()
    (folder / "torn.wav").write_bytes((folder / "good00.wav").read_bytes()[:30])
    (folder / "words.mp4").write_text("no clip at all")
    with pytest.raises(PredictionError, match="3 of 20 utterances have no prediction"):
        ask(trained[0].plugin, folder, tmp_path / "answers.csv", "workers=2")
    found = rows(tmp_path / "answers.csv")
    failed = {row["id"]: row["error"] for row in found if row["error"]}
    assert sorted(failed) == ["empty", "torn", "words"]
    assert all(name in failed[name] for name in failed)
    assert sum(row["prediction"] in ("low", "high") for row in found) == 17


def test_a_clip_that_fails_in_an_unknown_way_stops_no_other(
    tmp_path: Path, trained: tuple[RunFolder, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Extraction.extract

    def fail(self: Extraction, path: Path, *part: float | None) -> Any:
        if path.stem == "b":
            raise ZeroDivisionError("a defect")
        return whole(self, path, *part)

    monkeypatch.setattr(Extraction, "extract", fail)
    for name in "abc":
        write_clip(tmp_path / "clips" / f"{name}.wav", sound=tone(0.2))
    with pytest.raises(PredictionError, match=r"1 of 3 .*b\.wav cannot be extracted \(ZeroDiv"):
        ask(trained[0].plugin, tmp_path / "clips", tmp_path / "answers.csv", "workers=1")


def test_subtitles_make_an_utterance_of_every_cue(
    tmp_path: Path, trained: tuple[RunFolder, Path]
) -> None:
    write_clip(tmp_path / "talk.wav", sound=tone(2.0))
    cues = "1\n00:00:00,000 --> 00:00:00,900\nfirst\n\n2\n00:00:01,000 --> 00:00:02,000\nsecond\n"
    (tmp_path / "talk.srt").write_text(cues)
    found = ask(trained[0].plugin, tmp_path / "talk.wav", tmp_path / "answers.csv", "workers=1")
    assert [(row["id"], row["text"]) for row in found] == [
        ("talk#1", "first"),
        ("talk#2", "second"),
    ]
    whole = ask(
        trained[0].plugin, tmp_path / "talk.wav", tmp_path / "whole.csv", "workers=1", "text=all"
    )
    assert [row["text"] for row in whole] == ["all"]


def test_transcripts_belong_to_the_input(tmp_path: Path) -> None:
    for name in ("a.wav", "a.txt", "b.wav", "b.srt", "c.txt"):
        (tmp_path / name).touch()
    with open_inputs(str(tmp_path), None) as inputs:
        assert [file.name for file in inputs.files] == ["a.wav", "a.txt", "b.wav", "b.srt"]


def test_clips_need_a_plugin_that_knows_its_extractors(
    tmp_path: Path, corpus: Path, finished_run: RunFolder
) -> None:
    with pytest.raises(PluginError, match="does not say what its features were extracted with"):
        ask(finished_run.plugin, corpus / "test", tmp_path / "answers.csv", "workers=1")


@pytest.fixture
def ray() -> Any:
    """Ray, started here with two cores."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray (extra ray)")
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_ray_gives_what_one_process_gives(
    tmp_path: Path,
    corpus: Path,
    trained: tuple[RunFolder, Path],
    ray: Callable[..., Any],
) -> None:
    run, table = trained
    extract(corpus, tmp_path / "table", "engine=ray")
    for file in sorted(table.rglob("*.npy")):
        assert file.read_bytes() == (tmp_path / "table" / file.relative_to(table)).read_bytes()
    assert (tmp_path / "table" / "utterances.csv").read_bytes() == (
        table / "utterances.csv"
    ).read_bytes()
    (corpus / "test" / "torn.wav").write_bytes(b"RIFF")
    for engine in ("local", "ray"):
        with pytest.raises(UserError, match="1 of 6"):
            ask(
                run.plugin,
                corpus / "test",
                tmp_path / f"{engine}.csv",
                f"engine={engine}",
                "workers=1",
                "batch_size=2",
            )
    (corpus / "test" / "torn.wav").unlink()
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
