"""A run that was interrupted ends as an undisturbed one, to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from msea_lightning.config.roots import TrainConfig
from msea_lightning.training.fit import fit
from msea_lightning.training.module import TrainingModule
from tests.training.killed import BATCH, EPOCH, SMALL, same, survives


@pytest.mark.parametrize(("workers", "accumulate"), [*itertools.product((0, 1), (1, 2))])
def test_with_workers_and_in_parts(
    options: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    accumulate: int,
) -> None:
    words = [*SMALL, f"dataset.workers={workers}", f"trainer.accumulate={accumulate}"]
    undisturbed, resumed = tmp_path / "undisturbed", tmp_path / "resumed"
    fit(options(*words, f"runs={undisturbed}"))
    ordinary = TrainingModule.training_step

    def interrupted(module: TrainingModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if (module.current_epoch, batch_idx) == (EPOCH, BATCH):
            raise InterruptedError
        return ordinary(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(InterruptedError):
            fit(options(*words, f"runs={resumed}"))
    fit(options(*words, f"runs={resumed}", "ckpt=auto"))
    assert same(undisturbed, resumed)


def test_killed_on_two_devices_with_workers_and_in_parts(cache: Path, tmp_path: Path) -> None:
    """The rest of the combinations is gone through by ``python -m tests.training.killed``."""
    words = [
        "trainer.devices=2",
        "trainer.accumulate=2",
        "dataset.workers=1",
        f"dataset.cache={cache}",
    ]
    assert survives(tmp_path, words)
