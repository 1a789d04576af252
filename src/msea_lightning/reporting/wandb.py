"""Logs each run to Weights & Biases (docs/reports-and-wandb.md); never stops or fails training.

Whatever W&B cannot do is said in a warning; training goes on, and the run folder has all of it.
"""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger

from msea_lightning.config.errors import first_line
from msea_lightning.data.classes import confusion_classes
from msea_lightning.data.options import LabelConfig
from msea_lightning.metrics import METRICS
from msea_lightning.metrics.options import MetricKind
from msea_lightning.paper import FULL
from msea_lightning.reporting.options import LoggerConfig, WandbMode
from msea_lightning.runs.files import write_atomically
from msea_lightning.runs.folder import PREDICTION_COLUMNS, Names

if TYPE_CHECKING:
    from msea_lightning.model.contract import Prediction

_log = logging.getLogger(__name__)

_PATIENCE = 30
"""Seconds to wait for the W&B server before a run goes on offline."""

_UPLOAD = 300
"""Seconds to wait at the end of an online run for what is still to be uploaded."""


class TrainingLogger(WandbLogger):
    """Sends W&B what happens in training, and nothing of the evaluations that come after it.

    Those belong to the best epoch, not to the last step; :func:`log_results` puts them into the
    summary. A metric that W&B does not take ends the recording with a warning, not the training.
    """

    def __init__(self, experiment: Any, folder: Path) -> None:
        super().__init__(experiment=experiment)
        self.folder = folder
        self._recording = True

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a row to the history; ``step`` is the number of optimizer steps so far."""
        if not self._recording:
            return
        self._recording = False
        with _or_say(f"the history from step {step} on"):
            # W&B's own step is the optimizer's too: what a resumed run repeats it passes over.
            self.experiment.log({**metrics, "trainer/global_step": step}, step=step)
            self._recording = True

    def finalize(self, status: str) -> None:
        """Ends the history; Lightning calls this at the end of training, before it evaluates."""
        self._recording = False


@contextmanager
def wandb_loggers(
    options: LoggerConfig,
    names: Names,
    *,
    seed: int,
    experiment: str | None,
    config: Mapping[str, Any],
    folder: Path,
) -> Iterator[list[Logger]]:
    """The W&B logger of a run, with its files in the run folder; none where W&B cannot start.

    Without an account, or where the server does not answer, the run is recorded offline. The W&B
    run ends with the block: as failed where an exception leaves it. Then it says how an offline
    run is uploaded. A run that is resumed goes on in the W&B run that it began, whose id is in
    ``wandb_id.txt``. ``config`` is everything to log of its options, as plain values;
    ``experiment`` the table or figure of the paper.
    """
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0":
        # The first process of a DDP run records; the others' logger writes nothing.
        yield [TrainingLogger(None, folder)]
        return
    model = names.slug
    if names.train_fraction != 1:
        model += f"-train-{names.train_fraction:g}"
    ablation = [] if names.ablation == FULL else [names.ablation]
    tags = [names.dataset, names.adapter, names.backbone, *ablation, experiment]
    run = _start(
        options,
        group=options.wandb_group or "/".join(filter(None, (experiment, names.dataset, model))),
        job_type=names.ablation,
        name="-".join([names.dataset, model, *ablation, f"seed-{seed}"]),
        # What one may want to see together across groups; W&B takes 64 characters of each.
        tags=list(dict.fromkeys(tag[:64] for tag in tags if tag)),
        config={**config, "commit": _read(folder / "env.json").get("commit")},
        id=_run_id(folder),
        dir=str(folder),
    )
    if run is None:
        yield []
        return
    exit_code = 1
    late = "what was not uploaded by the end (`wandb sync --include-online` uploads it later)"
    try:
        yield [TrainingLogger(run, folder)]
        exit_code = 0
    finally:
        if exit_code == 0:
            with _or_say("what metrics.json says of the data"):
                _log_findings(run, _read(folder / "metrics.json"))
        with _or_say(late):
            run.finish(exit_code=exit_code)
        if run.settings.mode == "offline":
            _log.info("upload to W&B: wandb sync %s", shlex.quote(run.settings.sync_dir))


def _log_findings(run: Any, found: Mapping[str, Any]) -> None:
    """Sizes and most frequent class of the data, references and verdict of a finished run."""
    data = found.get("data") or {}
    facts: dict[str, Any] = {"utterances": data["utterances"]} if "utterances" in data else {}
    if counts := (data.get("labels") or {}).get("train"):
        facts["majority_class"] = max(counts, key=counts.__getitem__)
    run.config.update(facts, allow_val_change=True)
    for reference in found.get("references") or []:
        run.summary.update(_as_in_tables(f"test/{reference['name']}", reference["test"]))
    if verdict := found.get("verdict"):
        run.summary.update({"verdict": " ".join(verdict)})


def _as_in_tables(prefix: str, values: Mapping[str, float | None]) -> dict[str, float]:
    """Metrics by their titles behind a prefix, shares in percent; undefined ones are left out."""
    return {
        f"{prefix}/{METRICS[name].title}": 100 * value if METRICS[name].percent else value
        for name, value in values.items()
        if name in METRICS and value is not None and not math.isnan(value)
    }


def _read(file: Path) -> dict[str, Any]:
    """What a JSON file of the run holds; nothing where there is none yet."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def log_results(
    loggers: Sequence[Logger],
    *,
    kind: MetricKind,
    labels: LabelConfig,
    results: Mapping[str, Mapping[str, float]],
    predictions: Sequence[Prediction],
    best_epoch: int,
) -> None:
    """Logs what a finished run has: summary, predictions, confusion matrix and plugin.

    Summary keys are ``<split>/<title>`` with the titles of :data:`METRICS` (``test/Acc-2``,
    ``valid/MAE``), values as the paper's tables have them: shares in percent, MAE and Corr as they
    are. An undefined metric is left out. What cannot be logged is said in a warning.
    """
    summary: dict[str, float] = {}
    for split, values in results.items():
        summary |= _as_in_tables(split, values)
    rows = [[getattr(item, column) for column in PREDICTION_COLUMNS] for item in predictions]
    for logger in (one for one in loggers if isinstance(one, TrainingLogger)):
        run, folder = logger.experiment, logger.folder
        with _or_say("the summary"):
            run.summary.update({**summary, "best_epoch": best_epoch})
        with _or_say("the predictions"), _staged_in(folder):
            run.log({"test/predictions": wandb.Table(columns=list(PREDICTION_COLUMNS), data=rows)})
        with _or_say("the confusion matrix"), _staged_in(folder):
            pairs = [(item.label, item.prediction) for item in predictions]
            (names, true), (_, predicted) = (
                confusion_classes(kind, labels, values) for values in zip(*pairs, strict=True)
            )
            title = "test: true class, predicted class"
            matrix = wandb.plot.confusion_matrix(
                y_true=true.tolist(), preds=predicted.tolist(), class_names=names, title=title
            )
            run.log({"test/confusion_matrix": matrix})
        with _or_say("the plugin"):
            run.log_artifact(_artifact(run.name, folder / "plugin"))


def _start(options: LoggerConfig, **settings: Any) -> Any:
    """A W&B run, offline where it has to be; None where there can be none at all."""
    mode = options.wandb_mode.value
    if options.wandb_mode is WandbMode.auto:
        logged_in = os.environ.get("WANDB_API_KEY") or _has_login()
        mode = os.environ.get("WANDB_MODE", "online" if logged_in else "offline")
    if mode == "disabled":
        _log.info("W&B is disabled (WANDB_MODE): nothing is recorded")
        return None
    if mode == "online":
        try:
            return _init(options, mode, settings)
        except Exception as error:  # whatever it is, it does not stop the training
            why = first_line(error)
            _log.warning("W&B does not answer (%s): this run is recorded offline", why)
            with _or_say("the attempt"):
                wandb.teardown()  # or its service holds the run's id
    run = None
    with _or_say("this run"):
        run = _init(options, "offline", settings)
        place = shlex.quote(run.settings.sync_dir)
        _log.info("W&B is offline: upload later with `wandb sync %s`", place)
    return run


def _init(options: LoggerConfig, mode: str, settings: Mapping[str, Any]) -> Any:
    run = wandb.init(
        mode=mode,  # type: ignore[arg-type]
        project=options.wandb_project,
        entity=options.wandb_entity,
        resume="allow",
        settings=wandb.Settings(
            init_timeout=_PATIENCE, finish_timeout=_UPLOAD, finish_timeout_raises=True, silent=True
        ),
        reinit="finish_previous",
        **settings,
    )
    # The summary is that of the best epoch, so the last value of each curve has no place in it.
    run.define_metric("trainer/global_step", summary="none")
    for curves in ("train/*", "valid/*"):
        run.define_metric(curves, step_metric="trainer/global_step", summary="none")
    return run


def _run_id(folder: Path) -> str:
    """The id of the run's W&B run, made once: its folder's name, and what no other run has."""
    file = folder / "wandb_id.txt"
    if not file.exists():
        place = re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(folder.resolve().parts[-2:]))
        write_atomically(file, f"{place[-64:]}-{secrets.token_hex(4)}\n")
    return file.read_text(encoding="utf-8").strip()


def _artifact(run_name: str, plugin: Path) -> wandb.Artifact:
    """The plugin folder; nothing of the backbone is in it."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", run_name)[-128:]  # W&B takes no longer ones
    facts = json.loads((plugin / "plugin.json").read_text(encoding="utf-8"))
    artifact = wandb.Artifact(name, type="model", metadata=facts)
    # The folder is complete and stays, so W&B reads it where it is instead of a copy of its own.
    for file in sorted(plugin.resolve().iterdir()):
        artifact.add_file(str(file), policy="immutable")
    return artifact


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Keeps the files of tables in the run folder, where ``wandb sync`` finds them.

    W&B copies them to ``WANDB_DATA_DIR``, else below the home folder, which may be full.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb").resolve())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


@contextmanager
def _or_say(what: str) -> Iterator[None]:
    """Turns whatever W&B throws into a warning that says what was not logged."""
    try:
        yield
    except Exception as error:  # of any class: its service process may be gone, a disk full
        _log.warning("W&B: could not log %s (%s); the run folder has it", what, first_line(error))


def _has_login() -> bool:
    """Whether ``wandb login`` has left a key in the netrc file."""
    with suppress(OSError, netrc.NetrcParseError):
        return any("wandb" in host for host in netrc.netrc().hosts)
    return False
