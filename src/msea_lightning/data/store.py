"""The store: a data set on disk, of which only what a batch needs is read.

A store is a folder::

    store.json             format version, features with their width, names of the labels, counts,
                           what the preparer noted
    <split>.jsonl          one line an utterance: id, text, label (the main one; null where the
                           utterance is unlabelled), labels (the others by name), group, speaker
    <split>.safetensors    for each feature "<name>" (sum of L, d), float32, the frames of all
                           utterances one after the other, and "<name>_offsets" (N + 1,), int64:
                           utterance i has the frames offsets[i] to offsets[i + 1]

Texts and labels are held in memory, frames are memory-mapped. Nothing in a store can run code, and
a folder that is only partly written never looks like a store.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from msea_lightning.config.errors import UserError
from msea_lightning.data.context import ContextWriter, Said, said_before, token_arrays
from msea_lightning.data.options import SPLITS
from msea_lightning.data.utterance import (
    MAIN_LABEL,
    Batch,
    Label,
    Utterance,
    complete_labels,
    pad,
)

FORMAT_VERSION = 2
_READABLE = (1, FORMAT_VERSION)  # format 1 has audio and vision alone, and one label

_INDEX = "store.json"
_FRAMES, _OFFSETS = np.dtype("<f4"), np.dtype("<i8")  # on disk, little-endian on every machine

_log = logging.getLogger(__name__)


class StoreError(UserError):
    """Utterances that cannot be stored, or a folder that is not a store that this version reads."""


class StoreSplit:
    """One split of a store, or a selection of it; ``split[i]`` reads utterance i alone.

    Safe to hand to other processes: a copy opens the memory-mapped file anew. ``ids``, ``texts``,
    ``groups`` and ``speakers`` have an item for each of N utterances, None where it has none.

    Attributes:
        labels: Name of each label of the data set, the main one first, to N labels, None where an
            utterance does not have it.
        positions: (N,) int64, position of each utterance among those of its group in the whole
            split; 0 where it has no group.
        dims: Name of each feature of the data set to its values per frame, sorted by name.
        lengths: Name of each feature to (N,) int64, frames of each utterance; 0 where it is absent.
        tokens: N arrays of token ids, where the texts have been tokenised.
        contexts: N arrays of token ids of what was said before, where it is read.
    """

    def __init__(
        self,
        frames: _FrameFile,
        whole: Sequence[Utterance],
        places: NDArray[np.int64],
        labels: Sequence[str],
        dims: Mapping[str, int],
        spans: Mapping[str, NDArray[np.int64]],
        positions: NDArray[np.int64],
        tokens: Sequence[NDArray[np.int32]] | None = None,
        contexts: Sequence[NDArray[np.int32]] | None = None,
    ) -> None:
        self._frames = frames
        self._whole = whole  # all of the split, without features
        self._places = places  # (N,) where those of a selection are among them
        rows = [whole[int(place)] for place in places]
        self._rows = rows
        self._spans = spans  # (N, 2) first frame and the one after the last, of each feature
        self.dims = dims
        self.lengths = {name: span[:, 1] - span[:, 0] for name, span in spans.items()}
        self.positions = positions
        self.tokens = tokens
        self.contexts = contexts
        self.ids = [row.id for row in rows]
        self.texts = [row.text for row in rows]
        self.labels = {name: [row.labels.get(name) for row in rows] for name in labels}
        self.groups = [row.group for row in rows]
        self.speakers = [row.speaker for row in rows]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Utterance]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Utterance:
        """The utterance at a position; its frames are read from disk, no others are."""
        features = {name: self.frames(name, index) for name in self.dims}
        present = {name: frames for name, frames in features.items() if frames is not None}
        return replace(self._rows[index], features=present)

    @property
    def targets(self) -> list[Label]:
        """The N main labels; a DataError names the first utterance that is unlabelled."""
        return complete_labels(self.ids, self.labels)

    @property
    def present(self) -> dict[str, float]:
        """Name of each feature of the data set to the share of utterances that have it."""
        return {name: float((lengths > 0).mean()) for name, lengths in self.lengths.items()}

    def frames(self, name: str, index: int) -> NDArray[np.float32] | None:
        """(L, d) float32 frames of a feature of the utterance at a position; None where absent."""
        start, stop = self._spans[name][index].tolist()
        return self._frames.file.get_slice(name)[start:stop] if stop > start else None

    def batch(self, indices: Sequence[int]) -> Batch:
        """The utterances at the given positions; their features are padded to the longest.

        A feature that none of them has is one frame of zeros, with lengths of 0.
        """
        rows = [self._rows[index] for index in indices]
        return Batch(
            index=torch.tensor(indices),
            ids=[row.id for row in rows],
            texts=[row.text for row in rows],
            labels={name: [row.labels.get(name) for row in rows] for name in self.labels},
            features={
                name: pad([self.frames(name, index) for index in indices], dim)
                for name, dim in self.dims.items()
            },
            groups=[row.group for row in rows],
            speakers=[row.speaker for row in rows],
            positions=torch.from_numpy(self.positions[indices]),
            tokens=_picked(self.tokens, indices),
            contexts=_picked(self.contexts, indices),
        )

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> StoreSplit:
        """The utterances at the given positions, in the given order, as a split of its own."""
        picked = np.asarray(indices, dtype=np.int64)
        return StoreSplit(
            self._frames,
            self._whole,
            self._places[picked],
            list(self.labels),
            self.dims,
            {name: span[picked] for name, span in self._spans.items()},
            self.positions[picked],
            _picked(self.tokens, picked),
            _picked(self.contexts, picked),
        )

    def only(self, features: Sequence[str]) -> StoreSplit:
        """The same utterances without any other feature than these."""
        kept = copy(self)
        kept.dims = {name: dim for name, dim in self.dims.items() if name in features}
        kept._spans = {name: self._spans[name] for name in kept.dims}
        kept.lengths = {name: self.lengths[name] for name in kept.dims}
        return kept

    def tokenized(
        self,
        encode: Callable[[list[str]], Sequence[Sequence[int]]],
        context: ContextWriter | None = None,
    ) -> StoreSplit:
        """The same utterances with the token ids that ``encode`` makes of their N texts.

        ``context`` makes those of what was said before: within the group and the whole split, of
        which this one may be a selection.
        """
        copied = copy(self)
        copied.tokens, copied.contexts = token_arrays(encode(self.texts)), None
        if context is not None:
            whole = ((row.group, Said(row.text, row.speaker)) for row in self._whole)
            before = said_before(whole, context.number)
            said = [Said(row.text, row.speaker) for row in self._rows]
            read = context(said, [before[place] for place in self._places.tolist()])
            copied.contexts = token_arrays(read)
        return copied


@dataclass(frozen=True)
class Store:
    """A data set on disk.

    Attributes:
        info: What the preparer noted: sources, options, counts of repaired values.
        splits: The splits by name, in the order train, valid, test.
    """

    folder: Path
    info: Mapping[str, Any]
    splits: Mapping[str, StoreSplit]

    @property
    def dims(self) -> Mapping[str, int]:
        """Name of each feature that any utterance has to its values per frame."""
        return next(iter(self.splits.values())).dims

    @property
    def extractors(self) -> Mapping[str, Mapping[str, Any]]:
        """Facts of the extractors by feature, as ``features.json`` has them.

        A feature that is missing is of unknown origin, as all are in stores of before.
        """
        found: Mapping[str, Mapping[str, Any]] = self.info.get("extractors", {})
        return found

    @staticmethod
    def exists(folder: Path | str) -> bool:
        """Whether a complete store lies in the folder."""
        return (Path(folder) / _INDEX).is_file()

    @classmethod
    def open(cls, folder: Path | str) -> Store:
        """Opens a store; reads texts, labels and lengths, but no frames."""
        folder = Path(folder)
        if not cls.exists(folder):
            raise StoreError(
                f"{folder} holds no prepared data set: {_INDEX} is missing. Prepare it with "
                "python -m msea_lightning.prepare dataset=..."
            )
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            version = index["version"]
            if version not in _READABLE:
                raise StoreError(
                    f"{folder} is a prepared data set of format {version!r}, but this version "
                    f"reads the formats {_READABLE}. Delete the folder and prepare the data set "
                    "again."
                )
            if version == 1:
                dims = {name: index[f"{name}_dim"] for name in ("audio", "vision")}
                index["features"] = {name: dim for name, dim in dims.items() if dim is not None}
                index["labels"] = [MAIN_LABEL]
            splits = {
                split: _open_split(folder, split, index)
                for split in SPLITS
                if split in index["splits"]
            }
            return cls(folder=folder, info=index["info"], splits=splits)
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise StoreError(
                f"the prepared data set in {folder} is damaged ({error!r}). Delete the folder and "
                "prepare the data set again."
            ) from error


@contextmanager
def store_lock(folder: Path | str) -> Iterator[None]:
    """Holds the right to write a store; a process that comes second waits."""
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("waiting for another process that is preparing %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_store(
    folder: Path | str,
    splits: Mapping[str, Iterable[Utterance]],
    *,
    info: Mapping[str, Any],
    files: Mapping[str, str] | None = None,
) -> Store:
    """Writes utterances to disk as they come, and puts the finished store in place in one step.

    Frames go through a file, never all through memory. Where others may write the same store, the
    caller holds :func:`store_lock`. Where an error is raised, nothing of what was written stays.

    Args:
        folder: Where the store will be: a folder that does not exist yet, or is empty.
        splits: Utterances by split (``train``, ``valid``, ``test``); ids are unique in all of them.
            Features are stored as float32, a label of -0.0 as 0.0, features of no frame as absent.
        info: What to note about the sources, in JSON's types.
        files: The file that each split was read from, for error messages.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed writer
    partial.mkdir(parents=True)
    try:
        checks = _Checks()
        counts = {
            split: _write_split(partial, split, splits[split], checks, (files or {}).get(split))
            for split in SPLITS
            if split in splits
        }
        index = {
            "version": FORMAT_VERSION,
            "features": {name: width for name, (width, _) in sorted(checks.widths.items())},
            "labels": [MAIN_LABEL, *sorted(set(checks.labels) - {MAIN_LABEL})],
            "splits": {split: {"utterances": count} for split, count in counts.items()},
            "info": dict(info),
        }
        text = json.dumps(index, ensure_ascii=False, indent=1)
        (partial / _INDEX).write_text(text + "\n", encoding="utf-8")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Store.open(folder)


class _Checks:
    """What must hold across all utterances of a data set; readers check each by itself.

    Attributes:
        widths: Name of each feature found to its values per frame, and the first utterance with it.
        labels: Name of each label found to the first one, and its utterance.
    """

    def __init__(self) -> None:
        self.widths: dict[str, tuple[int, str]] = {}
        self.labels: dict[str, tuple[Label, str]] = {}

    def row(self, utterance: Utterance, where: str) -> dict[str, Any]:
        """The checked line of an utterance in ``<split>.jsonl``."""
        labels = {name: self._label(name, label, where) for name, label in utterance.labels.items()}
        return {
            "id": utterance.id,
            "text": utterance.text,
            "label": labels.pop(MAIN_LABEL, None),
            "labels": labels,
            "group": utterance.group,
            "speaker": utterance.speaker,
        }

    def features(self, utterance: Utterance, where: str) -> dict[str, NDArray[np.float32]]:
        """The checked features of an utterance by name, without those of no frame."""
        present = {name: frames for name, frames in utterance.features.items() if len(frames)}
        for name, frames in present.items():
            width, first = self.widths.setdefault(name, (frames.shape[1], where))
            if width != frames.shape[1]:
                raise StoreError(
                    f"{where} has {frames.shape[1]} {name} features per frame, but {first} has "
                    f"{width}. All utterances of a data set have the same features: extract those "
                    "of one of them anew, or remove it."
                )
        return {name: np.ascontiguousarray(frames, _FRAMES) for name, frames in present.items()}

    def _label(self, name: str, label: Label, where: str) -> Label:
        checked = label if isinstance(label, str) else float(label) + 0.0  # -0.0 becomes 0.0
        first, first_where = self.labels.setdefault(name, (checked, where))
        if isinstance(first, str) != isinstance(checked, str):
            kind = "label" if name == MAIN_LABEL else f"label {name}"
            raise StoreError(
                f"{where} has the {kind} {checked!r}, but {first_where} has {first!r}. The labels "
                "of a data set are all numbers (MSA) or all names (ERC); correct one of the two."
            )
        return checked


def _write_split(
    folder: Path, split: str, utterances: Iterable[Utterance], checks: _Checks, file: str | None
) -> int:
    """Writes one split's two files; the number of its utterances."""
    in_file = f" in {file}" if file else ""
    lengths: list[dict[str, int]] = []
    sinks: dict[str, BinaryIO] = {}
    with ExitStack() as opened:
        path = folder / f"{split}.jsonl"
        lines = opened.enter_context(path.open("w", encoding="utf-8", newline="\n"))
        for number, utterance in enumerate(utterances, start=1):
            where = f"utterance '{utterance.id}' ({split}, number {number}{in_file})"
            row = checks.row(utterance, where)
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            features = checks.features(utterance, where)
            lengths.append({name: len(frames) for name, frames in features.items()})
            for name, frames in features.items():
                if name not in sinks:
                    raw = (folder / f"{split}.{name}.raw").open("wb")
                    sinks[name] = opened.enter_context(raw)
                sinks[name].write(frames.data)
    if not lengths:
        raise StoreError(
            f"the split '{split}' has no utterance{in_file}. Add utterances to it, or leave it out "
            "altogether."
        )
    offsets = {
        name: np.cumsum([0, *(found.get(name, 0) for found in lengths)], dtype=_OFFSETS)
        for name in sorted(sinks)
    }
    shapes = {name: [int(ends[-1]), checks.widths[name][0]] for name, ends in offsets.items()}
    with (folder / f"{split}.safetensors").open("wb") as target:
        target.write(_tensor_header(offsets, shapes))
        for values in offsets.values():
            target.write(values.data)
        for name in shapes:
            raw_file = Path(sinks[name].name)
            with raw_file.open("rb") as source:
                shutil.copyfileobj(source, target, length=1 << 20)
            raw_file.unlink()
    return len(lengths)


def _tensor_header(
    offsets: Mapping[str, NDArray[np.int64]], shapes: Mapping[str, list[int]]
) -> bytes:
    """The beginning of a safetensors file that goes on with all offsets, then all frames.

    The format: the header's length (8 bytes, little-endian), the header (JSON, padded with spaces
    so that the data start on a multiple of 8), the tensors' bytes without gaps.
    """
    tensors = [(f"{name}_offsets", "I64", 8, [len(ends)]) for name, ends in offsets.items()]
    tensors += [(name, "F32", 4, shape) for name, shape in shapes.items()]
    header, end = {}, 0
    for name, dtype, size, shape in tensors:
        start, end = end, end + math.prod(shape) * size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


class _FrameFile:
    """A memory-mapped safetensors file; opened on first use, copied to other processes closed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def file(self) -> Any:
        """The file, of which a slice reads its own bytes alone."""
        return safe_open(self._path, framework="np")

    def __reduce__(self) -> tuple[type[_FrameFile], tuple[Path]]:
        return _FrameFile, (self._path,)


def _open_split(folder: Path, split: str, index: Mapping[str, Any]) -> StoreSplit:
    count = index["splits"][split]["utterances"]
    # By lines of the file: str.splitlines would also cut at the line separators of Unicode.
    with (folder / f"{split}.jsonl").open(encoding="utf-8", newline="\n") as lines:
        rows = [_utterance(json.loads(line)) for line in lines]
    frames = _FrameFile(folder / f"{split}.safetensors")
    stored = set(frames.file.keys())
    sizes, spans = {f"{split}.jsonl": len(rows)}, {}
    for name in index["features"]:
        offsets = np.zeros(count + 1, dtype=np.int64)
        if name in stored:  # not where other splits alone have the feature
            offsets = frames.file.get_tensor(f"{name}_offsets")
        sizes[f"{name}_offsets of {split}.safetensors"] = len(offsets) - 1
        spans[name] = np.stack([offsets[:-1], offsets[1:]], axis=1)
    for name, number in sizes.items():
        if number != count:
            raise ValueError(f"{name} has {number} utterances, {_INDEX} says {count}")
    numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)
    positions = [0 if row.group is None else next(numbers[row.group]) for row in rows]
    return StoreSplit(
        frames,
        rows,
        np.arange(count),
        index["labels"],
        index["features"],
        spans,
        np.array(positions, dtype=np.int64),
    )


def _picked(
    arrays: Sequence[NDArray[np.int32]] | None, indices: Sequence[int] | NDArray[np.int64]
) -> list[NDArray[np.int32]] | None:
    """The arrays at some positions; None where there are none at all."""
    return None if arrays is None else [arrays[index] for index in indices]


def _utterance(row: Mapping[str, Any]) -> Utterance:
    """The utterance of a line of ``<split>.jsonl``, without features."""
    labels = {MAIN_LABEL: row["label"], **row.get("labels", {})}
    known = {name: label for name, label in labels.items() if label is not None}
    return Utterance(row["id"], row["text"], known, {}, row["group"], row["speaker"])
