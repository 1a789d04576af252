"""Run folders: where a run keeps everything that a person wants to look at afterwards.

``runs/<dataset>/<adapter>-<backbone>[-<ablation>]/<time>/seed-<n>/`` holds ``config.yaml``,
``env.json``, ``memory.json``, ``history.csv``, ``metrics.json``, ``predictions.csv``, ``plugin/``,
``checkpoints/`` and ``train.log`` (with W&B also ``wandb/`` and ``wandb_id.txt``). ``metrics.json``
is written last and atomically: a run that has it is finished. One that failed has ``error.json``
instead.

What a run *is* does not hang on its folder's name but on its options: :func:`fingerprint`. Reading
run folders takes neither torch nor lightning.
"""

from __future__ import annotations

import csv
import dataclasses
import enum
import hashlib
import json
import logging
import math
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from msea_lightning.config.errors import UserError
from msea_lightning.config.options import options, to_typed
from msea_lightning.config.roots import TrainConfig
from msea_lightning.config.text import VisibleFormatter
from msea_lightning.runs.environment import environment

_STARTED = time.strftime("%Y-%m-%d_%H-%M-%S")
_STARTED_VARIABLE = "MSEA_STARTED"
"""Tells the processes of a sweep when it was started: its runs share their time, so that the seeds
lie side by side."""

_FOLDER_VARIABLE = "MSEA_RUN_FOLDER"
"""Tells the other processes of a DDP run which folder the first one has made."""

_NOT_COMPARED = frozenset(
    {
        "ckpt",
        "runs",
        "experiment",
        "trainer",
        "training.eval_batch_size",
        "logger",
        "dataset.cache",
        "dataset.download",
        "dataset.workers",
        "backbone.check_memory",
        "backbone.compile",
        "backbone.checkpoint_activations",
    }
)
"""Options that say where and how something runs, not what: they may differ between a run and its
continuation, and a cell of one experiment is also that of another."""

_MAPPINGS = frozenset(info.key for info in options(TrainConfig) if info.type == "mapping")
"""Options that are mappings themselves, not sections of options."""

_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Five times as fast where it is there."""

_LOCKS = ".locks"
"""Folder of the files that a process holds while it trains, below the folder of all runs."""

_PATIENCE = 2.0
"""Seconds that a run waits for its lock, which others hold for moments when they look at it."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
"""How PyTorch speaks of too little memory: of a GPU, and in an ordinary RuntimeError of a CPU."""

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
    def error(self) -> Path:
        """Why the last attempt failed; absent in a run that has not."""
        return self.path / "error.json"

    @property
    def finished(self) -> bool:
        """Whether the run has ended well, and what it found can be read."""
        try:
            found = json.loads(self.metrics.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and any(
            isinstance(found.get(part), dict) for part in ("test", "size")
        )

    @property
    def eval_batch_size(self) -> int | None:
        """Utterances per evaluation batch and device; None where ``memory.json`` is missing."""
        try:
            found = json.loads(self.memory.read_text(encoding="utf-8"))["eval_batch_size"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, int) else None

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
        if not isinstance(loaded, DictConfig):
            raise RunError(f"{self.config} holds no options: it is a list. It was changed by hand.")
        return to_typed(loaded, TrainConfig)

    def fingerprint(self) -> str | None:
        """The :func:`fingerprint` of the run's options; None where they cannot be read.

        Much faster than loading the options, because nothing is checked.
        """
        try:
            written = yaml.load(self.config.read_text(encoding="utf-8"), Loader=_YAML_LOADER)
        except (OSError, ValueError, yaml.YAMLError):
            return None
        if not isinstance(written, dict):
            return None
        # Options that are newer than the run have their defaults.
        return _hash({**comparable(TrainConfig()), **dict(_flat(written))})


def cell_folder(config: TrainConfig) -> Path:
    """Folder of all runs of a cell: one data set, adapter, backbone and ablation."""
    parts = [config.adapter.name, config.backbone.name]
    if config.ablation.name != "none":
        parts.append(config.ablation.name)
    return Path(config.runs) / config.dataset.name / "-".join(parts)


def share_start() -> None:
    """Makes the runs of all processes that this one starts share its time in their folders."""
    os.environ[_STARTED_VARIABLE] = _STARTED


def with_absolute_places(config: TrainConfig) -> TrainConfig:
    """The options with local files and folders named from the root, valid from any folder.

    The data set's are local whether they exist yet or not. What is neither there nor written as a
    path, such as ``THUDM/chatglm3-6b-base``, may be on the Hub and stays as it is.
    """

    def absolute(place: str | None) -> str | None:
        return None if place is None else str(Path(place).expanduser().resolve())

    def local(place: str | None) -> str | None:
        if place is None or place.startswith(("/", "./", "../", "~")):
            return absolute(place)
        return absolute(place) if Path(place).exists() else place

    backbone = replace(
        config.backbone,
        path=local(config.backbone.path),
        tokenizer=local(config.backbone.tokenizer),
    )
    dataset = replace(
        config.dataset, path=absolute(config.dataset.path), cache=absolute(config.dataset.cache)
    )
    return replace(config, backbone=backbone, dataset=dataset)


def fingerprint(config: TrainConfig) -> str:
    """A hash of the resolved options that make a run what it is, as hexadecimal digits.

    Two runs with the same one have the same results. Where it runs, what it logs to, and which
    experiment asked for it have no part in it.

    Args:
        config: All options of the run; local places as :func:`with_absolute_places` has them.
    """
    return _hash(comparable(config))


def _hash(options: Mapping[str, Any]) -> str:
    text = json.dumps(options, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def find_runs(root: Path) -> Iterator[RunFolder]:
    """All run folders below a folder, whatever they are called, in the order of their paths.

    Args:
        root: The folder; it need not exist.
    """
    for path, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "config.yaml" in files:
            folders.clear()  # what is inside belongs to the run
            yield RunFolder(Path(path))


def runs_of(config: TrainConfig) -> list[RunFolder]:
    """All runs of exactly these options below ``config.runs``, the most useful one first.

    A finished run comes before one that can be resumed, and that before one that cannot; among
    equals the latest.

    Args:
        config: All options of the run; local places as :func:`with_absolute_places` has them.
    """
    return runs_by_fingerprint(Path(config.runs)).get(fingerprint(config), [])


def runs_by_fingerprint(root: Path) -> dict[str, list[RunFolder]]:
    """All run folders below a folder by their fingerprints, of each the most useful one first.

    Args:
        root: The folder; it need not exist.
    """
    found: dict[str, list[RunFolder]] = {}
    for run in find_runs(root):
        mark = run.fingerprint()
        if mark is not None:
            found.setdefault(mark, []).append(run)
    return {key: sorted(runs, key=_usefulness, reverse=True) for key, runs in found.items()}


def _usefulness(run: RunFolder) -> tuple[bool, bool, float]:
    return (run.finished, run.last.exists(), run.config.stat().st_mtime)


def is_held(config: TrainConfig) -> bool:
    """Whether a process trains a run of exactly these options at the moment.

    Args:
        config: All options of the run; local places as :func:`with_absolute_places` has them.
    """
    try:
        with _locked(config, patience=0):
            return False
    except Timeout:
        return True


@contextmanager
def _locked(config: TrainConfig, *, patience: float) -> Iterator[None]:
    """Holds the lock of a run, which ends with its process, whatever ends that.

    Raises:
        Timeout: where another process holds it for longer than the patience, in seconds.
        RunError: where the file system has no locks.
    """
    folder = Path(config.runs) / _LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{fingerprint(config)[:32]}.lock", timeout=patience)
    try:
        lock.acquire()
    except NotImplementedError as error:
        raise RunError(
            f"runs={config.runs}: this file system has no file locks ({error}), without which two "
            "processes could train the same run. Choose a folder for runs= on another one."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def open_run(config: TrainConfig) -> Iterator[RunFolder]:
    """The folder of a run, new or resumed, with ``train.log`` attached to the log.

    In the other processes of a DDP run it is the folder that the first process has made. A run
    that fails leaves the reason in ``error.json``.

    Args:
        config: Options of the run; ``ckpt`` chooses between a new and an earlier folder. With
            ``ckpt=auto`` the folder may be that of a run that is finished.

    Raises:
        RunError: if there is nothing to resume, it was started with other options, or with
            ``ckpt=auto`` another process trains the same run.
    """
    inherited = os.environ.get(_FOLDER_VARIABLE)
    if inherited is not None:
        yield RunFolder(Path(inherited))
        return
    with ExitStack() as stack:
        if config.ckpt == "auto":
            try:
                stack.enter_context(_locked(config, patience=_PATIENCE))
            except Timeout:
                raise RunError(
                    f"another process trains this very run at the moment (seed {config.seed} in "
                    f"{cell_folder(config)}). Wait for it, or start a second one with ckpt=null."
                ) from None
        yield stack.enter_context(_logged(_folder(config)))


def _folder(config: TrainConfig) -> RunFolder:
    if config.ckpt is None:
        return _new_folder(config)
    if config.ckpt == "auto":
        earlier = runs_of(config)
        return earlier[0] if earlier else _new_folder(config)
    return _earlier_folder(config)


@contextmanager
def _logged(folder: RunFolder) -> Iterator[RunFolder]:
    """Attaches ``train.log`` to the log, and leaves ``error.json`` behind a failure."""
    log_file = logging.FileHandler(folder.path / "train.log", encoding="utf-8")
    log_file.setFormatter(VisibleFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(log_file)
    ours = logging.getLogger("msea_lightning")
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)
    os.environ[_FOLDER_VARIABLE] = str(folder.path.resolve())
    folder.error.unlink(missing_ok=True)
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
        if isinstance(error, Exception):
            write_json(folder.error, describe_error(error))
        raise
    finally:
        del os.environ[_FOLDER_VARIABLE]
        root.removeHandler(log_file)
        log_file.close()


def describe_error(error: Exception) -> dict[str, str]:
    """What ``error.json`` says of a failure: its kind and its text.

    Kinds: ``refused`` (the user can mend it), ``memory`` (there was not enough), ``crashed``.
    """
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    short = isinstance(error, MemoryError) or any(sign in text.lower() for sign in _OUT_OF_MEMORY)
    if isinstance(error, UserError):
        return {"kind": "memory" if short else "refused", "error": text}
    if short:
        remedy = (
            "Make training.batch_size smaller, or store the backbone in fewer bits "
            "(backbone.quantization=int8 or nf4)."
        )
        return {"kind": "memory", "error": f"out of memory ({text.strip()}). {remedy}"}
    return {"kind": "crashed", "error": text}


def _new_folder(config: TrainConfig) -> RunFolder:
    base = cell_folder(config) / os.environ.get(_STARTED_VARIABLE, _STARTED)
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
    before, now = comparable(folder.load_config()), comparable(config)
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


def comparable(config: TrainConfig) -> dict[str, Any]:
    """The options that make a run what it is, by dotted key, as plain values."""
    return dict(_flat(config))


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a dataclass, or of a mapping that a file has of it, that are compared."""
    for name, part in _items(value):
        key = f"{where}{name}"
        if key in _NOT_COMPARED:
            continue
        if dataclasses.is_dataclass(part) or (isinstance(part, dict) and key not in _MAPPINGS):
            yield from _flat(part, f"{key}.")
        else:
            yield key, _plain(part)


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return value.items()
    return [(item.name, getattr(value, item.name)) for item in dataclasses.fields(value)]


def _plain(value: Any) -> Any:
    """The value of an option as JSON has it."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {name: _plain(part) for name, part in _items(value)}
    return value


def _as_yaml(config: TrainConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that it is either absent or complete, whoever else writes it."""
    temporary = _beside(path)
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _beside(path: Path) -> Path:
    """A name for a file until it is complete; of two processes each has its own."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


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
    temporary = _beside(path)
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)
