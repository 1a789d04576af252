"""The folder that clips become: a table that ``train dataset=table`` reads, and its bookkeeping.

::

    utterances.csv         one row an utterance
    audio/<id>.npy         (L, d) float32, what is heard; likewise vision/<id>.npy
    features.json          the extractors, see :class:`~.contract.ExtractorFacts`
    clips.csv              one row a clip, with the reason where something of it is missing
    .clips.jsonl           the record of each clip that was worked on, for the next time
    .input                 the folder of the clips

Feature files are written by :func:`~.work.extract_clip`, everything else here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from msea_lightning.data.files.errors import shorten
from msea_lightning.features.clips import Part
from msea_lightning.features.contract import ExtractorFacts, FeatureError
from msea_lightning.features.extraction import check_facts, to_json
from msea_lightning.runs.files import write_atomically, write_csv, write_json

TABLE = "utterances.csv"
CLIPS = "clips.csv"
FACTS = "features.json"

_RECORDS = ".clips.jsonl"
_INPUT = ".input"
_LOCK = ".lock"
_COLUMNS = ("id", "split", "text", "label", "label_T", "label_A", "label_V", "group", "speaker")

_log = logging.getLogger(__name__)

Record = Mapping[str, Any]
"""What :func:`~.work.extract_clip` returns."""


class TableFolder:
    """The folder of a table that is being made, locked against other processes.

    Attributes:
        records: The latest record of each clip, by its file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, Record] = {}
        self._written: set[str] = set()

    @contextmanager
    def opened(
        self, facts: Mapping[str, ExtractorFacts], source: Path, clips: Mapping[str, Path]
    ) -> Iterator[None]:
        """Holds the folder; makes it where it is not there.

        Args:
            facts: The extractors.
            source: The folder of the clips.
            clips: All clips in it, by their files.

        Raises:
            FeatureError: where it cannot be written, or holds something else, features of other
                extractors or of the clips in another folder, or another process works in it.
        """
        with self._writing():
            self._check_folder()
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / _LOCK)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise FeatureError(
                    f"output={self.folder}: another process is writing into it. Wait for it, or "
                    "give another folder."
                ) from error
        try:
            with self._writing():
                self._check_facts(facts)
                for left in self.folder.rglob(".*.partial"):  # of a killed process
                    left.unlink()
                self.records = {record["file"]: record for record in self._read_records()}
                self._written = self._feature_files()
                self._check_input(source, clips)
            yield
        finally:
            lock.release()

    def add(self, record: Record) -> None:
        """Notes a clip that has been worked on."""
        self.records[record["file"]] = record
        with self._writing(), (self.folder / _RECORDS).open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def has_features(self, record: Record) -> bool:
        """Whether all feature files that a record speaks of are there."""
        return all((self.folder / name).is_file() for name in _feature_files(record))

    def write(self, clips: Sequence[str], utterances: Sequence[Part]) -> None:
        """Writes the tables of utterances and of clips; of other clips nothing stays.

        Args:
            clips: The files of the clips.
            utterances: The rows of the table.
        """
        self.records = {file: self.records[file] for file in clips}
        single = [name for name in _COLUMNS if name.startswith("label_")]
        used = [
            name for name in single if any(part.columns.get(name.lower()) for part in utterances)
        ]
        columns = [name for name in _COLUMNS if name not in single or name in used]
        rows = [
            {
                **{name: part.columns.get(name.lower(), "") for name in columns},
                "id": part.id,
                "text": part.text or "",
                "start": "" if part.start is None else f"{part.start:g}",
                "end": "" if part.end is None else f"{part.end:g}",
            }
            for part in utterances
        ]
        known = [
            {
                "file": file,
                "seconds": "" if record["seconds"] is None else f"{record['seconds']:.3f}",
                "utterances": sum(part["reason"] is None for part in record["parts"]),
                "reason": reason_of(record),
            }
            for file, record in self.records.items()
        ]
        with self._writing():
            write_atomically(self.folder / _RECORDS, "".join(map(_line, self.records.values())))
            for name in self._written - self._feature_files():
                (self.folder / name).unlink(missing_ok=True)
            write_csv(self.folder / CLIPS, ("file", "seconds", "utterances", "reason"), known)
            write_csv(self.folder / TABLE, (*columns, "start", "end"), rows)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FeatureError(
                f"output={self.folder} cannot be written ({error.strerror}). Make room, check its "
                "permissions, or give another folder."
            ) from error

    def _check_folder(self) -> None:
        if self.folder.is_file():
            raise FeatureError(f"output={self.folder} is a file. Give a folder.")
        ours = (self.folder / FACTS).is_file() or (self.folder / _LOCK).is_file()
        if self.folder.is_dir() and any(self.folder.iterdir()) and not ours:
            raise FeatureError(
                f"output={self.folder} holds files that are not of an extraction. Give a new "
                "folder."
            )

    def _check_input(self, source: Path, clips: Mapping[str, Path]) -> None:
        """Refuses another folder of clips: what is here of the first one would be removed.

        The same clips may have moved.
        """
        file, now = self.folder / _INPUT, str(source.resolve())
        before = file.read_text(encoding="utf-8") if file.is_file() else now
        if before != now:
            gone = [
                name
                for name, record in self.records.items()
                if name not in clips or clips[name].stat().st_size != record["size"]
            ]
            if gone:
                raise FeatureError(
                    f"output={self.folder} holds the features of the clips in {before}, and "
                    f"input={source} is another folder: it lacks {len(gone)} of these clips, or "
                    f"has others of the same name: {shorten(gone, 3)}. Give another output."
                )
        write_atomically(file, now)

    def _check_facts(self, facts: Mapping[str, ExtractorFacts]) -> None:
        file = self.folder / FACTS
        if not file.is_file():
            write_json(file, {"format": 1, "features": to_json(facts)})
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))["features"]
            if found.keys() != facts.keys():
                raise FeatureError(
                    f"it holds features of {_names(found)}, not of {_names(to_json(facts))}."
                )
            check_facts(facts, found)
        except FeatureError as error:
            raise FeatureError(
                f"output={self.folder} was made with other extractors: {error} Give another "
                "folder, or the extractors of this one."
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FeatureError(
                f"{file} is damaged ({error!r}). Remove the folder and extract anew."
            ) from error

    def _read_records(self) -> Iterator[Record]:
        """The records so far; a line that a killed process has not finished is none."""
        file = self.folder / _RECORDS
        if not file.is_file():
            return
        for line in file.read_text(encoding="utf-8").split("\n"):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and {"file", "parts"} <= record.keys():
                yield record

    def _feature_files(self) -> set[str]:
        return {name for record in self.records.values() for name in _feature_files(record)}


def reason_of(record: Record) -> str:
    """What is wrong with a clip, or with some of its utterances; empty where nothing is."""
    parts = record["parts"]
    reasons = [part["reason"] for part in parts if part["reason"]]
    if record["reason"] or not reasons:
        return record["reason"] or ""
    share = "" if len(reasons) == len(parts) else f"{len(reasons)} of {len(parts)} utterances: "
    return f"{share}{reasons[0]}"


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def _feature_files(record: Record) -> list[str]:
    """The files that a record speaks of, in the folder."""
    return [f"{name}/{part['id']}.npy" for part in record["parts"] for name in part["frames"]]


def _names(facts: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{feature}={found['name']}" for feature, found in facts.items()) or "nothing"
