"""Whatever keeps the contract trains through `fit`: hooks, groups, memory, ranks, resuming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import EvaluateConfig, TrainConfig
from msea_lightning.data.demo import AUDIO_DIM, EMOTIONS
from msea_lightning.data.options import Split
from msea_lightning.data.utterance import DataError
from msea_lightning.language.options import Decode
from msea_lightning.model.contract import ModelError, Needs
from msea_lightning.model.options import MODELS
from msea_lightning.runs.folder import RunFolder
from msea_lightning.training.build import build_data, check_needs
from msea_lightning.training.evaluation import evaluate
from msea_lightning.training.fit import fit
from msea_lightning.training.module import TrainingModule
from msea_lightning.training.size import measure_size
from tests.data.published import table_rows, write_table
from tests.model import remembering
from tests.places import ROOT
from tests.rounding import assert_trained_alike

Options = Callable[..., TrainConfig]
MODEL = ("model=remembering", "training.schedule_epochs=3")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    remembering.register()
    yield
    MODELS._entries.pop("remembering")


def checkpoint(run: RunFolder) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run.last, weights_only=True)
    return content


def test_it_is_trained_as_any_model(options: Options) -> None:
    run = fit(options(*MODEL, "model.width=16"))
    assert run.path.parts[-3] == "remembering"
    saved = checkpoint(run)
    assert set(saved["state_dict"]) == {
        "encoder.weight", "encoder.bias", "head.weight", "head.bias", "memory"
    }  # fmt: skip
    assert saved["state_dict"]["encoder.bias"].shape == (16,)
    # Every training utterance was remembered.
    assert saved["state_dict"]["memory"].abs().sum(1).min() > 0
    encoder, head = saved["optimizer_states"][0]["param_groups"]
    config = run.load_config().training
    assert encoder["initial_lr"] == 0.5 * config.learning_rate
    assert encoder["weight_decay"] == config.weight_decay
    assert (head["initial_lr"], head["weight_decay"]) == (0.02, 0.0)
    assert run.finished
    assert not run.plugin.exists()


def test_it_is_resumed_to_the_bit(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = fit(options(*MODEL))
    ordinary = TrainingModule.training_step

    def interrupted(module: TrainingModule, batch: Any, batch_idx: int) -> Any:
        if (module.current_epoch, batch_idx) == (2, 1):
            raise InterruptedError
        return ordinary(module, batch, batch_idx)

    runs = f"runs={options().runs}-resumed"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(InterruptedError):
            fit(options(*MODEL, runs))
    resumed = fit(options(*MODEL, runs, "ckpt=auto"))
    first, second = (checkpoint(run)["state_dict"] for run in (undisturbed, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert resumed.metrics.read_bytes() == undisturbed.metrics.read_bytes()


@pytest.mark.parametrize("words", [("trainer.devices=2",), ("trainer.accumulate=3",)])
def test_ranks_and_parts_train_the_same(
    options: Options, cache: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    one = fit(options(*MODEL))
    other = Path(f"{options().runs}-other")
    if "trainer.devices=2" in words:
        arguments = [
            "dataset.demo_utterances=90",
            f"dataset.cache={cache}",
            "trainer.accelerator=cpu",
            f"runs={other}",
        ]
        subprocess.run(
            [sys.executable, "-m", "tests.model.remembering", *MODEL, *arguments, *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=300,
        )
    else:
        fit(options(*MODEL, *words, f"runs={other}"))
    (last,) = other.rglob("last.ckpt")
    first, second = (checkpoint(run)["state_dict"] for run in (one, RunFolder(last.parents[1])))
    assert_trained_alike(second, first)


@pytest.mark.parametrize(
    ("words", "gathers", "match"),
    [
        (("trainer.accumulate=2",), False, r"statistic of the whole batch, but trainer.accumulate"),
        (("trainer.accumulate=2",), True, r"set trainer\.accumulate=1"),
        (("trainer.devices=2",), False, r"a run of 2 processes .* set trainer\.devices=1"),
    ],
)
def test_a_statistic_of_the_batch_is_not_parted(
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    gathers: bool,
    match: str,
) -> None:
    monkeypatch.setattr(remembering.Remembering, "batch_statistic", True)
    monkeypatch.setattr(remembering.Remembering, "gathers", gathers)
    with pytest.raises(ModelError, match=match):
        fit(options(*MODEL, *words))


@pytest.mark.parametrize(
    ("needs", "match"),
    [
        (
            Needs(features=("audio", "text_features")),
            "needs the feature text_features of every .* has",
        ),
        (Needs(labels=("M", "T")), r"needs the label T of every .* has M: choose another"),
    ],
)
def test_a_data_set_without_what_it_needs_is_refused(
    options: Options, monkeypatch: pytest.MonkeyPatch, needs: Needs, match: str
) -> None:
    monkeypatch.setattr(remembering.Remembering, "needs", needs)
    with pytest.raises(ModelError, match=match):
        fit(options(*MODEL))


def test_dialogues_are_not_made_of_utterances_without_one(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembering.Remembering, "needs", Needs(dialogues=True))
    rows = [replace(row, group="") for row in table_rows()]
    folder = write_table(tmp_path / "own", rows, form="files")
    with pytest.raises(ModelError, match=r"needs the dialogue .* the column group"):
        fit(options(*MODEL, "dataset=table", f"dataset.path={folder}"))


def test_its_run_is_evaluated_again(options: Options) -> None:
    run = fit(options(*MODEL))
    written = json.loads(run.metrics.read_text())
    for split in (Split.test, Split.valid):
        assert evaluate(EvaluateConfig(str(run.path), split=split)) == written[split.value]
    with pytest.raises(ConfigError, match=r"decode=median: remembering writes no answer"):
        evaluate(EvaluateConfig(str(run.path), decode=Decode.median))


def test_its_size_is_its_own(options: Options) -> None:
    run = measure_size(options(*MODEL, "model.width=4", "size_only=true"))
    counted = json.loads(run.metrics.read_text())["size"]
    encoder, head = 4 * (AUDIO_DIM + 1), len(EMOTIONS) * (4 + 1)
    assert counted == {"trainable_parameters": encoder + head}


def test_a_training_utterance_without_a_needed_label_is_named(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = build_data(options(*MODEL))
    train = data.splits["train"]
    monkeypatch.setitem(train.labels, "M", [None, *train.labels["M"][1:]])
    with pytest.raises(DataError, match=rf"'{train.ids[0]}' is unlabelled \(1 of these"):
        check_needs(remembering.Remembering, data)
    monkeypatch.setattr(remembering.Remembering, "needs", Needs(labels=()))
    check_needs(remembering.Remembering, data)
