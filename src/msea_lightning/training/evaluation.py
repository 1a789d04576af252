"""Evaluation: metrics and predictions of a split, and of a finished run again."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.stats import fisher_exact  # type: ignore[import-untyped]

from msea_lightning.backbone import resolve_device
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import EvaluateConfig, TrainConfig
from msea_lightning.config.text import visible
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.options import Reader, Split
from msea_lightning.data.prepare import at_place
from msea_lightning.data.utterance import DataError
from msea_lightning.features.extraction import check_facts
from msea_lightning.language.labels import LabelSpace
from msea_lightning.language.prompt import encode_all
from msea_lightning.metrics import METRICS, MetricInfo, UtteranceScore
from msea_lightning.metrics.options import MetricKind
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.contract import Model, Prediction
from msea_lightning.model.options import MODELS
from msea_lightning.paper import paper_result
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

_log = logging.getLogger(__name__)

_DOUBTFUL = 0.2
"""Validation this much above test says that the validation part is not independent."""

_CHANCE = 0.01
"""Largest p value with which two splits are said to differ by more than chance."""


def evaluate(config: EvaluateConfig) -> dict[str, float | None]:
    """Metrics of what a run trained, on a split; None where undefined.

    With the run's own rule they equal ``metrics.json``, with another batch size up to rounding.

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
    show_results({config.split.value: results}, options)
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
        data.tokenize(partial(encode_all, adapted.prompt.tokenizer))
        return adapted, plugin.facts.metrics
    model = build_standalone(options, data)
    best = torch.load(run.best, map_location="cpu", weights_only=True)
    model.load_state_dict(best["state_dict"])
    return model, data.metrics


def show_results(results: Mapping[str, Mapping[str, Any]], options: TrainConfig) -> None:
    """Prints each split's metrics in a table, with the paper's numbers where it has them."""
    dataset, model = options.dataset.name, options.model.name
    title, paper = f"{dataset}: {model}", {}
    if model == MODELS.name_of(AdaptedLM):
        names = options.backbone.name, options.adapter.name, options.ablation.name
        title = f"{dataset}: {names[1]} on {names[0]}, ablation {names[2]}"
        paper = paper_result(dataset, *names)
    shown = Text(visible(title))
    table = Table(title=shown, title_justify="left", min_width=len(shown))
    table.add_column("metric")
    for split in results:
        table.add_column(split, justify="right")
    if paper:
        table.add_column("paper (test)", justify="right")
    for name in next(iter(results.values())):
        if name not in METRICS:
            continue
        info = METRICS[name]
        row = [f"{info.title} [%]" if info.percent else info.title]
        row += [info.format(values[name]) for values in results.values()]
        if paper:
            row.append(paper.get(name, ""))
        table.add_row(*row)
    Console().print(table)


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


def majority(predictions: Sequence[Prediction], space: LabelSpace) -> tuple[str, float]:
    """The most frequent label as it is written, and the accuracy of always giving that answer."""
    counts = Counter(_written(item.label, space) for item in predictions)
    label, count = counts.most_common(1)[0]
    return label, count / len(predictions)


def degenerate(predictions: Sequence[Prediction], space: LabelSpace) -> list[str]:
    """Sentences on test predictions that are all the same, or leave out a class."""
    labels = Counter(_written(item.label, space) for item in predictions)
    answers = Counter(_written(item.prediction, space) for item in predictions)
    label, share = majority(predictions, space)
    beside = f"the most frequent label, {label}, is {share:.1%} of the test labels"
    if len(answers) == 1:
        return [f"all {len(predictions):,} test predictions are {next(iter(answers))}; {beside}"]
    missed = [label for label in labels if label not in answers]
    if space.ordered or not missed:
        return []
    listed = ", ".join(f"{name} ({labels[name] / len(predictions):.1%})" for name in missed)
    return [f"never predicted in test: {listed}; {beside}"]


def better_than_test(
    results: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int], selection: MetricInfo
) -> list[str]:
    """A sentence where validation was far better than the test confirms.

    Nothing where the splits are so small that the difference may be chance: Fisher's exact test,
    one-sided, with the metric as the share of right answers. ``sizes`` are numbers of utterances.
    """
    valid, test = (results[split][selection.name] for split in ("valid", "test"))
    if not selection.percent or not valid - test > _DOUBTFUL:
        return []
    right = [round(valid * sizes["valid"]), round(test * sizes["test"])]
    wrong = [sizes["valid"] - right[0], sizes["test"] - right[1]]
    if fisher_exact([right, wrong], alternative="greater").pvalue > _CHANCE:
        return []
    return [
        f"{selection.title} is {selection.format(valid)} in validation and "
        f"{selection.format(test)} in test: the validation part is probably not independent of "
        "the training part (the same videos or speakers, or features that were learned with its "
        "labels), so it cannot choose an epoch or an option"
    ]


def _written(label: float | str, space: LabelSpace) -> str:
    """An emotion's name, or an intensity as the space writes it."""
    return label if isinstance(label, str) else space.text(label)
