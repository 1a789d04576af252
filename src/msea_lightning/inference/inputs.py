"""What predictions are asked about: a text, clips, a table, or lines of JSON.

Whatever it is, it becomes :class:`Inputs`: rows that are known from the start, and utterances that
are read one at a time, so that one that is broken stops no other.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.data.options import ColumnsConfig
from msea_lightning.data.readers import MissingFileError
from msea_lightning.data.readers.columns import TABLE, find_tables
from msea_lightning.data.readers.table import TableRows, group_of, refuse_repeated
from msea_lightning.data.utterance import Utterance
from msea_lightning.features.clips import Clip as ClipFile
from msea_lightning.features.clips import Part, find_clips, transcripts, utterances
from msea_lightning.inference.lines import read_lines

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputRow:
    """What is known of an utterance before it is read.

    Attributes:
        id: What it is called in the output.
        text: Its words.
        label: Its label, to stand beside the prediction; empty where it has none.
        split: Utterances of different splits share no batch, as in the test of a run.
        group: Dialogue or video, whose utterances are in the order in which they were said.
        speaker: Who speaks.
    """

    id: str
    text: str = ""
    label: str = ""
    split: str = ""
    group: str | None = None
    speaker: str | None = None


class Inputs(AbstractContextManager["Inputs"]):
    """Utterances to predict.

    Attributes:
        rows: One for each utterance.
        files: All files that are read; when one changes, it is another input.
        has_clips: Whether features are to be extracted.
        extractors: Facts of the extractors by feature, as ``features.json`` has them; empty where
            the features are of unknown origin, or are yet to be extracted.
    """

    rows: Sequence[InputRow]
    files: Sequence[Path] = ()
    has_clips: bool = False
    extractors: Mapping[str, Mapping[str, Any]]

    def __init__(self) -> None:
        self.extractors = {}

    @abstractmethod
    def utterance(self, number: int) -> Utterance:
        """The utterance of a row; a UserError where it cannot be read."""

    def __exit__(self, *_: object) -> None:
        """Closes what was kept open."""


class TextInput(Inputs):
    """A single text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows = [InputRow("text", text)]

    def utterance(self, number: int) -> Utterance:
        """See the base class."""
        return Utterance(self.rows[number].id, self.rows[number].text)


class TableInput(Inputs):
    """A table of your own, or one for each split, with features beside it; without labels too.

    Args:
        path: The table, or its folder.
        columns: What its columns are called.
    """

    def __init__(self, path: Path, columns: ColumnsConfig) -> None:
        super().__init__()
        self._table = TableRows(path, columns)
        for note in self._table.notes:
            _log.info("%s", note)
        self.files = self._table.files
        self.rows = [
            InputRow(
                row.values["id"],
                row.values["text"],
                row.values["label"],
                row.values["split"],
                group_of(row),
                row.values["speaker"] or None,
            )
            for row in self._table.rows
        ]
        self.extractors = self._table.extractors

    def utterance(self, number: int) -> Utterance:
        """See the base class."""
        return self._table.utterance(number)

    def __exit__(self, *_: object) -> None:
        self._table.__exit__()


class LinesInput(Inputs):
    """Lines of JSON, an utterance each.

    Its keys are ``id``, ``text``, ``label``, ``group`` (the conversation), ``speaker``, features as
    lists of frames or paths of ``.npy`` files (``audio``, ``vision``, or any under ``features``),
    and ``clip``, a recording, with ``start`` and ``end`` in seconds. Paths are relative to the
    file's folder. Without an id an utterance is called after its line.

    Raises:
        ReadError: if it cannot be read, or utterances have the same id.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._lines = read_lines(path)
        refuse_repeated((line.id for line in self._lines), f"{path}")
        self.files = [path, *(file for line in self._lines for file in line.files)]
        self.has_clips = any(line.clip is not None for line in self._lines)
        self.rows = [
            InputRow(
                line.id,
                line.text,
                line.label,
                group=line.group or None,
                speaker=line.speaker or None,
            )
            for line in self._lines
        ]

    def utterance(self, number: int) -> Utterance:
        """See the base class."""
        return self._lines[number].utterance()


class ClipsInput(Inputs):
    """Recordings: each, or each cue of the subtitles beside it, is an utterance.

    Args:
        path: A clip, or a folder of clips.
        text: What is said in a single clip; taken from beside it where not given.
    """

    has_clips = True

    def __init__(self, path: Path, text: str | None) -> None:
        super().__init__()
        clips = find_clips(path)
        self.files = [file for clip in clips for file in (clip.path, *transcripts(clip))]
        found = [(clip, part) for clip in clips for part in _parts(clip, text)]
        self.rows = [
            InputRow(part.id, part.text or "", group=part.columns.get("group")) for _, part in found
        ]
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


def open_inputs(
    place: str | None, text: str | None, columns: ColumnsConfig | None = None
) -> Inputs:
    """What ``input`` and ``text`` stand for; ``columns`` says how those of a table are called.

    Raises:
        ConfigError: if there is neither, or no such file, or no utterance in it, or a text beside
            many utterances.
        ReadError: if it is a table, or lines of JSON, that cannot be read.
    """
    if place is None:
        if text is None:
            raise ConfigError("Give what to predict: text=... or input=FILE_OR_FOLDER.")
        return TextInput(text)
    path = Path(place).expanduser()
    if not path.exists():
        raise ConfigError(
            f"input={place} does not exist: give a clip, a folder of clips, a table (a .csv file "
            "or its folder), or a .jsonl file."
        )
    inputs = _opened(path, text, columns or ColumnsConfig())
    if not inputs.rows:
        inputs.__exit__()
        raise ConfigError(f"input={place} holds no utterance: give it one a row, or a line.")
    return inputs


def _opened(path: Path, text: str | None, columns: ColumnsConfig) -> Inputs:
    is_table = _is_table(path, columns)
    if given := [name for name, value in asdict(columns).items() if value and not is_table]:
        raise ConfigError(
            f"columns.{given[0]} has no effect on input={path}, which is no table. Leave it out."
        )
    if path.is_dir() or is_table or path.suffix.lower() in (".jsonl", ".ndjson"):
        if text is not None:
            raise ConfigError(
                f"text={text!r} beside input={path}, which holds utterances with texts of their "
                "own: leave text out, or give a single clip."
            )
        if is_table:
            return TableInput(path, columns)
        return ClipsInput(path, None) if path.is_dir() else LinesInput(path)
    return ClipsInput(path, text)


def _is_table(path: Path, columns: ColumnsConfig) -> bool:
    """Whether a path is a table, or a folder with one; labels beside clips make no table."""
    if path.suffix.lower() == ".csv" or (path / TABLE).is_file():
        return True
    if not path.is_dir():
        return False
    try:
        find_tables(path, columns)
    except MissingFileError:
        return False
    try:
        find_clips(path)
    except UserError:
        return True
    return False
