"""The commands as a user types them: several processes, sweeps, exit codes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from socket import socket

import pytest

from msea_lightning.config.roots import TrainConfig
from msea_lightning.training.fit import fit

Options = Callable[..., TrainConfig]


def typed(folder: Path, cache: Path, *words: str) -> list[str]:
    """The command line of a small, short run on the demo corpus."""
    small = {
        "dataset.cache": str(cache),
        # 15 to test: two processes have unequal shares.
        "dataset.demo_utterances": "97",
        "training.schedule_epochs": "1",
        "trainer.accelerator": "cpu",
        "runs": str(folder / "typed"),
    }
    given = {word.partition("=")[0] for word in words}
    options = [f"{key}={value}" for key, value in small.items() if key not in given]
    return [sys.executable, "-m", "msea_lightning.train", *options, *words]


def command(
    folder: Path, cache: Path, *words: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m msea_lightning.train`` for a small, short run on the demo corpus."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return subprocess.run(
        typed(folder, cache, *words),
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


@pytest.fixture
def one_process(options: Options) -> Path:
    """The run folder of one process, which several have to equal."""
    words = ("training.schedule_epochs=1", "dataset.demo_utterances=97", "training.batch_size=7")
    return fit(options(*words, "method=all")).path


def only_run(folder: Path) -> Path:
    (found,) = (folder / "typed").rglob("predictions.csv")
    return found.parent


def assert_alike(run: Path, other: Path) -> None:
    assert predictions(run) == predictions(other)
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (run, other)]
    assert metrics[0] == metrics[1]


def test_two_processes_give_what_one_gives(one_process: Path, cache: Path, tmp_path: Path) -> None:
    done = command(tmp_path, cache, "trainer.devices=2", "training.batch_size=7")
    assert_alike(only_run(tmp_path), one_process)
    assert done.stdout.count("run folder") == 1


def test_two_machines_give_what_one_process_gives(
    one_process: Path, cache: Path, tmp_path: Path
) -> None:
    words = ["trainer.num_nodes=2", "training.batch_size=7", "runs=typed"]
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slurm = {
        **{"SLURM_JOB_NAME": "mse", "SLURM_NODELIST": "127.0.0.1", "SLURM_NNODES": "2"},
        **{"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0"},
        **{"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
    }
    machines = []
    for rank in ("0", "1"):
        place = tmp_path / rank  # neither sees the other's run folder
        place.mkdir()
        environment = {**os.environ, **slurm, "SLURM_PROCID": rank, "SLURM_NODEID": rank}
        started = subprocess.Popen(
            typed(place, cache, *words), cwd=place, env=environment, stdout=subprocess.PIPE
        )
        machines.append(started)
    printed = [process.communicate(timeout=300)[0] for process in machines]
    assert [process.returncode for process in machines] == [0, 0]
    assert_alike(only_run(tmp_path / "0"), one_process)
    assert printed[1] == b""
    assert list((tmp_path / "1").iterdir()) == []


def test_a_sweep_ends_with_a_report_and_is_not_run_twice(cache: Path, tmp_path: Path) -> None:
    words = ["-m", "ablation=none,no_audio", "seed=1", "logger=wandb", "hydra/launcher=local"]
    command(tmp_path, cache, *words)
    runs = tmp_path / "typed"
    finished = sorted(path.parent for path in runs.rglob("metrics.json"))
    assert [(run.parts[-3], run.name) for run in finished] == [
        ("mse-tiny", "seed-1"),
        ("mse-tiny-no_audio", "seed-1"),
    ]
    # Each has ended its own W&B run.
    recorded = [next(iter((run / "wandb").glob("offline-run-*/run-*.wandb"))) for run in finished]
    assert len({path.name for path in recorded}) == 2
    for name in ("report.html", "results.csv", "results.md", "results.tex"):
        assert (runs / name).stat().st_size > 0
    again = command(tmp_path, cache, *words)
    assert "2 runs, 2 of them finished earlier" in again.stderr
    assert len(list(runs.rglob("metrics.json"))) == 2


def test_two_sweeps_at_once_share_a_run(cache: Path, tmp_path: Path) -> None:
    arguments = typed(tmp_path, cache, "-m", "seed=1", "trainer.threads=1")
    sweeps = [
        subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [sweep.communicate(timeout=300)[1] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], said
    (log,) = (tmp_path / "typed").rglob("train.log")
    assert log.read_text().count("trainable parameters") == 1


def test_a_killed_sweep_goes_on_where_it_was(options: Options, cache: Path, tmp_path: Path) -> None:
    words = ["training.schedule_epochs=3", "dataset.demo_utterances=97"]
    undisturbed = fit(options(*words, "method=all"))
    arguments = [*typed(tmp_path, cache, *words), "-m", "seed=1111"]
    sweep = subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.DEVNULL)
    runs = tmp_path / "typed"
    for _ in range(1200):
        if list(runs.rglob("last.ckpt")):
            break
        time.sleep(0.05)
    sweep.kill()
    sweep.wait()
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (metrics,) = runs.rglob("metrics.json")
    assert metrics.read_bytes() == undisturbed.metrics.read_bytes()
    assert (metrics.parent / "predictions.csv").read_bytes() == (
        undisturbed.predictions.read_bytes()
    )


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
