"""Weights & Biases: one run of theirs for each of ours, and never a reason to stop or wait."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf

from msea_lightning.config import TrainConfig, WandbMode

if TYPE_CHECKING:
    from msea_lightning.runs import RunFolder

_log = logging.getLogger(__name__)

_PATIENCE = 30
"""Seconds to wait for the W&B server before a run goes on offline."""


@contextmanager
def wandb_logger(config: TrainConfig, run: RunFolder, *, trainable: int) -> Iterator[WandbLogger]:
    """A W&B logger for a run, with the files in the run folder.

    Without an account, or where the server does not answer, the run is recorded offline;
    ``wandb sync`` uploads it later.

    Args:
        config: All options of the run; logged completely.
        run: The run folder.
        trainable: Number of trainable parameters.
    """
    experiment = None
    if os.environ.get("LOCAL_RANK", "0") == "0":
        experiment = _start(config, run, trainable)
    failed = True
    try:
        yield WandbLogger(experiment=experiment)
        failed = False
    finally:
        if experiment is not None:
            experiment.finish(exit_code=int(failed))


def _start(config: TrainConfig, run: RunFolder, trainable: int) -> Any:
    plain = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    cell = f"{config.dataset.name}/{config.adapter.name}-{config.backbone.name}"
    options: dict[str, Any] = {
        "project": config.logger.wandb_project,
        "entity": config.logger.wandb_entity,
        "group": config.logger.wandb_group or cell,
        "job_type": config.ablation.name,
        "name": f"{cell}-{config.ablation.name}-seed-{config.seed}",
        "config": {**plain, "trainable_parameters": trainable},  # type: ignore[dict-item]
        "dir": str(run.path),
        "settings": wandb.Settings(init_timeout=_PATIENCE, silent=True),
        "reinit": "finish_previous",
    }
    mode = _mode(config.logger.wandb_mode)
    if mode == "online":
        try:
            return wandb.init(mode="online", **options)
        except (wandb.Error, OSError, TimeoutError) as error:
            _log.warning("W&B does not answer (%s): this run is recorded offline", error)
    experiment = wandb.init(mode="offline", **options)
    _log.info("W&B is offline: upload later with `wandb sync %s`", run.path / "wandb")
    return experiment


def _mode(wanted: WandbMode) -> str:
    if wanted is not WandbMode.auto:
        return str(wanted.value)
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    return "online" if os.environ.get("WANDB_API_KEY") or _has_login() else "offline"


def _has_login() -> bool:
    """Whether ``wandb login`` has left a key in the netrc file."""
    try:
        entries = netrc.netrc()
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in entries.hosts)
