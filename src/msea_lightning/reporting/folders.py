"""Reading run folders and manifests of sweeps, whatever state they are in.

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
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from msea_lightning.config.errors import UserError
from msea_lightning.config.options import check, to_typed
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
from msea_lightning.runs.folder import RunFolder, find_runs
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

_COLUMNS = ("id", "text", "label", "prediction", "probability")


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


@dataclass(frozen=True)
class Predictions:
    """``predictions.csv`` of a run: N utterances of the test part, in the run's order.

    Attributes:
        ids: N utterance ids.
        texts: N texts.
        labels: (N,) true intensities (float64), or N names of emotions.
        answers: Predicted ones, of the same kind.
        probabilities: (N,) probability of each answer among all legal ones, 0..1.
    """

    ids: list[str]
    texts: list[str]
    labels: NDArray[np.float64] | list[str]
    answers: NDArray[np.float64] | list[str]
    probabilities: NDArray[np.float64]


class Size(NamedTuple):
    """Trainable parameters, and memory in bytes; None for what is not known."""

    trainable: int | None
    estimated: int | None
    measured: int | None = None


@dataclass
class Run:
    """One run folder.

    Attributes:
        name: The folder, relative to the folder of all runs.
        config: Its options.
        fingerprint: What makes the run what it is, its seed included.
        finished_at: When ``metrics.json`` was written, in seconds since the epoch; None for a run
            that is not finished or whose ``metrics.json`` is broken.
        test: Metrics of the test part, recomputed from ``predictions.csv`` where that can be read;
            NaN for what is undefined. Empty in an unfinished run.
        kind: Definition of the metrics; None in an unfinished run.
        size: Size of a finished run: what ``size_only`` measured, or ``memory.json``.
        predictions: Answers on the test part, of a finished run.
        history: One row an epoch, of a finished run: epoch, seconds, loss, and the metric that
            chooses the epoch; NaN for empty fields.
        error: Why a run is not finished, where it says so.
        warnings: What ``metrics.json`` says of results that are worth little, in sentences.
        problems: Files of a finished run that are missing or broken, in words.
        discrepancies: Metrics that ``metrics.json`` states wrongly, in words.
    """

    name: str
    config: TrainConfig
    fingerprint: str
    finished_at: float | None = None
    test: dict[str, float] = field(default_factory=dict)
    kind: MetricKind | None = None
    size: Size | None = None
    predictions: Predictions | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    discrepancies: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the run has ended well and its results can be read."""
        return self.finished_at is not None


class Planned(NamedTuple):
    """One run that a sweep was to make.

    ``fingerprint`` is None in a manifest of release 0.1, whose fingerprints are of another kind;
    ``overrides`` are the words of the command line.
    """

    fingerprint: str | None
    names: Names
    seed: int
    overrides: tuple[str, ...]
    experiment: str | None


class Folder(NamedTuple):
    """All that lies beneath a folder of runs; what cannot be read by its path, with the reason."""

    runs: list[Run]
    planned: list[Planned]
    unreadable: dict[str, str]


def read_folder(root: Path) -> Folder:
    """Reads all run folders and manifests beneath a folder.

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
    folders = [run.path for run in find_runs(root)]
    manifests = sorted((root / "sweeps").glob("[!.]*.json"))
    if not folders and not manifests:
        raise ReportError(
            f"runs={root}: no run folder (a folder with config.yaml) is in it. Give the folder in "
            "which training put its run folders, such as runs."
        )
    read_config = _ConfigReader()
    runs, planned, unreadable = [], [], {}
    for path in folders:
        name = path.relative_to(root).as_posix()
        try:
            runs.append(_read_run(path, name, read_config(path)))
        except (UserError, OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
            unreadable[name] = f"config.yaml: {error}"
    for path in manifests:
        try:
            planned += _read_manifest(path)
        except _BrokenFileError as error:
            unreadable[path.relative_to(root).as_posix()] = str(error)
    return Folder(runs, planned, unreadable)


class _ConfigReader:
    """Loads options, once for all runs whose files differ in nothing but the line of the seed.

    Composing and checking a file takes some 50 ms, which is 10 s for 200 runs.
    """

    def __init__(self) -> None:
        self._known: dict[str, TrainConfig] = {}

    def __call__(self, path: Path) -> TrainConfig:
        text = RunFolder(path).config.read_text(encoding="utf-8")
        seeds = _SEED_LINE.findall(text)
        rest = _SEED_LINE.sub("", text)
        if len(seeds) == 1 and rest in self._known:
            config = replace(self._known[rest], seed=int(seeds[0]))
            check(config)
            return config
        loaded = OmegaConf.create(text)
        if not isinstance(loaded, DictConfig) or not loaded:
            raise ReportError("it holds no options")
        config = to_typed(loaded, TrainConfig)
        if len(seeds) == 1:
            self._known[rest] = config
        return config


def _read_run(path: Path, name: str, config: TrainConfig) -> Run:
    folder = RunFolder(path)
    run = Run(name, config, fingerprint(config))
    if not folder.metrics.exists():
        run.error = _read_error(folder.error)
        return run
    try:
        results = _read_json(folder.metrics)
        if config.size_only:
            run.size = _size(_section(results, "size"), "metrics.json")
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
    warnings = results.get("warnings")
    run.warnings = [str(text) for text in warnings] if isinstance(warnings, list) else []
    run.predictions = _noted(run, lambda: _read_predictions(folder.predictions, kind))
    run.history = _noted(run, lambda: _read_history(folder.history, kind)) or []
    run.size = _noted(run, lambda: _size(_read_json(folder.memory), "memory.json"))
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
    for metric, value in recomputed.items():
        stated = run.test[metric]
        both_undefined = math.isnan(stated) and math.isnan(value)
        if not both_undefined and not abs(stated - value) <= _TOLERANCE:
            run.discrepancies.append(
                f"metrics.json states {metric} {stated!r}, but predictions.csv gives {value!r}; "
                "the latter is used"
            )
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
    values = {
        name: math.nan if (value := _number(test, name, "metrics.json")) is None else float(value)
        for name in test
        if name in METRICS or name == ZERO_SHARE.name
    }
    fitting = [kind for kind, names in METRIC_NAMES.items() if set(names) <= set(values)]
    if not fitting:
        raise _BrokenFileError(
            f"metrics.json is broken: its test metrics ({', '.join(test)}) are no known set"
        )
    kind = max(fitting, key=lambda kind: len(METRIC_NAMES[kind]))
    names = [*METRIC_NAMES[kind], ZERO_SHARE.name]
    return kind, {name: values[name] for name in names if name in values}


def _size(values: dict[str, Any], where: str) -> Size:
    """The size in ``memory.json``, or in the section that ``size_only`` writes."""
    estimated = "total" if where == "memory.json" else "memory_bytes"
    names = ("trainable_parameters", estimated, "measured_peak")
    numbers = [_number(values, name, where) for name in names]
    return Size(*(None if number is None else int(number) for number in numbers))


def _rows(path: Path, columns: tuple[str, ...], content: str) -> list[dict[str, str]]:
    """The rows of a CSV file that has some, with at least these columns."""
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
        raise _BrokenFileError(f"{path.name} is broken: it holds no {content}")
    missing = [name for name in columns if name not in rows[0]]
    if missing:
        raise _BrokenFileError(f"{path.name} is broken: it has no column {', '.join(missing)}")
    return rows


def _read_predictions(path: Path, kind: MetricKind) -> Predictions:
    rows = _rows(path, _COLUMNS, "predictions")
    labels: Any = [row["label"] for row in rows]
    answers: Any = [row["prediction"] for row in rows]
    if kind is not MetricKind.emotion:
        # Plus zero: there is one zero, not a negative one besides.
        labels, answers = (_numbers(path.name, values) + 0.0 for values in (labels, answers))
    return Predictions(
        ids=[row["id"] for row in rows],
        texts=[row["text"] for row in rows],
        labels=labels,
        answers=answers,
        probabilities=_numbers(path.name, [row["probability"] for row in rows]),
    )


def _numbers(where: str, texts: list[str]) -> NDArray[np.float64]:
    try:
        return np.array([float(text) if text else math.nan for text in texts])
    except ValueError as error:
        raise _BrokenFileError(f"{where} is broken: {error}") from error


def _read_history(path: Path, kind: MetricKind) -> list[dict[str, float]]:
    columns = ("epoch", "seconds", "train/loss", f"valid/{selection_metric(kind).name}")
    rows = _rows(path, columns, "epochs")
    values = {name: _numbers(path.name, [row[name] for row in rows]).tolist() for name in columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _read_error(path: Path) -> str | None:
    """Why an attempt failed; None where it left no error."""
    try:
        values = _read_json(path)
    except _BrokenFileError as error:
        return str(error) if path.exists() else None
    kind, text = values.get("kind"), values.get("error")
    return ": ".join(str(part) for part in (kind, text) if part) or "error.json says nothing"


def _read_manifest(path: Path) -> list[Planned]:
    manifest = _read_json(path)
    try:
        experiment = manifest["experiment"]
        return [
            Planned(
                fingerprint=str(run["fingerprint"]) if "version" in manifest else None,
                names=Names(
                    dataset=str(run["dataset"]),
                    adapter=str(run["adapter"]),
                    backbone=str(run["backbone"]),
                    ablation=str(run["ablation"]),
                    train_fraction=float(run["train_fraction"]),
                ),
                seed=int(run["seed"]),
                overrides=tuple(str(word) for word in run["overrides"]),
                experiment=None if experiment is None else str(experiment),
            )
            for run in manifest["cells"]
        ]
    except KeyError as error:
        raise _BrokenFileError(f"the manifest is broken: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise _BrokenFileError(f"the manifest is broken: {error}") from error
