"""What Weights & Biases gets of a run, read back from the files that it leaves when offline."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import TrainConfig
from msea_lightning.metrics import METRICS
from msea_lightning.reporting import wandb as wandb_run
from msea_lightning.reporting.options import WandbMode
from msea_lightning.runs.folder import Names, RunFolder
from msea_lightning.training.fit import fit
from msea_lightning.training.module import TrainingModule
from tests.reporting.wandb_files import Recorded, items, recordings, records

Options = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def module_options(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Composes a run of one epoch that W&B records."""

    def make(*overrides: str) -> TrainConfig:
        small = (
            f"dataset.cache={cache}",
            "dataset.demo_utterances=90",
            f"runs={tmp_path_factory.mktemp('wandb') / 'runs'}",
            "training.schedule_epochs=1",
            "training.batch_size=4",
            "trainer.accelerator=cpu",
            "trainer.progress_bar=false",
            "logger=wandb",
            "logger.wandb_mode=offline",
        )
        return compose("train", TrainConfig, [*small, *overrides])

    return make


@pytest.fixture(scope="module", params=["erc", "msa"])
def recorded(request: pytest.FixtureRequest, module_options: Options) -> Recorded:
    """A plain run on emotions; one of an experiment on a part of the intensities."""
    config = module_options("dataset.demo_task=erc")
    if request.param == "msa":
        config = module_options(
            "dataset.demo_task=msa", "dataset.train_fraction=0.7", "ablation=no_audio"
        )
        config = replace(config, experiment="figure4")
    run = fit(config)
    (file,) = recordings(run)
    return Recorded(config, run, file.parent / "files", records(file))


def test_runs_are_grouped_by_experiment_and_cell(recorded: Recorded) -> None:
    begun = recorded.begun
    if recorded.config.experiment is None:
        assert (begun.run_group, begun.job_type) == ("demo/mse-tiny", "none")
        assert begun.display_name == "demo-mse-tiny-seed-1111"
        assert list(begun.tags) == ["demo", "mse", "tiny"]
    else:
        assert begun.run_group == "figure4/demo/mse-tiny-train-0.7"
        assert begun.job_type == "no_audio"
        assert begun.display_name == "demo-mse-tiny-train-0.7-no_audio-seed-1111"
        assert list(begun.tags) == ["demo", "mse", "tiny", "no_audio", "figure4"]


def test_all_options_are_logged_as_plain_values(recorded: Recorded) -> None:
    logged = items(recorded.begun.config.update)
    assert logged["dataset"]["train_fraction"] == recorded.config.dataset.train_fraction
    assert logged["dataset"]["language"] == "en"
    assert logged["training"]["batch_size"] == 4
    assert logged["seed"] == 1111
    assert (
        logged["trainable_parameters"]
        == json.loads((recorded.run.path / "memory.json").read_text())["trainable_parameters"]
    )


def test_the_history_is_that_of_training(recorded: Recorded) -> None:
    """Steps are logged every tenth time only, because each of them waits for the GPU."""
    steps = [row["trainer/global_step"] for row in recorded.history if "train/loss_step" in row]
    with recorded.run.history.open(newline="") as file:
        (epoch,) = csv.DictReader(file)
    assert steps == list(range(9, int(epoch["step"]), 10))
    (loss,) = [row["train/loss"] for row in recorded.history if "train/loss" in row]
    assert loss == pytest.approx(float(epoch["train/loss"]))
    (valid,) = [row for row in recorded.history if any(key.startswith("valid/") for key in row)]
    names = set(recorded.results["valid"]) & set(METRICS)
    assert {f"valid/{METRICS[name].title}" for name in names} == {
        key for key in valid if key.startswith("valid/")
    }
    assert valid["train/learning_rate"] == pytest.approx(float(epoch["learning_rate"]))
    assert valid["train/seconds"] == pytest.approx(float(epoch["seconds"]))
    keys = {key for row in recorded.history for key in row}
    assert not keys & {f"test/{info.title}" for info in METRICS.values()}


def test_the_summary_is_the_papers_table(recorded: Recorded) -> None:
    found = json.loads(recorded.run.metrics.read_text(encoding="utf-8"))
    parts = {split: found[split] for split in ("test", "valid")}
    parts |= {f"test/{one['name']}": one["test"] for one in found["references"]}
    assert len(parts) == 4
    expected = {
        f"{part}/{METRICS[name].title}": 100 * value if METRICS[name].percent else value
        for part, values in parts.items()
        for name, value in values.items()
        if name in METRICS and value is not None
    }
    found = {key: value for key, value in recorded.summary.items() if key != "verdict"}
    assert found.pop("best_epoch") == found.pop("epoch") == 0
    assert found == pytest.approx(expected)
    assert ("test/WF1" in found) != ("test/Acc-7" in found)


def test_all_predictions_are_in_a_table(recorded: Recorded) -> None:
    table = recorded.table("test/predictions")
    assert table["columns"] == list(recorded.predictions[0])
    assert [[str(value) for value in row] for row in table["data"]] == [
        list(row.values()) for row in recorded.predictions
    ]


def test_the_confusion_matrix_counts_every_prediction(recorded: Recorded) -> None:
    table = recorded.table("test/confusion_matrix_table")
    assert table["columns"] == ["Actual", "Predicted", "nPredictions"]
    hits = sum(count for true, predicted, count in table["data"] if true == predicted)
    total = sum(count for _, _, count in table["data"])
    assert total == len(recorded.predictions)
    assert len(table["data"]) == 7 * 7
    metric = "acc7" if "acc7" in recorded.results["test"] else "acc"
    assert hits / total == pytest.approx(recorded.results["test"][metric])


def test_the_plugin_is_an_artifact(recorded: Recorded) -> None:
    (artifact,) = [one for one in recorded.of("artifact") if one.type == "model"]
    assert artifact.name == recorded.begun.display_name
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert set(files) == {"adapter.safetensors", "plugin.json", "README.md"}
    assert {file.parent for file in files.values()} == {recorded.run.plugin.resolve()}
    facts = json.loads((recorded.run.plugin / "plugin.json").read_text())
    assert json.loads(artifact.metadata) == facts


def test_all_that_is_to_be_uploaded_is_in_the_run_folder(recorded: Recorded) -> None:
    folder = recorded.run.path.resolve()
    for artifact in recorded.of("artifact"):
        for entry in artifact.manifest.contents:
            assert Path(entry.local_path).is_file()
            assert folder in Path(entry.local_path).parents


def test_a_finished_run_ends_well(recorded: Recorded) -> None:
    (end,) = recorded.of("exit")
    assert end.exit_code == 0


class Interrupted(Exception):
    """What ends a run from outside."""


def test_a_failed_run_ends_as_failed_and_goes_on_when_resumed(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = TrainingModule.training_step

    def interrupted(task: TrainingModule, batch: Any, batch_idx: int) -> Any:
        if task.current_epoch == 1:
            raise Interrupted
        return ordinary(task, batch, batch_idx)

    overrides = ("logger=wandb", "logger.wandb_mode=offline", "logger.wandb_group=mine")
    monkeypatch.setattr(TrainingModule, "training_step", interrupted)
    with pytest.raises(Interrupted):
        fit(options(*overrides))
    monkeypatch.setattr(TrainingModule, "training_step", ordinary)
    run = fit(options(*overrides, "ckpt=last"))
    first, second = (
        Recorded(options(), run, file.parent / "files", records(file)) for file in recordings(run)
    )
    assert [part.of("exit")[0].exit_code for part in (first, second)] == [1, 0]
    # What tells `wandb sync` to append the second to the first.
    assert first.begun.run_id == second.begun.run_id
    assert first.begun.run_id.startswith(f"{run.path.parent.name}-seed-1111-")
    assert second.begun.resume
    assert {part.begun.run_group for part in (first, second)} == {"mine"}
    assert [{row["epoch"] for row in part.history} for part in (first, second)] == [{0}, {1}]


def test_what_cannot_be_logged_stops_no_run(
    options: Options, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(wandb.Artifact, "add_file", full)
    monkeypatch.setattr(wandb.plot, "confusion_matrix", full)
    monkeypatch.setattr(wandb.Run, "finish", full)
    ordinary = wandb.Run.log

    def log(experiment: wandb.Run, values: dict[str, Any], **settings: Any) -> None:
        if "train/loss" in values:
            full()
        ordinary(experiment, values, **settings)

    monkeypatch.setattr(wandb.Run, "log", log)
    run = fit(options("logger=wandb", "logger.wandb_mode=offline"))
    monkeypatch.undo()
    wandb.finish()
    assert run.finished
    warnings = [one.getMessage() for one in caplog.records if one.name == wandb_run.__name__]
    assert [text for text in warnings if text.startswith("W&B: ")] == [
        f"W&B: could not log {what} (disk full); the run folder has it"
        for what in (
            "the history from step 3 on",
            "the predictions",
            "the confusion matrix",
            "the plugin",
            "what was not uploaded by the end (`wandb sync --include-online` uploads it later)",
        )
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = tmp_path / "2026-01-31_12-00-00" / "seed-1111"
    folder.mkdir(parents=True)
    return RunFolder(folder)


def wandb_loggers(config: TrainConfig, run: RunFolder) -> Any:
    """The loggers of a run."""
    return wandb_run.wandb_loggers(
        config.logger, Names.of(config), seed=1, experiment=None, config={}, folder=run.path
    )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modes in which W&B runs were asked for; online, nobody answers."""
    modes: list[str] = []

    def init(*, mode: str, **_: Any) -> Any:
        modes.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("no route to host")
        return SimpleNamespace(
            define_metric=lambda *_, **__: None,
            finish=lambda *_, **__: None,
            settings=SimpleNamespace(sync_dir="wandb/offline run", mode=mode),
            config={},
        )

    monkeypatch.setattr(wandb, "init", init)
    return modes


def test_without_an_answer_the_run_is_recorded_offline(
    options: Options,
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_run, "_PATIENCE", 1)
    wandb.teardown()  # so that it reads the environment
    try:
        with wandb_loggers(options("logger.wandb_mode=online"), run) as loggers:
            assert len(loggers) == 1
        (file,) = recordings(run)
    finally:
        monkeypatch.undo()
        wandb.teardown()
    assert any(one.HasField("run") for one in records(file))
    assert "W&B does not answer" in caplog.text
    assert "W&B is offline: upload later with `wandb sync" in caplog.text
    assert "could not log" not in caplog.text


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "x"}, ["offline"]),
        ({"WANDB_MODE": "disabled"}, []),
        ({"WANDB_API_KEY": "x"}, ["online", "offline"]),
        ({"LOCAL_RANK": "1", "WANDB_API_KEY": "x"}, []),
    ],
)
def test_where_a_run_goes(
    options: Options,
    run: RunFolder,
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    expected: list[str],
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with wandb_loggers(options(), run):
        assert started == expected


def test_what_a_run_says_of_its_data_is_logged(
    options: Options, run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    found = {
        "data": {
            "utterances": {"train": 40, "test": 10},
            "labels": {"train": {"dull": 10, "bright": 30}},
        },
        "references": [{"name": "always dull", "kind": "constant", "test": {"wf1": 0.4}}],
        "verdict": ["Better than always dull.", "The best epoch was the first."],
    }
    run.metrics.write_text(json.dumps(found))
    (run.path / "env.json").write_text(json.dumps({"commit": "0123abc"}))
    config = options("logger.wandb_mode=offline")
    with wandb_loggers(config, run):
        pass
    (file,) = recordings(run)
    recorded = Recorded(config, run, file.parent / "files", records(file))
    assert items(recorded.begun.config.update)["commit"] == "0123abc"
    logged: dict[str, Any] = {}
    for one in recorded.of("config"):
        logged |= items(one.update)
    assert logged["utterances"] == {"train": 40, "test": 10}
    assert logged["majority_class"] == "bright"
    assert recorded.summary == {
        "test/always dull/WF1": 40,
        "verdict": "Better than always dull. The best epoch was the first.",
    }
    # The last line is the one to copy.
    own = [one.getMessage() for one in caplog.records if one.name == wandb_run.__name__]
    assert own[-1] == f"upload to W&B: wandb sync {file.parent.resolve()}"


def test_where_wandb_cannot_start_training_goes_on(
    options: Options,
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("its service does not start")

    monkeypatch.setattr(wandb, "init", init)
    config = options()
    config.logger.wandb_mode = WandbMode.offline
    with wandb_loggers(config, run) as loggers:
        assert loggers == []
    assert "W&B: could not log this run (its service does not start)" in caplog.text


def test_an_exception_leaves_through_the_loggers(
    options: Options, run: RunFolder, started: list[str]
) -> None:
    with pytest.raises(Interrupted), wandb_loggers(options(), run):
        raise Interrupted
