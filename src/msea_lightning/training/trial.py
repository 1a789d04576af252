"""A trial of everything that a run does, on a batch of each split."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import TrainConfig
from msea_lightning.runs.identity import settled
from msea_lightning.training.extras import make_loggers
from msea_lightning.training.fit import fit

_log = logging.getLogger(__name__)

_SILENT = "lightning.pytorch.loggers.logger.DummyLogger"
"""Stands for a logger: callbacks that ask for one find it."""


def try_out(config: TrainConfig) -> None:
    """Trains, validates, tests and saves with one batch of each split, and keeps nothing.

    What ``trainer.fast_dev_run=true`` asks for, as of Lightning's own trainer: a way to see in a
    minute that data, model and callbacks work. Loggers are made and write nothing.

    Raises:
        ConfigError: a run is to be resumed.
    """
    if config.ckpt is not None:
        raise ConfigError(
            f"ckpt={config.ckpt} has no effect with trainer.fast_dev_run=true, which keeps nothing "
            "and resumes nothing: leave one of them out."
        )
    with tempfile.TemporaryDirectory(prefix="msea-trial-") as folder:
        make_loggers(config.logger.loggers, Path(folder))
        names = [*config.logger.loggers, *["wandb"] * config.logger.wandb]
        silent = {name: {"_target_": _SILENT} for name in names}
        fit(
            replace(
                settled(config),
                runs=folder,
                trainer=replace(config.trainer, fast_dev_run=True),
                logger=replace(config.logger, wandb=False, loggers=silent),
                training=replace(
                    config.training, schedule_epochs=min(1, config.training.schedule_epochs)
                ),
            )
        )
    _log.info("everything works; numbers of one batch say nothing, and nothing was kept")
