"""The layout of MMSA: MOSEI ``unaligned_50.pkl``, SIMS-V2 ``ch-simsv2s.pkl``, MOSI, SIMS.

One pickle, ``{train, valid, test: {raw_text, audio, vision, id, audio_lengths, vision_lengths,
regression_labels, ...}}``: N texts, (N, La, da) and (N, Lv, dv) features, N ids, N lengths, (N,) or
(N, 1) labels. Further keys are ignored. Files with aligned features have no lengths; there, frames
of zeros at either end are padding.

The file is in memory while it is read, because a pickle of one dictionary can only be loaded
whole. What is not needed is dropped at once, and each split as soon as it has been read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msea_lightning.data.files.unpickle import load_pickle
from msea_lightning.data.options import DatasetConfig
from msea_lightning.data.readers.record import (
    Frames,
    MissingFileError,
    ReadError,
    Reading,
    Record,
    Source,
    shorten,
    split_keys,
)

_NEEDED = ("raw_text", "audio", "vision", "id", "regression_labels")
_OPTIONAL = ("audio_lengths", "vision_lengths")
_SUFFIXES = (".pkl", ".pickle")


def find_mmsa(path: Path, dataset: DatasetConfig) -> list[Path]:
    """The one file of the data set.

    Args:
        path: The file, or a folder with it: ``dataset.hub_file``, or the only pickle in it.
        dataset: The data set's options.

    Raises:
        MissingFileError: where there is none.
        ReadError: where there are several.
    """
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
    wanted = Path(dataset.hub_file or "").name
    named = [file for file in found if file.name == wanted]
    if len(named) == 1 or len(found) == 1:
        return named[:1] or found
    if not found:
        raise MissingFileError(f"{path} holds no {wanted or '.pkl file'}")
    listed = shorten(str(file.relative_to(path)) for file in found)
    raise ReadError(
        f"{path} holds {len(found)} pickles ({listed}), and one is needed. Give the file itself "
        "with dataset.path=..."
    )


def read_mmsa(
    path: Path, dataset: DatasetConfig, *, advance: Callable[[int], None] | None = None
) -> Reading:
    """Reads a file of MMSA's layout; the video is the part of the id before ``$_$`` or ``/``.

    Args:
        path: The file, or a folder with it.
        dataset: The data set's options.
        advance: Called with the number of bytes read since its last call.

    Raises:
        UserError: naming the file, and where it concerns one, the utterance and the remedy.
    """
    (file,) = find_mmsa(path, dataset)
    loaded = _Loaded(file, advance)
    sources = {
        split: Source(file, lambda split=split: _records(loaded.take(split)), size)  # type: ignore[misc]
        for split, size in loaded.sizes.items()
    }
    return Reading(dataset, sources)


class _Loaded:
    """The file's splits, each kept until it is taken; loads the file anew when all are gone."""

    def __init__(self, file: Path, advance: Callable[[int], None] | None) -> None:
        self._file = file
        self._parts = _load(file, advance)
        self.sizes = {split: len(part["raw_text"]) for split, part in self._parts.items()}

    def take(self, split: str) -> dict[str, Any]:
        if split not in self._parts:
            self._parts = _load(self._file, None)
        return self._parts.pop(split)


def _load(file: Path, advance: Callable[[int], None] | None) -> dict[str, dict[str, Any]]:
    content = load_pickle(file, advance=advance)
    if not isinstance(content, dict):
        raise ReadError(
            f"{file} holds a {type(content).__name__}, where dataset.reader=mmsa expects the "
            "splits train, valid and test. Check dataset.reader and dataset.path."
        )
    parts = {}
    for split, key in split_keys(map(str, content), str(file)).items():
        part = content.pop(key)
        where = f"{file}: the split '{key}'"
        if not isinstance(part, dict):
            raise ReadError(
                f"{where} is a {type(part).__name__}, expected {', '.join(_NEEDED)}. Check "
                "dataset.reader and dataset.path."
            )
        missing = [name for name in _NEEDED if part.get(name) is None]
        if missing:
            raise ReadError(
                f"{where} lacks {', '.join(missing)}; found {shorten(map(str, part))}. Check "
                "dataset.reader, or fetch the file again."
            )
        parts[split] = {
            name: part[name] for name in (*_NEEDED, *_OPTIONAL) if part.get(name) is not None
        }
        _check_sizes(parts[split], where)
    return parts


def _check_sizes(part: dict[str, Any], where: str) -> None:
    for name, values in part.items():
        if not hasattr(values, "__len__") or getattr(values, "ndim", 1) == 0:
            raise ReadError(
                f"{where} has one value ({values!r}) as {name}, expected one per utterance. Fetch "
                "the file again."
            )
        if len(values) != len(part["raw_text"]):
            raise ReadError(
                f"{where} has {len(part['raw_text'])} of raw_text, but {len(values)} of {name}; "
                "expected one each per utterance. Fetch the file again."
            )


def _records(part: dict[str, Any]) -> Iterator[Record]:
    for index in range(len(part["raw_text"])):
        identity = part["id"][index]
        yield Record(
            position=f"number {index + 1}",
            id=identity,
            text=part["raw_text"][index],
            label=part["regression_labels"][index],
            audio=_frames(part, "audio", index),
            vision=_frames(part, "vision", index),
            group=_video(identity),
        )


def _frames(part: dict[str, Any], modality: str, index: int) -> Frames:
    lengths = part.get(f"{modality}_lengths")
    return Frames(part[modality][index], None if lengths is None else lengths[index])


def _video(identity: Any) -> str | None:
    if isinstance(identity, bytes):
        identity = identity.decode("utf-8", "replace")
    parts = re.split(r"\$_\$|/", str(identity))
    return parts[0] if len(parts) > 1 else None
