"""Searches: the same trials whatever interrupts them, and the best one by the validation part."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from msea_lightning import search as command
from msea_lightning.commands.command_line import compose
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig
from msea_lightning.reporting.folders import read_folder
from msea_lightning.reporting.report import write_report
from msea_lightning.runs.files import write_json
from msea_lightning.runs.folder import RunFolder, find_runs, runs_of
from msea_lightning.runs.identity import settled
from msea_lightning.runs.start import open_run
from msea_lightning.sweep import run as sweep
from tests.sweep.test_sweep import composed, ended

Training = Callable[[TrainConfig, RunFolder], None]

RATE = "search.space.training.learning_rate=0.001..0.1"
ONLY_RATE = ("search.space.adapter=null", RATE)


def finish(config: TrainConfig, run: RunFolder) -> None:
    """Small rates are good on the validation part, and bad on the test part."""
    rate = config.training.learning_rate
    valid, test = {"acc": 0.5, "wf1": 1 - rate}, {"acc": 0.5, "wf1": rate}
    write_json(run.metrics, {"test": test, "valid": valid})


class Killed(BaseException):
    """Ends the search as a signal does that nobody handles."""


class Trainer:
    """Stands in for the processes of runs: opens each run as a real one does, and trains nothing.

    ``does`` is what it does instead of finishing, by the number of the run that it is given.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.does: dict[int, Training] = {}

    def supervise(
        self, words: Sequence[str], *, prefix: str, environment: Mapping[str, str]
    ) -> CompletedProcess[str]:
        config = settled(composed(*words[3:]))
        self.rates.append(config.training.learning_rate)
        try:
            with open_run(config) as run:
                run.begin()
                self.does.get(len(self.rates), finish)(config, run)
        except UserError as error:
            return ended(1, f"error: {error}\n")
        return ended(0, "")


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trainer:
    monkeypatch.chdir(tmp_path)
    for name in ("MSEA_SWEEP_PROCESS", "MSEA_STARTED"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    stand_in = Trainer()
    monkeypatch.setattr(sweep, "supervise", stand_in.supervise)
    report = SimpleNamespace(page=Path("runs/report.html"), tables=())
    monkeypatch.setattr("msea_lightning.reporting.report.write_report", lambda root: report)
    return stand_in


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Callable[..., int]:
    """Runs the command on a small demo in this process; its exit code."""

    def run(*words: str) -> int:
        small = ["dataset.demo_utterances=60", f"dataset.cache={cache}"]
        monkeypatch.setattr(sys, "argv", ["search.py", *small, *words])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        try:
            command.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


def written(root: str = "runs") -> dict[str, Any]:
    """What the one search below a folder has written."""
    (path,) = Path(root).glob("searches/*/search.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def fail(config: TrainConfig, run: RunFolder) -> None:
    raise UserError("out of <luck>.")


def undefined(config: TrainConfig, run: RunFolder) -> None:
    write_json(run.metrics, {"test": {"acc": 0.5, "wf1": 1.0}, "valid": {"wf1": None}})


def kill(config: TrainConfig, run: RunFolder) -> None:
    raise Killed


def test_the_best_is_the_best_on_the_validation_part(
    trainer: Trainer, search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.does = {1: fail, 2: undefined}
    assert search("search.trials=4", *ONLY_RATE) == 0
    said = capsys.readouterr()
    found = written()
    rates = [float(trial["values"]["training.learning_rate"]) for trial in found["trials"]]
    assert rates == trainer.rates
    assert len(set(rates)) == 4
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    # A trial that fails ends nothing.
    errors = ["out of <luck>.", "WF1 of the validation part is undefined", None, None]
    assert [trial.get("error") for trial in found["trials"]] == errors
    assert "2 of 4 trials failed; search.trials=6 makes as many more" in said.err
    good = rates[2:]
    assert [trial["valid"] for trial in found["trials"][2:]] == [1 - rate for rate in good]
    assert [trial["test"] for trial in found["trials"][2:]] == good
    assert found["best"] == rates.index(min(good))
    assert "the test part decided nothing" in said.err
    # The last line trains its options; the run of the trial is one of them.
    words = shlex.split(said.out.splitlines()[-1])
    assert words[:4] == ["python", "-m", "msea_lightning.train", "-m"]
    assert words[-1] == "seed=1111,2222,3333,4444,5555"
    best = compose("train", TrainConfig, words[4:-1])
    assert best.training.learning_rate == min(good)
    assert runs_of(best)[0].finished
    check_report()


def check_report() -> None:
    report = write_report(Path("runs"))
    page = report.page.read_text(encoding="utf-8")
    assert "Search: demo-mse-tiny-" in page
    assert '<tr class="best">' in page
    assert "out of &lt;luck&gt;." in page
    assert "python -m msea_lightning.search dataset.demo_utterances=60" in page
    assert len(report.best.rows) == 0  # the best of trials on the test part is nobody's
    (path,) = Path("runs").glob("searches/*/search.json")
    path.write_text("{}")
    (flaw,) = read_folder(Path("runs")).unreadable.values()
    assert "this search cannot be read (KeyError('trials'))" in flaw
    assert len(write_report(Path("runs")).best.rows) == 1


def test_a_search_that_was_killed_goes_on(trainer: Trainer, search: Callable[..., int]) -> None:
    words = ("search.trials=3", "search.parallel=2", "hydra/launcher=basic", *ONLY_RATE)
    assert search("runs=whole", *words) == 0
    whole, trainer.rates = trainer.rates, []
    trainer.does = {2: kill}
    with pytest.raises(Killed):
        search(*words)
    assert search(*words) == 0
    # The first had ended, though its study did not know that yet.
    assert trainer.rates == [*whole[:2], *whole[1:]]
    assert written()["trials"] == written("whole")["trials"]
    assert len(list(find_runs(Path("runs")))) == 3


def test_what_a_language_model_answers_alone_is_searched(
    trainer: Trainer, search: Callable[..., int]
) -> None:
    """An adapter that is not there, and its widths, have no part in it."""
    tasks = "search.space.prompt.task=[Mood,Feeling]"
    words = ("training.schedule_epochs=0", "search.space.training.learning_rate=null", tasks)
    assert search("search.trials=1", *words) == 0
    (trial,) = written()["trials"]
    assert list(trial["values"]) == ["prompt.task"]
    assert trial["valid"] is not None
    assert trial["test"] is not None  # its run is found


def test_a_search_of_which_all_trials_fail_fails(
    trainer: Trainer, search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.does = {1: fail}
    assert search("search.trials=1", *ONLY_RATE) == 1
    said = capsys.readouterr().err
    assert "error: no trial of 1 ended well, the last one because: out of <luck>. Correct" in said
    (path,) = Path("runs").glob("searches/*/.lock")
    with FileLock(path, thread_local=False):
        assert search("search.trials=2", *ONLY_RATE) == 1
    assert "error: another process works on this search at the moment" in capsys.readouterr().err
    path.with_name("study.db").write_text("no database")
    assert search("search.trials=2", *ONLY_RATE) == 1
    assert "study.db cannot be read ((sqlite3.DatabaseError) file is" in capsys.readouterr().err
    assert len(trainer.rates) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-m", "seed=1,2"], 2, "-m: search starts many runs by itself"),
        (["ckpt=auto"], 2, "ckpt=auto: every trial is resumed where it was interrupted"),
        (
            ["trainer.num_nodes=2"],
            2,
            "trainer.num_nodes=2: every trial has one device; several tri",
        ),
        (["search.space.decode=1,2"], 2, "A list is written search.space.decode=[1,2]."),
        (["dataset=mosei"], 1, "dataset=mosei"),
    ],
)
def test_what_makes_no_search_is_refused(
    trainer: Trainer,
    search: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    assert search(*words) == code
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_missing_package_is_named(
    search: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert search() == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the package optuna is missing")
    assert said.endswith("Install it: pip install 'msea_lightning[search]'.\n")
