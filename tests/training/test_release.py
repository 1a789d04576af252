"""Runs and plugins of release 0.1 are resumed, evaluated and attached by this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.config.roots import EvaluateConfig
from msea_lightning.plugin import attach, load_plugin
from msea_lightning.runs.folder import RunFolder
from msea_lightning.training.evaluation import evaluate
from msea_lightning.training.fit import fit
from tests.places import ROOT

RELEASE = ROOT / "tests" / "release"


def copied(name: str, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(RELEASE / name, tmp_path / "release" / name)))


def test_an_interrupted_run_goes_on(tmp_path: Path, cache: Path) -> None:
    run = copied("interrupted", tmp_path)
    shutil.copy(run.last, run.best)  # the only epoch that was complete
    before = torch.load(run.last, weights_only=True)
    config = run.load_config()
    config.ckpt, config.dataset.cache = str(run.path), str(cache)
    # The folder is not where it was; what was best there still is.
    assert fit(config).path.resolve() == run.path.resolve()
    after = torch.load(run.last, weights_only=True)
    assert after["state_dict"].keys() == before["state_dict"].keys()
    assert (before["epoch"], after["epoch"]) == (0, 3)
    assert best(after) >= best(before)
    assert run.finished


def best(checkpoint: Any) -> float:
    """The best validation metric that a checkpoint knows of."""
    (key,) = (key for key in checkpoint["callbacks"] if "ModelCheckpoint{'monitor': 'valid" in key)
    return float(checkpoint["callbacks"][key]["best_model_score"])


def test_a_plugin_gives_the_results_that_it_gave(
    tmp_path: Path, cache: Path, backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied("run", tmp_path)
    plugin = load_plugin(run.plugin)
    state = attach(plugin, backbone).state_dict()
    assert state.keys() == plugin.weights.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in plugin.weights.items())
    monkeypatch.setenv("MSEA_CACHE", str(cache))
    found = evaluate(EvaluateConfig(run=str(run.path)))
    # Which answer is likeliest does not hang on rounding in so small a test split.
    assert found == json.loads(run.metrics.read_text())["test"]
