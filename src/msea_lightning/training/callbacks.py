"""The end of every epoch: history, a line in the log, and checkpoints written atomically."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from msea_lightning.metrics import METRICS, ZERO_SHARE, MetricInfo
from msea_lightning.runs.files import write_csv
from msea_lightning.training.module import TrainingModule
from msea_lightning.training.ranks import agree

_log = logging.getLogger(__name__)

_SCORES = ("best_score", "best_model_score", "current_score", "kth_value")
"""What Lightning's callbacks keep of the metric that they watch."""


def read_callbacks(checkpoint: Mapping[str, Any], selection: MetricInfo) -> dict[str, Any]:
    """The states of callbacks in a checkpoint, by their keys.

    Earlier releases watched ``valid/wf1`` as a share, and now it is ``valid/WF1`` in percent.
    """
    before, now = f"'valid/{selection.name}'", f"'valid/{selection.title}'"
    states = {}
    for key, state in checkpoint["callbacks"].items():
        if before not in key:
            states[key] = state
            continue
        scores = {name: state[name] for name in _SCORES if state.get(name) is not None}
        renewed = state | {name: selection.unit * score for name, score in scores.items()}
        if "best_k_models" in state:
            models = state["best_k_models"].items()
            renewed["best_k_models"] = {path: selection.unit * score for path, score in models}
            renewed["monitor"] = now.strip("'")
        states[key.replace(before, now)] = renewed
    return states


def _in_percent(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of the validation part by the keys under which they are logged."""
    shown = {}
    for name, value in metrics.items():
        info = METRICS.get(name, ZERO_SHARE)
        shown[f"valid/{info.title}"] = info.unit * value
    return shown


def _renewed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the history with the keys of today, where an earlier release wrote it."""
    known = {f"valid/{name}": name for name in (*METRICS, ZERO_SHARE.name)}
    earlier = {known[key]: value for key, value in row.items() if key in known}
    return {key: row[key] for key in row if key not in known} | _in_percent(earlier)


class EpochHistory(Callback):
    """Writes ``history.csv``, one row an epoch, and a line to the log.

    Rows travel in the checkpoint, so that a resumed run continues where its checkpoint stands, not
    where the interrupted process happened to be. Shares are in percent.
    """

    def __init__(self, path: Path, selection: MetricInfo) -> None:
        self._path = path
        self._selection = selection
        self._rows: list[dict[str, Any]] = []
        self._started = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the rows of the checkpoint."""
        self._rows = [_renewed(row) for row in state_dict["rows"]]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Where the run folder was moved, its best checkpoint was moved with it."""
        checkpoint["callbacks"] = read_callbacks(checkpoint, self._selection)
        now = getattr(trainer.checkpoint_callback, "dirpath", None)
        for state in checkpoint["callbacks"].values():
            before = state.get("dirpath")
            if before is None or now is None:
                continue
            state["dirpath"] = now
            for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[name] = state[name].replace(before, now)
            state["best_k_models"] = {
                path.replace(before, now): score for path, score in state["best_k_models"].items()
            }

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a row; validation of the epoch has run by now."""
        assert isinstance(pl_module, TrainingModule)
        watched = f"valid/{self._selection.title}"
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(time.perf_counter() - self._started, 3),
            "train/loss": float(trainer.callback_metrics["train/loss"]),
            **_in_percent(pl_module.metrics()),
        }
        better = self._selection.better
        best = all(better(row[watched], earlier[watched]) for earlier in self._rows)
        best = best and not math.isnan(row[watched])
        self._rows.append(row)
        shown = {"train/learning_rate": row["learning_rate"], "train/seconds": row["seconds"]}
        pl_module.log_dict(shown, sync_dist=trainer.world_size > 1)
        if trainer.is_global_zero:
            write_csv(self._path, row, self._rows)
            _log.info(
                "epoch %d: train/loss %.4f, %s %s%s, %.1f s",
                row["epoch"],
                row["train/loss"],
                watched,
                self._selection.format(row[watched] / self._selection.unit),
                ", best so far" if best else "",
                row["seconds"],
            )


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints beside the final path and renames them when they are complete.

    Lightning's own writes into the folder of temporary files, often on another file system, from
    where they are copied: a process that is killed meanwhile leaves half a checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Saves a checkpoint so that the file is either the one before or the new one, whole."""
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        incomplete = final.with_name(f".{final.name}.partial")
        with incomplete.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        incomplete.replace(final)

    def load_checkpoint(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Loads a checkpoint in the first process, for all: others may not see its folder."""
        load: Callable[..., dict[str, Any]] = super().load_checkpoint
        return agree(partial(load, *args, **options))
