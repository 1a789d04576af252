"""What the runs of a sweep read, looked for before the first process starts."""

from __future__ import annotations

from collections.abc import Sequence

from msea_lightning.backbone.options import BackboneConfig, Weights
from msea_lightning.config.errors import UserError
from msea_lightning.data.options import DatasetConfig, Reader
from msea_lightning.sweep.plan import PlannedRun


def find_refused(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """Fingerprints of runs whose data set or language model is not there, with the reason.

    Nothing is read but names of files, and of a model on the Hub its ``config.json``. A run that
    only counts sizes needs neither.
    """
    reasons: dict[str, str | None] = {}
    refused: dict[str, str] = {}
    for run in runs:
        if run.config.size_only:
            continue
        for options in (run.config.dataset, run.config.backbone):
            key = repr(options)
            if key not in reasons:
                reasons[key] = _reason(options)
            if (reason := reasons[key]) is not None:
                refused.setdefault(run.fingerprint, reason)
    return refused


def _reason(options: DatasetConfig | BackboneConfig) -> str | None:
    """Why there is nothing to read; None where there is something."""
    try:
        if isinstance(options, DatasetConfig):
            if options.reader is not Reader.demo and not options.download:
                # Here, because a sweep of the demo needs nothing of it.
                from msea_lightning.data.prepare import locate

                locate(options)
        elif options.path is not None and options.weights is Weights.pretrained:
            from msea_lightning.backbone.loading.hub import check_place

            check_place(options.path)
    except UserError as error:
        return str(error)
    return None
