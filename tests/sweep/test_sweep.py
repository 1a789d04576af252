"""Sweeps: each run is trained once, whatever happens to the others."""

from __future__ import annotations

import copy
import json
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus

from msea_lightning.commands.command_line import compose, launch
from msea_lightning.commands.compose import _tell_hydra
from msea_lightning.commands.jobs import Job
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig
from msea_lightning.reporting.folders import read_folder
from msea_lightning.reporting.tables import Table, make_table
from msea_lightning.runs.files import write_json
from msea_lightning.runs.folder import RunError, RunFolder, find_runs, parse_config, runs_of
from msea_lightning.runs.identity import fingerprint
from msea_lightning.runs.lock import is_held
from msea_lightning.runs.start import new_folder, open_run
from msea_lightning.sweep import run as sweep
from msea_lightning.sweep.plan import SweepError
from msea_lightning.sweep.run import Outcome, State, run_sweep

Training = Callable[[TrainConfig, RunFolder], None]


class Trainer:
    """Stands in for the process of a run: opens its run as a real one does, and does as told."""

    def __init__(self) -> None:
        self.trained: list[int] = []
        self.environments: list[Mapping[str, str]] = []
        self.does: dict[int, Training] = {}

    def supervise(
        self, command: Sequence[str], *, prefix: str, environment: Mapping[str, str]
    ) -> CompletedProcess[str]:
        assert command[1:3] == ["-m", "msea_lightning.train"]
        config = composed(*command[3:])
        assert config.ckpt == "auto"
        self.environments.append(environment)
        try:
            with open_run(config) as run:
                self.trained.append(config.seed)
                does = self.does.get(config.seed, finish)
                if does is not refused:
                    run.begin()
                does(config, run)
        except Killed:
            return ended(-signal.SIGKILL, "")
        except Exception as error:
            return ended(1, f"12:00:00 INFO device: CPU\nerror: {error}\n")
        return ended(0, "")


def ended(returncode: int, said: str) -> CompletedProcess[str]:
    return CompletedProcess([], returncode, stdout=said)


COMPOSED: dict[tuple[str, ...], TrainConfig] = {}
"""What is composed once for all tests of this file."""


def composed(*words: str) -> TrainConfig:
    """What another process would make of a command line, although Hydra is in use in this one."""
    if words not in COMPOSED:
        _tell_hydra("train", TrainConfig)  # before, or what it is told goes with the state
        state = Singleton.get_state()
        GlobalHydra.instance().clear()
        try:
            COMPOSED[words] = compose("train", TrainConfig, words)
        finally:
            Singleton.set_state(state)
    return copy.deepcopy(COMPOSED[words])


class Killed(BaseException):
    """Ends a run without a word."""


def finish(config: TrainConfig, run: RunFolder) -> None:
    write_json(run.metrics, {"test": {"acc": config.seed / 10}, "valid": {"acc": 0.5}})


def killed(config: TrainConfig, run: RunFolder) -> None:
    raise Killed


def refused(config: TrainConfig, run: RunFolder) -> None:
    raise UserError(f"seed {config.seed} has a wrong option:\nchange it.")


def fails(error: Exception) -> Training:
    def raises(config: TrainConfig, run: RunFolder) -> None:
        raise error

    return raises


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trainer:
    monkeypatch.chdir(tmp_path)
    for name in ("MSEA_SWEEP_PROCESS", "MSEA_STARTED"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    stand_in = Trainer()
    monkeypatch.setattr(sweep, "supervise", stand_in.supervise)
    monkeypatch.setattr(sweep, "_POLL", 0.01)
    report = SimpleNamespace(page=Path("runs/report.html"), tables=())
    monkeypatch.setattr("msea_lightning.reporting.report.write_report", lambda root: report)
    return stand_in


def run(*words: str) -> int:
    """Runs a sweep from the command line in this process; its exit code."""

    def job(config: TrainConfig) -> None:
        pytest.fail("a sweep has no single job")

    try:
        launch(
            job, config_name="train", root=TrainConfig, arguments=["-m", *words], sweep=run_sweep
        )
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def folder_of(seed: int) -> RunFolder:
    (found,) = [run for run in find_runs(Path("runs")) if run.load_config().seed == seed]
    return found


def held(config: TrainConfig) -> FileLock:
    """Holds a run as another process that trains it does."""
    Path(config.runs, ".locks").mkdir(parents=True, exist_ok=True)
    name = f"{fingerprint(config)[:32]}.lock"
    lock = FileLock(Path(config.runs, ".locks", name), thread_local=False)
    lock.acquire()
    return lock


def test_a_finished_run_is_left_alone_whatever_its_folder_is_called(trainer: Trainer) -> None:
    assert run("seed=1,2") == 0
    folder_of(1).path.rename("runs/kept")
    Path("runs/demo").rename("runs/elsewhere")
    assert run("seed=1,2,3") == 0
    assert trainer.trained == [1, 2, 3]


def test_another_option_makes_another_run(trainer: Trainer) -> None:
    run("seed=1")
    run("seed=1", "training.learning_rate=0.1")
    run("seed=1", "training.learning_rate=0.1", "dataset.workers=2", "experiment=none")
    assert trainer.trained == [1, 1]


def test_combinations_that_ask_for_the_same_run_are_one_run(trainer: Trainer) -> None:
    # Both parts of the figure, on the same data set.
    small = ["dataset=demo", "backbone=tiny", "dataset.train_fraction=0.5,1.0", "seed=1"]
    assert run("experiment=figure4", *small) == 0
    assert trainer.trained == [1, 1]


def test_a_run_that_fails_is_named_and_tried_again(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.does = {
        1: fails(UserError("features.npz is missing; put it there.")),
        2: fails(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")),
        3: fails(KeyError("a bug")),
    }
    assert run("seed=1,2,3,4") == 1
    assert trainer.trained == [1, 2, 3, 4]
    said = capsys.readouterr().err
    assert "error: run seed=1 failed: features.npz is missing; put it there.\n" in said
    assert "error: run seed=2 failed: out of memory (RuntimeError: CUDA out of memory." in said
    assert "Make training.batch_size smaller" in said
    assert "error: run seed=3 failed: KeyError: 'a bug'\n" in said
    assert "error: 3 of 4 runs failed." in said
    kinds = [json.loads(folder_of(seed).error.read_text())["kind"] for seed in (1, 2, 3)]
    assert kinds == ["refused", "memory", "crashed"]
    trainer.does = {}
    assert run("seed=1,2,3,4") == 0
    assert trainer.trained == [1, 2, 3, 4, 1, 2, 3]
    assert not list(Path("runs").rglob("error.json"))
    assert len(list(find_runs(Path("runs")))) == 4


def test_a_run_that_is_killed_leaves_the_others(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.does = {1: killed}
    assert run("seed=1,2") == 1
    assert trainer.trained == [1, 2]
    assert (
        "run seed=1 failed: the process was killed (SIGKILL), as the system does when memory"
        in (capsys.readouterr().err)
    )
    assert json.loads(folder_of(1).error.read_text())["kind"] == "killed"


def test_a_run_that_cannot_even_begin_is_named_with_its_last_words(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "supervise", lambda *_, **__: ended(1, "No module named torch\n"))
    assert run("seed=1") == 1
    said = capsys.readouterr().err
    assert (
        "the process was ended with exit code 1. Its last lines:\nNo module named torch\n" in said
    )


def test_an_old_error_is_not_told_of_a_new_attempt(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.does = {1: fails(UserError("the first reason"))}
    run("seed=1")
    capsys.readouterr()
    monkeypatch.setattr(sweep, "supervise", lambda *_, **__: ended(-signal.SIGSEGV, "the second"))
    assert run("seed=1") == 1
    said = capsys.readouterr().err
    assert "ended by signal 11 (Segmentation fault). Its last lines:\nthe second" in said
    assert "the first reason" not in said


def test_an_error_that_cannot_be_read_is_tried_again(trainer: Trainer) -> None:
    trainer.does = {1: fails(UserError("the first reason"))}
    run("seed=1")
    (found,) = runs_of(composed("seed=1"))
    found.error.write_text("")
    trainer.does = {}
    assert run("seed=1") == 0


def test_a_launcher_that_returns_nothing_is_no_crash(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = SimpleNamespace(config=composed("seed=1"))
    planned = [SimpleNamespace(config=job.config, job=job, fingerprint=fingerprint(job.config))]
    outcomes = sweep._launch(planned, lambda *_: [])
    assert [outcome.state for outcome in outcomes.values()] == [State.failed]


def test_ctrl_c_ends_the_sweep(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "supervise", lambda *_, **__: ended(130, ""))
    assert run("seed=1,2") == 130


def test_a_run_that_another_process_trains_is_not_trained_twice(trainer: Trainer) -> None:
    config = composed("seed=1")
    lock = held(config)

    def other(second: TrainConfig, run: RunFolder) -> None:
        # The other process finishes while this one has turned to the second run.
        finished = new_folder(config)
        finish(config, finished)
        lock.release()
        finish(second, run)

    trainer.does = {2: other}
    assert run("seed=1,2") == 0
    assert trainer.trained == [2]


def test_a_run_is_taken_over_from_a_process_that_gave_it_up(trainer: Trainer) -> None:
    lock = held(composed("seed=1"))

    def gives_up(config: TrainConfig, run: RunFolder) -> None:
        lock.release()
        finish(config, run)

    trainer.does = {2: gives_up}
    assert run("seed=1,2") == 0
    assert trainer.trained == [2, 1]


def test_two_processes_cannot_open_the_same_run(trainer: Trainer) -> None:
    config = composed("seed=1", "ckpt=auto")
    lock = held(config)
    with (
        pytest.raises(RunError, match=r"another process trains this very run .*seed 1 in runs"),
        open_run(config),
    ):
        pytest.fail("it was opened")
    lock.release()
    with open_run(config) as first:
        assert is_held(config)
    assert not is_held(config)
    assert runs_of(config)[0].path == first.path


def test_a_launcher_that_fails_loses_nothing(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job([f"seed={seed}"], composed(f"seed={seed}")) for seed in (1, 2, 3)]

    def start(task: Any, started: Sequence[Job[TrainConfig]]) -> Sequence[JobReturn]:
        for job, does in zip(started, (finish, fails(UserError("no data"))), strict=False):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(job.config, "ckpt", "auto")
                try:
                    with open_run(job.config) as run:
                        run.begin()
                        does(job.config, run)
                except UserError:
                    pass
        raise TimeoutError("job 7 was lost")

    assert run_sweep(jobs, start) == 1
    said = capsys.readouterr().err
    assert "1 of 3 runs are finished" in said
    assert "run seed=2 failed: no data\n" in said
    assert "run seed=3 failed: the launcher failed (TimeoutError: job 7 was lost)\n" in said


def test_what_a_launcher_could_not_run_is_named(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job(["seed=1"], composed("seed=1"))]

    def start(task: Any, started: Sequence[Job[TrainConfig]]) -> Sequence[JobReturn]:
        result = JobReturn()
        result.status = JobStatus.FAILED
        result.return_value = ImportError("no msea_lightning on node 3")
        return [result]

    assert run_sweep(jobs, start) == 1
    assert "run seed=1 failed: ImportError: no msea_lightning on node 3" in capsys.readouterr().err


def test_the_plan_is_written_down(trainer: Trainer) -> None:
    trainer.does = {1: fails(UserError("no data"))}
    run("experiment=table4", "dataset=demo", "backbone=tiny", "seed=1", "ablation=none,no_msf")
    (path,) = Path("runs/sweeps").glob("*.json")
    plan = json.loads(path.read_text())
    assert path.name.startswith("table4-")
    assert plan["experiment"] == "table4"
    planned = [parse_config(run["config"]) for run in plan["runs"]]
    assert [(one.ablation.name, one.seed) for one in planned] == [("none", 1), ("no_msf", 1)]
    assert set(map(fingerprint, planned)) == {
        fingerprint(run.load_config()) for run in find_runs(Path("runs"))
    }
    assert read_folder(Path("runs")).unreadable == {}
    # Version 2 called the runs cells, and held their names alone.
    path.write_text(json.dumps({"version": 2, "cells": [{"seed": 1}]}))
    (flaw,) = read_folder(Path("runs")).unreadable.values()
    assert "the plan of this sweep cannot be read" in flaw


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ckpt=last"], r"ckpt=last does not go with -m: every run of a sweep is resumed"),
        (["runs=a,b"], r"runs=a,b: all runs of a sweep go into one folder"),
    ],
)
def test_what_makes_no_sweep_is_refused(
    trainer: Trainer, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run("seed=1,2", *words) == 1
    assert message in capsys.readouterr().err
    assert trainer.trained == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["hydra/launcher=basic", "hydra/launcher=local"],
            "hydra/launcher is given twice, as hydra/launcher=basic and hydra/launcher=local",
        ),
        (
            ["hydra/launcher=local", "hydra.launcher.njobs=4"],
            r"hydra\.launcher\.njobs: the launcher has no such option\. Options .*: n_jobs, ",
        ),
    ],
)
def test_options_of_launchers_are_checked(
    trainer: Trainer, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run("seed=1,2", *words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert trainer.trained == []


def test_a_report_that_cannot_be_written_is_said(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(root: Path) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("msea_lightning.reporting.report.write_report", refuse)
    assert run("seed=1") == 1
    assert "error: the report was not written: the disk is full\n" in capsys.readouterr().err


def test_a_run_gets_a_gpu_where_there_are_some(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6")
    monkeypatch.setenv("PATH", "")
    run("seed=1")
    run("seed=2", "trainer.accelerator=cpu")
    devices = [each.get("CUDA_VISIBLE_DEVICES") for each in trainer.environments]
    assert devices == ["6", None]


def test_what_a_run_prints_fits_beside_its_number(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run("seed=1") == 0
    assert trainer.environments == [{"COLUMNS": "94"}]


def test_runs_of_a_sweep_share_their_time(trainer: Trainer) -> None:
    run("seed=1,2")
    assert len({run.path.parent for run in find_runs(Path("runs"))}) == 1


def test_outcomes_travel_between_processes() -> None:
    import pickle

    outcome = Outcome(State.failed, "no data")
    assert pickle.loads(pickle.dumps(outcome)) == outcome
    assert pickle.loads(pickle.dumps(sweep.train_in_process)) is sweep.train_in_process
    assert issubclass(SweepError, UserError)


def test_a_run_that_is_refused_leaves_its_reason_in_the_plan(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.does = {1: refused}
    assert run("seed=1,2") == 1
    assert "run seed=1 failed: seed 1 has a wrong option:\nchange it.\n" in capsys.readouterr().err
    assert len(list(find_runs(Path("runs")))) == 1
    found = {run.config.seed: run.missing for run in read_folder(Path("runs")).runs if not run.name}
    assert found[1] == ("refused", "seed 1 has a wrong option:\nchange it.")
    trainer.does = {}
    assert run("seed=1,2") == 0


def test_what_is_not_there_is_found_before_the_first_process(
    trainer: Trainer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    words = ("dataset=table,demo", f"dataset.path={tmp_path}/nowhere", "seed=1,2")
    assert run(*words) == 1
    assert trainer.trained == [1, 2]
    said = capsys.readouterr().err
    assert said.count("nowhere does not exist") == 1
    assert run("backbone=auto", f"backbone.path={tmp_path}/empty", "seed=1,2,3") == 1
    assert trainer.trained == [1, 2]
    said = capsys.readouterr().err
    assert "error: 3 runs failed: The folder" in said
    assert "holds no checkpoint" in said
    assert run("callbacks.x._target_=no.such", "seed=1,2,3") == 1
    assert run("logger.loggers.x._target_=no.such", "seed=1,2,3") == 1
    assert trainer.trained == [1, 2]
    assert "error: 3 runs failed: callbacks.x._target_=no.such: there is" in capsys.readouterr().err


def test_a_sweep_ends_with_the_means_of_its_data_sets(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def means(dataset: str) -> Table:
        table = make_table("variants", [("w/o A", "2", "78.33 ± 1.25")], dataset, ["Acc [%]"])
        names: Any = [SimpleNamespace(names=SimpleNamespace(dataset=dataset))]
        return replace(table, configurations=names)

    report = SimpleNamespace(page=Path("report.html"), tables=(means("demo"), means("another")))
    monkeypatch.setattr("msea_lightning.reporting.report.write_report", lambda root: report)
    assert run("seed=1,2") == 0
    shown = capsys.readouterr().out
    assert shown.count("78.33 ± 1.25") == 1
    assert "Variants: demo" in shown
