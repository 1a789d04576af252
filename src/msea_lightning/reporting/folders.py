"""Reading run folders and plans of sweeps, whatever state they are in.

Nothing here judges or averages. What a file of a run cannot give becomes a line in
:attr:`Run.problems`, so that one broken run is shown as such and hides none of the others.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig
from msea_lightning.metrics import (
    METRIC_NAMES,
    METRICS,
    ZERO_SHARE,
    MetricInfo,
    score,
    selection_metric,
    zero_share,
)
from msea_lightning.metrics.options import MetricKind
from msea_lightning.reporting.searches import FILE, Search, read_search
from msea_lightning.runs.folder import PREDICTION_COLUMNS, Names, RunFolder, find_runs, parse_config
from msea_lightning.runs.identity import fingerprint

_TOLERANCE = 1e-9
"""Largest difference of a metric from its recomputation that is rounding: both are sums in float64
of the same numbers, each at most a few thousand units of the last place apart."""

_BROKEN = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, RecursionError, csv.Error),
)
_UNREADABLE = (*_BROKEN, UserError, OmegaConfBaseException, YAMLError)
"""What reading raises where a file is broken, and where options are."""

_SEED_LINE = re.compile(r"^seed: (\d+)\n", re.MULTILINE)


class ReportError(UserError):
    """A folder without runs, or a place where the report cannot be written."""


def metric_info(name: str) -> MetricInfo:
    """How a metric of ``metrics.json`` is named and written."""
    return ZERO_SHARE if name == ZERO_SHARE.name else METRICS[name]


class Predictions(NamedTuple):
    """``predictions.csv`` of a run: N utterances of the test part, in the run's order.

    Labels and answers are intensities, or names of emotions; the (N,) probabilities of the answers
    are those among all legal ones, 0..1.
    """

    ids: list[str]
    texts: list[str]
    labels: list[Any]
    answers: list[Any]
    probabilities: NDArray[np.float64]


class Reference(NamedTuple):
    """What needs no adapter, such as one answer to everything; metrics as in ``metrics.json``."""

    name: str
    test: dict[str, float]


class Size(NamedTuple):
    """Trainable parameters, and memory in bytes; None for what is not known."""

    trainable: int | None
    estimated: int | None
    measured: int | None = None


@dataclass
class Run:
    """One run folder, or a run that a sweep was to make; what is unknown is None or empty.

    Attributes:
        name: The folder, relative to the folder of all runs; empty where there is none yet.
        config: Its options.
        finished_at: When ``metrics.json`` was written, in seconds since the epoch; None for a run
            that is not finished or whose ``metrics.json`` is broken.
        test: Metrics of the test part, recomputed from ``predictions.csv`` where that can be read;
            NaN for what is undefined.
        kind: Definition of the metrics.
        size: What ``size_only`` measured, or ``memory.json``.
        predictions: Answers on the test part.
        history: ``epoch``, its ``seconds``, ``train/loss``, and ``valid``, the metric that chooses
            an epoch, in the unit of the tables, (E,) each; NaN for empty fields.
        error: Why a run is not finished, where it says so.
        warnings: What ``metrics.json`` says of results that are worth little, in sentences.
        verdict: What it says of how good they are, in sentences.
        references: What they are to be compared with.
        utterances: Split to its number of utterances.
        labels: Split to label (of intensities a class) to its number of utterances.
        command: What was typed, the program first.
        commit: The commit that ran.
        problems: Files of a finished run that are missing or broken, in words.
        discrepancies: Metrics that ``metrics.json`` states wrongly, in words.
    """

    name: str
    config: TrainConfig
    finished_at: float | None = None
    test: dict[str, float] = field(default_factory=dict)
    kind: MetricKind | None = None
    size: Size | None = None
    predictions: Predictions | None = None
    history: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    verdict: list[str] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    utterances: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    commit: str | None = None
    problems: list[str] = field(default_factory=list)
    discrepancies: list[str] = field(default_factory=list)

    @cached_property
    def fingerprint(self) -> str:
        """What makes the run what it is, its seed included."""
        return fingerprint(self.config)

    @property
    def names(self) -> Names:
        """What it is called by."""
        return Names.of(self.config)

    @property
    def finished(self) -> bool:
        """Whether the run has ended well and its results can be read."""
        return self.finished_at is not None

    @property
    def missing(self) -> tuple[str, str]:
        """The state of a run that is not finished, and what is known of it."""
        if not self.name:
            return ("planned", "not begun") if self.error is None else ("refused", self.error)
        if self.error is None:
            return "begun", "no metrics.json, and no error"
        return "failed", self.error

    @property
    def epoch_seconds(self) -> float | None:
        """Mean seconds of its epochs; None where its history does not say."""
        seconds = self.history.get("seconds", np.array([]))
        known = seconds[np.isfinite(seconds)]
        return float(known.mean()) if len(known) else None


class Sweep(NamedTuple):
    """The command of a sweep, the program first, and the fingerprints of the runs that it plans."""

    command: tuple[str, ...]
    fingerprints: frozenset[str]


class Folder(NamedTuple):
    """All runs beneath a folder, planned ones too; what is ``unreadable`` has its reason.

    A search is among the sweeps as well.
    """

    runs: list[Run]
    unreadable: dict[str, str]
    sweeps: list[Sweep]
    searches: list[Search]


def read_folder(root: Path) -> Folder:
    """Reads all run folders (what holds a ``config.yaml``), plans of sweeps, and searches."""
    folders = list(find_runs(root))
    plans = sorted((root / "sweeps").glob("[!.]*.json"))
    searches = sorted((root / "searches").glob(f"[!.]*/{FILE}"))
    if not (folders or plans or searches):
        flaw = "no run folder (a folder with config.yaml) is in it"
        raise ReportError(
            f"runs={root}: {flaw if root.is_dir() else 'there is no such folder'}. Give the "
            "folder in which training put its run folders, such as runs; training prints where "
            "that is."
        )
    found = Folder([], {}, [], [])
    for folder in folders:
        name = folder.path.relative_to(root).as_posix()
        try:
            config = _read_config(folder.config.read_text(encoding="utf-8"))
            found.runs.append(_read_run(folder, name, config))
        except _UNREADABLE as error:
            found.unreadable[name] = f"config.yaml: {error}"
    for path in plans:
        try:
            plan = _read_json(path)
            planned = [
                Run("", _read_config(run["config"]), error=run.get("error")) for run in plan["runs"]
            ]
            command = tuple(map(str, plan.get("command") or ()))
            found.sweeps.append(Sweep(command, frozenset(run.fingerprint for run in planned)))
            found.runs.extend(planned)
        except _UNREADABLE as error:
            found.unreadable[path.relative_to(root).as_posix()] = (
                f"the plan of this sweep cannot be read ({error!r}). Delete it; started again, the "
                "sweep writes a new one"
            )
    for path in searches:
        try:
            search = read_search(path)
        except _UNREADABLE as error:
            found.unreadable[path.relative_to(root).as_posix()] = (
                f"this search cannot be read ({error!r}). Started again, it writes the file anew"
            )
            continue
        found.searches.append(search)
        prints = frozenset(trial.fingerprint for trial in search.trials if trial.fingerprint)
        found.sweeps.append(Sweep(search.command, prints))
    return found


_parse = cache(parse_config)
"""Checking options takes some 50 ms: it is done once for all that differ in the seed alone."""


def _read_config(text: str) -> TrainConfig:
    seed = _SEED_LINE.search(text)
    if seed is None:
        return parse_config(text)
    return replace(_parse(_SEED_LINE.sub("seed: 0\n", text)), seed=int(seed[1]))


def _read_run(folder: RunFolder, name: str, config: TrainConfig) -> Run:
    run = Run(name, config)
    reasons: list[str] = []
    if not folder.metrics.exists():
        if folder.error.exists():
            with _noted(folder.error, reasons):
                reasons.append("{kind}: {error}".format(**_read_json(folder.error)))
            run.error = reasons[0]
        return run
    with _noted(folder.metrics, reasons):
        results = _read_json(folder.metrics)
        if config.size_only:
            size = _size(results["size"], "memory_bytes")
            if size.trainable is None:
                raise KeyError("trainable_parameters")
            run.size = size
        else:
            run.kind, run.test = _test_metrics(results["test"])
            run.warnings = _sentences(results, "warnings")
    if reasons:
        run.error = reasons[0]
        return run
    run.finished_at = folder.metrics.stat().st_mtime
    if run.kind is None:
        return run
    with _noted(folder.metrics, run.problems):
        _read_comparison(run, results)
    if (environment := folder.path / "env.json").exists():
        with _noted(environment, run.problems):
            facts = _read_json(environment)
            run.command = tuple(map(str, facts.get("command") or ()))
            run.commit = None if facts.get("commit") is None else str(facts["commit"])
    with _noted(folder.history, run.problems):
        run.history = _read_history(folder.history, run.kind)
    with _noted(folder.memory, run.problems):
        run.size = _size(_read_json(folder.memory), "total")
    with _noted(folder.predictions, run.problems):
        run.predictions = _read_predictions(folder.predictions, run.kind)
        _recompute(run, run.kind, run.predictions)
    return run


def _read_comparison(run: Run, results: dict[str, Any]) -> None:
    """What a run says of its data, and beside its results; runs of before say nothing."""
    run.verdict = _sentences(results, "verdict")
    for one in results.get("references") or []:
        test = {str(name): _number(value) for name, value in one["test"].items()}
        run.references.append(Reference(str(one["name"]), test))
    data = results.get("data") or {}
    run.utterances = {str(split): int(n) for split, n in data.get("utterances", {}).items()}
    run.labels = {
        str(split): {str(label): int(n) for label, n in counts.items()}
        for split, counts in data.get("labels", {}).items()
    }


def _sentences(results: dict[str, Any], name: str) -> list[str]:
    """A list of sentences; none where there is no such key."""
    found = results.get(name) or []
    if not isinstance(found, list):
        raise TypeError(f"{name} is no list but {found!r}")
    return [str(text) for text in found]


@contextmanager
def _noted(path: Path, problems: list[str]) -> Iterator[None]:
    """Adds a line to the problems where a file is missing or broken."""
    try:
        yield
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except KeyError as error:
        problems.append(f"{path.name} is broken: it has no {error}")
    except _BROKEN as error:
        problems.append(f"{path.name} is broken: {error}")


def _recompute(run: Run, kind: MetricKind, predictions: Predictions) -> None:
    """Takes the metrics from the predictions, and notes those that were stated otherwise."""
    recomputed = score(kind, predictions.answers, predictions.labels)
    if ZERO_SHARE.name in run.test:
        recomputed[ZERO_SHARE.name] = zero_share(predictions.answers)
    run.discrepancies = [
        f"metrics.json states {metric} {run.test[metric]!r}, but predictions.csv gives {value!r}; "
        "the latter is used"
        for metric, value in recomputed.items()
        if not np.isclose(run.test[metric], value, rtol=0, atol=_TOLERANCE, equal_nan=True)
    ]
    run.test = recomputed


def _read_json(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise TypeError("it is no mapping")
    return values


def _test_metrics(test: dict[str, Any]) -> tuple[MetricKind, dict[str, float]]:
    """The metrics of the largest set that is there whole; undefined ones are null in the file."""
    fitting = [kind for kind, names in METRIC_NAMES.items() if set(names) <= set(test)]
    if not fitting:
        raise ValueError(f"its test metrics ({', '.join(test)}) are no known set")
    kind = max(fitting, key=lambda kind: len(METRIC_NAMES[kind]))
    names = [name for name in (*METRIC_NAMES[kind], ZERO_SHARE.name) if name in test]
    return kind, {name: _number(test[name]) for name in names}


def _number(value: Any) -> float:
    """A metric, which is null where it is undefined."""
    return math.nan if value is None else float(value)


def _size(values: dict[str, Any], estimated: str) -> Size:
    names = ("trainable_parameters", estimated, "measured_peak")
    return Size(*(None if values.get(name) is None else int(values[name]) for name in names))


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file that has at least one."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"record {number} has more or fewer fields than the header")
    if not rows:
        raise ValueError("it holds nothing below its header")
    return rows


def _numbers(texts: Iterable[str]) -> NDArray[np.float64]:
    return np.array([float(text or math.nan) for text in texts])


def _read_predictions(path: Path, kind: MetricKind) -> Predictions:
    rows = _read_rows(path)
    columns = ([row[name] for row in rows] for name in PREDICTION_COLUMNS)
    ids, texts, labels, answers, probabilities = columns
    if kind is MetricKind.emotion:
        return Predictions(ids, texts, labels, answers, _numbers(probabilities))
    # Plus zero: there is one zero, not a negative one besides.
    true, given = ((_numbers(values) + 0.0).tolist() for values in (labels, answers))
    return Predictions(ids, texts, true, given, _numbers(probabilities))


def _read_history(path: Path, kind: MetricKind) -> dict[str, NDArray[np.float64]]:
    rows = _read_rows(path)
    columns = ("epoch", "seconds", "train/loss")
    history = {name: _numbers(row[name] for row in rows) for name in columns}
    info = selection_metric(kind)
    # Runs of before have the name of metrics.json, and shares from 0 to 1.
    if f"valid/{info.title}" in rows[0]:
        return history | {"valid": _numbers(row[f"valid/{info.title}"] for row in rows)}
    unit = 100 if info.percent else 1
    return history | {"valid": unit * _numbers(row[f"valid/{info.name}"] for row in rows)}
