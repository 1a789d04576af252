"""CHERMA as its authors publish it.

A folder with ``train.json``, ``dev.json`` and ``test.json``, each a list of ``{"audio_file",
"video_file", "txt_label", "audio_label", "visual_label", "video_label"}``, beside the features in
``audio|visual/<split>/*.npy``. The features are called like the audio file (without ``.wav``) and
like the video file (with ``.mp4``). ``video_label`` is the label of the utterance as a whole, the
one that counts; the other three are of one modality each.

The authors' ``text/*.npy`` hold features of a text encoder, and the framework reads words. A
transcript is a field of the JSON entry (``text``, ``txt``, ``transcript`` ...), or else in
``transcripts.csv`` (id, text) beside the JSON files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from msea_lightning.data.files.arrays import load_array
from msea_lightning.data.files.errors import MissingFileError, ReadError, shorten
from msea_lightning.data.files.rows import read_rows
from msea_lightning.data.readers import checks
from msea_lightning.data.readers.checks import Frames
from msea_lightning.data.readers.reading import (
    NEEDED_SPLITS,
    SPLIT_NAMES,
    Layout,
    Record,
    Source,
)

_NEEDED = ("audio_file", "video_label")
_LABELS = {"M": "video_label", "T": "txt_label", "A": "audio_label", "V": "visual_label"}
_TEXT_FIELDS = (
    *("text", "txt", "transcript", "transcription", "transcripts", "raw_text", "sentence"),
    *("utterance", "subtitle", "content"),
)
_TRANSCRIPTS = "transcripts.csv"


class ChermaLayout(Layout):
    """JSON files beside folders of arrays; one utterance's features are in memory at a time."""

    by_split: dict[str, Path]

    def find(self, path: Path) -> list[Path]:
        """JSON files, transcripts and features in a folder, or in the one below it."""
        path = path.parent if path.is_file() else path
        self.by_split = {}
        for file in [*sorted(path.glob("*.json")), *sorted(path.glob("*/*.json"))]:
            if file.stem in SPLIT_NAMES:
                self.by_split.setdefault(SPLIT_NAMES[file.stem], file)
        missing = [f"{split}.json" for split in NEEDED_SPLITS if split not in self.by_split]
        if missing:
            raise MissingFileError(f"{path} holds no {' and no '.join(missing)}")
        folder = self.by_split["train"].parent
        self._transcripts = folder / _TRANSCRIPTS
        return [
            *self.by_split.values(),
            *([self._transcripts] if self._transcripts.is_file() else []),
            *(
                file
                for name in ("audio", "visual")
                for file in sorted((folder / name).rglob("*.npy"))
            ),
        ]

    def sources(self) -> Mapping[str, Source]:
        """Reads the JSON files and the transcripts."""
        transcripts = {}
        if self._transcripts.is_file():
            rows, _ = read_rows(self._transcripts, ("id", "text"))
            transcripts = {row.values["id"]: row.values["text"] for row in rows}
        entries = {split: _entries(file) for split, file in self.by_split.items()}
        return {
            split: Source(
                file,
                partial(_records, entries[split], split, file, transcripts),
                len(entries[split]),
            )
            for split, file in self.by_split.items()
        }


def _entries(file: Path) -> list[Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise ReadError(
            f"{file} is not a JSON file in UTF-8 ({error}). Fetch the file again."
        ) from error
    if not isinstance(content, list):
        raise ReadError(
            f"{file} holds a JSON {type(content).__name__}, expected a list of utterances. Check "
            "dataset.reader and dataset.path."
        )
    return content


def _records(
    entries: list[Any], split: str, file: Path, transcripts: dict[str, str]
) -> Iterator[Record]:
    for number, entry in enumerate(entries, start=1):
        if isinstance(entry, dict):
            entry = {name: value for name, value in entry.items() if isinstance(value, str)}
        fields = checks.members(entry, _NEEDED, f"{file}: number {number} ({split})")
        identity = fields["audio_file"].removesuffix(".wav")
        where = f"{file}: utterance '{identity}' ({split}, number {number})"
        video = fields.get("video_file", identity).removesuffix(".mp4")
        yield Record(
            position=f"number {number}",
            id=identity,
            text=_transcript(fields, transcripts.get(identity), file, where),
            labels={
                name: fields[key] for name, key in _LABELS.items() if name == "M" or fields.get(key)
            },
            features={
                "audio": _features(file.parent / "audio" / file.stem / f"{identity}.npy", where),
                "vision": _features(file.parent / "visual" / file.stem / f"{video}.mp4.npy", where),
            },
        )


def _features(path: Path, where: str) -> Frames:
    if not path.is_file():
        raise ReadError(
            f"{where} lacks {path}. Fetch the folder again, or remove the utterance from the JSON "
            "file."
        )
    return Frames.whole(load_array(path, where))


def _transcript(fields: Mapping[str, str], listed: str | None, file: Path, where: str) -> str:
    words = next((fields[name] for name in _TEXT_FIELDS if name in fields), listed)
    if words is None:
        raise ReadError(
            f"{where} has no transcript: the JSON entry has the fields {shorten(fields)}, and "
            f"{_TRANSCRIPTS} beside it does not list the utterance. Write "
            f"{file.parent / _TRANSCRIPTS} with the columns id and text, or use the files of "
            "dataset=cherma dataset.download=true, which hold the transcripts."
        )
    return words
