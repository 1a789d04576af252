"""What a job has done so far, in a folder beside its output, so that it can go on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from msea_lightning.config.errors import ConfigError
from msea_lightning.data.files.arrays import open_archive, read_member
from msea_lightning.runs.files import write_json

_JOB = "job.json"
_LOG = "done.jsonl"
_LOCK = ".lock"


class Work(AbstractContextManager["Work"]):
    """The folder of a job: features of clips, and a line for everything that is done.

    A line is written when all that it stands for is on the disk; one that was cut off counts as not
    written. Where nothing was done at the end, no folder stays.

    Args:
        folder: The folder, made if needed, and locked against other processes.
        job: What tells this job from any other, in values of JSON.
        anew: Leave out what an interrupted job has done.

    Raises:
        ConfigError: if the folder is another job's or nobody's, or another process works in it.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any], *, anew: bool = False) -> None:
        self._folder = folder
        self._features = folder / "features"
        if folder.is_dir() and {path.name for path in folder.iterdir()} - {_LOCK}:
            _read_mark(folder)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{folder}, for what is done so far, cannot be made ({error.strerror}): give "
                "another output."
            ) from error
        self._lock = FileLock(folder / _LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(
                f"{folder}: another process is writing it. Wait for it, or give another output."
            ) from error
        try:
            if anew:
                self._clear()
            if not (folder / _JOB).is_file():
                write_json(folder / _JOB, job)
            elif (found := _read_mark(folder)) != job:
                raise _other_job(folder, job, found)
            self._features.mkdir(exist_ok=True)
            self._done: dict[str, dict[int, Any]] = {"read": {}, "answered": {}}
            self._log = (folder / _LOG).open("a+b")
        except BaseException:
            self._lock.release()
            raise
        self._log.seek(0)
        complete = 0
        for line in self._log.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            complete += len(line)
            values = json.loads(line)
            self._done[values["stage"]].update(values["rows"])
        self._log.truncate(complete)

    def done(self, stage: str) -> Mapping[int, Any]:
        """What is known of the rows that a stage, ``read`` or ``answered``, is done with."""
        return self._done[stage]

    def note(self, stage: str, rows: Mapping[int, Any]) -> None:
        """Writes down that a stage is done with rows."""
        line = json.dumps({"stage": stage, "rows": list(rows.items())})
        self._log.write(line.encode() + b"\n")
        self._log.flush()
        os.fsync(self._log.fileno())
        self._done[stage].update(rows)

    def keep_features(self, number: int, features: Mapping[str, NDArray[np.float32]]) -> None:
        """Keeps the features that were extracted for a row."""
        partial = self._features / f".{number}.partial.npz"
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **features)
        partial.replace(self._features / f"{number}.npz")

    def has_features(self, number: int) -> bool:
        """Whether features were extracted for a row."""
        return (self._features / f"{number}.npz").is_file()

    def features(self, number: int) -> dict[str, NDArray[np.float32]]:
        """The features that were kept for a row; ReadError where they are damaged."""
        path = self._features / f"{number}.npz"
        with open_archive(path) as archive:
            return {name: read_member(archive, path, name) for name in archive}

    def __exit__(self, *_: object) -> None:
        if any(self._done.values()):
            self._log.close()
        else:
            self.remove()
        self._lock.release()

    def remove(self) -> None:
        """Removes the folder, but for what others have put there."""
        self._log.close()
        self._clear()
        (self._folder / _LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            self._folder.rmdir()

    def _clear(self) -> None:
        """Removes what a job leaves, last of all what says that the folder is a job's."""
        if self._features.is_dir():
            shutil.rmtree(self._features)
        for name in (_LOG, _JOB):
            (self._folder / name).unlink(missing_ok=True)


def _read_mark(folder: Path) -> Any:
    """What says which job a folder is of; ConfigError where it is none's."""
    try:
        found = json.loads((folder / _JOB).read_text(encoding="utf-8"))
        if "plugin" not in found:
            raise ValueError("it names no plugin")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{folder} holds files, but no interrupted job: remove it, or give another output."
        ) from error
    return found


def _other_job(folder: Path, job: Mapping[str, Any], found: Mapping[str, Any]) -> ConfigError:
    other = sorted(key for key in {*job, *found} if job.get(key) != found.get(key))
    changed = " (other files, or files that have changed)" if "input" in other else ""
    return ConfigError(
        f"{folder} is what an interrupted job with another {', '.join(other)} left{changed}: give "
        "the same options to go on with that, set overwrite=true to begin anew, or give another "
        "output."
    )
