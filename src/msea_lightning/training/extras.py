"""Callbacks and loggers of Lightning that a user adds by their classes (``_target_``)."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor
from lightning.pytorch.loggers import Logger

from msea_lightning.config.errors import ConfigError, first_line
from msea_lightning.reporting.options import LoggerConfig

Kind = TypeVar("Kind")


def check_classes(callbacks: Mapping[str, Any], logger: LoggerConfig) -> None:
    """Refuses classes that are not there or of another kind, before anything is made.

    Raises:
        ConfigError: naming the option; also of a callback that writes into loggers, where there is
            none.
    """
    logs = logger.wandb or bool(logger.loggers)
    for name, spec in callbacks.items():
        found = _class_of(f"callbacks.{name}", spec, Callback)
        if issubclass(found, LearningRateMonitor | DeviceStatsMonitor) and not logs:
            raise ConfigError(
                f"callbacks.{name}: {found.__name__} writes into loggers, and this run has none. "
                "Add one, such as logger=tensorboard or logger.wandb=true, or leave it out. "
                "history.csv has the learning rate and the seconds of every epoch in any case."
            )
    for name, spec in logger.loggers.items():
        _class_of(f"logger.loggers.{name}", spec, Logger)  # type: ignore[type-abstract]


def make_callbacks(specs: Mapping[str, Any]) -> list[Callback]:
    """The callbacks of ``callbacks.<name>._target_=<class>`` and its arguments, in their order.

    Raises:
        ConfigError: naming the option, where the class is not there, is no callback, or refuses
            its arguments.
    """
    return [_make(f"callbacks.{name}", spec, Callback) for name, spec in specs.items()]


def make_loggers(specs: Mapping[str, Any], folder: Path) -> list[Logger]:
    """The loggers of ``logger.loggers.<name>._target_=<class>`` and its arguments.

    One that has to be told where its files go (``save_dir``) writes into the run folder.

    Raises:
        ConfigError: likewise.
    """
    made = []
    for name, spec in specs.items():
        where = f"logger.loggers.{name}"
        more = {}
        logger = _class_of(where, spec, Logger)  # type: ignore[type-abstract]
        parameters = inspect.signature(logger).parameters
        if "save_dir" in parameters and parameters["save_dir"].default is inspect.Parameter.empty:
            more = {"save_dir": str(folder)}
        made.append(_make(where, {**more, **spec}, Logger))  # type: ignore[type-abstract]
    return made


def _class_of(where: str, spec: Any, kind: type[Kind]) -> type[Kind]:
    if not isinstance(spec, Mapping) or not isinstance(spec.get("_target_"), str):
        raise ConfigError(
            f"{where}={spec}: write {where}._target_=<class> and {where}.<argument>=<value>."
        )
    target = spec["_target_"]
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{where}._target_={target}: there is no such class here ({first_line(error)}). Give "
            "module and class, and install the package that it is in."
        ) from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(
            f"{where}._target_={target}: this is no class of a {kind.__name__.lower()} "
            f"({kind.__module__}.{kind.__name__})."
        )
    return found


def _make(where: str, spec: Any, kind: type[Kind]) -> Kind:
    _class_of(where, spec, kind)
    try:
        made: Kind = instantiate(dict(spec), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise ConfigError(
            f"{where}: {spec['_target_']} refuses to be made ({type(cause).__name__}: "
            f"{first_line(cause)})."
        ) from error
    return made
