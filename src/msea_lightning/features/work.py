"""The work on one clip: features to files, and a record of what was done.

:func:`extract_clip` is a function of a module that takes and returns plain data, so that it can run
in any process that sees the same files.
"""

from __future__ import annotations

import errno
import io
import logging
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from msea_lightning.config.errors import UserError
from msea_lightning.features import media
from msea_lightning.features.contract import FeatureError, Frames, MediaError
from msea_lightning.features.decoding import held_seconds
from msea_lightning.features.extraction import Extraction, ExtractionOptions
from msea_lightning.features.speech_recognition import RATE, SpeechRecognizer

_LOADED: dict[str, Extraction] = {}
"""The extractors that this process has loaded."""

_BAD_NAMES = {
    errno.ENAMETOOLONG: "the id is too long for the name of a file",
    errno.EINVAL: "the id cannot be the name of a file here",
    errno.EILSEQ: "the id cannot be the name of a file here",
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
        "the features of another id are a file where those of this one need a folder",
    ),
}
"""Errors of writing for which the id is to blame, and why."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartTask:
    """One utterance to extract; ``heard`` where its words have to be recognised."""

    id: str
    start: float | None
    end: float | None
    heard: bool


@dataclass(frozen=True)
class ClipTask:
    """One clip to work on.

    Attributes:
        path: The clip.
        beside: A file beside it that an extractor reads; None where there is none.
        file: Its path in the folder of all clips, which names it in the record.
        parts: Its utterances.
        output: Folder of the table.
        extractors: Options of the extractors.
        recogniser: Model and language of the speech recogniser; None where nothing is heard.
    """

    path: str
    beside: str | None
    file: str
    parts: tuple[PartTask, ...]
    output: str
    extractors: ExtractionOptions
    recogniser: tuple[str, str | None] | None


def extract_clip(task: ClipTask) -> dict[str, Any]:
    """Writes the features of a clip's utterances, ``<feature>/<id>.npy`` each.

    Returns:
        The record of the clip, in JSON's types: ``file``, what :func:`stamp` says, its ``seconds``,
        the ``recogniser``, a ``reason`` where nothing could be done with it, and ``parts``: of each
        utterance its ``id``, ``start``, ``end``, ``heard`` (recognised words or None), number of
        ``frames`` by feature, and ``reason`` (None where nothing is wrong).

    Raises:
        UserError: where not the clip is at fault, but an extractor or the disk.
    """
    path = Path(task.path)
    record: dict[str, Any] = {
        "file": task.file,
        **stamp(task),
        "seconds": None,
        "recogniser": list(task.recogniser) if task.recogniser else None,
        "reason": None,
        "parts": [],
    }
    for part in task.parts:
        done: dict[str, Any] = {**asdict(part), "heard": None, "frames": {}, "reason": None}
        try:
            if record["seconds"] is None:
                record["seconds"] = held_seconds(path)
            features = _extraction(task.extractors).extract(path, part.start, part.end)
            if part.heard and task.recogniser and media.probe(path).sound:
                blocks = media.audio_blocks(path, RATE, part.start, part.end)
                done["heard"] = _recogniser(*task.recogniser)(blocks)
            for name, frames in features.items():
                write_array(Path(task.output) / name / f"{part.id}.npy", frames)
        except MediaError as error:
            done["reason"] = str(error)
        except UserError:
            raise
        except Exception as error:  # one clip in a thousand must not end the other ones
            _log.debug("%s", path, exc_info=True)
            done["reason"] = f"{path} cannot be extracted ({type(error).__name__}: {error})."
        else:
            done["frames"] = {name: len(frames) for name, frames in features.items()}
        record["parts"].append(done)
    return record


def failed(task: ClipTask, reason: str) -> dict[str, Any]:
    """The record of a clip of which nothing could be extracted."""
    nothing: dict[str, Any] = {"seconds": None, "recogniser": None, "parts": []}
    return {"file": task.file, **stamp(task), "reason": reason, **nothing}


def stamp(task: ClipTask) -> dict[str, Any]:
    """By what a record knows a clip: ``size`` and ``modified`` of its file, and of that ``beside``.

    They are -1 where a file is gone.
    """
    size, modified = _stamp(task.path)
    beside = None if task.beside is None else _stamp(task.beside)
    return {"size": size, "modified": modified, "beside": beside}


def _stamp(path: str) -> list[int]:
    try:
        about = Path(path).stat()
    except OSError:
        return [-1, -1]
    return [about.st_size, about.st_mtime_ns]


def write_array(path: Path, frames: Frames) -> None:
    """Writes an array so that the file is either absent or complete.

    Raises:
        MediaError: where this name alone is impossible.
        FeatureError: where nothing can be written.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.partial")
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(frames, np.float32), allow_pickle=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(path)
    except OSError as error:
        if error.errno in _BAD_NAMES:
            raise MediaError(
                f"{path} cannot be written ({error.strerror}): {_BAD_NAMES[error.errno]}. Rename "
                "the clip, or give another id in the labels."
            ) from error
        raise FeatureError(
            f"{path} cannot be written ({error.strerror}). Make room, or give another output; the "
            "same command goes on from here."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _extraction(options: ExtractionOptions) -> Extraction:
    """The extractors, loaded once a process."""
    key = repr(options)
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = Extraction(*options)
    return _LOADED[key]


@lru_cache(maxsize=1)
def _recogniser(model: str, language: str | None) -> SpeechRecognizer:
    return SpeechRecognizer(model, language)
