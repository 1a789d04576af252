"""The store: a data set on disk, of which only what a batch needs is read.

A store is a folder::

    store.json             format version, feature widths, counts, what the preparer noted
    <split>.jsonl          one line an utterance: id, text, label, group, speaker
    <split>.safetensors    "audio" (sum of La, da) and "vision" (sum of Lv, dv), float32, the frames
                           of all utterances one after the other, and "audio_offsets" (N + 1,) and
                           "vision_offsets" (N + 1,), int64: utterance i has the frames
                           offsets[i] to offsets[i + 1]

Texts and labels are held in memory, frames are memory-mapped. Nothing in a store can run code, and
a folder that is only partly written never looks like a store.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from msea_lightning.config.errors import UserError
from msea_lightning.data.options import SPLITS
from msea_lightning.data.utterance import Utterance

FORMAT_VERSION = 1
MODALITIES = ("audio", "vision")

_INDEX = "store.json"
# On disk: safetensors' name and numpy's, little-endian on every machine.
_FRAMES: tuple[str, np.dtype[np.float32]] = ("F32", np.dtype("<f4"))
_OFFSETS: tuple[str, np.dtype[np.int64]] = ("I64", np.dtype("<i8"))

_log = logging.getLogger(__name__)


class StoreError(UserError):
    """Utterances that cannot be stored, or a folder that is not a store that this version reads."""


class StoreSplit:
    """One split of a store, or a selection of it; ``split[i]`` reads utterance i alone.

    Safe to hand to other processes: what is memory-mapped is opened anew in each.

    Attributes:
        ids: N ids.
        texts: N texts.
        labels: N labels, all floats (MSA) or all strings (ERC).
        groups: N groups (video or dialogue), None where an utterance has none.
        speakers: N speakers, None where an utterance has none.
        audio_dim: Audio features per frame; None where no utterance of the data set has audio.
        vision_dim: Vision features per frame; None where no utterance of the data set has vision.
        audio_lengths: (N,) int64, audio frames of each utterance; 0 where it has none.
        vision_lengths: (N,) int64, vision frames of each utterance; 0 where it has none.
        tokens: N arrays of token ids, where the texts have been tokenised.
    """

    def __init__(
        self,
        frames: _FrameFile,
        rows: Sequence[Mapping[str, Any]],
        dims: Mapping[str, int | None],
        starts: Mapping[str, NDArray[np.int64]],
        lengths: Mapping[str, NDArray[np.int64]],
        tokens: Sequence[NDArray[np.int32]] | None = None,
    ) -> None:
        self._frames = frames
        self._rows = rows
        self._starts = starts
        self.tokens = tokens
        self.ids: list[str] = [row["id"] for row in rows]
        self.texts: list[str] = [row["text"] for row in rows]
        self.labels: list[float] | list[str] = [row["label"] for row in rows]
        self.groups: list[str | None] = [row["group"] for row in rows]
        self.speakers: list[str | None] = [row["speaker"] for row in rows]
        self._dims = dims
        self._lengths = lengths
        self.audio_dim = dims["audio"]
        self.vision_dim = dims["vision"]
        self.audio_lengths = lengths["audio"]
        self.vision_lengths = lengths["vision"]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Utterance]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Utterance:
        """The utterance at a position; its frames are read from disk, no others are."""
        return Utterance(
            id=self.ids[index],
            text=self.texts[index],
            label=self.labels[index],
            audio=self.features("audio", index),
            vision=self.features("vision", index),
            group=self.groups[index],
            speaker=self.speakers[index],
        )

    def features(self, modality: str, index: int) -> NDArray[np.float32] | None:
        """The frames of one modality of one utterance.

        Args:
            modality: ``audio`` or ``vision``.
            index: Position of the utterance.

        Returns:
            (L, d) float32, or None where the utterance does not have the modality.
        """
        start, length = int(self._starts[modality][index]), int(self._lengths[modality][index])
        return self._frames.read(modality, start, start + length) if length else None

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> StoreSplit:
        """The utterances at the given positions, in the given order, as a split of its own."""
        picked = np.asarray(indices, dtype=np.int64)
        return StoreSplit(
            self._frames,
            [self._rows[index] for index in picked],
            self._dims,
            {modality: starts[picked] for modality, starts in self._starts.items()},
            {modality: lengths[picked] for modality, lengths in self._lengths.items()},
            None if self.tokens is None else [self.tokens[index] for index in picked],
        )

    def tokenized(self, encode: Callable[[list[str]], Sequence[Sequence[int]]]) -> StoreSplit:
        """The same utterances with the token ids of their texts.

        Args:
            encode: Tokenises N texts.
        """
        encoded = encode(self.texts)
        # One array for all: thousands of small ones would cost more than the numbers in them.
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        flat = np.fromiter(chain.from_iterable(encoded), dtype=np.int32, count=int(lengths.sum()))
        tokens = np.split(flat, np.cumsum(lengths)[:-1])
        return StoreSplit(self._frames, self._rows, self._dims, self._starts, self._lengths, tokens)

    def close(self) -> None:
        """Lets go of the memory-mapped file; reading opens it again."""
        self._frames.close()


@dataclass(frozen=True)
class Store:
    """A data set on disk.

    Attributes:
        folder: Where it is.
        info: What the preparer noted: sources, options, counts of repaired values.
        splits: The splits by name, in the order train, valid, test.
    """

    folder: Path
    info: Mapping[str, Any]
    splits: Mapping[str, StoreSplit]

    @property
    def audio_dim(self) -> int | None:
        """Audio features per frame; None where no utterance of any split has audio."""
        return next(iter(self.splits.values())).audio_dim

    @property
    def vision_dim(self) -> int | None:
        """Vision features per frame; None where no utterance of any split has vision."""
        return next(iter(self.splits.values())).vision_dim

    @staticmethod
    def exists(folder: Path | str) -> bool:
        """Whether a complete store lies in the folder."""
        return (Path(folder) / _INDEX).is_file()

    @classmethod
    def open(cls, folder: Path | str) -> Store:
        """Opens a store; reads texts, labels and lengths, but no frames.

        Raises:
            StoreError: where the folder holds no store, one of another format version, or a
                damaged one.
        """
        folder = Path(folder)
        if not cls.exists(folder):
            raise StoreError(
                f"{folder} holds no prepared data set: {_INDEX} is missing. Prepare it with "
                "python -m msea_lightning.prepare dataset=..."
            )
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            version = index["version"]
            if version != FORMAT_VERSION:
                raise StoreError(
                    f"{folder} is a prepared data set of format {version!r}, this version reads "
                    f"format {FORMAT_VERSION}. Delete the folder and prepare the data set again."
                )
            splits = {
                split: _open_split(folder, split, index)
                for split in SPLITS
                if split in index["splits"]
            }
            return cls(folder=folder, info=index["info"], splits=splits)
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"the prepared data set in {folder} is damaged ({error!r}). Delete the folder and "
                "prepare the data set again."
            ) from error

    def close(self) -> None:
        """Lets go of all memory-mapped files; reading opens them again."""
        for split in self.splits.values():
            split.close()


@contextmanager
def store_lock(folder: Path | str) -> Iterator[None]:
    """Holds the right to write a store; a process that comes second waits.

    A caller that looks for a store before writing it holds the lock around both. The lock may be
    taken again by who holds it (:func:`write_store` does), and a process that dies gives it back.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), is_singleton=True)
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

    An earlier store in the folder is replaced. Frames go through a file, never all through memory.

    Args:
        folder: Where the store will be.
        splits: Utterances by split (``train``, ``valid``, ``test``). Features are stored as
            float32, a label of -0.0 as 0.0, features of no frame as an absent modality.
        info: What to note about the sources, in JSON's types.
        files: The file that each split was read from, for error messages.

    Raises:
        StoreError: for an id that comes twice, an empty text or split, a label that is empty, not
            finite, or of another type than those before it, for features that are not (frames,
            features) or whose width is not that of the utterances before, and for a folder that
            holds other files.
        OSError: where the folder cannot be written; nothing of what was written stays.
    """
    folder = Path(folder)
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown or not splits:
        raise StoreError(
            f"the splits of a data set are among {', '.join(SPLITS)}; "
            f"got {', '.join(unknown) or 'none'}."
        )
    with store_lock(folder):
        _write_folder(folder, splits, info, _Checks(files or {}))
    return Store.open(folder)


def _write_folder(
    folder: Path,
    splits: Mapping[str, Iterable[Utterance]],
    info: Mapping[str, Any],
    checks: _Checks,
) -> None:
    """Writes a store beside its folder and moves it there; the caller holds the lock."""
    if folder.exists() and not Store.exists(folder) and any(folder.iterdir()):
        raise StoreError(
            f"{folder} is to receive the prepared data set, but holds other files. Move them "
            "away or choose another folder with dataset.cache."
        )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed writer left
    partial.mkdir()
    try:
        counts = {
            split: _write_split(partial, split, splits[split], checks)
            for split in SPLITS
            if split in splits
        }
        index = {
            "version": FORMAT_VERSION,
            "audio_dim": checks.width("audio"),
            "vision_dim": checks.width("vision"),
            "splits": counts,
            "info": dict(info),
        }
        text = json.dumps(index, ensure_ascii=False, indent=1)
        (partial / _INDEX).write_text(text + "\n", encoding="utf-8")
        _put_in_place(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _put_in_place(partial: Path, folder: Path) -> None:
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


class _Checks:
    """What must hold across all utterances of a data set."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files
        self._seen: dict[str, str] = {}
        self._first_label: tuple[float | str, str] | None = None
        self._widths: dict[str, tuple[int, str]] = {}

    def width(self, modality: str) -> int | None:
        return self._widths[modality][0] if modality in self._widths else None

    def row(self, split: str, number: int, utterance: Utterance) -> dict[str, Any]:
        """The checked line of an utterance in ``<split>.jsonl``."""
        where = f"utterance '{utterance.id}' ({split}, number {number}{self._in_file(split)})"
        if not utterance.id:
            raise StoreError(f"{where} has no id. Give every utterance an id of its own.")
        if utterance.id in self._seen:
            raise StoreError(
                f"{where} has the id of an earlier one in {self._seen[utterance.id]}. Ids are "
                "unique in the whole data set, all splits together; rename or remove one of them."
            )
        self._seen[utterance.id] = f"{split}{self._in_file(split)}"
        if not utterance.text.strip():
            raise StoreError(
                f"{where} has an empty text. Every utterance has words; give it its transcript or "
                "remove it."
            )
        try:
            utterance.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise StoreError(
                f"{where} has a text that is not valid Unicode ({error.reason} at character "
                f"{error.start + 1}). Save the file as UTF-8."
            ) from error
        return {
            "id": utterance.id,
            "text": utterance.text,
            "label": self._label(utterance.label, where),
            "group": utterance.group or None,
            "speaker": utterance.speaker or None,
        }

    def empty(self, split: str) -> StoreError:
        return StoreError(
            f"the split '{split}' has no utterance{self._in_file(split)}. Add utterances to it, or "
            "leave it out altogether."
        )

    def frames(
        self, modality: str, split: str, number: int, utterance: Utterance
    ) -> NDArray[np.float32] | None:
        """The checked frames (L, d) of an utterance, None where it has none."""
        features = utterance.audio if modality == "audio" else utterance.vision
        if features is None or len(features) == 0:
            return None
        where = f"utterance '{utterance.id}' ({split}, number {number}{self._in_file(split)})"
        if features.ndim != 2 or features.shape[1] == 0:
            raise StoreError(
                f"{where} has {modality} features of shape {features.shape}; expected "
                "(frames, features). Give one row of features per frame."
            )
        width = features.shape[1]
        first_width, first = self._widths.setdefault(modality, (width, where))
        if width != first_width:
            raise StoreError(
                f"{where} has {width} {modality} features per frame, but {first} has "
                f"{first_width}. All utterances of a data set have the same features: extract "
                "those of one of them anew, or remove it."
            )
        return np.ascontiguousarray(features, dtype=_FRAMES[1])

    def _in_file(self, split: str) -> str:
        return f" in {self._files[split]}" if split in self._files else ""

    def _label(self, label: object, where: str) -> float | str:
        checked: float | str
        if isinstance(label, str):
            if not label.strip():
                raise StoreError(f"{where} has an empty label. Label it or remove it.")
            checked = label
        elif isinstance(label, int | float | np.integer | np.floating):
            checked = float(label) + 0.0  # -0.0 becomes 0.0
            if not math.isfinite(checked):
                raise StoreError(
                    f"{where} has the label {checked}. Give it a finite intensity or remove it."
                )
        else:
            raise StoreError(
                f"{where} has a label of type {type(label).__name__} ({label!r}). A label is a "
                "number (MSA) or the name of an emotion (ERC)."
            )
        if self._first_label is None:
            self._first_label = (checked, where)
        first, first_where = self._first_label
        if isinstance(first, str) != isinstance(checked, str):
            raise StoreError(
                f"{where} has the label {checked!r}, but {first_where} has {first!r}. The labels "
                "of a data set are all numbers (MSA) or all names (ERC); mend one of the two."
            )
        return checked


def _write_split(
    folder: Path, split: str, utterances: Iterable[Utterance], checks: _Checks
) -> dict[str, int]:
    """Writes one split's two files and counts what is in them."""
    lengths: dict[str, list[int]] = {modality: [] for modality in MODALITIES}
    raw = {modality: folder / f"{split}.{modality}.raw" for modality in MODALITIES}
    number = 0
    with (
        (folder / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as lines,
        raw["audio"].open("wb") as audio,
        raw["vision"].open("wb") as vision,
    ):
        sinks = {"audio": audio, "vision": vision}
        for number, utterance in enumerate(utterances, start=1):
            row = checks.row(split, number, utterance)
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            for modality in MODALITIES:
                frames = checks.frames(modality, split, number, utterance)
                lengths[modality].append(0 if frames is None else len(frames))
                if frames is not None:
                    sinks[modality].write(frames.data)
    if number == 0:
        raise checks.empty(split)
    _write_frames(folder / f"{split}.safetensors", raw, lengths, checks)
    return {
        "utterances": number,
        **{f"{modality}_frames": sum(lengths[modality]) for modality in MODALITIES},
    }


def _write_frames(
    path: Path, raw: Mapping[str, Path], lengths: Mapping[str, list[int]], checks: _Checks
) -> None:
    """Puts raw frames and their offsets into one safetensors file, without loading the frames.

    The format: the header's length (8 bytes, little-endian), the header (JSON, padded with spaces
    so that the data start on a multiple of 8), the tensors' bytes without gaps.
    """
    header: dict[str, Any] = {}
    position = 0

    def declare(name: str, kind: tuple[str, np.dtype[Any]], shape: list[int]) -> None:
        nonlocal position
        end = position + math.prod(shape) * kind[1].itemsize
        header[name] = {"dtype": kind[0], "shape": shape, "data_offsets": [position, end]}
        position = end

    offsets = {
        modality: np.cumsum([0, *lengths[modality]], dtype=_OFFSETS[1]) for modality in MODALITIES
    }
    for modality in MODALITIES:
        declare(f"{modality}_offsets", _OFFSETS, [len(offsets[modality])])
    present = [modality for modality in MODALITIES if offsets[modality][-1] > 0]
    for modality in present:
        width = checks.width(modality)
        assert width is not None
        declare(modality, _FRAMES, [int(offsets[modality][-1]), width])
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as target:
        target.write(len(encoded).to_bytes(8, "little") + encoded)
        for modality in MODALITIES:
            target.write(offsets[modality].data)
        for modality in MODALITIES:
            if modality in present:
                _append(target, raw[modality])
            raw[modality].unlink()


def _append(target: BinaryIO, path: Path) -> None:
    with path.open("rb") as source:
        shutil.copyfileobj(source, target, length=1 << 20)


class _FrameFile:
    """A memory-mapped safetensors file, opened on first use in each process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: Any = None
        self._process: int | None = None

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> NDArray[Any]:
        """Rows ``start`` to ``stop`` of a tensor, and nothing else of the file."""
        if self._process != os.getpid():
            self._opened = safe_open(self._path, framework="np")
            self._process = os.getpid()
        rows: NDArray[Any] = self._opened.get_slice(name)[start:stop]
        return rows

    def close(self) -> None:
        self._opened, self._process = None, None

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_opened": None, "_process": None}


def _open_split(folder: Path, split: str, index: Mapping[str, Any]) -> StoreSplit:
    count = index["splits"][split]["utterances"]
    # By lines of the file: str.splitlines would also cut at the line separators of Unicode.
    with (folder / f"{split}.jsonl").open(encoding="utf-8", newline="\n") as lines:
        rows = [json.loads(line) for line in lines]
    frames = _FrameFile(folder / f"{split}.safetensors")
    offsets = {modality: frames.read(f"{modality}_offsets") for modality in MODALITIES}
    found = {f"{split}.jsonl": len(rows)} | {
        f"{modality}_offsets of {split}.safetensors": len(offsets[modality]) - 1
        for modality in MODALITIES
    }
    for name, number in found.items():
        if number != count:
            raise ValueError(f"{name} has {number} utterances, {_INDEX} says {count}")
    return StoreSplit(
        frames,
        rows,
        {modality: index[f"{modality}_dim"] for modality in MODALITIES},
        {modality: offsets[modality][:-1] for modality in MODALITIES},
        {modality: np.diff(offsets[modality]) for modality in MODALITIES},
    )
