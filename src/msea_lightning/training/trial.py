"""A trial of everything that a run does, on a batch of each split."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace

from msea_lightning.config.roots import TrainConfig
from msea_lightning.runs.identity import with_absolute_places
from msea_lightning.training.fit import fit

_log = logging.getLogger(__name__)


def try_out(config: TrainConfig) -> None:
    """Trains, validates, tests and saves with one batch of each split, and keeps nothing.

    What ``trainer.fast_dev_run=true`` asks for, as of Lightning's own trainer: a way to see in a
    minute that data, model and callbacks work. Nothing is logged elsewhere.
    """
    with tempfile.TemporaryDirectory(prefix="msea-trial-") as folder:
        fit(
            replace(
                with_absolute_places(config),
                runs=folder,
                ckpt=None,
                trainer=replace(config.trainer, fast_dev_run=True),
                logger=replace(config.logger, wandb=False, loggers={}),
                training=replace(config.training, schedule_epochs=1),
            )
        )
    _log.info("everything works; numbers of one batch say nothing, and nothing was kept")
