"""A search: trials one after another, or some at a time, each an ordinary run.

A trial trains through what a sweep trains through: a process for each run, a run folder, resumed
where it was interrupted. The best one is the best on the validation part; what the test part says
is written down beside it, and decides nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from msea_lightning.commands.compose import Composer, opened
from msea_lightning.commands.flags import parse_flags
from msea_lightning.commands.jobs import Job
from msea_lightning.commands.overrides import key_of
from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.config.roots import SearchConfig, TrainConfig
from msea_lightning.config.text import say
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.metrics import MetricInfo, selection_metric
from msea_lightning.reporting.console import print_table
from msea_lightning.reporting.searches import FILE, read_search
from msea_lightning.reporting.tables import search_tables
from msea_lightning.runs.files import write_json
from msea_lightning.runs.folder import Names, RunFolder, runs_by_fingerprint, runs_of
from msea_lightning.runs.identity import fingerprint, settled
from msea_lightning.runs.start import share_start
from msea_lightning.searching.options import SearchOptions
from msea_lightning.searching.space import Dimension, read_space
from msea_lightning.searching.study import Study, Trial
from msea_lightning.sweep.places import find_refused
from msea_lightning.sweep.plan import plan
from msea_lightning.sweep.processes import lead_sweep
from msea_lightning.sweep.run import State, show_report, train_all

_log = logging.getLogger(__name__)

_SEEDS = "seed=1111,2222,3333,4444,5555"


class SearchError(UserError):
    """A search that cannot be made as it was asked for."""


def search(config: SearchConfig, words: Sequence[str]) -> None:
    """Makes the trials that are missing, and says which was the best.

    Args:
        config: The options.
        words: The command line that made them.

    Raises:
        SearchError: the data set or the language model is missing, another process works on this
            search, or every trial has failed.
    """
    overrides = parse_flags(list(words)).overrides
    own = [word for word in overrides if key_of(word).partition(".")[0] != "search"]
    lines = [*own, *_launcher(own, config.search.parallel)]
    with opened("train", TrainConfig, lines, multirun=True, launches=True) as composer:
        base = settled(composer.typed(composer.words))
        space, left_out = read_space(config.search.space, overrides, composer)
        for key, reason in left_out.items():
            _log.info("%s is not tried: %s", key, reason)
        for reason in find_refused(plan([Job(composer.words, base)])).values():
            raise SearchError(reason)
        selection = _selection(base)
        folder = _folder(base, space, config.search)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock", timeout=0):
                _Search(folder, own, composer, base, space, selection, config.search).run()
        except Timeout:
            raise SearchError(
                f"another process works on this search at the moment ({folder}). Wait for it, or "
                "begin another one with search.seed=1."
            ) from None


def _launcher(words: Sequence[str], parallel: int) -> list[str]:
    """What starts several runs at a time, where the command line says nothing of that."""
    if parallel == 1 or any(word.startswith("hydra/launcher=") for word in words):
        return []
    return ["hydra/launcher=local", f"hydra.launcher.n_jobs={parallel}"]


def _selection(config: TrainConfig) -> MetricInfo:
    """The metric that chooses, of the validation part; prepares the data set to know it."""
    data = UtteranceDataModule(config.dataset, batch_size=1, seed=config.seed)
    data.setup()
    return selection_metric(data.metrics)


def _folder(config: TrainConfig, space: Sequence[Dimension], options: SearchOptions) -> Path:
    """Where the study is: another one for other options, other values to try, another seed."""
    names = Names.of(config)
    asked = [fingerprint(config), options.seed, [f"{one.key}={one}" for one in space]]
    identity = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]
    return Path(config.runs) / "searches" / f"{names.dataset}-{names.slug}-{identity}"


class _Search:
    """One search while it is made."""

    def __init__(
        self,
        folder: Path,
        words: list[str],
        composer: Composer[TrainConfig],
        base: TrainConfig,
        space: Sequence[Dimension],
        selection: MetricInfo,
        options: SearchOptions,
    ) -> None:
        self._folder = folder
        self._words = words
        self._composer = composer
        self._base = base
        self._space = space
        self._selection = selection
        self._options = options
        self._configs: dict[int, TrainConfig] = {}
        self._study = Study(
            folder / "study.db",
            space,
            higher_is_better=selection.higher_is_better,
            seed=options.seed,
        )

    def run(self) -> None:
        """Makes what is missing, then says what was found."""
        earlier = self._study.trials()
        ended = sum(trial.ended for trial in earlier)
        tried = ", ".join(f"{one.key}={one}" for one in self._space)
        _log.info("tried: %s", tried)
        _log.info(
            "%d trials, %d of them ended earlier; chosen by %s of the validation part alone (%s)",
            max(self._options.trials, len(earlier)),
            ended,
            self._selection.title,
            self._folder,
        )
        lead_sweep()
        share_start()
        while trials := self._next():
            self._write()
            self._train(trials)
        self._write()
        self._end()

    def _next(self) -> list[Trial]:
        """The trials that are left from an interruption, or else new ones; none at the end.

        New ones are chosen only when all before them have ended: so they are the same whenever the
        search is interrupted.
        """
        trials = self._study.trials()
        left = [trial for trial in trials if not trial.ended]
        missing = min(self._options.parallel, self._options.trials - len(trials))
        return left or [self._study.propose() for _ in range(missing)]

    def _train(self, trials: Sequence[Trial]) -> None:
        configs: dict[int, TrainConfig] = {}
        errors: dict[int, str] = {}
        for trial in trials:
            try:
                configs[trial.number] = self._composed(trial)
            except ConfigError as error:
                errors[trial.number] = str(error)
        jobs = [
            Job([*self._composer.words, *trial.words], configs[trial.number])
            for trial in trials
            if trial.number in configs
        ]
        start = partial(self._composer.start, number=trials[0].number)
        outcomes = train_all(plan(jobs), start) if jobs else {}
        for trial in trials:
            config = configs.get(trial.number)
            if config is None:
                self._fail(trial, errors[trial.number])
                continue
            outcome = outcomes[fingerprint(config)]
            if outcome.state is not State.finished:
                self._fail(trial, outcome.error or outcome.state.value)
                continue
            valid = _metric(runs_of(config), "valid", self._selection)
            if valid is None:
                self._fail(trial, f"{self._selection.title} of the validation part is undefined")
                continue
            best = self._best()
            better = best is None or best.valid is None or self._selection.better(valid, best.valid)
            self._study.finish(trial, valid)
            shown = f"valid {self._selection.title} {self._selection.format(valid)}"
            self._say(trial, f"{shown}{', best so far' if better else ''}")

    def _composed(self, trial: Trial) -> TrainConfig:
        if trial.number not in self._configs:
            words = [*self._composer.words, *trial.words]
            self._configs[trial.number] = settled(self._composer.typed(words))
        return self._configs[trial.number]

    def _fail(self, trial: Trial, error: str) -> None:
        self._study.fail(trial, error)
        self._say(trial, f"failed: {error}")

    def _say(self, trial: Trial, what: str) -> None:
        say(f"trial {trial.number + 1} of {self._options.trials} ({' '.join(trial.words)}): {what}")

    def _best(self) -> Trial | None:
        """The best trial on the validation part, the first among equals."""
        found = [trial for trial in self._study.trials() if trial.valid is not None]
        sign = -1 if self._selection.higher_is_better else 1
        return min(found, key=lambda trial: sign * (trial.valid or 0.0), default=None)

    def _next_command(self, best: Trial) -> str:
        """What trains the best options with five seeds."""
        dropped = {"seed", *best.values}
        words = [word for word in self._words if key_of(word) not in dropped]
        return shlex.join(
            ["python", "-m", "msea_lightning.train", "-m", *words, *best.words, _SEEDS]
        )

    def _write(self) -> None:
        """Writes what a report shows; the study itself stays the truth."""
        best, runs = self._best(), runs_by_fingerprint(Path(self._base.runs))
        write_json(
            self._folder / FILE,
            {
                "version": 1,
                "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
                "dataset": self._base.dataset.name,
                "model": Names.of(self._base).model,
                "metric": self._selection.name,
                "trials": [self._described(trial, runs) for trial in self._study.trials()],
                "best": None if best is None else best.number,
                "next": None if best is None else self._next_command(best),
            },
        )

    def _described(self, trial: Trial, runs: Mapping[str, list[RunFolder]]) -> dict[str, Any]:
        found: dict[str, Any] = {"values": dict(trial.values), "valid": trial.valid}
        try:
            found["fingerprint"] = fingerprint(self._composed(trial))
        except ConfigError:  # the reason is in the trial's error
            found["fingerprint"] = ""
        if trial.error:
            found["error"] = trial.error
        elif trial.ended:
            found["test"] = _metric(runs.get(found["fingerprint"], []), "test", self._selection)
        return found

    def _end(self) -> None:
        best = self._best()
        show_report(Path(self._base.runs), set())
        for table in search_tables(read_search(self._folder / FILE)):
            print_table(table, Console())
        trials = self._study.trials()
        failed = sum(bool(trial.error) for trial in trials)
        if best is None or best.valid is None:
            raise SearchError(
                f"no trial of {len(trials)} ended well, the last one because: {trials[-1].error} "
                f"Correct that, and delete {self._folder} to begin anew."
            )
        if failed:
            say(
                f"{failed} of {len(trials)} trials failed; search.trials={len(trials) + failed} "
                "makes as many more"
            )
        say(
            f"best on the validation part: trial {best.number + 1}, {' '.join(best.words)} (the "
            "test part decided nothing). With five seeds:"
        )
        sys.stdout.write(f"{self._next_command(best)}\n")


def _metric(runs: Sequence[RunFolder], split: str, info: MetricInfo) -> float | None:
    """A metric of the first run, as ``metrics.json`` has it; None where it is undefined."""
    if not runs or not runs[0].finished:
        return None
    value = json.loads(runs[0].metrics.read_text(encoding="utf-8"))[split].get(info.name)
    return None if value is None else float(value)
