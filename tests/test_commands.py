"""The commands as a user types them: several processes, sweeps, exit codes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from msea_lightning.config import TrainConfig
from msea_lightning.fit import fit

Options = Callable[..., TrainConfig]


def command(
    folder: Path, cache: Path, *words: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m msea_lightning.train`` for a small, short run on the demo corpus."""
    arguments = [
        *(sys.executable, "-m", "msea_lightning.train"),
        f"dataset.cache={cache}",
        # 15 to test: two processes have unequal shares.
        "dataset.demo_utterances=97",
        "training.schedule_epochs=1",
        "trainer.accelerator=cpu",
        f"runs={folder / 'typed'}",
        *words,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return subprocess.run(
        arguments,
        cwd=folder,
        env=environment,
        check=check,
        capture_output=True,
        text=True,
        timeout=300,
    )


def predictions(run: Path) -> dict[str, str]:
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["prediction"] for row in rows}


def test_two_processes_give_what_one_gives(options: Options, cache: Path, tmp_path: Path) -> None:
    small = "training.batch_size=7"
    one = fit(options("training.schedule_epochs=1", "dataset.demo_utterances=97", small))
    done = command(tmp_path, cache, "trainer.devices=2", small)
    (path,) = (tmp_path / "typed").rglob("predictions.csv")
    two = path.parent
    assert predictions(two) == predictions(one.path)
    assert json.loads((two / "metrics.json").read_text()) == json.loads(one.metrics.read_text())
    assert done.stdout.count("run folder") == 1


def test_sweep_over_seeds_and_ablations(cache: Path, tmp_path: Path) -> None:
    command(tmp_path, cache, "-m", "seed=1,2", "ablation=none,no_audio", "logger=wandb")
    finished = sorted(path.parent for path in (tmp_path / "typed").rglob("metrics.json"))
    assert [(run.parts[-3], run.name) for run in finished] == [
        ("mse-tiny", "seed-1"),
        ("mse-tiny", "seed-2"),
        ("mse-tiny-no_audio", "seed-1"),
        ("mse-tiny-no_audio", "seed-2"),
    ]
    recorded = [next(iter((run / "wandb").glob("offline-run-*/run-*.wandb"))) for run in finished]
    assert len({path.name for path in recorded}) == 4


def test_an_error_is_one_paragraph(cache: Path, tmp_path: Path) -> None:
    done = command(tmp_path, cache, "dataset=table", "dataset.path=nowhere", check=False)
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"]])
def test_help_and_config_are_printed(cache: Path, tmp_path: Path, words: list[str]) -> None:
    done = command(tmp_path, cache, *words)
    assert "batch_size" in done.stdout
    assert not (tmp_path / "typed").exists()
