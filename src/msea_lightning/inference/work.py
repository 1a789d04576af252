"""What a job has done so far, in a folder beside its output, so that it can go on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msea_lightning.config.errors import ConfigError
from msea_lightning.runs.files import write_json

_JOB = "job.json"
_LOG = "done.jsonl"


class Work(AbstractContextManager["Work"]):
    """The folder of a job: features of clips, and a line for everything that is done.

    A line is written when all that it stands for is on the disk; one that was cut off counts as not
    written.

    Args:
        folder: The folder, made if needed.
        job: What tells this job from any other.

    Raises:
        ConfigError: if the folder is another job's.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self._folder = folder
        self._features = folder / "features"
        self._features.mkdir(parents=True, exist_ok=True)
        mark = folder / _JOB
        if not mark.is_file():
            write_json(mark, job)
        elif (found := json.loads(mark.read_text(encoding="utf-8"))) != json.loads(json.dumps(job)):
            other = sorted(key for key in {*job, *found} if job.get(key) != found.get(key))
            raise ConfigError(
                f"{folder} is what an interrupted job with another {', '.join(other)} left: give "
                "the same options to go on with that, set overwrite=true to begin anew, or give "
                "another output."
            )
        self._done: dict[str, dict[int, Any]] = {"read": {}, "answered": {}}
        self._log = (folder / _LOG).open("a+b")
        self._log.seek(0)
        complete = 0
        for line in self._log.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            complete += len(line)
            for number, values in json.loads(line)["rows"]:
                self._done[json.loads(line)["stage"]][number] = values
        self._log.truncate(complete)

    def done(self, stage: str) -> Mapping[int, Any]:
        """What is known of the rows that a stage, ``read`` or ``answered``, is done with."""
        return self._done[stage]

    def note(self, stage: str, rows: Mapping[int, Any]) -> None:
        """Writes down that a stage is done with rows."""
        line = json.dumps({"stage": stage, "rows": list(rows.items())}, ensure_ascii=False)
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
        """The features that were kept for a row."""
        with np.load(self._features / f"{number}.npz", allow_pickle=False) as archive:
            return dict(archive)

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def remove(self) -> None:
        """Removes the folder: everything is in the output."""
        self._log.close()
        shutil.rmtree(self._folder)

    @staticmethod
    def discard(folder: Path) -> None:
        """Removes what an interrupted job left; ConfigError where the folder is none of a job's."""
        if not (folder / _JOB).is_file():
            raise ConfigError(
                f"{folder} holds no interrupted job: remove it, or give another output."
            )
        shutil.rmtree(folder)
