"""What a sweep is to train, and its manifest."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msea_lightning.commands.jobs import Job
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig
from msea_lightning.runs.files import write_json
from msea_lightning.runs.folder import config_text
from msea_lightning.runs.identity import fingerprint, settled

_log = logging.getLogger(__name__)


class SweepError(UserError):
    """A sweep that cannot be run as it was asked for."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        config: The options with absolute places.
        fingerprint: Hash of the options.
        name: The overrides in which it differs from the other runs.
    """

    job: Job[TrainConfig]
    config: TrainConfig
    fingerprint: str
    name: str


def plan(jobs: Sequence[Job[TrainConfig]]) -> list[PlannedRun]:
    """The runs that jobs ask for; jobs with the same options are one run."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    roots = sorted({job.config.runs for job in jobs})
    if len(roots) > 1:
        raise SweepError(f"runs={','.join(roots)}: all runs of a sweep go into one folder.")
    runs: dict[str, PlannedRun] = {}
    for job in jobs:
        if job.config.ckpt not in (None, "auto"):
            raise SweepError(
                f"ckpt={job.config.ckpt} does not go with -m: every run of a sweep is resumed "
                "where it was interrupted, by itself. Leave ckpt out."
            )
        if job.config.trainer.fast_dev_run:
            raise SweepError("trainer.fast_dev_run=true tries one run: leave -m out.")
        config = settled(job.config)
        name = " ".join(word for word in job.overrides if word not in common) or "of the defaults"
        run = PlannedRun(job, config, fingerprint(config), name)
        runs.setdefault(run.fingerprint, run)
    if len(runs) < len(jobs):
        _log.info("%d combinations make %d different runs", len(jobs), len(runs))
    return list(runs.values())


def write_manifest(
    root: Path, runs: Sequence[PlannedRun], errors: Mapping[str, str] | None = None
) -> Path:
    """Writes down what is planned, so that a report knows what is missing, and why; the file.

    ``errors`` are those of runs that failed, by fingerprint.
    """
    identity = hashlib.sha256("".join(sorted(run.fingerprint for run in runs)).encode())
    experiment = runs[0].config.experiment
    path = root / "sweeps" / f"{experiment or 'sweep'}-{identity.hexdigest()[:8]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    planned = []
    for run in runs:
        entry = {"overrides": run.job.overrides, "config": config_text(run.config)}
        if errors and run.fingerprint in errors:
            entry["error"] = errors[run.fingerprint]
        planned.append(entry)
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    manifest = {"version": 3, "command": command, "experiment": experiment, "runs": planned}
    write_json(path, manifest)
    return path
