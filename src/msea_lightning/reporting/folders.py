"""Reading run folders and plans of sweeps, whatever state they are in.

Nothing here judges or averages. What a file of a run cannot give becomes a line in
:attr:`Run.problems`, so that one broken run is shown as such and hides none of the others.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig
from msea_lightning.metrics import (
    METRIC_NAMES,
    METRICS,
    MetricInfo,
    score,
    selection_metric,
    zero_share,
)
from msea_lightning.metrics.options import MetricKind
from msea_lightning.model.options import AdaptedLMOptions
from msea_lightning.paper import FULL, model_title
from msea_lightning.runs.folder import RunFolder, find_runs, parse_config
from msea_lightning.runs.identity import fingerprint

Content = TypeVar("Content")

ZERO_SHARE = MetricInfo(
    "zero_share", "Exact zeros", False, True, "share of predicted intensities that are exactly 0"
)
"""What ``metrics.json`` holds besides the metrics, for intensities; no direction is better."""

_TOLERANCE = 1e-9
"""Largest difference of a metric from its recomputation that is rounding: both are sums in float64
of the same numbers, each at most a few thousand units of the last place apart."""

_SEED_LINE = re.compile(r"^seed: (\d+)\n", re.MULTILINE)


class ReportError(UserError):
    """A folder without runs, or a place where the report cannot be written."""


class _BrokenFileError(Exception):
    """A file of a run that is there but cannot be read; the text says why."""


def metric_info(name: str) -> MetricInfo:
    """How a metric of ``metrics.json`` is named and written."""
    return ZERO_SHARE if name == ZERO_SHARE.name else METRICS[name]


class Names(NamedTuple):
    """What a run is called by, besides its seed; ``train_fraction`` is 0..1.

    A model without an adapter has its own name in place of the adapter's, and no backbone.
    """

    dataset: str
    adapter: str
    backbone: str
    ablation: str = FULL
    train_fraction: float = 1.0

    @classmethod
    def of(cls, config: TrainConfig) -> Names:
        """The names of a run."""
        adapter, backbone = config.adapter.name, config.backbone.name
        if not isinstance(config.model, AdaptedLMOptions):
            adapter, backbone = config.model.name, ""
        dataset, ablation = config.dataset, config.ablation.name
        return cls(dataset.name, adapter, backbone, ablation, dataset.train_fraction)

    @property
    def slug(self) -> str:
        """Adapter and backbone as run folders and W&B have them, such as ``mse-qwen``."""
        return "-".join(filter(None, (self.adapter, self.backbone)))

    @property
    def model(self) -> str:
        """Title of adapter and backbone, as in the paper's tables."""
        return model_title(self.adapter, self.backbone)


class Predictions(NamedTuple):
    """``predictions.csv`` of a run: N utterances of the test part, in the run's order.

    Attributes:
        ids: N utterance ids.
        texts: N texts.
        labels: N true intensities, or names of emotions.
        answers: N predicted ones, of the same kind.
        probabilities: (N,) probability of each answer among all legal ones, 0..1.
    """

    ids: list[str]
    texts: list[str]
    labels: list[Any]
    answers: list[Any]
    probabilities: NDArray[np.float64]


class Size(NamedTuple):
    """Trainable parameters, and memory in bytes; None for what is not known."""

    trainable: int | None
    estimated: int | None
    measured: int | None = None


@dataclass
class Run:
    """One run folder, or a run that a sweep was to make.

    Attributes:
        name: The folder, relative to the folder of all runs; empty where there is none yet.
        config: Its options.
        finished_at: When ``metrics.json`` was written, in seconds since the epoch; None for a run
            that is not finished or whose ``metrics.json`` is broken.
        test: Metrics of the test part, recomputed from ``predictions.csv`` where that can be read;
            NaN for what is undefined. Empty in an unfinished run.
        kind: Definition of the metrics; None in an unfinished run.
        size: Size of a finished run: what ``size_only`` measured, or ``memory.json``.
        predictions: Answers on the test part, of a finished run.
        history: Column to its (E,) values, one an epoch, of a finished run: epoch, seconds, loss,
            and the metric that chooses the epoch; NaN for empty fields.
        error: Why a run is not finished, where it says so.
        warnings: What ``metrics.json`` says of results that are worth little, in sentences.
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
    def missing(self) -> str:
        """Why there is no result of an unfinished run."""
        if not self.name:
            return "planned, not begun"
        return self.error or "not finished (no metrics.json), and it left no error"

    @property
    def epoch_seconds(self) -> float | None:
        """Mean seconds of its epochs; None where its history does not say."""
        seconds = self.history.get("seconds", np.array([]))
        known = seconds[np.isfinite(seconds)]
        return float(known.mean()) if len(known) else None


class Folder(NamedTuple):
    """All runs beneath a folder, also those that are only planned.

    What cannot be read is in ``unreadable``: its path to the reason.
    """

    runs: list[Run]
    unreadable: dict[str, str]


def read_folder(root: Path) -> Folder:
    """Reads all run folders and plans of sweeps beneath a folder.

    A run folder is what holds a ``config.yaml``, however it is called; folders inside of it are its
    own. Links to folders are not followed.

    Args:
        root: The folder.

    Raises:
        ReportError: if there is no such folder, or no run folder in it.
    """
    if not root.is_dir():
        raise ReportError(
            f"runs={root}: there is no such folder. Give the folder in which training put its run "
            "folders; training prints where that is."
        )
    folders = list(find_runs(root))
    plans = sorted((root / "sweeps").glob("[!.]*.json"))
    if not folders and not plans:
        raise ReportError(
            f"runs={root}: no run folder (a folder with config.yaml) is in it. Give the folder in "
            "which training put its run folders, such as runs."
        )
    read_config = _config_reader()
    found = Folder([], {})
    for folder in folders:
        name = folder.path.relative_to(root).as_posix()
        try:
            config = read_config(folder.config.read_text(encoding="utf-8"))
            found.runs.append(_read_run(folder, name, config))
        except (UserError, OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
            found.unreadable[name] = f"config.yaml: {error}"
    for path in plans:
        try:
            cells = _read_json(path)["cells"]
            found.runs.extend(Run("", read_config(cell["config"])) for cell in cells)
        except (_BrokenFileError, UserError, LookupError, TypeError) as error:
            found.unreadable[path.relative_to(root).as_posix()] = (
                f"the plan of this sweep cannot be read ({error}); the same sweep writes it anew"
            )
    return found


def _config_reader() -> Callable[[str], TrainConfig]:
    """Reads the text of a ``config.yaml``, once for all that differ in the line of the seed alone.

    Checking the options takes some 50 ms, which is 10 s for 200 runs.
    """
    parse = cache(parse_config)

    def read(text: str) -> TrainConfig:
        seed = _SEED_LINE.search(text)
        if seed is None:
            return parse(text)
        return replace(parse(_SEED_LINE.sub("seed: 0\n", text)), seed=int(seed[1]))

    return read


def _read_run(folder: RunFolder, name: str, config: TrainConfig) -> Run:
    run = Run(name, config)
    if not folder.metrics.exists():
        run.error = _read_error(folder.error)
        return run
    try:
        results = _read_json(folder.metrics)
        if config.size_only:
            run.size = _size(_section(results, "size"), "metrics.json", "memory_bytes")
            if run.size.trainable is None:
                raise _BrokenFileError("metrics.json is broken: size has no trainable_parameters")
        else:
            run.kind, run.test = _test_metrics(_section(results, "test"))
    except _BrokenFileError as error:
        run.error = str(error)
        return run
    run.finished_at = folder.metrics.stat().st_mtime
    if run.kind is None:
        return run
    kind = run.kind
    run.warnings = [str(text) for text in results.get("warnings") or ()]
    run.predictions = _noted(run, lambda: _read_predictions(folder.predictions, kind))
    run.history = _noted(run, lambda: _read_history(folder.history, kind)) or {}
    run.size = _noted(run, lambda: _size(_read_json(folder.memory), "memory.json", "total"))
    if run.predictions is not None:
        _recompute(run, kind, run.predictions)
    return run


def _noted(run: Run, read: Callable[[], Content]) -> Content | None:
    """What a file gives; None, and a line among the run's problems, where it is broken."""
    try:
        return read()
    except _BrokenFileError as error:
        run.problems.append(str(error))
        return None


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
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _BrokenFileError(f"{path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise _BrokenFileError(f"{path.name} is broken: {error}") from error
    if not isinstance(values, dict):
        raise _BrokenFileError(f"{path.name} is broken: it is no mapping")
    return values


def _section(values: dict[str, Any], key: str) -> dict[str, Any]:
    section = values.get(key)
    if not isinstance(section, dict):
        raise _BrokenFileError(f"metrics.json is broken: it has no section '{key}'")
    return section


def _number(values: dict[str, Any], key: str, where: str) -> float | None:
    value = values.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise _BrokenFileError(f"{where} is broken: {key} is {value!r}")
    return value


def _test_metrics(test: dict[str, Any]) -> tuple[MetricKind, dict[str, float]]:
    fitting = [kind for kind, names in METRIC_NAMES.items() if set(names) <= set(test)]
    if not fitting:
        raise _BrokenFileError(
            f"metrics.json is broken: its test metrics ({', '.join(test)}) are no known set"
        )
    kind = max(fitting, key=lambda kind: len(METRIC_NAMES[kind]))
    values = {}
    for name in (*METRIC_NAMES[kind], ZERO_SHARE.name):
        if name in test:
            value = _number(test, name, "metrics.json")
            values[name] = math.nan if value is None else float(value)
    return kind, values


def _size(values: dict[str, Any], where: str, estimated: str) -> Size:
    names = ("trainable_parameters", estimated, "measured_peak")
    numbers = [_number(values, name, where) for name in names]
    return Size(*(None if number is None else int(number) for number in numbers))


def _read_columns(path: Path, columns: tuple[str, ...]) -> dict[str, list[str]]:
    """These columns of a CSV file that has at least one row."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        raise _BrokenFileError(f"{path.name} is missing") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _BrokenFileError(f"{path.name} is broken: {error}") from error
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise _BrokenFileError(
                f"{path.name} is broken: record {number} has more or fewer fields than the header"
            )
    if not rows:
        raise _BrokenFileError(f"{path.name} is broken: it holds nothing below its header")
    missing = [name for name in columns if name not in rows[0]]
    if missing:
        raise _BrokenFileError(f"{path.name} is broken: it has no column {', '.join(missing)}")
    return {name: [row[name] for row in rows] for name in columns}


def _numbers(path: Path, texts: list[str]) -> NDArray[np.float64]:
    try:
        return np.array([float(text or math.nan) for text in texts])
    except ValueError as error:
        raise _BrokenFileError(f"{path.name} is broken: {error}") from error


def _read_predictions(path: Path, kind: MetricKind) -> Predictions:
    columns = _read_columns(path, ("id", "text", "label", "prediction", "probability"))
    ids, texts, labels, answers, probabilities = columns.values()
    if kind is not MetricKind.emotion:
        # Plus zero: there is one zero, not a negative one besides.
        labels, answers = ((_numbers(path, part) + 0.0).tolist() for part in (labels, answers))
    return Predictions(ids, texts, labels, answers, _numbers(path, probabilities))


def _read_history(path: Path, kind: MetricKind) -> dict[str, NDArray[np.float64]]:
    columns = ("epoch", "seconds", "train/loss", f"valid/{selection_metric(kind).name}")
    return {name: _numbers(path, texts) for name, texts in _read_columns(path, columns).items()}


def _read_error(path: Path) -> str | None:
    """Why an attempt failed; None where it left no error."""
    if not path.exists():
        return None
    try:
        values = _read_json(path)
    except _BrokenFileError as error:
        return str(error)
    return f"{values.get('kind')}: {values.get('error')}"
