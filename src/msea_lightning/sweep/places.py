"""What the runs of a sweep read and load, looked for before the first process starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from msea_lightning.backbone.options import BackboneConfig, Weights
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.options import DatasetConfig, Reader
from msea_lightning.sweep.plan import PlannedRun


def find_refused(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """Fingerprints of runs that lack data, a language model, a callback or a logger, with why.

    Nothing is read but names of files, and of a model on the Hub its ``config.json``. A run that
    only counts sizes needs none of them.
    """
    reasons: dict[str, str | None] = {}
    refused: dict[str, str] = {}
    for run in runs:
        config = run.config
        if config.size_only:
            continue
        checks: tuple[tuple[str, Callable[[], None]], ...] = (
            (repr(config.dataset), partial(_check_dataset, config.dataset)),
            (repr(config.backbone), partial(_check_backbone, config.backbone)),
            (repr((config.callbacks, config.logger)), partial(_check_extras, config)),
        )
        for key, check in checks:
            if key not in reasons:
                reasons[key] = _reason(check)
            if (reason := reasons[key]) is not None:
                refused.setdefault(run.fingerprint, reason)
    return refused


def _reason(check: Callable[[], None]) -> str | None:
    """Why a check refuses; None where it does not."""
    try:
        check()
    except UserError as error:
        return str(error)
    return None


# Imports lie inside, because a sweep of the demo needs none of them.


def _check_dataset(options: DatasetConfig) -> None:
    if options.reader is not Reader.demo and not options.download:
        from msea_lightning.data.prepare import locate

        locate(options)


def _check_backbone(options: BackboneConfig) -> None:
    if options.path is not None and options.weights is Weights.pretrained:
        from msea_lightning.backbone.loading.hub import check_place

        check_place(options.path)


def _check_extras(config: TrainConfig) -> None:
    if config.callbacks or config.logger.loggers:
        from msea_lightning.training.extras import check_classes

        check_classes(config.callbacks, config.logger)
