"""Run folders: where a run keeps everything that a person wants to look at afterwards.

``runs/<dataset>/<adapter>-<backbone>[-<ablation>]/<time>/seed-<n>/`` holds ``config.yaml``,
``env.json``, ``memory.json``, ``history.csv``, ``metrics.json``, ``predictions.csv``, ``plugin/``,
``checkpoints/`` and ``train.log``. ``metrics.json`` is written last and atomically: a run that has
it is finished.
"""

from __future__ import annotations

import csv
import dataclasses
import enum
import json
import logging
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from msea_lightning.config import TrainConfig, UserError, to_typed

_STARTED = time.strftime("%Y-%m-%d_%H-%M-%S")
"""All runs of one sweep in one process share their time: the seeds lie side by side."""

_FOLDER_VARIABLE = "MSEA_RUN_FOLDER"
"""Tells the other processes of a DDP run which folder the first one has made."""

_NOT_COMPARED = frozenset({"ckpt", "runs", "trainer", "logger"})
"""Options that may differ between a run and its continuation."""

_PACKAGES = (
    "msea_lightning",
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "bitsandbytes",
    "numpy",
    "safetensors",
    "wandb",
)

_log = logging.getLogger(__name__)


class RunError(UserError):
    """A run folder that is not there, not complete, or not of the same run."""


class RunFolder:
    """One run's folder.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """Checkpoint of the last complete epoch."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint of the best validation epoch so far."""
        return self.checkpoints / "best.ckpt"

    @property
    def plugin(self) -> Path:
        """The trained plugin."""
        return self.path / "plugin"

    @property
    def metrics(self) -> Path:
        """Metrics of the best validation epoch; present in a finished run only."""
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        """Predictions on the test split."""
        return self.path / "predictions.csv"

    @property
    def history(self) -> Path:
        """One row an epoch."""
        return self.path / "history.csv"

    @property
    def memory(self) -> Path:
        """Estimated and measured memory, in bytes."""
        return self.path / "memory.json"

    @property
    def finished(self) -> bool:
        """Whether the run has ended well."""
        return self.metrics.exists()

    def load_config(self) -> TrainConfig:
        """The options of the run.

        Raises:
            RunError: if the folder holds no run.
        """
        if not self.config.is_file():
            raise RunError(
                f"{self.path} is not a run folder: config.yaml is missing. Give the folder that "
                "training printed, such as runs/demo/mse-tiny/<time>/seed-1111."
            )
        loaded = OmegaConf.load(self.config)
        assert isinstance(loaded, DictConfig)
        return to_typed(loaded, TrainConfig)


def cell_folder(config: TrainConfig) -> Path:
    """Folder of all runs of a cell: one data set, adapter, backbone and ablation."""
    parts = [config.adapter.name, config.backbone.name]
    if config.ablation.name != "none":
        parts.append(config.ablation.name)
    return Path(config.runs) / config.dataset.name / "-".join(parts)


@contextmanager
def open_run(config: TrainConfig) -> Iterator[RunFolder]:
    """The folder of a run, new or resumed, with ``train.log`` attached to the log.

    In the other processes of a DDP run it is the folder that the first process has made.

    Args:
        config: Options of the run; ``ckpt`` chooses between a new and an earlier folder.

    Raises:
        RunError: if there is nothing to resume, or it was started with other options.
    """
    inherited = os.environ.get(_FOLDER_VARIABLE)
    if inherited is not None:
        yield RunFolder(Path(inherited))
        return
    folder = _new_folder(config) if config.ckpt is None else _earlier_folder(config)
    log_file = logging.FileHandler(folder.path / "train.log", encoding="utf-8")
    log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(log_file)
    ours = logging.getLogger("msea_lightning")
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)
    os.environ[_FOLDER_VARIABLE] = str(folder.path.resolve())
    try:
        yield folder
    except BaseException as error:
        # Into the file only: whoever catches it tells the terminal.
        known = isinstance(error, UserError | KeyboardInterrupt | SystemExit)
        cause = None if known else sys.exc_info()
        text = str(error) or type(error).__name__
        log_file.handle(
            _log.makeRecord(_log.name, logging.ERROR, __file__, 0, "%s", (text,), cause)
        )
        raise
    finally:
        del os.environ[_FOLDER_VARIABLE]
        root.removeHandler(log_file)
        log_file.close()


def _new_folder(config: TrainConfig) -> RunFolder:
    base = cell_folder(config) / _STARTED
    base.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, 10_000):
        # Runs of a sweep that differ in another option than the seed share a name up to here.
        path = base / (f"seed-{config.seed}" + (f"-{attempt}" if attempt > 1 else ""))
        try:
            path.mkdir()
        except FileExistsError:
            continue
        folder = RunFolder(path)
        write_atomically(folder.config, _as_yaml(config))
        write_atomically(path / "env.json", json.dumps(environment(), indent=2) + "\n")
        return folder
    raise RunError(f"{base} holds ten thousand runs of seed {config.seed}: choose another runs=.")


def _earlier_folder(config: TrainConfig) -> RunFolder:
    assert config.ckpt is not None
    if config.ckpt == "last":
        pattern = f"*/seed-{config.seed}*"
        runs = [RunFolder(path) for path in cell_folder(config).glob(pattern)]
        runs = [run for run in runs if run.last.exists() and _same_seed(run, config.seed)]
        if not runs:
            raise RunError(
                f"ckpt=last: no run of this cell and seed {config.seed} in {cell_folder(config)} "
                "has completed an epoch, so there is nothing to resume. Start it without ckpt."
            )
        folder = max(runs, key=lambda run: run.last.stat().st_mtime)
    else:
        folder = RunFolder(Path(config.ckpt))
        if not folder.last.exists():
            raise RunError(
                f"ckpt={config.ckpt}: there is no checkpoints/last.ckpt in that folder. Give the "
                "run folder of an interrupted run, or ckpt=last."
            )
    if folder.finished:
        raise RunError(
            f"{folder.path} is a finished run (it has metrics.json); there is nothing to resume. "
            "Start a new run without ckpt."
        )
    before, now = _flat(folder.load_config()), _flat(config)
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        listed = "; ".join(f"{key} was {before.get(key)}, is now {now[key]}" for key in changed)
        raise RunError(
            f"{folder.path} was started with other options: {listed}. Resume it with the same "
            "options, or start a new run without ckpt."
        )
    return folder


def _same_seed(run: RunFolder, seed: int) -> bool:
    return run.path.name.split("-")[1] == str(seed)


def _flat(config: TrainConfig) -> dict[str, Any]:
    """Options that must not change between a run and its continuation, by dotted key."""
    flat: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if dataclasses.is_dataclass(value):
            for item in dataclasses.fields(value):
                if key or item.name not in _NOT_COMPARED:
                    walk(getattr(value, item.name), f"{key}.{item.name}" if key else item.name)
        else:
            flat[key] = value.value if isinstance(value, enum.Enum) else value

    walk(config, "")
    return flat


def _as_yaml(config: TrainConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that it is either absent or complete."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, values: Any) -> None:
    """Writes JSON atomically; what is undefined (NaN) becomes null."""
    write_atomically(path, json.dumps(_defined(values), indent=2, ensure_ascii=False) + "\n")


def _defined(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _defined(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV file atomically; a missing value is an empty cell."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def environment() -> dict[str, Any]:
    """Versions, commit and hardware of this run."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "cpu": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        if cuda
        else [],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that runs; None where the project is installed from a wheel."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
