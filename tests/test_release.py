"""What release 0.1 wrote is read by this one: its store, its runs in reports and sweeps.

How its runs are resumed and evaluated is in ``training/test_release.py``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.store import Store
from msea_lightning.reporting.report import write_report
from msea_lightning.runs.folder import RunFolder, runs_of
from msea_lightning.runs.identity import comparable, fingerprint
from msea_lightning.runs.start import open_run
from tests.places import ROOT

RELEASE = ROOT / "tests" / "release"

WORDS = {
    "run": ["training.schedule_epochs=2", "seed=1111"],
    "interrupted": ["training.schedule_epochs=4", "seed=2222"],
}
"""What distinguishes the two runs on their command lines."""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with the runs of the release."""
    for name in WORDS:
        shutil.copytree(RELEASE / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def options(name: str, runs: Path) -> TrainConfig:
    """The options of a run, composed anew from the words of its command line."""
    sizes = ["audio_hidden=8", "vision_hidden=8", "hidden=16", "scales=[16,16,16]"]
    words = [f"adapter.{size}" for size in sizes]
    words += ["dataset.demo_utterances=60", "training.batch_size=8", f"runs={runs}"]
    words += ["method=published"]  # the only one that there was
    return compose("train", TrainConfig, [*words, *WORDS[name]])


def test_the_store_gives_its_utterances(tmp_path: Path) -> None:
    store = Store.open(Path(shutil.copytree(RELEASE / "store", tmp_path / "store")))
    assert store.splits
    for name, split in store.splits.items():
        lines = (RELEASE / "store" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(split) == len(lines) > 0
        for line, index in zip(lines, range(len(split)), strict=True):
            utterance, written = split[index], json.loads(line)
            assert (utterance.id, utterance.text) == (written["id"], written["text"])
            assert utterance.label == written["label"]
            dims = {feature: values.shape[1] for feature, values in utterance.features.items()}
            assert dims.items() <= {"audio": 12, "vision": 10}.items()
            assert all(np.isfinite(values).all() for values in utterance.features.values())


@pytest.mark.parametrize("name", WORDS)
def test_a_run_is_that_of_the_same_options_today(runs: Path, name: str) -> None:
    today = options(name, runs)
    run = RunFolder(runs / name)
    assert run.fingerprint() == fingerprint(today) == fingerprint(run.load_config())
    written, composed = comparable(run.load_config()), comparable(today)
    assert "dataset.split_version" not in written  # the demo has a valid split of its own
    assert written == composed
    assert [found.path for found in runs_of(today)] == [run.path]
    today.ckpt = "auto"
    with open_run(today) as opened:
        assert opened.path == run.path
        assert opened.finished is (name == "run")


def test_an_interrupted_run_is_resumed_by_its_folder(runs: Path) -> None:
    today = options("interrupted", runs)
    today.ckpt = str(runs / "interrupted")
    with open_run(today) as opened:
        assert opened.path == runs / "interrupted"


def test_the_report_shows_the_runs(runs: Path) -> None:
    report = write_report(runs)
    assert report.counts["finished runs"] == report.counts["missing"] == 1
    assert report.counts["problems"] == 0
    (row,) = report.best.rows
    metrics = json.loads((runs / "run" / "metrics.json").read_text())["test"]
    variant = "schedule_epochs=2"
    assert row == ("demo", variant, "WF1", f"{100 * metrics['wf1']:.2f} %", "1")
