"""Predictions for files: what comes out, and that nothing is lost on the way."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msea_lightning import Plugin, Utterance
from msea_lightning.backbone import BackboneError
from msea_lightning.commands.command_line import compose
from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.config.roots import PredictConfig
from msea_lightning.features.contract import FeatureError
from msea_lightning.inference import predict as module
from msea_lightning.inference.predict import PredictionError, predict
from msea_lightning.runs.folder import RunFolder
from msea_lightning.training.build import build_data

Predict = Callable[..., None]


@pytest.fixture
def ask(finished_run: RunFolder) -> Predict:
    """Runs the command's job with the plugin of a finished run."""

    def run(**options: Any) -> None:
        quoted = {key: json.dumps(str(options[key]), ensure_ascii=False) for key in options}
        words = [f"{key.replace('__', '.')}={value}" for key, value in quoted.items()]
        plugin = [] if "plugin" in options else [f"plugin={finished_run.plugin}"]
        predict(compose("predict", PredictConfig, [*plugin, *words]))

    return run


@pytest.fixture(scope="session")
def test_split(finished_run: RunFolder) -> list[Utterance]:
    data = build_data(finished_run.load_config())
    data.setup()
    split = data.splits["test"]
    return [split[index] for index in range(len(split))]


def write_table(folder: Path, utterances: list[Utterance]) -> Path:
    for name in ("audio", "vision"):
        (folder / name).mkdir(parents=True)
    with (folder / "utterances.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "text", "label"])
        for utterance in utterances:
            writer.writerow([utterance.id, "test", utterance.text, utterance.label])
            for name, frames in utterance.features.items():
                np.save(folder / name / f"{utterance.id}.npy", frames)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_table_gives_what_the_run_said_to_the_last_digit(
    tmp_path: Path, ask: Predict, finished_run: RunFolder, test_split: list[Utterance]
) -> None:
    ask(input=write_table(tmp_path / "table", test_split), output=tmp_path / "answers.csv")
    found = rows(tmp_path / "answers.csv")
    expected = rows(finished_run.path / "predictions.csv")
    for name in ("id", "text", "label", "prediction", "probability"):
        assert [row[name] for row in found] == [row[name] for row in expected]
    for row in found:
        distribution = json.loads(row["distribution"])
        assert sum(distribution.values()) == pytest.approx(1)
        assert distribution[row["prediction"]] == float(row["probability"])
    assert not list(tmp_path.glob("*.partial"))


def test_features_that_the_plugin_does_not_read_are_left_out(
    tmp_path: Path,
    ask: Predict,
    test_split: list[Utterance],
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = write_table(tmp_path / "table", test_split)
    ask(input=table, output=tmp_path / "without.csv")
    (table / "pose").mkdir()
    np.save(table / "pose" / f"{test_split[0].id}.npy", np.ones((3, 5)))
    ask(input=table, output=tmp_path / "with.csv")
    assert "pose features of 1 utterances are left out" in caplog.text
    assert (tmp_path / "with.csv").read_bytes() == (tmp_path / "without.csv").read_bytes()


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("Well, yes", "Well, yes"),
        ("it's {5}: [x", "it's {5}: [x"),
        ("1.50", "1.50"),
        ("null", "null"),
        ("'a, b'", "a, b"),
        ('"a"', "a"),
        ("${oc.env:HOME}", "${oc.env:HOME}"),
        ("costs ${5}, \\${6}", "costs ${5}, \\${6}"),
        ("'${a}'", "${a}"),
        ("???", "???"),
        ("", ""),
    ],
)
def test_a_text_is_taken_as_it_is_written(written: str, text: str) -> None:
    assert compose("predict", PredictConfig, ["plugin=x", f"text={written}"]).text == text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(ask: Predict) -> None:
    with pytest.raises(BackboneError, match="accelerator=gpu, but PyTorch sees no GPU"):
        ask(text="well done", language_model__accelerator="gpu")


def test_a_text_is_printed_as_a_line_of_json(
    ask: Predict, finished_run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(text="well done, <everyone>", language_model__accelerator="cpu")
    said = json.loads(capsys.readouterr().out)
    [answer] = (
        Plugin.from_pretrained(finished_run.plugin)
        .load(device="cpu")
        .predict([Utterance(text="well done, <everyone>")])
    )
    assert said["text"] == "well done, <everyone>"
    assert (said["prediction"], said["probability"]) == (answer.label, answer.probability)
    assert "mean" not in said


def test_broken_inputs_stop_no_other(
    tmp_path: Path, ask: Predict, test_split: list[Utterance]
) -> None:
    np.save(tmp_path / "a.npy", test_split[0].features["audio"])
    good = [
        {"id": f"u{n}", "text": f"it is {n}", "audio": "a.npy" if n % 2 else [[0.5] * 12]}
        for n in range(17)
    ]
    bad: list[Any] = [
        {"id": "narrow", "text": "x", "audio": [[1.0, 2.0]]},
        "no JSON",
        {"id": "gone", "text": "x", "vision": "gone.npy"},
    ]
    items = [*good[:5], bad[0], *good[5:9], bad[1], *good[9:], bad[2]]
    written = [item if isinstance(item, str) else json.dumps(item) for item in items]
    (tmp_path / "in.jsonl").write_text("\n".join(written), "utf-8")
    with pytest.raises(PredictionError, match=r"3 of 20 utterances have no prediction.*out.jsonl"):
        ask(input=tmp_path / "in.jsonl", output=tmp_path / "out.jsonl")
    found = lines(tmp_path / "out.jsonl")
    assert [line["id"] for line in found if "prediction" in line] == [f"u{n}" for n in range(17)]
    reasons = {line["id"]: line["error"] for line in found if "error" in line}
    assert list(reasons) == ["narrow", "line 11", "gone"]
    assert "2 audio features per frame" in reasons["narrow"]
    assert "in.jsonl, line 11 is no JSON" in reasons["line 11"]
    assert "gone.npy" in reasons["gone"]


@pytest.mark.parametrize("moment", ["read", "answered"])
def test_a_job_that_was_killed_goes_on(
    tmp_path: Path,
    ask: Predict,
    test_split: list[Utterance],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    table = write_table(tmp_path / "table", test_split)
    ask(input=table, output=tmp_path / "undisturbed.csv", batch_size=4)
    original = module.Work.note
    left = {"calls": 3}

    def note(work: module.Work, stage: str, done: dict[int, Any]) -> None:
        original(work, stage, done)
        left["calls"] -= stage == moment
        if left["calls"] == 0:
            # The line after it was cut off.
            work._log.write(b'{"stage": "answered", "rows": [[9')
            work._log.flush()
            raise KeyboardInterrupt

    monkeypatch.setattr(module.Work, "note", note)
    with pytest.raises(KeyboardInterrupt):
        ask(input=table, output=tmp_path / "killed.csv", batch_size=4)
    assert not (tmp_path / "killed.csv").exists()
    done: list[tuple[str, int]] = []

    def counted(work: module.Work, stage: str, some: dict[int, Any]) -> None:
        done.append((stage, len(some)))
        original(work, stage, some)

    monkeypatch.setattr(module.Work, "note", counted)
    with pytest.raises(ConfigError, match="interrupted job with another batch_size left"):
        ask(input=table, output=tmp_path / "killed.csv", batch_size=5)
    ask(input=table, output=tmp_path / "killed.csv", batch_size=4)
    again = sum(count for stage, count in done if stage == moment)
    assert again == len(test_split) - (3 if moment == "read" else 12)
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("changed", ["utterances.csv", "audio", "features.json", "features.npz"])
def test_changed_files_are_another_input(
    tmp_path: Path,
    ask: Predict,
    test_split: list[Utterance],
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    table = write_table(tmp_path / "table", test_split[:6])
    np.savez(table / "features.npz", other=np.ones((6, 2)))
    (table / "features.json").write_text('{"features": {}}')
    interrupt(monkeypatch, ask, input=table, output=tmp_path / "out.csv")
    file = table / changed
    file = min(file.iterdir()) if file.is_dir() else file
    os.utime(file, ns=(0, 0))
    with pytest.raises(ConfigError, match=r"another input left \(.*files that have changed"):
        ask(input=table, output=tmp_path / "out.csv")


def test_changed_files_that_a_line_names_are_another_input(
    tmp_path: Path, ask: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 12)))
    (tmp_path / "in.jsonl").write_text('{"text": "x", "audio": "a.npy"}\n')
    interrupt(monkeypatch, ask, input=tmp_path / "in.jsonl", output=tmp_path / "out.csv")
    np.save(tmp_path / "a.npy", np.zeros((2, 12)))
    with pytest.raises(ConfigError, match="another input left"):
        ask(input=tmp_path / "in.jsonl", output=tmp_path / "out.csv")
    ask(input=tmp_path / "in.jsonl", output=tmp_path / "out.csv", overwrite=True)


def interrupt(monkeypatch: pytest.MonkeyPatch, ask: Predict, **options: Any) -> None:
    """Runs a job that is interrupted after something was read."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(**options)


def test_what_is_gone_when_it_is_answered_stops_no_other(
    tmp_path: Path, ask: Predict, test_split: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = test_split[:8]
    table = write_table(tmp_path / "table", some)
    gone = table / "audio" / f"{some[3].id}.npy"
    original = module._answer

    def answer(*given: Any) -> None:
        gone.unlink(missing_ok=True)
        original(*given)

    monkeypatch.setattr(module, "_answer", answer)
    with pytest.raises(PredictionError, match="1 of 8"):
        ask(input=table, output=tmp_path / "out.csv", batch_size=4)
    found = rows(tmp_path / "out.csv")
    assert [row["id"] for row in found if not row["prediction"]] == [some[3].id]
    assert gone.name in found[3]["error"]


def test_folders_of_others_are_left_alone(tmp_path: Path, ask: Predict) -> None:
    mine = tmp_path / "out.csv.partial" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"holds files, but no interrupted job"):
            ask(text="a", output=tmp_path / "out.csv", overwrite=overwrite)
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]


def test_a_second_process_is_refused(tmp_path: Path, ask: Predict) -> None:
    with module.Work(tmp_path / "out.csv.partial", {"plugin": "x"}) as work:
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="another process is writing it"):
                ask(text="a", output=tmp_path / "out.csv", overwrite=overwrite)
        work.note("read", {0: {"frames": {}}})
    with pytest.raises(ConfigError, match=r"another .*plugin left"):
        ask(text="a", output=tmp_path / "out.csv")
    ask(text="a", output=tmp_path / "out.csv", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_job_that_does_nothing_leaves_nothing(tmp_path: Path, ask: Predict) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "x", "clip": "in.jsonl"}\n')
    with pytest.raises(UserError, match="does not say what its features were extracted with"):
        ask(input=tmp_path / "in.jsonl", output=tmp_path / "out.csv")
    with pytest.raises(RuntimeError), module.Work(tmp_path / "out.csv.partial", {"plugin": "x"}):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_standard_output_is_utf8_whatever_the_terminal_is(
    ask: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    ask(text="今天")
    assert json.loads(written.getvalue())["text"] == "今天"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output_is_one_error(ask: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(UserError, match=r"standard output \(No space left.*output=answers"):
            ask(text="a")


def test_texts_that_are_cut_are_said_once(
    ask: Predict, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(text="well " * 9999)
    (said,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "longer than the 64 tokens" in said.getMessage()
    assert "1 of 1 (text)" in said.getMessage()
    assert "indexing errors" not in capsys.readouterr().err


def test_outputs_are_not_written_over(tmp_path: Path, ask: Predict) -> None:
    target = tmp_path / "out.csv"
    target.write_text("mine")
    with pytest.raises(ConfigError, match=r"exists already.*overwrite=true"):
        ask(text="a", output=target)
    assert target.read_text() == "mine"
    ask(text="a", output=target, overwrite=True)
    assert rows(target)[0]["text"] == "a"
    with pytest.raises(ConfigError, match=r"must end in .csv or .jsonl"):
        ask(text="a", output=tmp_path / "out.xlsx")
    with pytest.raises(ConfigError, match="a folder that does not exist"):
        ask(text="a", output=tmp_path / "no" / "out.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"text=\.\.\. or input="),
        ({"input": "nowhere"}, "input=nowhere does not exist"),
        ({"input": ".", "text": "a"}, "utterances with texts of their own"),
        ({"text": "a", "plugin": ""}, "The name of the plugin is empty"),
    ],
)
def test_what_cannot_be_predicted_is_refused(
    ask: Predict, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ask(**options)


@pytest.mark.parametrize(("name", "content"), [("in.csv", "id,text\n"), ("in.jsonl", " \n")])
def test_an_input_without_utterances_is_refused(
    tmp_path: Path, ask: Predict, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match="holds no utterance"):
        ask(input=tmp_path / name)


def test_features_of_another_extractor_are_refused(
    tmp_path: Path, ask: Predict, finished_run: RunFolder, test_split: list[Utterance]
) -> None:
    table = write_table(tmp_path / "table", test_split)
    mel = {"name": "log_mel", "version": 1, "settings": {}, "dim": 12}
    (table / "features.json").write_text(
        json.dumps({"features": {"audio": {**mel, "name": "other"}}})
    )
    plugin = Plugin.from_pretrained(finished_run.plugin)
    plugin.facts.features = {"audio": mel}
    plugin.save_pretrained(tmp_path / "plugin")
    with pytest.raises(FeatureError, match=r"other, version 1.*log_mel, version 1"):
        ask(plugin=tmp_path / "plugin", input=table, output=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_every_error_is_one_of_the_user(tmp_path: Path, ask: Predict) -> None:
    (tmp_path / "utterances.csv").write_text("id,text\na,one\na,two\n")
    with pytest.raises(UserError, match="several utterances are called 'a'"):
        ask(input=tmp_path, output=tmp_path / "out.csv")
    (tmp_path / "utterances.csv").write_text("id,text\na,one\nb,\n")
    with pytest.raises(PredictionError, match=r"1 of 2.*'b' has neither a text nor features"):
        ask(input=tmp_path, output=tmp_path / "out.csv")
