"""The size of a run without the run: parameters and memory, as in Table 1 of the paper."""

from __future__ import annotations

import logging
from dataclasses import replace

from msea_lightning.backbone import resolve_device
from msea_lightning.backbone.loading.memory import parameter_count, readable_bytes
from msea_lightning.config.roots import TrainConfig
from msea_lightning.cost.estimate import MemoryEstimator
from msea_lightning.cost.published import is_published, published_estimator
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.build import trainable
from msea_lightning.model.options import MODELS
from msea_lightning.runs.files import write_json
from msea_lightning.runs.folder import RunFolder
from msea_lightning.runs.identity import settled
from msea_lightning.runs.start import open_run
from msea_lightning.training.build import (
    build_data,
    build_standalone,
    data_estimator,
    read_backbone,
    tokenize,
)

_log = logging.getLogger(__name__)


def measure_size(config: TrainConfig) -> RunFolder:
    """Counts parameters and estimates memory; no weight is loaded and nothing trained.

    A data set and a backbone of the paper are taken as they are published, whether they are on this
    machine or not, so that the numbers are the same everywhere. Of any other pair the files are
    read. Of a model without a language model only the trainable parameters are counted.
    """
    config = settled(config)
    with open_run(config) as run:
        if run.finished:
            _log.info("finished earlier: %s", run.path)
            return run
        if config.model.name != MODELS.name_of(AdaptedLM):
            count = trainable(build_standalone(config, build_data(config)))
            write_json(run.metrics, {"size": {"trainable_parameters": count}})
            named = f"{config.model.name} on {config.dataset.name}"
            _log.info("%s: %s trainable parameters", named, f"{count:,}")
            return run
        estimator = _estimator(config)
        # What this process holds differs from time to time, and is no part of the run's size.
        estimate = replace(estimator.estimate(), process=0)
        frozen = parameter_count(estimator.meter.language)
        write_json(run.memory, estimate.report(estimator.trainable, estimator.eval_batch_size()))
        size = {
            "trainable_parameters": estimator.trainable,
            "backbone_parameters": frozen,
            "memory_bytes": estimate.needed,
        }
        write_json(run.metrics, {"size": size})
        _log.info(
            "%s with %s on %s: %s trainable parameters, %s frozen ones, about %s of memory",
            config.adapter.name,
            config.backbone.name,
            config.dataset.name,
            f"{estimator.trainable:,}",
            f"{frozen:,}",
            readable_bytes(estimate.needed),
        )
    return run


def _estimator(config: TrainConfig) -> MemoryEstimator:
    device = resolve_device(config.trainer.accelerator)
    if is_published(config):
        return published_estimator(config, device)
    data = build_data(config)
    language, tokenizer = read_backbone(config.backbone)
    tokenize(config, data, tokenizer)
    return data_estimator(config, data, tokenizer, language, device)
