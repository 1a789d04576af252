"""Whole runs: run folders, resuming, evaluation, devices."""

from __future__ import annotations

import copy
import csv
import json
import logging
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import EvaluateConfig, TrainConfig
from msea_lightning.data.options import Split
from msea_lightning.data.sampler import SamplerError
from msea_lightning.data.utterance import Batch
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.options import Decode
from msea_lightning.model.contract import ModelError
from msea_lightning.plugin import attach, load_plugin
from msea_lightning.runs.folder import RunError, RunFolder
from msea_lightning.training.build import build_data, make_ready
from msea_lightning.training.callbacks import AtomicCheckpoints, EpochHistory
from msea_lightning.training.evaluation import evaluate
from msea_lightning.training.fit import fit
from msea_lightning.training.module import TrainingError, TrainingModule
from tests.conftest import SMALL, composed
from tests.data.published import table_rows, write_table
from tests.rounding import assert_trained_alike

Options = Callable[..., TrainConfig]


class Interrupted(Exception):
    """What ends a run from outside."""


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run.last, weights_only=True)["state_dict"]
    return state


def same(one: RunFolder, other: RunFolder) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_run_folder_holds_everything(options: Options) -> None:
    config = options("seed=7")
    run = fit(config)
    parts = run.path.relative_to(config.runs).parts
    assert parts[:2] == ("demo", "mse-tiny")
    assert parts[3] == "seed-7"
    metrics = json.loads(run.metrics.read_text())
    assert set(metrics) == {
        *("test", "valid", "majority", "warnings", "verdict", "references", "intervals"),
        *("classes", "data"),
    }
    assert set(metrics["test"]) == {"acc", "wf1"}
    with run.predictions.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "text", "label", "prediction", "probability"]
    share = sum(row["label"] == row["prediction"] for row in rows) / len(rows)
    assert share == pytest.approx(metrics["test"]["acc"], abs=1e-12)
    with run.history.open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]
    assert run.load_config() == config
    environment = json.loads((run.path / "env.json").read_text())
    assert environment["packages"]["torch"] == metadata.version("torch")
    assert "epoch 1" in (run.path / "train.log").read_text()


def test_features_that_no_adapter_reads_are_said(
    tmp_path: Path, options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_table(tmp_path / "own", table_rows(), form="files")
    shutil.copytree(folder / "audio", folder / "HuBERT")
    own = options("dataset=table", f"dataset.path={folder}", "dataset.labels.kind=infer")
    with caplog.at_level(logging.WARNING, logger="msea_lightning"):
        make_ready(own)
    assert "has the features HuBERT, which no adapter reads; adapters read audio and vision" in (
        caplog.text
    )


def test_checkpoint_and_plugin_hold_adapter_tensors_only(finished_run: RunFolder) -> None:
    run = finished_run
    checkpoint = torch.load(run.last, weights_only=True)
    heads = {name.split(".")[0] for name in checkpoint["state_dict"]}
    assert heads == {"adapter", "standardizer"}
    assert "hyper_parameters" not in checkpoint
    assert {name.split(".")[0] for name in load_plugin(run.plugin).weights} == heads
    assert sum(file.stat().st_size for file in run.plugin.iterdir()) < 4e6


def test_the_same_seed_gives_the_same_run(options: Options, finished_run: RunFolder) -> None:
    one, two = finished_run, fit(options())
    assert one.path != two.path
    assert one.metrics.read_bytes() == two.metrics.read_bytes()
    assert one.predictions.read_bytes() == two.predictions.read_bytes()
    assert same(one, two)
    assert not same(one, fit(options("seed=2")))


@pytest.fixture(scope="module")
def undisturbed(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of three epochs."""
    config = copy.deepcopy(composed(SMALL))
    config.training.schedule_epochs = 3
    config.runs, config.dataset.cache = str(tmp_path_factory.mktemp("undisturbed")), str(cache)
    return fit(config)


@pytest.mark.parametrize(("epoch", "step"), [(1, 0), (2, 0), (1, 2)])
def test_resuming_ends_where_an_undisturbed_run_ends(
    options: Options,
    undisturbed: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
    step: int,
) -> None:
    runs = f"{options().runs}-resumed"
    ordinary = TrainingModule.training_step

    def interrupted(module: TrainingModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if (module.current_epoch, batch_idx) == (epoch, step):
            raise Interrupted
        return ordinary(module, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", interrupted)
    with pytest.raises(Interrupted):
        fit(options("training.schedule_epochs=3", f"runs={runs}"))
    monkeypatch.setattr(TrainingModule, "training_step", ordinary)
    ckpt = "auto" if epoch == 2 else "last"
    run = fit(options("training.schedule_epochs=3", f"runs={runs}", f"ckpt={ckpt}"))
    assert same(run, undisturbed)
    assert run.metrics.read_bytes() == undisturbed.metrics.read_bytes()
    with run.history.open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]


def test_a_run_that_had_stopped_early_is_not_trained_on(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["training.schedule_epochs=6", "training.patience=1", "seed=2"]
    undisturbed = fit(options(*words))
    with undisturbed.history.open(newline="") as file:
        assert len(list(csv.DictReader(file))) < 6, "it is to stop early, or shows nothing"

    def interrupted(*_: Any, **__: Any) -> None:
        raise Interrupted

    runs = f"runs={options().runs}-resumed"
    with monkeypatch.context() as patch:
        patch.setattr("msea_lightning.training.fit.evaluate_split", interrupted)
        with pytest.raises(Interrupted):
            fit(options(*words, runs))
    run = fit(options(*words, runs, "ckpt=auto"))
    assert run.metrics.read_bytes() == undisturbed.metrics.read_bytes()
    assert same(run, undisturbed)
    with run.history.open(newline="") as one, undisturbed.history.open(newline="") as other:
        epochs = [[row["epoch"] for row in csv.DictReader(file)] for file in (one, other)]
    assert epochs[0] == epochs[1]


def test_auto_begins_resumes_or_leaves_alone(
    options: Options, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ordinary = TrainingModule.training_step

    def interrupted(module: TrainingModule, batch: Any, batch_idx: int) -> torch.Tensor:
        raise Interrupted("the power went out")

    monkeypatch.setattr(TrainingModule, "training_step", interrupted)
    with pytest.raises(Interrupted):
        fit(options("ckpt=auto"))
    (error,) = Path(options().runs).rglob("error.json")
    assert json.loads(error.read_text()) == {
        "kind": "crashed",
        "error": "Interrupted: the power went out",
    }
    monkeypatch.setattr(TrainingModule, "training_step", ordinary)
    # No epoch was complete: it begins again, in the same folder.
    run = fit(options("ckpt=auto"))
    assert run.path == error.parent
    assert not error.exists()
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    with caplog.at_level(logging.INFO):
        assert fit(options("ckpt=auto")).path == run.path
    assert f"finished earlier: {run.path}" in caplog.text
    untouched = {path for path, when in before.items() if path.stat().st_mtime_ns == when}
    assert untouched == set(before) - {run.path / "train.log"}


def test_a_checkpoint_is_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "checkpoints" / "last.ckpt"
    writer = AtomicCheckpoints()
    writer.save_checkpoint({"epoch": 1}, place)
    assert torch.load(place, weights_only=True) == {"epoch": 1}

    def breaks_off(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise Interrupted

    monkeypatch.setattr(torch, "save", breaks_off)
    with pytest.raises(Interrupted):
        writer.save_checkpoint({"epoch": 2}, place)
    assert torch.load(place, weights_only=True) == {"epoch": 1}


def test_nothing_to_resume(options: Options) -> None:
    with pytest.raises(RunError, match="so there is nothing to resume"):
        fit(options("ckpt=last"))
    run = fit(options())
    with pytest.raises(RunError, match="is a finished run"):
        fit(options("ckpt=last"))
    with pytest.raises(RunError, match="is a finished run"):
        fit(options(f"ckpt={run.path}"))
    with pytest.raises(RunError, match=r"no checkpoints/last\.ckpt"):
        fit(options(f"ckpt={run.path.parent}"))


def test_resuming_with_other_options_is_refused(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(history: EpochHistory, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            raise Interrupted

    monkeypatch.setattr(EpochHistory, "on_train_epoch_start", interrupted)
    with pytest.raises(Interrupted):
        fit(options())
    message = r"training\.learning_rate was [\d.]+, is now 0\.1"
    with pytest.raises(RunError, match=message):
        fit(options("ckpt=last", "training.learning_rate=0.1"))


@pytest.fixture
def copied_run(finished_run: RunFolder, tmp_path: Path) -> RunFolder:
    """A finished run that may be changed."""
    shutil.copytree(finished_run.path, tmp_path / "copied")
    return RunFolder(tmp_path / "copied")


@pytest.mark.parametrize("variant", ["erc", "msa"])
def test_evaluation_reproduces_the_run(
    options: Options, copied_run: RunFolder, variant: str
) -> None:
    run = copied_run if variant == "erc" else fit(options(f"dataset.demo_task={variant}"))
    if variant == "msa":
        median = evaluate(EvaluateConfig(str(run.path), Split.train, Decode.median))
        assert median["mae"] is not None
        assert (run.path / "evaluations" / "train-median.json").exists()
    metrics = json.loads(run.metrics.read_text())
    assert evaluate(EvaluateConfig(run=str(run.path))) == metrics["test"]
    assert evaluate(EvaluateConfig(run=str(run.path), split=Split.valid)) == metrics["valid"]
    again = run.path / "evaluations" / "test-greedy.csv"
    assert again.read_bytes() == run.predictions.read_bytes()


def test_predictions_come_in_the_order_of_the_split(options: Options) -> None:
    """Whatever the order that utterances are read in, which is that of their lengths."""
    config = options("training.eval_batch_size=4", "training.schedule_epochs=1")
    run = fit(config)
    with run.predictions.open(newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    data = build_data(config)
    data.setup()
    assert ids == data.splits["test"].ids
    read = [identity for batch in data.test_dataloader() for identity in batch.ids]
    assert read != ids


def test_evaluation_takes_the_batches_of_the_run(
    copied_run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Company moves the numbers of an utterance by rounding."""
    run = copied_run
    sizes = []
    ordinary = TrainingModule.test_step

    def noted(module: TrainingModule, batch: Batch, batch_idx: int) -> None:
        sizes.append(len(batch))
        ordinary(module, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "test_step", noted)
    recorded = json.loads(run.memory.read_text())
    for size, expected in ((5, 5), (None, 32)):  # as of a run of an older version
        sizes.clear()
        run.memory.write_text(json.dumps({**recorded, "eval_batch_size": size}))
        evaluate(EvaluateConfig(run=str(run.path)))
        assert sizes[0] == min(expected, sum(sizes))
        assert set(sizes[:-1]) <= {expected}


def test_evaluation_in_batches_of_another_size(
    copied_run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied_run
    expected = json.loads(run.metrics.read_text())["test"]
    with caplog.at_level(logging.INFO, logger="msea_lightning.training.evaluation"):
        found = evaluate(EvaluateConfig(run=str(run.path), eval_batch_size=3))
    assert found == pytest.approx(expected, abs=1e-6)
    assert "eval_batch_size 3 instead of the run's 32: numbers may differ" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="msea_lightning.training.evaluation"):
        evaluate(EvaluateConfig(run=str(run.path), eval_batch_size=32))
    assert "instead of" not in caplog.text


def test_evaluation_of_what_is_no_finished_run(copied_run: RunFolder) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        evaluate(EvaluateConfig(run=str(copied_run.path.parent)))
    copied_run.metrics.unlink()
    with pytest.raises(RunError, match=r"is not finished .*ckpt="):
        evaluate(EvaluateConfig(run=str(copied_run.path)))


def test_plugin_is_refused_by_another_language_model(
    finished_run: RunFolder, backbone: Any
) -> None:
    from transformers import AutoModelForCausalLM

    from msea_lightning.backbone import FrozenBackbone
    from msea_lightning.plugin import PluginError

    plugin = load_plugin(finished_run.plugin)
    attached = attach(plugin, backbone)
    assert attached.backbone is backbone
    torch.manual_seed(1)
    other = AutoModelForCausalLM.from_config(backbone.model.config)
    with pytest.raises(PluginError, match=r"with the fingerprint .* but this language model has"):
        attach(plugin, FrozenBackbone(other, backbone.tokenizer))


def test_a_step_in_micro_batches_trains_the_same(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of labels that are unequally many tokens, so that the parts of a step are."""
    taught = AnswerTree.ids

    def longer(tree: AnswerTree, label: float | str) -> list[int]:
        ids = taught(tree, label)
        return ids * (1 + tree.space.answers.index(tree.space.text(label)) % 3)

    monkeypatch.setattr(AnswerTree, "ids", longer)
    whole, *others = (fit(options(f"trainer.accumulate={parts}")) for parts in (1, 2, 3))
    expected, rows = weights(whole), history(whole)
    assert int(rows[-1]["step"]) > 4
    for other in others:
        found = weights(other)
        assert_trained_alike(found, expected)
        assert [row["step"] for row in history(other)] == [row["step"] for row in rows]
        for name in ("learning_rate", "train/loss"):
            assert [float(row[name]) for row in history(other)] == pytest.approx(
                [float(row[name]) for row in rows], rel=1e-3
            )
        assert json.loads(other.metrics.read_text()) == json.loads(whole.metrics.read_text())


def history(run: RunFolder) -> list[dict[str, str]]:
    with run.history.open(newline="") as file:
        return list(csv.DictReader(file))


def test_more_parts_than_a_batch_has_utterances(options: Options) -> None:
    with pytest.raises(
        SamplerError, match=r"17 micro-batches cannot share .* lower trainer\.accumulate"
    ):
        fit(options("trainer.accumulate=17"))


def test_divergence_is_refused(options: Options) -> None:
    with pytest.raises(TrainingError, match=r"diverged\. Lower training\.learning_rate"):
        fit(options("training.learning_rate=1e30", "training.schedule_epochs=3"))


def test_no_checkpoint_holds_what_diverged(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a step does not look, as on a GPU: the end of the epoch does."""
    ordinary = TrainingModule.on_before_optimizer_step

    def unseen(module: TrainingModule, optimizer: torch.optim.Optimizer) -> None:
        if (module.current_epoch, module.global_step % 4) == (1, 3):
            next(module.parameters()).grad.fill_(float("nan"))
        with monkeypatch.context() as patch:
            patch.setattr(TrainingModule, "device", torch.device("cuda"))
            patch.setattr("msea_lightning.training.module._CHECK_EVERY", 1000)
            ordinary(module, optimizer)

    monkeypatch.setattr(TrainingModule, "on_before_optimizer_step", unseen)
    config = options("training.schedule_epochs=3")
    with pytest.raises(
        TrainingError, match=r"not finite in epoch 1, step \d: training has diverged"
    ):
        fit(config)
    kept = {path.name: path for path in Path(config.runs).rglob("*.ckpt")}
    assert set(kept) == {"best.ckpt", "last.ckpt"}
    for path in kept.values():
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_a_full_gpu_is_said_with_remedies(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(module: TrainingModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    monkeypatch.setattr(TrainingModule, "training_step", full)
    config = options("backbone.quantization=int8")
    with pytest.raises(TrainingError, match=r"CUDA out of memory.*trainer\.accumulate=1") as caught:
        fit(config)
    assert "backbone.checkpoint_activations=true" in str(caught.value)
    assert "backbone.quantization" not in str(caught.value)
    (error,) = Path(config.runs).rglob("error.json")
    assert json.loads(error.read_text())["kind"] == "memory"


def test_a_run_that_is_refused_before_it_began_leaves_no_folder(options: Options) -> None:
    with pytest.raises(ModelError, match=r"lower dataset\.text_tokens"):
        fit(options("dataset.text_tokens=5000"))
    assert not Path(options().runs).exists()
    Path(options().runs).mkdir()
    with pytest.raises(ConfigError, match=r"callbacks\.x\._target_=no\.such: there is no"):
        fit(options("callbacks.x._target_=no.such"))
    assert list(Path(options().runs).iterdir()) == []


def test_a_run_that_failed_says_why_in_its_log(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(module: TrainingModule) -> None:
        raise TrainingError("diverged; lower the rate")

    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", refused)
    with pytest.raises(TrainingError):
        fit(options())
    (log,) = Path(options().runs).rglob("train.log")
    assert "ERROR msea_lightning.runs.start: diverged; lower the rate" in log.read_text()
    assert json.loads((log.parent / "error.json").read_text())["kind"] == "refused"


def test_epochs_are_said_aloud(finished_run: RunFolder) -> None:
    log = (finished_run.path / "train.log").read_text()
    assert "epoch 0: train/loss" in log
    assert "valid/WF1" in log
    order = ["device: CPU", "data: demo: ", "memory: about", "model: MSE-Adapter, ", "epoch 0"]
    places = [log.index(text) for text in order]
    assert places == sorted(places)
