"""Runs that are killed in the middle of an epoch and resumed, against undisturbed ones.

``python -m tests.training.killed`` goes through workers, devices and accumulation (some minutes).
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import TrainConfig
from msea_lightning.training.fit import fit
from msea_lightning.training.module import TrainingModule
from tests.places import ROOT

EPOCH, BATCH = 1, 2
"""Where a run is killed: after the first epoch, between two optimizer steps or two parts of one."""

SMALL = (
    "dataset.demo_utterances=60",
    "training.schedule_epochs=3",
    "trainer.accelerator=cpu",
    "trainer.progress_bar=false",
)


def train(folder: Path, words: Sequence[str], *, kill: bool = False) -> int:
    """Trains in a process of its own, and returns how it ended."""
    arguments = [*SMALL, f"runs={folder}", "ckpt=auto", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KILL": str(int(kill))}
    command = [sys.executable, "-m", "tests.training.killed", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, timeout=1200, check=False
    )
    return done.returncode


def same(one: Path, other: Path) -> bool:
    """Whether the runs in two folders end with the same weights and metrics, to the bit."""
    first, second = (
        torch.load(next(folder.rglob("last.ckpt")), weights_only=True) for folder in (one, other)
    )
    weights = all(
        torch.equal(tensor, second["state_dict"][name])
        for name, tensor in first["state_dict"].items()
    )
    metrics = [next(folder.rglob("metrics.json")).read_bytes() for folder in (one, other)]
    return weights and metrics[0] == metrics[1]


def survives(folder: Path, words: Sequence[str]) -> bool:
    """Whether a run that was killed ends as an undisturbed one."""
    assert train(folder / "undisturbed", words) == 0
    assert train(folder / "killed", words, kill=True) != 0
    assert not list((folder / "killed").rglob("metrics.json"))
    assert train(folder / "killed", words) == 0
    return same(folder / "undisturbed", folder / "killed")


def _kill_in_an_epoch() -> None:
    ordinary = TrainingModule.training_step

    def deadly(module: TrainingModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if (module.current_epoch, batch_idx) == (EPOCH, BATCH):
            os.kill(os.getpid(), signal.SIGKILL)
        return ordinary(module, batch, batch_idx)

    TrainingModule.training_step = deadly


def main() -> None:
    """A row for each combination."""
    for workers, devices, accumulate in itertools.product((0, 1), (1, 2), (1, 2)):
        words = [
            f"dataset.workers={workers}",
            f"trainer.devices={devices}",
            f"trainer.accumulate={accumulate}",
        ]
        with tempfile.TemporaryDirectory() as folder:
            equal = survives(Path(folder), words)
        print(*words, "equal to the bit" if equal else "DIFFERENT", flush=True)  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        if os.environ["KILL"] == "1":
            _kill_in_an_epoch()
        fit(compose("train", TrainConfig, sys.argv[1:]))
