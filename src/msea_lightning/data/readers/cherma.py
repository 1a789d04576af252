"""CHERMA as its authors publish it.

A folder with ``train.json``, ``dev.json`` and ``test.json``, each a list of ``{"audio_file",
"video_file", "txt_label", "audio_label", "visual_label", "video_label"}``, beside the features in
``text|audio|visual/<split>/*.npy``. The features are called like the audio file (without ``.wav``),
those of the visual modality end in ``.mp4.npy``. ``video_label`` is the label of the utterance as
a whole, the one that counts; the other three are of one modality each.

The framework reads words, and the authors' ``text/*.npy`` hold features of a text encoder. A
transcript is taken from the first of these that has it: a field of the JSON entry (``text``,
``txt``, ``transcript`` ...), ``transcripts.csv`` (id, text) beside the JSON files, and
``text/<split>/<id>.npy`` where that file holds words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msea_lightning.data.files.arrays import load_array
from msea_lightning.data.files.rows import read_rows
from msea_lightning.data.options import DatasetConfig
from msea_lightning.data.readers.record import (
    SPLIT_NAMES,
    Frames,
    MissingFileError,
    ReadError,
    Reading,
    Record,
    Source,
    shorten,
)

_NEEDED = ("audio_file", "video_label")
_TEXT_FIELDS = (
    "text",
    "txt",
    "transcript",
    "transcription",
    "transcripts",
    "raw_text",
    "sentence",
    "utterance",
    "subtitle",
    "content",
)
_TRANSCRIPTS = "transcripts.csv"
_FOLDERS = ("text", "audio", "visual")


def find_cherma(path: Path, dataset: DatasetConfig) -> list[Path]:
    """The files of the data set: JSON files, transcripts, features.

    Args:
        path: The folder (or the one above it), or one of its JSON files.
        dataset: The data set's options.

    Raises:
        MissingFileError: where the JSON file of train or test is not there.
    """
    files = _find(path)
    folder = next(iter(files.values())).parent
    transcripts = folder / _TRANSCRIPTS
    features = (file for name in _FOLDERS for file in sorted((folder / name).rglob("*.npy")))
    return [*files.values(), *([transcripts] if transcripts.is_file() else []), *features]


def read_cherma(path: Path, dataset: DatasetConfig) -> Reading:
    """Reads the authors' layout; the features of one utterance are in memory at a time.

    Args:
        path: The folder (or the one above it), or one of its JSON files.
        dataset: The data set's options.

    Raises:
        UserError: naming the file, and where it concerns one, the utterance and the remedy.
    """
    files = _find(path)
    folder = next(iter(files.values())).parent
    transcripts = _transcripts(folder / _TRANSCRIPTS)
    sources = {}
    for split, file in files.items():
        entries = _entries(file)
        sources[split] = Source(
            file,
            lambda entries=entries, split=split, file=file: _records(  # type: ignore[misc]
                entries, split, file, transcripts
            ),
            len(entries),
        )
    return Reading(dataset, sources)


def _find(path: Path) -> dict[str, Path]:
    path = path.parent if path.is_file() else path
    files: dict[str, Path] = {}
    for file in [*sorted(path.glob("*.json")), *sorted(path.glob("*/*.json"))]:
        if file.stem in SPLIT_NAMES:
            files.setdefault(SPLIT_NAMES[file.stem], file)
    missing = [f"{split}.json" for split in ("train", "test") if split not in files]
    if missing:
        raise MissingFileError(f"{path} holds no {' and no '.join(missing)}")
    return files


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


def _transcripts(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    return {row.values["id"]: row.values["text"] for row in read_rows(file, ("id", "text"))}


def _records(
    entries: list[Any], split: str, file: Path, transcripts: dict[str, str]
) -> Iterator[Record]:
    for number, entry in enumerate(entries, start=1):
        fields = entry if isinstance(entry, dict) else {}
        missing = [name for name in _NEEDED if not isinstance(fields.get(name), str)]
        if missing:
            raise ReadError(
                f"{file}: number {number} ({split}) lacks {', '.join(missing)}; found "
                f"{shorten(fields)}. Check dataset.reader, or fetch the file again."
            )
        identity = fields["audio_file"].removesuffix(".wav")
        where = f"{file}: utterance '{identity}' ({split}, number {number})"
        audio = _features(file, "audio", [identity], where)
        video = fields.get("video_file") or f"{identity}.mp4"
        stems = [f"{identity}.mp4", video, f"{video.removesuffix('.mp4')}.mp4"]
        vision = _features(file, "visual", stems, where)
        yield Record(
            position=f"number {number}",
            id=identity,
            text=_transcript(file, identity, fields, transcripts, where),
            label=fields["video_label"],
            audio=Frames(audio, len(audio)),
            vision=Frames(vision, len(vision)),
        )


def _features(file: Path, modality: str, stems: list[str], where: str) -> NDArray[Any]:
    folder = file.parent / modality / file.stem
    for stem in stems:
        path = folder / f"{stem}.npy"
        if path.is_file():
            values = load_array(path, where)
            return values[None] if values.ndim == 1 else values
    raise ReadError(
        f"{where} has no {modality} features: {folder / stems[0]}.npy is missing. Fetch the "
        "folder again, or remove the utterance from the JSON file."
    )


def _transcript(
    file: Path, identity: str, fields: dict[str, Any], transcripts: dict[str, str], where: str
) -> str:
    for name in _TEXT_FIELDS:
        if isinstance(fields.get(name), str):
            return str(fields[name])
    if identity in transcripts:
        return transcripts[identity]
    path = file.parent / "text" / file.stem / f"{identity}.npy"
    if path.is_file():
        values = load_array(path, where)
        if values.dtype.kind == "U" and values.size == 1:
            return str(np.squeeze(values))
    raise ReadError(
        f"{where} has no transcript: the JSON entry has the fields {shorten(fields)}, "
        f"{_TRANSCRIPTS} beside it does not list the utterance, and {path} does not hold words. "
        f"Write {file.parent / _TRANSCRIPTS} with the columns id and text, or use the files of "
        "dataset=cherma dataset.download=true, which hold the transcripts."
    )
