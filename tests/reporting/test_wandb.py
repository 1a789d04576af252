"""What Weights & Biases gets of a run, read back from the files that it leaves when offline."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import TrainConfig
from msea_lightning.metrics import METRICS
from msea_lightning.reporting import wandb as wandb_run
from msea_lightning.reporting.options import WandbMode
from msea_lightning.runs.folder import Names, RunFolder
from msea_lightning.training.fit import fit
from msea_lightning.training.module import TrainingModule

Options = Callable[..., TrainConfig]

_BLOCK = 32768
"""Bytes of a block of a ``.wandb`` file, a LevelDB log with a header of 7 bytes."""


def records(file: Path) -> list[Record]:
    """The records of a ``.wandb`` file."""
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    found, part, position = [], b"", 7
    while position + 7 <= len(data):
        if _BLOCK - position % _BLOCK < 7:
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            found.append(Record.FromString(part))
            part = b""
    return found


def items(found: Any) -> dict[str, Any]:
    """Key to value of the items of a record."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found}


@dataclass
class Recorded:
    """One offline W&B run.

    Attributes:
        config: Options of the run.
        run: Its run folder.
        files: Folder of the files that W&B uploads.
        records: Everything in the ``.wandb`` file.
    """

    config: TrainConfig
    run: RunFolder
    files: Path
    records: list[Record]

    def of(self, kind: str) -> list[Any]:
        """All records of a kind."""
        return [getattr(one, kind) for one in self.records if one.WhichOneof("record_type") == kind]

    @property
    def begun(self) -> Any:
        """The record that begins the run."""
        (found,) = self.of("run")
        return found

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of the history that have metrics of training."""
        rows = [items(row.item) for row in self.of("history")]
        return [row for row in rows if "trainer/global_step" in row]

    @property
    def summary(self) -> dict[str, Any]:
        """The summary in the end, without W&B's own keys and the places of tables."""
        merged: dict[str, Any] = {}
        for update in self.of("summary"):
            merged |= items(update.update)
        own = ("_", "test/predictions", "test/confusion_matrix")
        return {key: value for key, value in merged.items() if not key.startswith(own)}

    @property
    def results(self) -> dict[str, dict[str, float | None]]:
        """The metrics in ``metrics.json``, by split."""
        loaded = json.loads(self.run.metrics.read_text())
        return {split: loaded[split] for split in ("test", "valid")}

    @property
    def predictions(self) -> list[dict[str, str]]:
        """The rows of ``predictions.csv``."""
        with self.run.predictions.open(newline="") as file:
            return list(csv.DictReader(file))

    def table(self, name: str) -> Any:
        """A table's columns and data."""
        (file,) = self.files.glob(f"media/table/{name}_*.table.json")
        return json.loads(file.read_text())


def recordings(run: RunFolder) -> list[Path]:
    """The ``.wandb`` files of a run folder, in the order of their start."""
    wandb.teardown()  # its service process writes the last of them after a run has ended
    return sorted((run.path / "wandb").glob("offline-run-*/run-*.wandb"))


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
    (loss,) = [row["train/loss_epoch"] for row in recorded.history if "train/loss_epoch" in row]
    assert loss == pytest.approx(float(epoch["train/loss"]))
    (valid,) = [row for row in recorded.history if any(key.startswith("valid/") for key in row)]
    assert {f"valid/{name}" for name in recorded.results["valid"]} - {"valid/zero_share"} == {
        key for key in valid if key.startswith("valid/")
    }
    keys = {key for row in recorded.history for key in row}
    assert not keys & {f"test/{name}" for name in METRICS}


def test_the_summary_is_the_papers_table(recorded: Recorded) -> None:
    expected = {
        f"{split}/{METRICS[name].title}": 100 * value if METRICS[name].percent else value
        for split, values in recorded.results.items()
        for name, value in values.items()
        if name in METRICS and value is not None
    }
    found = recorded.summary
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
        if "train/loss_epoch" in values:
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
            settings=SimpleNamespace(sync_dir="wandb/offline-run"),
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
