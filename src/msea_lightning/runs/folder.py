"""Run folders: ``runs/<dataset>/<adapter>-<backbone>[-<ablation>]/<time>/seed-<n>/``.

``metrics.json`` is written last and atomically: a run that has it is finished. One that failed has
``error.json`` instead. Reading run folders takes neither torch nor lightning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.config.options import to_typed
from msea_lightning.config.roots import TrainConfig
from msea_lightning.model.options import AdaptedLMOptions
from msea_lightning.paper import FULL, model_title
from msea_lightning.runs.identity import fingerprint, written_fingerprint

_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Five times as fast where it is there."""

_NO_OPTIONS = (ValueError, TypeError, RecursionError, yaml.YAMLError, OmegaConfBaseException)
"""What reading raises where a text holds no options."""

PREDICTION_COLUMNS = ("id", "text", "label", "prediction", "probability")
"""Columns of ``predictions.csv``."""


class RunError(UserError):
    """A run folder that is not there, not complete, or not of the same run."""


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


class RunFolder:
    """One run's folder and the paths in it; there are ``env.json``, ``train.log``, ``wandb/`` too.

    Attributes:
        last: Checkpoint of the last complete epoch.
        best: Checkpoint of the best validation epoch so far.
        metrics: Metrics of the best validation epoch; present in a finished run only.
        predictions: Predictions on the test split.
        history: One row an epoch.
        memory: Estimated and measured memory, in bytes.
        error: Why the last attempt failed; absent in a run that has not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.plugin = path / "plugin"
        self.metrics = path / "metrics.json"
        self.predictions = path / "predictions.csv"
        self.history = path / "history.csv"
        self.memory = path / "memory.json"
        self.error = path / "error.json"

    def begin(self) -> None:
        """Notes that training begins: from now on the folder stays, whatever happens."""
        self.checkpoints.mkdir(exist_ok=True)

    @property
    def begun(self) -> bool:
        """Whether training has begun."""
        return self.checkpoints.is_dir()

    @property
    def finished(self) -> bool:
        """Whether the run has ended well, and what it found can be read."""
        found = _read_mapping(self.metrics)
        return any(isinstance(found.get(part), dict) for part in ("test", "size"))

    @property
    def eval_batch_size(self) -> int | None:
        """Utterances per evaluation batch and device; None where ``memory.json`` is missing."""
        found = _read_mapping(self.memory).get("eval_batch_size")
        return found if isinstance(found, int) else None

    def load_config(self) -> TrainConfig:
        """The options of the run; RunError where the folder holds none."""
        if not self.config.is_file():
            raise RunError(
                f"{self.path} is not a run folder: config.yaml is missing. Give the folder that "
                "training printed, such as runs/demo/mse-tiny/<time>/seed-1111."
            )
        try:
            return parse_config(self.config.read_text(encoding="utf-8"), str(self.config))
        except _NO_OPTIONS as error:
            raise RunError(
                f"{self.config} cannot be read: {error}. It was changed by hand, or is damaged."
            ) from error

    def fingerprint(self) -> str | None:
        """The fingerprint of the run's options, unchecked; None where they cannot be read."""
        try:
            written = yaml.load(self.config.read_text(encoding="utf-8"), Loader=_YAML_LOADER)
            return written_fingerprint(written) if isinstance(written, dict) else None
        except (OSError, *_NO_OPTIONS, ConfigError):
            return None


def _read_mapping(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it cannot be read or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def config_text(config: TrainConfig) -> str:
    """All options as ``config.yaml`` holds them."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def parse_config(text: str, where: str = "it") -> TrainConfig:
    """The options in the text of a ``config.yaml``, which an error calls ``where``."""
    try:
        loaded = OmegaConf.create(text)
    except AssertionError:  # one number
        loaded = None
    if not isinstance(loaded, DictConfig) or not loaded:
        raise RunError(f"{where} holds no options: it was changed by hand.")
    if isinstance(loaded.get("dataset"), DictConfig):
        loaded.dataset.setdefault("split_version", 1)  # which release 0.1 did not write
    return to_typed(loaded, TrainConfig)


def model_folder(config: TrainConfig) -> Path:
    """Folder of all runs of one data set, adapter, backbone and ablation, or other model."""
    names = Names.of(config)
    ablation = "" if names.ablation == FULL else f"-{names.ablation}"
    return Path(config.runs) / names.dataset / f"{names.slug}{ablation}"


def find_runs(root: Path) -> Iterator[RunFolder]:
    """All run folders below a folder that need not exist, by their paths."""
    for path, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "config.yaml" in files:
            folders.clear()  # what is inside belongs to the run
            yield RunFolder(Path(path))


def runs_of(config: TrainConfig) -> list[RunFolder]:
    """All runs of exactly these options below ``config.runs``; see :func:`runs_by_fingerprint`."""
    return runs_by_fingerprint(Path(config.runs)).get(fingerprint(config), [])


def runs_by_fingerprint(root: Path) -> dict[str, list[RunFolder]]:
    """All run folders below a folder by their fingerprints, of each the most useful one first.

    A finished run comes before one that can be resumed, and that before one that cannot; among
    equals the latest.
    """

    def usefulness(run: RunFolder) -> tuple[bool, bool, float]:
        return (run.finished, run.last.exists(), run.config.stat().st_mtime)

    found: dict[str, list[RunFolder]] = {}
    for run in find_runs(root):
        key = run.fingerprint()
        if key is not None:
            found.setdefault(key, []).append(run)
    return {key: sorted(runs, key=usefulness, reverse=True) for key, runs in found.items()}
