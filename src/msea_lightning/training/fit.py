"""One run: from options to a finished run folder."""

from __future__ import annotations

import csv
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from rich.console import Console
from rich.table import Table

from msea_lightning.backbone import (
    BackboneError,
    FrozenBackbone,
    backbone_config,
    backbone_tokenizer,
    load_language_model,
    resolve_device,
)
from msea_lightning.backbone.loading.load import backbone_place
from msea_lightning.backbone.loading.memory import (
    free_bytes,
    peak_bytes,
    readable_bytes,
    reset_peak,
)
from msea_lightning.backbone.loading.resize import resized
from msea_lightning.backbone.options import BackboneConfig, Weights
from msea_lightning.config.roots import TrainConfig
from msea_lightning.cost.estimate import MemoryEstimate, MemoryEstimator
from msea_lightning.data.module import UtteranceDataModule, build_datamodule
from msea_lightning.data.options import Split
from msea_lightning.data.store import Store
from msea_lightning.language.prompt import encode_all
from msea_lightning.metrics import METRICS, selection_metric
from msea_lightning.paper import paper_result
from msea_lightning.plugin.folder import describe, save_plugin
from msea_lightning.runs.files import write_atomically, write_json
from msea_lightning.runs.folder import RunFolder
from msea_lightning.runs.identity import with_absolute_places
from msea_lightning.runs.start import open_run
from msea_lightning.training.callbacks import EpochHistory, WholeCheckpoints
from msea_lightning.training.task import AdapterTask, Prediction, build_task, trainable

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

_DOUBTFUL = 0.2
"""Validation this much above test is no luck of the draw."""


def fit(config: TrainConfig) -> RunFolder:
    """Trains an adapter, tests the best validation epoch once, and writes the run folder.

    Args:
        config: All options of the run. With ``ckpt=auto`` a run that is finished stays as it is.

    Returns:
        The finished run folder.

    Raises:
        UserError: whatever is wrong with data, backbone, options, or training that diverged.
    """
    config = with_absolute_places(config)
    with open_run(config) as run:
        if run.finished:
            _log.info("finished earlier: %s", run.path)
            return run
        ready = make_ready(config, memory_file=run.memory)
        task, data = ready.task, ready.data
        _announce(config, task, data)
        with _loggers(config, run, task) as loggers:
            trainer = _trainer(config, run, task, ready.device, loggers)
            resume = run.last if config.ckpt is not None and run.last.exists() else None
            if resume is None or not _had_stopped(resume, trainer):
                _train(config, run, task, data, trainer, resume)
            _finish(config, run, task, data, trainer, ready.estimate)
    return run


@dataclass(frozen=True)
class Ready:
    """What a run has before it trains.

    Attributes:
        task: The adapter in front of its backbone.
        data: The data module, set up and tokenised.
        device: Where it trains.
        estimate: How much memory it is expected to take; None where that is not known.
    """

    task: AdapterTask
    data: UtteranceDataModule
    device: torch.device
    estimate: MemoryEstimate | None


def make_ready(
    config: TrainConfig, *, store: Store | None = None, memory_file: Path | None = None
) -> Ready:
    """Makes everything ready to train, from the cheapest to the dearest.

    Args:
        config: All options of the run.
        store: The prepared data set, where it is at hand.
        memory_file: Where to write how much memory the run is expected to take.

    Raises:
        UserError: whatever is wrong with data, backbone or options, or does not fit.
    """
    seed_everything(config.seed, workers=True, verbose=False)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    data = build_datamodule(
        config.dataset,
        config.training,
        config.seed,
        parts=config.trainer.accumulate,
        store=store,
    )
    data.prepare_data()
    data.setup()
    device = resolve_device(config.trainer.accelerator)
    architecture, tokenizer = _read_backbone(config.backbone)
    data.tokenize(partial(encode_all, tokenizer))
    estimate = _estimate(config, memory_file, data, tokenizer, architecture, device)
    backbone = load_config_backbone(config.backbone, device, tokenizer)
    # Weights depend on the seed alone, not on what was drawn while loading.
    seed_everything(config.seed, workers=True, verbose=False)
    return Ready(build_task(config, data, backbone), data, device, estimate)


def _had_stopped(checkpoint: Path, trainer: Trainer) -> bool:
    """Whether a run had run out of patience when it was interrupted.

    Lightning asks for that at the end of an epoch only, and would train one too many, which may
    even be a better one.
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)["callbacks"]
    stopping = [call for call in trainer.callbacks if isinstance(call, EarlyStopping)]  # type: ignore[attr-defined]
    states = [saved[call.state_key] for call in stopping if call.state_key in saved]
    return any(state["wait_count"] >= state["patience"] for state in states)


def _train(
    config: TrainConfig,
    run: RunFolder,
    task: AdapterTask,
    data: UtteranceDataModule,
    trainer: Trainer,
    resume: Path | None,
) -> None:
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resume)
    except SystemExit as leaving:
        # So Lightning leaves after Ctrl-C.
        if not trainer.interrupted:
            raise
        if run.last.exists():
            again = "" if config.ckpt == "auto" else " with ckpt=last"
            _log.warning("the same command%s resumes this run", again)
        raise KeyboardInterrupt from leaving


def load_config_backbone(
    config: BackboneConfig,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> FrozenBackbone:
    """The backbone that the options describe, on a device.

    Args:
        config: The options.
        device: Where to put it.
        tokenizer: Its tokenizer, where it is at hand.
    """
    if tokenizer is None:
        _, tokenizer = _read_backbone(config)
    language_model = load_language_model(
        backbone_place(config.path),
        weights=config.weights,
        architecture=_architecture(config),
        quantization=config.quantization,
        double_quantization=config.double_quantization,
        dtype=config.dtype,
        attention=config.attention,
        device=device,
        check_fit=config.check_memory,
    )
    return FrozenBackbone(
        language_model,
        tokenizer,
        pad_token=config.pad_token,
        compile=config.compile,
        checkpoint_activations=config.checkpoint_activations,
    )


def _architecture(config: BackboneConfig) -> dict[str, Any]:
    return resized(
        config.architecture, hidden_size=config.hidden_size, num_layers=config.num_layers
    )


def _read_backbone(config: BackboneConfig) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Architecture and tokenizer, which say what is wrong before anything large is loaded."""
    architecture = backbone_config(
        backbone_place(config.path), weights=config.weights, architecture=_architecture(config)
    )
    tokenizer = backbone_tokenizer(
        config.path,
        tokenizer=config.tokenizer,
        weights=config.weights,
        special_tokens=config.special_tokens,
    )
    if config.weights is Weights.pretrained:
        _warn_of_another_architecture(config, architecture)
    return architecture, tokenizer


def _warn_of_another_architecture(config: BackboneConfig, found: PretrainedConfig) -> None:
    """Says where a checkpoint is not the one that the preset describes."""
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    differing = [
        f"{name} {getattr(found, name)} instead of {config.architecture[name]}"
        for name in sizes
        if getattr(found, name, None) != config.architecture.get(name, getattr(found, name, None))
    ]
    if differing:
        _log.warning(
            "the checkpoint is not the one that backbone=%s describes (%s); it is used as it is, "
            "backbone.architecture counts with backbone.weights=random alone",
            config.name,
            ", ".join(differing),
        )


def _estimate(
    config: TrainConfig,
    memory_file: Path | None,
    data: UtteranceDataModule,
    tokenizer: PreTrainedTokenizerBase,
    architecture: PretrainedConfig,
    device: torch.device,
) -> MemoryEstimate | None:
    """Says how much memory the run will take, and refuses one that does not fit.

    None where an architecture cannot be estimated and the user goes on all the same.
    """
    estimator = MemoryEstimator(config, data, tokenizer, architecture, device)
    try:
        data.eval_batch_size = estimator.eval_batch_size
        estimate = estimator.estimate()
    except BackboneError as error:
        if config.backbone.check_memory:
            raise
        _log.warning("%s", error)
        reset_peak(device)
        return None
    # The processes of a DDP run on a CPU share one memory; the first has counted them all.
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        _log.info("memory: %s; %s free on %s", estimate, readable_bytes(free_bytes(device)), device)
        if memory_file is not None:
            write_json(memory_file, estimate.report(estimator.trainable, data.eval_batch_size))
        if config.backbone.check_memory:
            estimator.check(estimate)
    reset_peak(device)
    return estimate


def make_trainer(device: torch.device, *, devices: int = 1, **options: Any) -> Trainer:
    """A trainer as the data modules need it, that says no more than what concerns the user.

    Args:
        device: Device of this process.
        devices: How many devices; several share each batch (DDP: gloo on CPUs, NCCL on GPUs).
        **options: Further arguments of :class:`lightning.pytorch.Trainer`.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec")
    warnings.filterwarnings("ignore", message=".* does not have many workers")
    warnings.filterwarnings("ignore", message="The number of training batches")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    strategy: Strategy = SingleDeviceStrategy(device)
    if devices > 1:
        backend = "gloo" if device.type == "cpu" else "nccl"
        strategy = DDPStrategy(process_group_backend=backend, find_unused_parameters=False)
    return Trainer(
        accelerator=device.type,
        devices=devices,
        strategy=strategy,
        use_distributed_sampler=False,
        enable_model_summary=False,
        **options,
    )


def show_results(
    results: Mapping[str, Mapping[str, Any]],
    *,
    dataset: str,
    backbone: str,
    adapter: str,
    ablation: str,
    console: Console | None = None,
) -> None:
    """Prints metrics as a table, the paper's number beside ours where the paper has the cell.

    Args:
        results: Split to metric name to value.
        dataset: Name of the data set.
        backbone: Name of the backbone.
        adapter: Name of the adapter.
        ablation: Name of the ablation.
        console: Where to print; standard output where not given.
    """
    paper = paper_result(dataset, backbone, adapter, ablation) or {}
    title = f"{dataset}: {adapter} on {backbone}, ablation {ablation}"
    table = Table(title=title, title_justify="left", min_width=len(title))
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
            row.append(info.format(paper[name]) if name in paper else "")
        table.add_row(*row)
    (console or Console()).print(table)


def predictions_csv(predictions: list[Prediction]) -> str:
    """Predictions as CSV text: id, text, label, prediction, probability."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "text", "label", "prediction", "probability"])
    for item in predictions:
        writer.writerow([item.id, item.text, item.label, item.prediction, item.probability])
    return buffer.getvalue()


def evaluate_split(
    trainer: Trainer, task: AdapterTask, data: UtteranceDataModule, split: Split
) -> dict[str, float]:
    """Metrics of a task on one split; predictions are left in ``task.predictions``."""
    loader = data.evaluation_dataloader(split.value)
    if split is Split.valid:
        trainer.validate(task, dataloaders=loader, verbose=False)
    else:
        trainer.test(task, dataloaders=loader, verbose=False)
    return task.metrics()


def _announce(config: TrainConfig, task: AdapterTask, data: UtteranceDataModule) -> None:
    _log.info("recipe: %s", config.recipe or "none for this pair; general defaults")
    _log.info("sequence: %s", task.prompt.describe(task.tree.space.answers[-1]))
    _log.info(
        "%s trainable parameters (%s) in front of %s frozen ones (%s, %s, quantization %s)",
        f"{trainable(task):,}",
        config.adapter.name,
        f"{task.backbone.parameters:,}",
        config.backbone.name,
        str(task.backbone.dtype).removeprefix("torch."),
        config.backbone.quantization.value,
    )
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in data.splits.items())
    _log.info("utterances: %s", sizes)


def _trainer(
    config: TrainConfig,
    run: RunFolder,
    task: AdapterTask,
    device: torch.device,
    loggers: list[Logger],
) -> Trainer:
    selection = selection_metric(task.score.kind)
    watched = f"valid/{selection.name}"
    mode = "max" if selection.higher_is_better else "min"
    callbacks: list[Callback] = [
        EpochHistory(run.history, selection),
        EarlyStopping(watched, mode=mode, patience=config.training.patience, check_finite=False),
        ModelCheckpoint(
            run.checkpoints,
            filename="best",
            monitor=watched,
            mode=mode,
            save_top_k=1,
            enable_version_counter=False,
        ),
        # After the others, whose state it holds.
        ModelCheckpoint(
            run.checkpoints,
            filename="last",
            save_top_k=1,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
    ]
    # A bar in a file or a pipe is thousands of lines; there the log has one line an epoch.
    bar = config.trainer.progress_bar and Console(stderr=True).is_terminal
    if bar:
        # Showing a loss means to wait for the device.
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    return make_trainer(
        device,
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
        plugins=[WholeCheckpoints()],
    )


def _finish(
    config: TrainConfig,
    run: RunFolder,
    task: AdapterTask,
    data: UtteranceDataModule,
    trainer: Trainer,
    estimate: MemoryEstimate | None,
) -> None:
    """Tests the best validation epoch and writes everything that a finished run has."""
    best = torch.load(run.best, map_location=task.device, weights_only=True)
    task.load_state_dict(best["state_dict"])
    results = {
        "test": evaluate_split(trainer, task, data, Split.test),
    }
    predictions = task.predictions
    results["valid"] = evaluate_split(trainer, task, data, Split.valid)
    if not trainer.is_global_zero:
        return
    write_atomically(run.predictions, predictions_csv(predictions))
    facts = describe(
        task,
        dataset=config.dataset.name,
        labels=data.labels,
        layout=config.backbone.layout,
        pad_token=config.backbone.pad_token,
        backbone={"name": config.backbone.name, "path": config.backbone.path},
        test=results["test"],
    )
    save_plugin(run.plugin, task, facts)
    if estimate is not None:
        measured = peak_bytes(task.device)
        write_json(run.memory, estimate.report(trainable(task), data.eval_batch_size, measured))
        _log.info(
            "memory: %s measured, %s estimated",
            readable_bytes(measured),
            readable_bytes(estimate.total),
        )
    if config.logger.wandb:
        from msea_lightning.reporting.wandb import log_results

        log_results(
            trainer.loggers,
            config,
            run,
            task,
            results=results,
            predictions=predictions,
            best_epoch=best["epoch"],
        )
    # Last of all: a run that has it is left alone from now on.
    write_json(run.metrics, results)
    show_results(
        results,
        dataset=config.dataset.name,
        backbone=config.backbone.name,
        adapter=config.adapter.name,
        ablation=config.ablation.name,
    )
    _doubt_validation(task, results)
    Console(soft_wrap=True).print(f"best epoch {best['epoch']}; run folder: {run.path}")


def _doubt_validation(task: AdapterTask, results: Mapping[str, Mapping[str, float]]) -> None:
    """Says so when the metric that chose the epoch was far better than the test confirms."""
    info = selection_metric(task.score.kind)
    valid, test = results["valid"][info.name], results["test"][info.name]
    if info.percent and valid - test > _DOUBTFUL:
        _log.warning(
            "%s is %s in validation and %s in test: the validation part is probably not "
            "independent of the training part (the same videos or speakers, or features that were "
            "learned with its labels), so it cannot choose an epoch or an option",
            info.title,
            info.format(valid),
            info.format(test),
        )


@contextmanager
def _loggers(config: TrainConfig, run: RunFolder, task: AdapterTask) -> Iterator[list[Logger]]:
    """The loggers besides ``history.csv``; a W&B run ends with the run, whatever happens."""
    if not config.logger.wandb:
        yield []
        return
    from msea_lightning.reporting.wandb import wandb_loggers

    with wandb_loggers(config, run, trainable=trainable(task)) as loggers:
        yield loggers
