"""Options of the loggers."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from msea_lightning.config.options import option


class WandbMode(enum.Enum):
    """W&B modes; ``auto`` is online where an account is configured, offline elsewhere."""

    auto = "auto"
    online = "online"
    offline = "offline"


@dataclass
class LoggerConfig:
    """Loggers besides ``history.csv``, which every run writes."""

    wandb: bool = option(False, "log to Weights & Biases")
    wandb_mode: WandbMode = option(WandbMode.auto, "where W&B runs go")
    wandb_project: str = option("msea_lightning", "W&B project")
    wandb_entity: str | None = option(None, "W&B team or user")
    wandb_group: str | None = option(
        None, "W&B group; [experiment/]dataset/adapter-backbone where not given"
    )
    loggers: dict[str, Any] = option(
        {},
        "more loggers of Lightning: logger=tensorboard, mlflow or comet, or "
        "logger.loggers.NAME._target_=CLASS and logger.loggers.NAME.ARGUMENT=...",
        called=("trainer.logger", "trainer.loggers"),
    )
