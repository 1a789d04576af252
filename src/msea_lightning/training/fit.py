"""One run: from options to a finished run folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar
from omegaconf import OmegaConf
from torch._dynamo.exc import BackendCompilerFailed

from msea_lightning.adapter.options import ABLATIONS, ADAPTERS
from msea_lightning.backbone.loading.memory import peak_bytes, readable_bytes
from msea_lightning.backbone.options import CacheDtype, Quantization
from msea_lightning.config.errors import first_line
from msea_lightning.config.logging import is_rank_zero, log_console
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.module import absent_features
from msea_lightning.data.options import Split
from msea_lightning.metrics import METRICS, MetricInfo, selection_metric
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.build import trainable
from msea_lightning.model.options import MODELS, ReadoutKind
from msea_lightning.paper import FULL
from msea_lightning.plugin import save_plugin
from msea_lightning.plugin.facts import backbone_facts, describe, language_of
from msea_lightning.runs.files import write_atomically, write_json
from msea_lightning.runs.folder import RunFolder
from msea_lightning.runs.identity import settled
from msea_lightning.runs.start import is_of_sweep, open_run
from msea_lightning.training.build import Ready, make_ready, make_trainer
from msea_lightning.training.callbacks import AtomicCheckpoints, EpochHistory, read_callbacks
from msea_lightning.training.evaluation import evaluate_split, predictions_csv
from msea_lightning.training.extras import check_classes, make_callbacks, make_loggers
from msea_lightning.training.listening import log_listening
from msea_lightning.training.module import TrainingError
from msea_lightning.training.probe import probe
from msea_lightning.training.progress import RunProgress
from msea_lightning.training.ranks import agree, in_one_group, is_first
from msea_lightning.training.references import Reference
from msea_lightning.training.show import show_next, show_results
from msea_lightning.training.verdict import Verdict, judge

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

_log = logging.getLogger(__name__)


def fit(config: TrainConfig) -> RunFolder:
    """Trains a model, tests the best validation epoch once, and writes the run folder.

    With ``ckpt=auto`` a run that is finished stays as it is.
    """
    config = settled(config)
    with in_one_group(config.trainer), _shared_run(config) as (run, finished):
        if finished:
            _log.info("finished earlier: %s", run.path)
            return run
        check_classes(config.callbacks, config.logger)
        extra = make_callbacks(config.callbacks)
        own = make_loggers(config.logger.loggers, run.path)
        resumed = agree(lambda: config.ckpt is not None and run.last.exists())
        ready = make_ready(config, memory_file=run.memory, resumed=resumed)
        _announce(config, ready)
        if isinstance(ready.module.model, AdaptedLM) and is_first():
            log_listening(ready.module.model, ready.data.splits["train"])
        selection = selection_metric(ready.module.score.kind)
        with (
            _loggers(config, run, ready, own) as loggers,
            _remedies(config, ready.device),
            _progress(config, selection, extra) as bars,
        ):
            trainer = _trainer(config, run, ready, loggers, [*bars, *extra])
            if is_first():
                run.begin()
            if config.training.schedule_epochs:
                resume, goes_on = agree(lambda: _resumption(config, run, trainer, selection))
            else:
                resume, goes_on = None, False
            if goes_on:
                _train(config, run, ready, trainer, resume)
            ended = _finish(config, run, ready, trainer)
        if ended is not None and not config.trainer.fast_dev_run:
            results, verdict = ended
            show_results(config, results, verdict.intervals, verdict)
            if not is_of_sweep():  # which says at its own end what may come next
                show_next(run, config)
    return run


@contextmanager
def _shared_run(config: TrainConfig) -> Iterator[tuple[RunFolder, bool]]:
    """The folder of a run, and whether it is finished.

    The first process opens it. Those on other machines need not see it: what they need of it they
    are told.
    """
    with ExitStack() as opened:

        def opening() -> tuple[Path, bool]:
            run = opened.enter_context(open_run(config))
            return run.path, run.finished

        path, finished = agree(opening)
        yield RunFolder(path), finished


@contextmanager
def _progress(
    config: TrainConfig, selection: MetricInfo, extra: Sequence[Callback]
) -> Iterator[list[Callback]]:
    """The bar of the run; none where it is not wanted, the user brings one, or nobody looks.

    In a file or a pipe a bar would be thousands of lines; the log has one line an epoch.
    """
    wanted = config.trainer.progress_bar and not any(isinstance(c, ProgressBar) for c in extra)
    if not (wanted and is_rank_zero() and log_console().is_terminal):
        yield []
        return
    with RunProgress(log_console(), selection) as bar:
        yield [bar]


@contextmanager
def _remedies(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Turns what PyTorch says when a GPU is full, or cannot compile, into what the user can do."""
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
    except BackendCompilerFailed as error:
        raise TrainingError(
            f"backbone.compile=true: PyTorch cannot compile the layers on {device} "
            f"({first_line(error)}). Leave it out: the results are the same."
        ) from error
    except MisconfigurationException as error:
        raise TrainingError(
            f"Lightning refuses the run ({first_line(error)}): one of callbacks.NAME or "
            "logger.loggers.NAME asks for something else than it finds. Leave it out, or change it."
        ) from error


def _resumption(
    config: TrainConfig, run: RunFolder, trainer: Trainer, selection: MetricInfo
) -> tuple[Path | None, bool]:
    """The checkpoint to go on from, None for a new run, and whether there is more to train."""
    if config.ckpt is None or not run.last.exists():
        return None, True
    return run.last, not _patience_exhausted(run.last, trainer, selection)


def _patience_exhausted(checkpoint: Path, trainer: Trainer, selection: MetricInfo) -> bool:
    """Whether a run had run out of patience when it was interrupted.

    Lightning asks for that at the end of an epoch only, and would train one too many.
    """
    loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
    saved = read_callbacks(loaded, selection)
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
    """Says what is trained on what, before the first epoch."""
    model = ready.module.model
    size = f"{trainable(model):,} trainable parameters"
    if not isinstance(model, AdaptedLM):
        _log.info("model: %s, %s", MODELS.title(config.model.name), size)
        return
    if config.training.schedule_epochs == 0:
        _log.info("nothing is trained: the language model writes the answers by itself")
    left_out = config.ablation.name
    _log.info(
        "model: %s%s, %s, in front of %s with %s frozen parameters (%s%s)",
        ADAPTERS.title(config.adapter.name),
        "" if left_out == FULL else f" {ABLATIONS.title(left_out)}",
        size,
        config.backbone.name,
        f"{model.backbone.model.num_parameters():,}",
        str(model.backbone.dtype).removeprefix("torch."),
        ""
        if config.backbone.quantization is Quantization.none
        else f", linear layers {config.backbone.quantization.value}",
    )
    last = model.tree.answer_ids[-1]
    ids = last[last >= 0].tolist() if model.readout.kind is ReadoutKind.tokens else None
    _log.info("sequence: %s", model.prompt.describe(model.space.answers[-1], ids))
    _log.info("recipe: %s", config.recipe or "none for this pair; general defaults")


def _trainer(
    config: TrainConfig,
    run: RunFolder,
    ready: Ready,
    loggers: list[Logger],
    more: Sequence[Callback],
) -> Trainer:
    selection = selection_metric(ready.module.score.kind)
    watched = f"valid/{selection.title}"
    mode = "max" if selection.higher_is_better else "min"
    checkpoints = partial(
        ModelCheckpoint, run.checkpoints, save_top_k=1, enable_version_counter=False
    )
    callbacks: list[Callback] = [
        EpochHistory(run.history, selection),
        *more,
        EarlyStopping(watched, mode=mode, patience=config.training.patience, check_finite=False),
        checkpoints(filename="best", monitor=watched, mode=mode),
        # After the others, whose state it holds.
        checkpoints(filename="last", every_n_epochs=1, save_on_train_epoch_end=True),
    ]
    part = 1 if config.trainer.fast_dev_run else 1.0
    return make_trainer(
        ready.device,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        limit_train_batches=part,
        limit_val_batches=part,
        limit_test_batches=part,
        max_epochs=config.training.schedule_epochs,
        gradient_clip_val=config.training.gradient_clip,
        accumulate_grad_batches=config.trainer.accumulate,
        num_sanity_val_steps=0,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in more),
        callbacks=callbacks,
        logger=loggers or False,
        log_every_n_steps=10,
        default_root_dir=run.path,
        plugins=[AtomicCheckpoints()],
    )


def _finish(
    config: TrainConfig, run: RunFolder, ready: Ready, trainer: Trainer
) -> tuple[dict[str, dict[str, float]], Verdict] | None:
    """Tests the best validation epoch and writes everything that a finished run has.

    Returns:
        The metrics of test and valid, and what they are worth; None in other processes of a DDP
        run than the first.
    """
    module, data, estimate = ready.module, ready.data, ready.estimate
    best_epoch = 0
    if config.training.schedule_epochs:
        best = agree(lambda: torch.load(run.best, map_location="cpu", weights_only=True))
        module.load_state_dict(best["state_dict"])
        best_epoch = best["epoch"]
    if isinstance(module.model, AdaptedLM) and config.backbone.cache_dtype is not CacheDtype.exact:
        # Rounded texts serve training; what is reported is what `evaluate` and the plugin compute.
        module.model.backbone.read_once = None
    # What is evaluated now belongs to the best epoch, not to the last step of the curves.
    loggers, trainer.loggers = trainer.loggers, []
    results = {"test": evaluate_split(trainer, module, data, Split.test)}
    predictions = module.predictions
    results["valid"] = evaluate_split(trainer, module, data, Split.valid)
    if not trainer.is_global_zero:
        return None
    tested = {
        f"test/{METRICS[name].title}": METRICS[name].unit * value
        for name, value in results["test"].items()
        if name in METRICS
    }
    for logger in loggers:
        logger.log_metrics(tested, step=trainer.global_step)
        logger.save()
    write_atomically(run.predictions, predictions_csv(predictions))
    adapted = module.model if isinstance(module.model, AdaptedLM) else None
    if adapted is not None:
        if config.training.schedule_epochs:
            log_listening(adapted, data.splits["train"], trained=True)
        facts = describe(
            adapted,
            metrics=module.score.kind,
            dataset=config.dataset.name,
            labels=data.labels,
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
            loggers,
            kind=module.score.kind,
            labels=data.labels,
            results=results,
            predictions=predictions,
            best_epoch=best_epoch,
        )
    verdict = judge(
        predictions,
        results,
        data.splits,
        space=module.model.space,
        labels=data.labels,
        kind=module.score.kind,
        language=config.dataset.language,
        best_epoch=best_epoch,
        epochs=_epochs_in(run),
        more=_probed(config, ready),
    )
    said = absent_features(data.splits)  # before training
    for warning in verdict.warnings:
        if warning not in said:
            _log.warning("%s", warning)
    # Last of all: a run that has it is left alone from now on.
    write_json(run.metrics, {**results, **verdict.facts()})
    return results, verdict


def _probed(config: TrainConfig, ready: Ready) -> list[Reference]:
    """Beside zero-shot answers what the language model knows, if it need not say it."""
    model = ready.module.model
    if config.training.schedule_epochs or not isinstance(model, AdaptedLM):
        return []
    found = probe(model, ready.data, ready.module.score.kind)
    return [] if found is None else [found]


def _epochs_in(run: RunFolder) -> int:
    """Epochs that were trained; none of a zero-shot run."""
    if not run.history.exists():
        return 0
    return len(run.history.read_text(encoding="utf-8").splitlines()) - 1


@contextmanager
def _loggers(
    config: TrainConfig, run: RunFolder, ready: Ready, own: list[Logger]
) -> Iterator[list[Logger]]:
    """The loggers besides ``history.csv``; a W&B run ends with the run, whatever happens."""
    plain: Any = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    known = {**plain, "trainable_parameters": trainable(ready.module)}
    for logger in own:
        logger.log_hyperparams(known)
    if not config.logger.wandb:
        yield own
        return
    from msea_lightning.reporting.wandb import wandb_loggers
    from msea_lightning.runs.folder import Names

    with wandb_loggers(
        config.logger,
        Names.of(config),
        seed=config.seed,
        experiment=config.experiment,
        config=known,
        folder=run.path,
    ) as loggers:
        yield [*own, *loggers]
