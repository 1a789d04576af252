"""Sweeps: all runs of a grid, each trained once, whatever happens to the others.

Runs are identified by their resolved options: one that is finished is left alone, one that was
interrupted is resumed, one that failed is tried again, and one that another process is training is
waited for. They go through Hydra's launchers, each in a process of its own.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from subprocess import CompletedProcess

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from msea_lightning.backbone.options import Accelerator
from msea_lightning.commands.jobs import Job, Start
from msea_lightning.config.errors import UserError
from msea_lightning.config.options import to_typed
from msea_lightning.config.roots import TrainConfig
from msea_lightning.config.text import say
from msea_lightning.runs.files import write_json
from msea_lightning.runs.folder import RunFolder, runs_by_fingerprint, runs_of
from msea_lightning.runs.identity import settled
from msea_lightning.runs.lock import is_held
from msea_lightning.runs.start import share_start
from msea_lightning.sweep.devices import gpu_of_its_own
from msea_lightning.sweep.places import find_refused
from msea_lightning.sweep.plan import PlannedRun, plan, write_manifest
from msea_lightning.sweep.processes import lead_sweep, supervise

_log = logging.getLogger(__name__)

_INTERRUPTED = (130, -signal.SIGINT)
"""Exit codes after Ctrl-C."""

_POLL = 2.0
"""Seconds between two looks at runs that other processes train."""


class State(Enum):
    """How a run of a sweep ended."""

    finished = "finished"
    refused = "refused"
    failed = "failed"
    held = "held by another process"
    interrupted = "interrupted"


@dataclass(frozen=True)
class Outcome:
    """How a run of a sweep ended; ``error`` says why one failed."""

    state: State
    error: str = ""


def run_sweep(jobs: Sequence[Job[TrainConfig]], start: Start[TrainConfig]) -> int:
    """Trains every run that is not finished, and writes the report; 0 where all went well."""
    runs = plan(jobs)
    root = Path(runs[0].config.runs)
    manifest = write_manifest(root, runs)
    lead_sweep()
    share_start()
    finished = {key for key, found in runs_by_fingerprint(root).items() if found[0].finished}
    pending = [run for run in runs if run.fingerprint not in finished]
    earlier = len(runs) - len(pending)
    _log.info("%d runs, %d of them finished earlier", len(runs), earlier)
    refused = find_refused(pending)
    outcomes = {key: Outcome(State.refused, reason) for key, reason in refused.items()}
    pending = [run for run in pending if run.fingerprint not in refused]
    for reason, number in Counter(refused.values()).items():
        _log.warning("%d of %d runs cannot start: %s", number, len(runs), reason)
    outcomes |= train_all(pending, start)
    ended = [(run, outcomes.get(run.fingerprint)) for run in runs]
    failed = [(run, one) for run, one in ended if one and one.state is not State.finished]
    write_manifest(root, runs, {run.fingerprint: one.error for run, one in failed})
    reported = show_report(root, {run.config.dataset.name for run in runs})
    say(
        f"{len(runs) - len(failed)} of {len(runs)} runs are finished ({earlier} of them were "
        f"before); planned in {manifest}"
    )
    _say_failures(failed)
    if failed:
        say(
            f"error: {len(failed)} of {len(runs)} runs failed. The same command tries them "
            "again, and leaves alone what is finished."
        )
    return 0 if reported and not failed else 1


def train_all(runs: Sequence[PlannedRun], start: Start[TrainConfig]) -> dict[str, Outcome]:
    """Trains runs through the launcher, those that other processes train included.

    Returns:
        How each ended, by its fingerprint.

    Raises:
        KeyboardInterrupt: one of them was interrupted.
    """
    outcomes: dict[str, Outcome] = {}
    pending = list(runs)
    while pending:
        outcomes |= _launch(pending, start)
        states = {run.fingerprint: outcomes[run.fingerprint].state for run in pending}
        if State.interrupted in states.values():
            raise KeyboardInterrupt
        pending = [run for run in pending if states[run.fingerprint] is State.held]
        if pending:
            names = "; ".join(run.name for run in pending)
            _log.info("waiting for %d runs that another process trains: %s", len(pending), names)
        while pending and all(is_held(run.config) for run in pending):
            time.sleep(_POLL)
    return outcomes


def _say_failures(failed: Sequence[tuple[PlannedRun, Outcome]]) -> None:
    """Says why runs failed, once for all that failed for one reason."""
    by_reason: dict[str, list[str]] = {}
    for run, outcome in failed:
        by_reason.setdefault(outcome.error, []).append(run.name)
    for reason, names in by_reason.items():
        what = f"run {names[0]}" if len(names) == 1 else f"{len(names)} runs"
        listed = "" if len(names) == 1 else f" ({'; '.join(names[:3])}{', ...' * (len(names) > 3)})"
        say(f"error: {what} failed: {reason}{listed}")


def _launch(runs: Sequence[PlannedRun], start: Start[TrainConfig]) -> dict[str, Outcome]:
    """Hands runs to the launcher; how each ended, by the launcher or by its folder."""
    try:
        returned = start(train_in_process, [run.job for run in runs])
        results = zip(runs, returned, strict=True)
        return {run.fingerprint: _returned(result) for run, result in results}
    except Exception as error:
        # One job that a cluster has lost must not take the results of the others along.
        lost = f"the launcher failed ({type(error).__name__}: {error})"
        _log.warning("%s; what its runs have done is read from their folders", lost)
        return {run.fingerprint: _found(run.config, lost) for run in runs}


def _returned(result: JobReturn) -> Outcome:
    value = result._return_value
    if result.status is JobStatus.COMPLETED and isinstance(value, Outcome):
        return value
    return Outcome(State.failed, f"{type(value).__name__}: {value}")


def _found(config: TrainConfig, otherwise: str = "") -> Outcome:
    """How a run ended, by its folder."""
    runs = runs_of(config)
    if runs and runs[0].finished:
        return Outcome(State.finished)
    if is_held(config):
        return Outcome(State.held)
    return Outcome(State.failed, (_written_error(runs[0]) if runs else None) or otherwise)


def _written_error(run: RunFolder) -> str | None:
    """What a failed run has left; None where there is nothing, or nothing that can be read."""
    try:
        return str(json.loads(run.error.read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _error_time(runs: Sequence[RunFolder]) -> tuple[Path, int] | None:
    """The error that the most useful of some runs has left, and when."""
    try:
        return (runs[0].error, runs[0].error.stat().st_mtime_ns) if runs else None
    except OSError:
        return None


def show_report(root: Path, datasets: set[str]) -> bool:
    """Writes the report of all runs, prints the means of these data sets, and says where it is.

    False where it could not be written, which is said.
    """
    from rich.console import Console

    from msea_lightning.reporting.console import print_table
    from msea_lightning.reporting.report import write_report

    try:
        report = write_report(root)
    except UserError as error:
        say(f"error: the report was not written: {error}")
        return False
    for table in report.tables:
        if any(one.names.dataset in datasets for one in table.configurations):
            print_table(table, Console())
    say(f"report: {report.page}")
    return True


def train_in_process(config: DictConfig) -> Outcome:
    """Trains one run in a process of its own, unless it is finished; what launchers call."""
    typed = settled(to_typed(config, TrainConfig))
    before = _found(typed)
    if before.state is not State.failed:
        return before
    earlier = _error_time(runs_of(typed))
    hydra = HydraConfig.get()
    words = [word for word in hydra.overrides.task if not word.startswith("ckpt=")]
    searched = [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
    prefix = f"{hydra.job.num + 1:>3} | "
    command = [sys.executable, "-m", "msea_lightning.train", *words, *searched, "ckpt=auto"]
    on_cpu = typed.trainer.accelerator is Accelerator.cpu
    gpu: AbstractContextManager[dict[str, str]] = (
        nullcontext({}) if on_cpu else gpu_of_its_own(lambda text: say(f"{prefix}{text}"))
    )
    # What a run prints fits beside the prefix.
    columns = {"COLUMNS": str(max(40, shutil.get_terminal_size().columns - len(prefix)))}
    with gpu as environment:
        say(f"{prefix}train {' '.join(words)}")
        ended = supervise(command, prefix=prefix, environment=columns | environment)
    if ended.returncode in _INTERRUPTED:
        return Outcome(State.interrupted)
    reason = _describe(ended)
    runs = runs_of(typed)
    if runs and not runs[0].finished and _error_time(runs) == earlier and not is_held(typed):
        # It ended before it could say why.
        write_json(runs[0].error, reason)
    return _found(typed, reason["error"])


def _describe(ended: CompletedProcess[str]) -> dict[str, str]:
    """What ``error.json`` says of a run that has not written it itself.

    One that was refused before it began has no folder; what it said last is why.
    """
    _, refused, reason = ended.stdout.rpartition("\nerror: ")
    if not refused and ended.stdout.startswith("error: "):
        refused, reason = "error: ", ended.stdout.removeprefix("error: ")
    if ended.returncode in (1, 2) and refused:
        return {"kind": "refused", "error": reason.strip()}
    if ended.returncode == -9:  # Windows has no signal.SIGKILL
        return {
            "kind": "killed",
            "error": "the process was killed (SIGKILL), as the system does when memory runs out. "
            "Make training.batch_size smaller, or train fewer runs at a time "
            "(hydra.launcher.n_jobs).",
        }
    how = f"with exit code {ended.returncode}"
    if ended.returncode < 0:
        how = f"by signal {-ended.returncode} ({signal.strsignal(-ended.returncode)})"
    return {
        "kind": "crashed",
        "error": f"the process was ended {how}. Its last lines:\n{ended.stdout.strip()}",
    }
