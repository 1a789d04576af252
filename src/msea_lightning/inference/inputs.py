"""What predictions are asked about: a text, clips, a table, or lines of JSON.

Whatever it is, it becomes :class:`Inputs`: rows that are known from the start, and utterances that
are read one at a time, so that one that is broken stops no other.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.data.files.arrays import load_array
from msea_lightning.data.readers.table import TableRows
from msea_lightning.data.utterance import DataError, Utterance
from msea_lightning.features.clips import Clip as ClipFile
from msea_lightning.features.clips import Part, find_clips, utterances

_MODALITIES = ("audio", "vision")

_KEYS = ("id", "text", "label", *_MODALITIES, "features", "clip", "start", "end")
"""What a line of JSON may have."""


@dataclass(frozen=True)
class InputRow:
    """What is known of an utterance before it is read.

    Attributes:
        id: What it is called in the output.
        text: Its words.
        label: Its label, to stand beside the prediction; empty where it has none.
        split: Utterances of different splits share no batch, as in the test of a run.
    """

    id: str
    text: str = ""
    label: str = ""
    split: str = ""


class Inputs(ABC):
    """Utterances to predict.

    Attributes:
        rows: One for each utterance.
        files: Files that the input consists of; when they change, it is another input.
        extractors: Facts of the extractors by feature, as ``features.json`` has them; empty where
            the features are of unknown origin, or are yet to be extracted.
    """

    rows: Sequence[InputRow]
    files: Sequence[Path] = ()
    extractors: Mapping[str, Mapping[str, Any]]

    def __init__(self) -> None:
        self.extractors = {}

    @abstractmethod
    def utterance(self, number: int) -> Utterance:
        """The utterance of a row; a UserError where it cannot be read."""


class TextInput(Inputs):
    """A single text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows = [InputRow("text", text)]

    def utterance(self, number: int) -> Utterance:
        """See the base class."""
        return Utterance(self.rows[number].id, self.rows[number].text)


class TableInput(Inputs):
    """A table of your own: ``utterances.csv`` with features beside it; labels are not needed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._table = TableRows(path)
        self.files = [self._table.table]
        self.rows = [
            InputRow(row.values["id"], row.values["text"], row.values["label"], row.values["split"])
            for row in self._table.rows
        ]
        self.extractors = self._table.extractors

    def utterance(self, number: int) -> Utterance:
        """See the base class."""
        return self._table.utterance(number)


class LinesInput(Inputs):
    """Lines of JSON, an utterance each.

    Its keys are ``id``, ``text``, ``label``, features as lists of frames or paths of ``.npy`` files
    (``audio``, ``vision``, or any under ``features``), and ``clip``, a recording, with ``start``
    and ``end`` in seconds. Paths are relative to the file's folder. Without an id an utterance is
    called after its line.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.files = [path]
        self._path = path
        with path.open("rb") as file:
            lines = file.read().split(b"\n")
        self._lines = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        self.rows = [self._row(number, line) for number, line in self._lines]

    def utterance(self, number: int) -> Utterance:
        """See the base class."""
        line, content = self._lines[number]
        where = f"{self._path}, line {line}"
        values = _parsed(content, where)
        if unknown := sorted(values.keys() - set(_KEYS)):
            raise DataError(
                f"{where} has {', '.join(unknown)}; known are {', '.join(_KEYS)}. Correct or "
                "remove it."
            )
        features = values.get("features", {})
        if not isinstance(features, dict):
            raise DataError(f"{where}: features is no object of names and arrays. Correct it.")
        features = features | {name: values[name] for name in _MODALITIES if name in values}
        arrays = {
            name: self._array(value, where) if isinstance(value, str) else value
            for name, value in features.items()
            if value is not None
        }
        row = self.rows[number]
        found = Utterance(row.id, row.text, features=arrays)
        if values.get("clip") is None:
            return found
        clip = Utterance.from_media(
            self._path.parent / values["clip"], start=values.get("start"), end=values.get("end")
        ).clip
        return replace(found, clip=clip)

    def _array(self, name: str, where: str) -> Any:
        path = self._path.parent / name
        if not path.is_file():
            raise DataError(f"{where}: there is no file {path}. Correct the path.")
        return load_array(path, where)

    def _row(self, number: int, line: bytes) -> InputRow:
        try:
            values = _parsed(line, "")
        except DataError:
            values = {}
        words = {key: str(values[key]) for key in ("text", "label") if values.get(key) is not None}
        return InputRow(str(values.get("id", f"line {number}")), **words)


class ClipsInput(Inputs):
    """Recordings: each, or each cue of the subtitles beside it, is an utterance.

    Args:
        path: A clip, or a folder of clips.
        text: What is said in a single clip; taken from beside it where not given.
    """

    def __init__(self, path: Path, text: str | None) -> None:
        super().__init__()
        clips = find_clips(path)
        self.files = [clip.path for clip in clips]
        found = [(clip, part) for clip in clips for part in _parts(clip, text)]
        self.rows = [InputRow(part.id, part.text or "") for _, part in found]
        self._clips = [clip for clip, _ in found]
        self._parts = [part for _, part in found]

    def utterance(self, number: int) -> Utterance:
        """See the base class."""
        clip, part = self._clips[number], self._parts[number]
        if part.text is None:
            utterances(clip, [])  # raises what is wrong with its transcript
        return Utterance.from_media(
            clip.path, part.text or "", id=part.id, start=part.start, end=part.end
        )


def _parts(clip: ClipFile, text: str | None) -> list[Part]:
    """The utterances of a clip; the clip as a whole where its transcript cannot be read."""
    if text is not None:
        return [Part(clip.id, text=text)]
    try:
        return utterances(clip, [])
    except UserError:
        return [Part(clip.id)]


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is no JSON: {error}. Give one object a line.") from error
    if not isinstance(values, dict):
        raise DataError(f"{where} is {type(values).__name__}, not an object with id and text.")
    return values


def open_inputs(place: str | None, text: str | None) -> Inputs:
    """What ``input`` and ``text`` stand for.

    Raises:
        ConfigError: if there is neither, or no such file, or a text beside many utterances.
        ReadError: if it is a table that cannot be read.
    """
    if place is None:
        if text is None:
            raise ConfigError("Give what to predict: text=... or input=FILE_OR_FOLDER.")
        return TextInput(text)
    path = Path(place).expanduser()
    if not path.exists():
        raise ConfigError(
            f"input={place} does not exist: give a clip, a folder of clips, a table "
            "(utterances.csv or its folder), or a .jsonl file."
        )
    is_table = path.suffix.lower() == ".csv" or (path / "utterances.csv").is_file()
    if path.is_dir() or is_table or path.suffix.lower() in (".jsonl", ".ndjson"):
        if text is not None:
            raise ConfigError(
                f"text={text!r} beside input={place}, which holds utterances with texts of their "
                "own: leave text out, or give a single clip."
            )
        if is_table:
            return TableInput(path)
        return ClipsInput(path, None) if path.is_dir() else LinesInput(path)
    return ClipsInput(path, text)
