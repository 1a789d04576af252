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
from msea_lightning.data.files.errors import ReadError, shorten
from msea_lightning.data.files.rows import read_rows
from msea_lightning.data.readers import checks
from msea_lightning.data.readers.checks import Frames
from msea_lightning.data.readers.reading import (
    Layout,
    Record,
    Source,
    list_files,
    refuse_missing,
    split_files,
)

_LABELS = {"M": "video_label", "T": "txt_label", "A": "audio_label", "V": "visual_label"}
_TEXT_FIELDS = (
    *("text", "txt", "transcript", "transcription", "transcripts", "raw_text", "sentence"),
    *("utterance", "subtitle", "content"),
)


class ChermaLayout(Layout):
    """JSON files beside folders of arrays; one utterance's features are in memory at a time."""

    def find(self, path: Path) -> list[Path]:
        """JSON files, transcripts and features in a folder, or in the one below it."""
        path = path.parent if path.is_file() else path
        self._by_split = split_files(path, "json").get("", {})
        refuse_missing(self._by_split, path, "{}.json")
        folder = self._by_split["train"].parent
        self._transcripts = list_files(folder, "transcripts.csv")
        features = list_files(folder, "audio/**/*.npy", "visual/**/*.npy")
        return [*self._by_split.values(), *self._transcripts, *features]

    def sources(self) -> Mapping[str, Source]:
        """Reads the JSON files and the transcripts."""
        transcripts = {
            row.values["id"]: row.values["text"]
            for file in self._transcripts
            for row in read_rows(file, ("id", "text")).rows
        }
        sources = {}
        for split, file in self._by_split.items():
            entries = _entries(file)
            records = partial(_records, entries, split, file, transcripts)
            sources[split] = Source(file, records, len(entries))
        return sources


def _entries(file: Path) -> list[Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise ReadError(f"{file} is not a JSON file in UTF-8 ({error}). Fetch it again.") from error
    if not isinstance(content, list):
        found = type(content).__name__
        raise ReadError(f"{file} holds a JSON {found}, expected a list. Check dataset.reader.")
    return content


def _records(
    entries: list[Any], split: str, file: Path, transcripts: dict[str, str]
) -> Iterator[Record]:
    for number, entry in enumerate(entries, start=1):
        if isinstance(entry, dict):
            entry = {name: value for name, value in entry.items() if isinstance(value, str)}
        fields = checks.members(
            entry, ("audio_file", "video_label"), f"{file}: number {number} ({split})"
        )
        identity = fields["audio_file"].removesuffix(".wav")
        where = f"{file}: utterance '{identity}' ({split}, number {number})"
        video = fields.get("video_file", identity).removesuffix(".mp4")
        written = (fields[name] for name in _TEXT_FIELDS if name in fields)
        words = next(written, transcripts.get(identity))
        if words is None:
            raise ReadError(
                f"{where} has no transcript in its fields ({shorten(fields)}). Write "
                f"{file.with_name('transcripts.csv')} with the columns id and text, or use the "
                "files of dataset=cherma dataset.download=true, which hold the transcripts."
            )
        yield Record(
            position=f"number {number}",
            id=identity,
            text=words,
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
        raise ReadError(f"{where} lacks {path}. Fetch the folder again, or remove the utterance.")
    return Frames.whole(load_array(path, where))
