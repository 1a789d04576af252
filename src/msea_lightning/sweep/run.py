"""Sweeps: all cells of a grid, each trained once, whatever happens to the others.

What a cell is, is its resolved options (:func:`msea_lightning.runs.fingerprint`): one that is
finished is left alone, one that was interrupted is resumed, one that failed is tried again, and one
that another process is training is waited for. :func:`run_sweep` plans and reports; the cells run
through Hydra's launchers, in :func:`run_cell`, each in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from msea_lightning.backbone.options import Accelerator
from msea_lightning.commands.jobs import Job, Start
from msea_lightning.config.errors import UserError
from msea_lightning.config.options import to_typed
from msea_lightning.config.roots import TrainConfig
from msea_lightning.runs.folder import (
    RunFolder,
    fingerprint,
    is_held,
    runs_by_fingerprint,
    runs_of,
    share_start,
    with_absolute_places,
    write_json,
)
from msea_lightning.sweep.processes import Ended, gpu_of_its_own, lead_sweep, supervise

_log = logging.getLogger(__name__)

_INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_POLL = 2.0
"""Seconds between two looks at cells that other processes train."""


class SweepError(UserError):
    """A sweep that cannot be run as it was asked for."""


class State(Enum):
    """What became of a cell."""

    finished = "finished"
    failed = "failed"
    held = "held by another process"
    interrupted = "interrupted"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell, and why.

    Attributes:
        state: What.
        error: Why, of one that failed.
    """

    state: State
    error: str = ""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        job: Its overrides and options.
        config: The options with absolute places.
        fingerprint: Hash of the options.
        name: The overrides in which it differs from the other cells.
    """

    job: Job[TrainConfig]
    config: TrainConfig
    fingerprint: str
    name: str


def run_sweep(jobs: Sequence[Job[TrainConfig]], start: Start[TrainConfig]) -> int:
    """Runs every cell that is not finished, and writes the report.

    Args:
        jobs: The cells; those that ask for the same run count once.
        start: Hands cells to Hydra's launcher.

    Returns:
        0 where all cells are finished, 1 where some are not.

    Raises:
        SweepError: where ``ckpt`` is given, which every cell decides by itself, or the cells would
            go into several folders.
    """
    cells = _plan(jobs)
    root = Path(cells[0].config.runs)
    manifest = _write_manifest(root, cells)
    lead_sweep()
    share_start()
    finished = {key for key, runs in runs_by_fingerprint(root).items() if runs[0].finished}
    earlier = {cell.fingerprint for cell in cells} & finished
    pending = [cell for cell in cells if cell.fingerprint not in earlier]
    _log.info("%d cells, %d of them finished earlier", len(cells), len(earlier))
    outcomes: dict[str, Outcome] = {}
    while pending:
        outcomes |= _launch(pending, start)
        states = {cell.fingerprint: outcomes[cell.fingerprint].state for cell in pending}
        if State.interrupted in states.values():
            raise KeyboardInterrupt
        pending = [cell for cell in pending if states[cell.fingerprint] is State.held]
        _wait_for_one(pending)
    reported = _report(root)
    failed = [
        cell
        for cell in cells
        if cell.fingerprint not in earlier
        and outcomes[cell.fingerprint].state is not State.finished
    ]
    _say(
        f"{len(cells) - len(failed)} of {len(cells)} cells are finished ({len(earlier)} of them "
        f"were before); planned in {manifest}"
    )
    for cell in failed:
        _say(f"error: cell {cell.name} failed: {outcomes[cell.fingerprint].error}")
    if failed:
        _say(
            f"error: {len(failed)} of {len(cells)} cells failed. The same command tries them "
            "again, and leaves alone what is finished."
        )
    return 0 if reported and not failed else 1


def _plan(jobs: Sequence[Job[TrainConfig]]) -> list[Cell]:
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    roots = sorted({job.config.runs for job in jobs})
    if len(roots) > 1:
        raise SweepError(f"runs={','.join(roots)}: all cells of a sweep go into one folder.")
    cells: dict[str, Cell] = {}
    for job in jobs:
        if job.config.ckpt not in (None, "auto"):
            raise SweepError(
                f"ckpt={job.config.ckpt} does not go with -m: every cell of a sweep is resumed "
                "where it was interrupted, by itself. Leave ckpt out."
            )
        config = with_absolute_places(job.config)
        name = " ".join(word for word in job.overrides if word not in common) or "of the defaults"
        cell = Cell(job, config, fingerprint(config), name)
        cells.setdefault(cell.fingerprint, cell)
    if len(cells) < len(jobs):
        _log.info("%d combinations make %d different cells", len(jobs), len(cells))
    return list(cells.values())


def _write_manifest(root: Path, cells: Sequence[Cell]) -> Path:
    """Says what is planned, so that a report knows what is missing."""
    identity = hashlib.sha256("".join(sorted(cell.fingerprint for cell in cells)).encode())
    experiment = cells[0].config.experiment
    path = root / "sweeps" / f"{experiment or 'sweep'}-{identity.hexdigest()[:8]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    planned = [
        {
            "fingerprint": cell.fingerprint,
            "dataset": cell.config.dataset.name,
            "backbone": cell.config.backbone.name,
            "adapter": cell.config.adapter.name,
            "ablation": cell.config.ablation.name,
            "train_fraction": cell.config.dataset.train_fraction,
            "seed": cell.config.seed,
            "overrides": cell.job.overrides,
        }
        for cell in cells
    ]
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    write_json(path, {"command": command, "experiment": experiment, "cells": planned})
    return path


def _launch(cells: Sequence[Cell], start: Start[TrainConfig]) -> dict[str, Outcome]:
    """Hands cells to the launcher; what became of each, as the launcher or the disk tells it."""
    returned: Sequence[JobReturn] = []
    lost = "the launcher returned nothing of it"
    try:
        returned = start(run_cell, [cell.job for cell in cells])
    except Exception as error:
        # One job that a cluster has lost must not take the results of the others along.
        lost = f"the launcher failed ({type(error).__name__}: {error})"
        _log.warning("%s; what its cells have done is read from their folders", lost)
    told = [_told(result) for result in returned] or [None] * len(cells)
    return {
        cell.fingerprint: outcome or _found(cell.config, lost)
        for cell, outcome in zip(cells, told, strict=True)
    }


def _told(result: JobReturn) -> Outcome | None:
    if result.status is JobStatus.COMPLETED and isinstance(result.return_value, Outcome):
        return result.return_value
    error = result._return_value
    return Outcome(State.failed, f"{type(error).__name__}: {error}")


def _found(config: TrainConfig, otherwise: str) -> Outcome:
    """What the folder of a cell says that became of it."""
    runs = runs_of(config)
    if runs and runs[0].finished:
        return Outcome(State.finished)
    if is_held(config):
        return Outcome(State.held)
    return Outcome(State.failed, (_written_error(runs[0]) if runs else None) or otherwise)


def _wait_for_one(cells: Sequence[Cell]) -> None:
    """Waits until one of some cells is not held any more."""
    if not cells:
        return
    _log.info(
        "waiting for %d cells that another process trains: %s",
        len(cells),
        "; ".join(cell.name for cell in cells),
    )
    while all(is_held(cell.config) for cell in cells):
        time.sleep(_POLL)


def _report(root: Path) -> bool:
    """Writes the report of all runs, and says where; whether that went well."""
    from msea_lightning.reporting import write_report

    try:
        report = write_report(root)
    except UserError as error:
        _say(f"error: the report was not written: {error}")
        return False
    _say(f"report: {report.page}")
    return True


def run_cell(config: DictConfig) -> Outcome:
    """Trains one cell in a process of its own, unless it is finished; what launchers call.

    Args:
        config: The composed options.

    Returns:
        What became of it.
    """
    typed = with_absolute_places(to_typed(config, TrainConfig))
    runs = runs_of(typed)
    if runs and runs[0].finished:
        return Outcome(State.finished)
    if is_held(typed):
        return Outcome(State.held)
    hydra = HydraConfig.get()
    words = [word for word in hydra.overrides.task if not word.startswith("ckpt=")]
    searched = [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
    prefix = f"{hydra.job.num + 1:>3} | "
    _say(f"{prefix}train {' '.join(words)}")
    command = [sys.executable, "-m", "msea_lightning.train", *words, *searched, "ckpt=auto"]
    before = _written(runs)
    on_cpu = typed.trainer.accelerator is Accelerator.cpu
    gpu: AbstractContextManager[dict[str, str]] = nullcontext({}) if on_cpu else gpu_of_its_own()
    with gpu as environment:
        ended = supervise(command, prefix=prefix, environment=environment)
    return _outcome(typed, ended, before)


def _outcome(config: TrainConfig, ended: Ended, before: tuple[Path, int] | None) -> Outcome:
    if ended.returncode == _INTERRUPTED or ended.signal == "SIGINT":
        return Outcome(State.interrupted)
    runs = runs_of(config)
    if runs and not runs[0].finished and not is_held(config):
        written = _written(runs)
        if written is None or written == before:
            # It was ended before it could say a word.
            write_json(runs[0].error, _describe(ended))
    return _found(config, _describe(ended)["error"])


def _written(runs: Sequence[RunFolder]) -> tuple[Path, int] | None:
    """The error that a run has written, and when; None without one."""
    if not runs or not runs[0].error.exists():
        return None
    return runs[0].error, runs[0].error.stat().st_mtime_ns


def _describe(ended: Ended) -> dict[str, str]:
    """What ``error.json`` says of a cell that has not written it itself."""
    if ended.signal == "SIGKILL":
        return {
            "kind": "killed",
            "error": "the process was killed (SIGKILL), as the system does when memory runs out. "
            "Make training.batch_size smaller, or run fewer cells at a time "
            "(hydra.launcher.n_jobs).",
        }
    how = f"by {ended.signal}" if ended.signal else f"with exit code {ended.returncode}"
    return {
        "kind": "crashed",
        "error": f"the process was ended {how}. Its last lines:\n{ended.tail.strip()}",
    }


def _written_error(run: RunFolder) -> str | None:
    try:
        return str(json.loads(run.error.read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
