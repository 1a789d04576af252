"""Reads what an offline W&B run has left in its run folder."""

from __future__ import annotations

import csv
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb
from wandb.proto.wandb_internal_pb2 import Record

from msea_lightning.config.roots import TrainConfig
from msea_lightning.runs.folder import RunFolder

_BLOCK = 32768
"""Bytes of a block of a ``.wandb`` file, a LevelDB log with a header of 7 bytes."""


def records(file: Path) -> list[Record]:
    """The records of a ``.wandb`` file."""
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    found, part, position = [], b"", 7
    while position + 7 <= len(data):
        if _BLOCK - position % _BLOCK < 7:
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            found.append(Record.FromString(part))
            part = b""
    return found


def items(found: Any) -> dict[str, Any]:
    """Key to value of the items of a record."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found}


@dataclass
class Recorded:
    """One offline W&B run.

    Attributes:
        config: Options of the run.
        run: Its run folder.
        files: Folder of the files that W&B uploads.
        records: Everything in the ``.wandb`` file.
    """

    config: TrainConfig
    run: RunFolder
    files: Path
    records: list[Record]

    def of(self, kind: str) -> list[Any]:
        """All records of a kind."""
        return [getattr(one, kind) for one in self.records if one.WhichOneof("record_type") == kind]

    @property
    def begun(self) -> Any:
        """The record that begins the run."""
        (found,) = self.of("run")
        return found

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of the history that have metrics of training."""
        rows = [items(row.item) for row in self.of("history")]
        return [row for row in rows if "trainer/global_step" in row]

    @property
    def summary(self) -> dict[str, Any]:
        """The summary in the end, without W&B's own keys and the places of tables."""
        merged: dict[str, Any] = {}
        for update in self.of("summary"):
            merged |= items(update.update)
        own = ("_", "test/predictions", "test/confusion_matrix")
        return {key: value for key, value in merged.items() if not key.startswith(own)}

    @property
    def results(self) -> dict[str, dict[str, float | None]]:
        """The metrics in ``metrics.json``, by split."""
        loaded = json.loads(self.run.metrics.read_text())
        return {split: loaded[split] for split in ("test", "valid")}

    @property
    def predictions(self) -> list[dict[str, str]]:
        """The rows of ``predictions.csv``."""
        with self.run.predictions.open(newline="") as file:
            return list(csv.DictReader(file))

    def table(self, name: str) -> Any:
        """A table's columns and data."""
        (file,) = self.files.glob(f"media/table/{name}_*.table.json")
        return json.loads(file.read_text())


def recordings(run: RunFolder) -> list[Path]:
    """The ``.wandb`` files of a run folder, in the order of their start."""
    wandb.teardown()  # its service process writes the last of them after a run has ended
    return sorted((run.path / "wandb").glob("offline-run-*/run-*.wandb"))
