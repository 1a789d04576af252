"""What a data set's results are of: its size and labels, when, by which command and commit."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from pathlib import PurePath

from msea_lightning.data.classes import confusion_classes
from msea_lightning.metrics.options import MetricKind
from msea_lightning.reporting.folders import Folder, Run
from msea_lightning.reporting.variants import Part

_COMMIT = 10  # characters of a commit that tell it apart


def facts(part: Part) -> list[tuple[str, str]]:
    """What there is to know of the data set and its runs, each with its name."""
    runs = [run for one in part.finished for run in one.runs]
    models = list(dict.fromkeys(one.names.model for one in part.configurations))
    found = [("model" if len(models) == 1 else "models", ", ".join(models))]
    sizes = _sizes(runs)
    if sizes:
        text = ", ".join(f"{count} {split}" for split, count in sizes.items())
        found.append(("utterances", text))
    seeds = {run.config.seed for run in runs}
    found.append(("finished runs", f"{len(runs)}, seeds: {len(seeds)}" if runs else "0"))
    if dates := sorted(run.finished_at for run in runs if run.finished_at is not None):
        days = [time.strftime("%Y-%m-%d", time.localtime(date)) for date in dates]
        found.append(("finished", " to ".join(dict.fromkeys((days[0], days[-1])))))
    if commits := dict.fromkeys(run.commit for run in runs if run.commit):
        found.append(("commit", ", ".join(map(_commit, commits))))
    return found


def _sizes(runs: list[Run]) -> dict[str, str]:
    """Split to its number of utterances; the least and the most where runs differ."""
    found: dict[str, list[int]] = {}
    for run in runs:
        counts = run.utterances
        if not counts and run.predictions is not None:
            counts = {"test": len(run.predictions.ids)}
        for split, count in counts.items():
            found.setdefault(split, []).append(count)
    return {
        split: " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
        for split, counts in found.items()
    }


def _commit(text: str) -> str:
    name, _, dirty = text.partition("-dirty")
    return name[:_COMMIT] + (" with changes" if text.endswith("-dirty") else dirty)


def commands(part: Part, folder: Folder) -> list[str]:
    """What was typed: the commands of sweeps, and of runs that are in none."""
    ours = [run for one in part.configurations for run in (*one.runs, *one.missing)]
    prints = {run.fingerprint for run in ours}
    sweeps = [sweep for sweep in folder.sweeps if sweep.fingerprints & prints]
    planned = {name for sweep in sweeps for name in sweep.fingerprints}
    alone = [run.command for run in ours if run.fingerprint not in planned]
    typed = [_typed(command) for command in (*(sweep.command for sweep in sweeps), *alone)]
    return list(dict.fromkeys(filter(None, typed)))


def _typed(command: tuple[str, ...]) -> str:
    if not command:
        return ""
    program, *words = command
    path = PurePath(program)
    if path.suffix == ".py":
        module = "msea_lightning" + ("" if path.stem == "__main__" else f".{path.stem}")
        return f"python -m {module} {shlex.join(words)}".rstrip()
    return shlex.join([path.name, *words])


def labels(part: Part) -> dict[str, dict[str, int]]:
    """Split to label to its number of utterances, of a run of all training data.

    Runs of before say nothing of it: then it is what their test predictions have as truth.
    """
    ordered = sorted(part.finished, key=lambda one: -one.names.train_fraction)
    runs = [run for one in ordered for run in one.runs]
    for run in runs:
        if run.labels:
            return run.labels
    for run in runs:
        if run.predictions is not None and part.kind is not None:
            truth = run.predictions.labels
            if part.kind is MetricKind.emotion:
                counts = Counter(truth)
                return {"test": {name: counts[name] for name in part.in_order(counts)}}
            names, numbers = confusion_classes(part.kind, part.classes, truth)
            by_class = Counter(numbers.tolist())
            return {"test": {name: by_class[place] for place, name in enumerate(names)}}
    return {}
