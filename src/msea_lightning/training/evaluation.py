"""Evaluation: metrics and predictions of a split, and of a finished run again."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from msea_lightning.backbone import resolve_device
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import EvaluateConfig, TrainConfig
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.options import Reader, Split
from msea_lightning.data.prepare import at_place
from msea_lightning.data.utterance import DataError
from msea_lightning.features.extraction import check_facts
from msea_lightning.language.encoding import ContextEncoder
from msea_lightning.metrics import UtteranceScore
from msea_lightning.metrics.options import MetricKind
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.contract import Model, Prediction
from msea_lightning.model.options import MODELS
from msea_lightning.plugin import Plugin, attach
from msea_lightning.runs.files import csv_text, write_atomically, write_json
from msea_lightning.runs.folder import PREDICTION_COLUMNS, RunError, RunFolder
from msea_lightning.training.build import (
    build_data,
    build_standalone,
    load_config_backbone,
    make_trainer,
)
from msea_lightning.training.module import TrainingModule
from msea_lightning.training.show import show_results
from msea_lightning.training.verdict import metric_intervals

_log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, float | None]:
    """Metrics of what a run trained, on a split; None where undefined.

    With the run's own rule they equal ``metrics.json``, with another batch size up to rounding.
    Texts are never rounded here: ``backbone.cache_dtype`` is a matter of training.

    Writes ``evaluations/<split>-<rule>.json`` and ``.csv`` (predictions) into the run folder; of a
    model that has no rule, ``evaluations/<split>``; of a table at ``dataset_path`` with its name in
    front. Such a table needs nothing but the split that is evaluated; its labels are the run's.
    """
    run = RunFolder(Path(config.run).expanduser())
    options = run.load_config()
    if not run.finished:
        raise RunError(
            f"{run.path} is not finished (it has no metrics.json, or a broken one): resume it with "
            f"`python -m msea_lightning.train ... ckpt={run.path}`."
        )
    data, place = _evaluated_data(config, run, options)
    # Padding, and so the batch that an utterance is in, moves its numbers by rounding.
    recorded = run.eval_batch_size or data.eval_batch_size
    given = config.eval_batch_size or recorded
    data.eval_batch_size = given
    if given != recorded:
        text = "eval_batch_size %d instead of the run's %d: numbers may differ by rounding"
        _log.info(text, given, recorded)
    device = resolve_device(config.accelerator)
    model, metrics = _trained_model(run, options, data, device)
    name = f"{place}{config.split.value}"
    if isinstance(model, AdaptedLM):
        model.rule = config.decode or options.decode
        name = f"{name}-{model.rule.value}"
    elif config.decode is not None:
        raise ConfigError(
            f"decode={config.decode.value}: {options.model.name} writes no answer that could be "
            "picked in several ways. Leave it out."
        )
    module = TrainingModule(model, UtteranceScore(metrics))
    trainer = make_trainer(
        device,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=sys.stderr.isatty(),
    )
    results = evaluate_split(trainer, module, data, config.split)
    folder = run.path / "evaluations"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{name}.csv", predictions_csv(module.predictions))
    write_json(folder / f"{name}.json", results)
    found = metric_intervals(module.predictions, model.space, metrics)
    show_results(options, {config.split.value: results}, found)
    defined: dict[str, float | None] = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return defined


def _evaluated_data(
    config: EvaluateConfig, run: RunFolder, options: TrainConfig
) -> tuple[UtteranceDataModule, str]:
    """The data of the run, or at ``dataset_path``, and what is written of a table begins with."""
    if config.dataset_path is None:
        if given := [name for name, value in asdict(config.columns).items() if value]:
            raise ConfigError(f"columns.{given[0]} has no effect without dataset_path.")
        return build_data(options), ""
    dataset = at_place(options.dataset, config.dataset_path, config.columns, config.split)
    options.dataset = dataset
    if dataset.reader is not Reader.table or options.model.name != MODELS.name_of(AdaptedLM):
        return build_data(options), ""
    plugin = Plugin.from_pretrained(run.plugin)
    dataset.labels = plugin.facts.labels
    data = build_data(options, evaluated=config.split)
    check_facts(plugin.facts.features, data.extractors)
    dims = {"audio": plugin.facts.audio_dim, "vision": plugin.facts.vision_dim}
    for name, dim in dims.items():
        if dim is not None and name not in data.dims:
            text = "the run learned from %s features, which no utterance of %s has"
            _log.warning(text, name, dataset.name)
        if (found := data.dims.get(name, dim)) != dim:
            raise DataError(
                f"{dataset.path} has {found} {name} features per frame, but the run learned from "
                f"{dim or 'none'}. Give it features of the same kind, or leave them out."
            )
    return data, f"{dataset.name}-"


def _trained_model(
    run: RunFolder, options: TrainConfig, data: UtteranceDataModule, device: torch.device
) -> tuple[Model, MetricKind]:
    """What a finished run trained (its plugin, or all of another model), and how it was scored."""
    if options.model.name == MODELS.name_of(AdaptedLM):
        plugin = Plugin.from_pretrained(run.plugin)
        adapted = attach(plugin, load_config_backbone(options.backbone, device))
        encoder = ContextEncoder(adapted.prompt.tokenizer, adapted.prompt.wording)
        data.tokenize(encoder.texts, encoder if adapted.prompt.most_context else None)
        return adapted, plugin.facts.metrics
    model = build_standalone(options, data)
    best = torch.load(run.best, map_location="cpu", weights_only=True)
    model.load_state_dict(best["state_dict"])
    return model, data.metrics


def predictions_csv(predictions: Sequence[Prediction]) -> str:
    """Predictions as the text of a CSV file."""
    rows = [{name: getattr(item, name) for name in PREDICTION_COLUMNS} for item in predictions]
    return csv_text(PREDICTION_COLUMNS, rows)


def evaluate_split(
    trainer: Trainer, module: TrainingModule, data: UtteranceDataModule, split: Split
) -> dict[str, float]:
    """Metrics on one split; the predictions are left in ``module.predictions``."""
    run = trainer.validate if split is Split.valid else trainer.test
    run(module, dataloaders=data.evaluation_dataloader(split.value), verbose=False)
    return module.metrics()
