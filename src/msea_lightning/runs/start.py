"""Starting a run: a new folder or an earlier one, with its log attached."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import Timeout

from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig
from msea_lightning.config.text import VisibleFormatter
from msea_lightning.runs.environment import environment
from msea_lightning.runs.files import write_atomically, write_json
from msea_lightning.runs.folder import RunError, RunFolder, config_text, model_folder, runs_of
from msea_lightning.runs.identity import comparable
from msea_lightning.runs.lock import locked

_TIME_VARIABLE = "MSEA_STARTED"
"""Tells the processes of a sweep when it was started: its runs share their time, so that the seeds
lie side by side."""

_FOLDER_VARIABLE = "MSEA_RUN_FOLDER"
"""Tells the other processes of a DDP run which folder the first one has made."""

_PATIENCE = 2.0
"""Seconds that a run waits for its lock, which others hold for a moment when they check it."""

_log = logging.getLogger(__name__)


def share_start() -> None:
    """Makes the runs of all processes that this one starts share one time in their folders."""
    os.environ[_TIME_VARIABLE] = time.strftime("%Y-%m-%d_%H-%M-%S")


def is_of_sweep() -> bool:
    """Whether this process trains a run of a sweep."""
    return bool(os.environ.get(_TIME_VARIABLE))


@contextmanager
def open_run(config: TrainConfig) -> Iterator[RunFolder]:
    """The folder of a run, new or resumed, with ``train.log`` attached to the log.

    In the other processes of a DDP run it is the folder that the first process has made. A run
    that fails leaves the reason in ``error.json``; one that is refused before it has begun leaves
    no folder (:meth:`RunFolder.begin`). With ``ckpt=auto`` the folder may be that of a
    run that is finished.
    """
    inherited = os.environ.get(_FOLDER_VARIABLE)
    if inherited is not None and os.environ.get("LOCAL_RANK", "0") != "0":
        yield RunFolder(Path(inherited))
        return
    with ExitStack() as stack:
        if config.ckpt == "auto":
            try:
                stack.enter_context(locked(config, patience=_PATIENCE))
            except Timeout:
                raise RunError(
                    f"another process trains this very run at the moment (seed {config.seed} in "
                    f"{model_folder(config)}). Wait for it, or start a second one with ckpt=null."
                ) from None
            earlier = runs_of(config)
            folder = earlier[0] if earlier else None
        else:
            folder = None if config.ckpt is None else _earlier_folder(config)
        if folder is None:
            folder = stack.enter_context(_new(config))
        yield stack.enter_context(_logged(folder))


@contextmanager
def _new(config: TrainConfig) -> Iterator[RunFolder]:
    """A new folder, which goes again where the run is refused or stopped before it has begun.

    One that broke stays, because its log says how.
    """
    root = Path(config.runs)
    existed = root.exists()
    folder = new_folder(config)
    try:
        yield folder
    except (UserError, KeyboardInterrupt):
        if not folder.begun:
            shutil.rmtree(folder.path)
            # Others may have put their runs beside it meanwhile.
            with suppress(OSError):
                for above in folder.path.relative_to(root).parents[: -1 if existed else None]:
                    (root / above).rmdir()
        raise


@contextmanager
def _logged(folder: RunFolder) -> Iterator[RunFolder]:
    """Attaches ``train.log`` to the log, and leaves ``error.json`` behind a failure."""
    log_file = logging.FileHandler(folder.path / "train.log", encoding="utf-8")
    log_file.setFormatter(VisibleFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(log_file)
    ours = logging.getLogger("msea_lightning")
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)
    os.environ[_FOLDER_VARIABLE] = str(folder.path.resolve())
    folder.error.unlink(missing_ok=True)
    try:
        yield folder
    except BaseException as error:
        # Into the file only: whoever catches it prints it.
        known = isinstance(error, UserError | KeyboardInterrupt | SystemExit)
        cause = None if known else sys.exc_info()
        text = str(error) or type(error).__name__
        record = _log.makeRecord(_log.name, logging.ERROR, __file__, 0, "%s", (text,), cause)
        log_file.handle(record)
        if isinstance(error, Exception):
            write_json(folder.error, _described(error))
        raise
    finally:
        os.environ.pop(_FOLDER_VARIABLE, None)
        root.removeHandler(log_file)
        log_file.close()


def _described(error: Exception) -> dict[str, str]:
    """A failure for ``error.json``; its kind is ``refused`` (by us), ``memory`` or ``crashed``."""
    kind, text = "crashed", f"{type(error).__name__}: {error}"
    if isinstance(error, UserError):
        kind, text = "refused", str(error)
    # What PyTorch says on a GPU, and on a CPU.
    signs = ("out of memory", "can't allocate memory")
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in signs):
        if kind == "crashed":
            text = (
                f"out of memory ({text.strip()}). Make training.batch_size smaller, or store the "
                "backbone in fewer bits (backbone.quantization=int8 or nf4)."
            )
        kind = "memory"
    return {"kind": kind, "error": text}


def new_folder(config: TrainConfig) -> RunFolder:
    """Makes the folder of a run that has begun, with ``config.yaml`` and ``env.json`` in it.

    Runs of a sweep share the folder of their time, and those of them that differ in another option
    than the seed number themselves; any other run has a folder of a time of its own.
    """
    above = model_folder(config)
    above.mkdir(parents=True, exist_ok=True)
    shared = os.environ.get(_TIME_VARIABLE)
    if shared is None:
        path = _make(above / time.strftime("%Y-%m-%d_%H-%M-%S")) / f"seed-{config.seed}"
        path.mkdir()
    else:
        (above / shared).mkdir(exist_ok=True)
        path = _make(above / shared / f"seed-{config.seed}")
    folder = RunFolder(path)
    write_atomically(folder.config, config_text(config))
    write_json(path / "env.json", environment())
    return folder


def _make(path: Path) -> Path:
    """Makes a folder of this name, or of this name and the first number that is free."""
    free = path
    for number in itertools.count(2):
        with suppress(FileExistsError):
            free.mkdir()
            break
        free = path.with_name(f"{path.name}-{number}")
    return free


def _earlier_folder(config: TrainConfig) -> RunFolder:
    assert config.ckpt is not None
    if config.ckpt == "last":
        above = model_folder(config)
        name = f"seed-{config.seed}"  # or with the number of one that differs in other options
        folders = (*above.glob(f"*/{name}"), *above.glob(f"*/{name}-*"))
        runs = [run for run in map(RunFolder, folders) if run.last.exists()]
        if not runs:
            raise RunError(
                f"ckpt=last: no run of seed {config.seed} in {above} has completed an epoch, so "
                "there is nothing to resume. Start it without ckpt."
            )
        folder = max(runs, key=lambda run: run.last.stat().st_mtime)
    else:
        folder = RunFolder(Path(config.ckpt))
        if not folder.last.exists():
            raise RunError(
                f"ckpt={config.ckpt}: there is no checkpoints/last.ckpt in that folder. Give the "
                "run folder of an interrupted run, or ckpt=last."
            )
    if folder.finished:
        raise RunError(
            f"{folder.path} is a finished run (it has metrics.json); there is nothing to resume. "
            "Start a new run without ckpt."
        )
    before, now = comparable(folder.load_config()), comparable(config)
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        listed = "; ".join(f"{key} was {before.get(key)}, is now {now[key]}" for key in changed)
        raise RunError(
            f"{folder.path} was started with other options: {listed}. Resume it with the same "
            "options, or start a new run without ckpt."
        )
    return folder
