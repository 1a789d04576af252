"""One run: from options to a finished run folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from omegaconf import OmegaConf
from rich.console import Console

from msea_lightning.backbone.loading.memory import peak_bytes, readable_bytes
from msea_lightning.backbone.options import Quantization
from msea_lightning.config.roots import TrainConfig
from msea_lightning.config.text import visible
from msea_lightning.data.module import absent_features
from msea_lightning.data.options import Split
from msea_lightning.metrics import selection_metric
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.build import trainable
from msea_lightning.plugin import save_plugin
from msea_lightning.plugin.facts import backbone_facts, describe, language_of
from msea_lightning.runs.files import write_atomically, write_json
from msea_lightning.runs.folder import RunFolder
from msea_lightning.runs.identity import with_absolute_places
from msea_lightning.runs.start import open_run
from msea_lightning.training.build import Ready, make_ready, make_trainer
from msea_lightning.training.callbacks import AtomicCheckpoints, EpochHistory
from msea_lightning.training.evaluation import (
    better_than_test,
    degenerate,
    evaluate_split,
    majority,
    predictions_csv,
    show_results,
)
from msea_lightning.training.module import TrainingError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

_log = logging.getLogger(__name__)


def fit(config: TrainConfig) -> RunFolder:
    """Trains a model, tests the best validation epoch once, and writes the run folder.

    With ``ckpt=auto`` a run that is finished stays as it is.
    """
    config = with_absolute_places(config)
    with open_run(config) as run:
        if run.finished:
            _log.info("finished earlier: %s", run.path)
            return run
        ready = make_ready(config, memory_file=run.memory)
        _announce(config, ready)
        with _loggers(config, run, ready) as loggers, _remedies_for_memory(config, ready.device):
            trainer = _trainer(config, run, ready, loggers)
            resume = run.last if config.ckpt is not None and run.last.exists() else None
            if resume is None or not _patience_exhausted(resume, trainer):
                _train(config, run, ready, trainer, resume)
            _finish(config, run, ready, trainer)
    return run


@contextmanager
def _remedies_for_memory(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Turns what PyTorch says when a GPU is full into what the user can do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        changes = [f"raise trainer.accumulate={config.trainer.accumulate} (the same results)"]
        if not config.backbone.checkpoint_activations:
            changes.append("set backbone.checkpoint_activations=true (the same results, slower)")
        changes.append(f"lower training.batch_size={config.training.batch_size}")
        if config.backbone.quantization is Quantization.none:
            changes.append("set backbone.quantization=int8 or nf4")
        raise TrainingError(
            f"{device} ran out of memory ({str(error).splitlines()[0]}). Try, in this order: "
            f"{'; '.join(changes)}. In evaluation: lower training.eval_batch_size. Or free memory "
            "that other processes hold."
        ) from error


def _patience_exhausted(checkpoint: Path, trainer: Trainer) -> bool:
    """Whether a run had run out of patience when it was interrupted.

    Lightning asks for that at the end of an epoch only, and would train one too many.
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)["callbacks"]
    stopping = [call for call in trainer.callbacks if isinstance(call, EarlyStopping)]  # type: ignore[attr-defined]
    states = [saved[call.state_key] for call in stopping if call.state_key in saved]
    return any(state["wait_count"] >= state["patience"] for state in states)


def _train(
    config: TrainConfig, run: RunFolder, ready: Ready, trainer: Trainer, resume: Path | None
) -> None:
    try:
        trainer.fit(ready.module, datamodule=ready.data, ckpt_path=resume)
    except SystemExit as leaving:
        # So Lightning leaves after Ctrl-C.
        if not trainer.interrupted:
            raise
        if run.last.exists():
            again = "" if config.ckpt == "auto" else " with ckpt=last"
            _log.warning("the same command%s resumes this run", again)
        raise KeyboardInterrupt from leaving


def _announce(config: TrainConfig, ready: Ready) -> None:
    _log.info("recipe: %s", config.recipe or "none for this pair; general defaults")
    model = ready.module.model
    size = f"{trainable(model):,} trainable parameters"
    if isinstance(model, AdaptedLM):
        _log.info("sequence: %s", model.prompt.describe(model.space.answers[-1]))
        _log.info(
            "%s (%s) in front of %s frozen ones (%s, %s, quantization %s)",
            size,
            config.adapter.name,
            f"{model.backbone.model.num_parameters():,}",
            config.backbone.name,
            str(model.backbone.dtype).removeprefix("torch."),
            config.backbone.quantization.value,
        )
    else:
        _log.info("%s (%s)", size, config.model.name)
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in ready.data.splits.items())
    _log.info("utterances: %s", sizes)


def _trainer(config: TrainConfig, run: RunFolder, ready: Ready, loggers: list[Logger]) -> Trainer:
    selection = selection_metric(ready.module.score.kind)
    watched = f"valid/{selection.name}"
    mode = "max" if selection.higher_is_better else "min"
    checkpoints = partial(
        ModelCheckpoint, run.checkpoints, save_top_k=1, enable_version_counter=False
    )
    callbacks: list[Callback] = [
        EpochHistory(run.history, selection),
        EarlyStopping(watched, mode=mode, patience=config.training.patience, check_finite=False),
        checkpoints(filename="best", monitor=watched, mode=mode),
        # After the others, whose state it holds.
        checkpoints(filename="last", every_n_epochs=1, save_on_train_epoch_end=True),
    ]
    # A bar in a file or a pipe is thousands of lines; there the log has one line an epoch.
    bar = config.trainer.progress_bar and Console(stderr=True).is_terminal
    if bar:
        # Showing a loss means to wait for the device.
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    return make_trainer(
        ready.device,
        devices=config.trainer.devices,
        max_epochs=config.training.schedule_epochs,
        gradient_clip_val=config.training.gradient_clip,
        accumulate_grad_batches=config.trainer.accumulate,
        num_sanity_val_steps=0,
        enable_progress_bar=bar,
        callbacks=callbacks,
        logger=loggers or False,
        log_every_n_steps=10,
        default_root_dir=run.path,
        plugins=[AtomicCheckpoints()],
    )


def _finish(config: TrainConfig, run: RunFolder, ready: Ready, trainer: Trainer) -> None:
    """Tests the best validation epoch and writes everything that a finished run has."""
    module, data, estimate = ready.module, ready.data, ready.estimate
    best = torch.load(run.best, map_location=module.device, weights_only=True)
    module.load_state_dict(best["state_dict"])
    results = {"test": evaluate_split(trainer, module, data, Split.test)}
    predictions = module.predictions
    results["valid"] = evaluate_split(trainer, module, data, Split.valid)
    if not trainer.is_global_zero:
        return
    write_atomically(run.predictions, predictions_csv(predictions))
    adapted = module.model if isinstance(module.model, AdaptedLM) else None
    if adapted is not None:
        facts = describe(
            adapted,
            metrics=module.score.kind,
            dataset=config.dataset.name,
            labels=data.labels,
            layout=config.backbone.layout,
            pad_token=config.backbone.pad_token,
            backbone=backbone_facts(config.backbone, adapted.backbone),
            test=results["test"],
            features={name: dict(facts) for name, facts in data.extractors.items()},
            eval_batch_size=data.eval_batch_size,
            seed=config.seed,
            dataset_id=config.dataset.hub_id,
            language=language_of(config.dataset),
        )
        save_plugin(run.plugin, adapted, facts)
    if estimate is not None:
        measured = peak_bytes(module.device)
        write_json(run.memory, estimate.report(trainable(module), data.eval_batch_size, measured))
        sizes = (readable_bytes(measured), readable_bytes(estimate.total))
        _log.info("memory: %s measured, %s estimated", *sizes)
    if config.logger.wandb:
        from msea_lightning.reporting.wandb import log_results

        log_results(
            trainer.loggers,
            kind=module.score.kind,
            labels=data.labels,
            results=results,
            predictions=predictions,
            best_epoch=best["epoch"],
        )
    counts = {split: len(part) for split, part in data.splits.items()}
    warnings = [
        *degenerate(predictions, module.model.space),
        *better_than_test(results, counts, selection_metric(module.score.kind)),
    ]
    for warning in warnings:
        _log.warning("%s", warning)
    warnings += absent_features(data.splits)  # said when the data set was opened
    # Last of all: a run that has it is left alone from now on.
    share = majority(predictions, module.model.space)[1]
    write_json(run.metrics, {**results, "majority": share, "warnings": warnings})
    show_results(results, config)
    text = f"best epoch {best['epoch']}; run folder: {run.path}"
    Console(soft_wrap=True).print(visible(text), markup=False, highlight=False)


@contextmanager
def _loggers(config: TrainConfig, run: RunFolder, ready: Ready) -> Iterator[list[Logger]]:
    """The loggers besides ``history.csv``; a W&B run ends with the run, whatever happens."""
    if not config.logger.wandb:
        yield []
        return
    from msea_lightning.reporting.wandb import wandb_loggers
    from msea_lightning.runs.folder import Names

    plain: Any = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    with wandb_loggers(
        config.logger,
        Names.of(config),
        seed=config.seed,
        experiment=config.experiment,
        config={**plain, "trainable_parameters": trainable(ready.module)},
        folder=run.path,
    ) as loggers:
        yield loggers
