"""The layout of MELD, CHERMA and IEMOCAP as the original implementation reads them.

Three pickles, ``<name>_{train,valid,test}.pkl``, each a list of ``{"label": str, "features":
{"text": str, "audio": (La, da), "video": (Lv, dv), "audio_len": int, "video_len": int}}``, padded.
The utterances have no ids, so they get ``<split>-<number>``, counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msea_lightning.data.files.unpickle import iterate_pickle
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


def find_dialogue(path: Path, dataset: DatasetConfig) -> list[Path]:
    """The files of the data set, one for each split.

    Args:
        path: Their folder (or the folder above it), or one of them.
        dataset: The data set's options; its name is that of the files, unless the folder holds
            files of one other name.

    Raises:
        MissingFileError: where the file of train or test is not there.
        ReadError: where the folder holds files of several data sets.
    """
    return list(_find(path, dataset).values())


def read_dialogue(
    path: Path, dataset: DatasetConfig, *, advance: Callable[[int], None] | None = None
) -> Reading:
    """Reads three files of this layout; a part of one is in memory at a time.

    Args:
        path: Their folder, or one of them.
        dataset: The data set's options.
        advance: Called with the number of bytes read since its last call.

    Raises:
        UserError: naming the file, and where it concerns one, the utterance and the remedy.
    """
    sources = {
        split: Source(file, lambda file=file, split=split: _records(file, split, advance))  # type: ignore[misc]
        for split, file in _find(path, dataset).items()
    }
    return Reading(dataset, sources)


def _find(path: Path, dataset: DatasetConfig) -> dict[str, Path]:
    name = dataset.name
    if path.is_file():
        stem, _, split = path.stem.rpartition("_")
        if not stem or split not in SPLIT_NAMES:
            raise ReadError(
                f"{path} is not called <name>_train.pkl, <name>_valid.pkl or <name>_test.pkl, as "
                "the files of dataset.reader=dialogue are. Rename it or check dataset.reader."
            )
        name, path = stem, path.parent
    found: dict[str, dict[str, Path]] = {}
    for file in [*sorted(path.glob("*.pkl")), *sorted(path.glob("*/*.pkl"))]:
        stem, _, split = file.stem.rpartition("_")
        if stem and split in SPLIT_NAMES:
            found.setdefault(stem, {}).setdefault(SPLIT_NAMES[split], file)
    if name not in found and len(found) > 1:
        raise ReadError(
            f"{path} holds the files of {shorten(sorted(found))}, none of {name}. Give one of the "
            "files themselves with dataset.path=..."
        )
    files = found.get(name) or next(iter(found.values()), {})
    missing = [f"{name}_{split}.pkl" for split in ("train", "test") if split not in files]
    if missing:
        raise MissingFileError(f"{path} holds no {' and no '.join(missing)}")
    return files


def _records(file: Path, split: str, advance: Callable[[int], None] | None) -> Iterator[Record]:
    for index, item in enumerate(iterate_pickle(file, advance=advance)):
        where = f"{file}: utterance '{split}-{index}' ({split}, number {index + 1})"
        label, features = _take(item, where, "label", "features")
        text, audio, vision = _take(features, f"{where}, features,", "text", "audio", "video")
        yield Record(
            position=f"number {index + 1}",
            id=f"{split}-{index}",
            text=text,
            label=label,
            audio=None if audio is None else Frames(audio, features.get("audio_len")),
            vision=None if vision is None else Frames(vision, features.get("video_len")),
        )


def _take(item: Any, where: str, *keys: str) -> tuple[Any, ...]:
    if not isinstance(item, Mapping):
        raise ReadError(
            f"{where} is a {type(item).__name__}, expected {', '.join(keys)}. Check "
            "dataset.reader and dataset.path."
        )
    missing = [key for key in keys if key not in item]
    if missing:
        raise ReadError(
            f"{where} lacks {', '.join(missing)}; found {shorten(map(str, item))}. Check "
            "dataset.reader, or fetch the file again."
        )
    return tuple(item[key] for key in keys)
