"""From what a file says about an utterance to an :class:`Utterance`: the checks of every layout.

A reader turns its layout into :class:`Record` objects, one at a time and unchecked. Here they are
checked, trimmed to their real lengths, converted and counted. Every error names the file, the
split, the utterance and a remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msea_lightning.config.errors import UserError
from msea_lightning.data.options import SPLITS, DatasetConfig, LabelKind, Repair
from msea_lightning.data.utterance import MAIN_LABEL, Utterance

SPLIT_NAMES: dict[str, str] = {
    "train": "train",
    "valid": "valid",
    "dev": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
}
"""What published files call the splits, and what we do."""

_RANGE_TOLERANCE = 1e-6
_SHOWN = 10


class ReadError(UserError):
    """A published file that is not as its layout says."""


class MissingFileError(ReadError):
    """A published file that is not there.

    Its text is the first half of a sentence, such as ``<folder> holds no train.json``: whoever
    looks for the files adds where they are published.
    """


@dataclass(frozen=True)
class Frames:
    """Features of one modality of one utterance, as in the file.

    Attributes:
        values: (L, d) numbers, possibly padded.
        length: How many of the L frames are real, from the first on. None where the file does not
            say: then the frames before the first and after the last one that holds anything but
            zeros are padding.
    """

    values: Any
    length: Any


@dataclass(frozen=True)
class Record:
    """What a file says about one utterance, unchecked.

    Attributes:
        position: Where in the file it is, for error messages: ``number 7``, ``line 12``.
        id: Anything that names the utterance: text, bytes, a number, or several of these.
        text: The words.
        label: A number or a name.
        audio: Audio features; None where the modality is absent.
        vision: Vision features; None where the modality is absent.
        group: Video or dialogue.
        speaker: Who speaks.
    """

    position: str
    id: Any
    text: Any
    label: Any
    audio: Frames | None = None
    vision: Frames | None = None
    group: str | None = None
    speaker: str | None = None


@dataclass(frozen=True)
class Source:
    """Where the records of a split come from.

    Attributes:
        file: The file, for error messages.
        records: Reads the split's records, from the first on, at each call.
        size: Number of records, where it is known before they are read.
    """

    file: Path
    records: Callable[[], Iterator[Record]]
    size: int | None = None


@dataclass
class Counts:
    """What was found while a split was read; by modality.

    Attributes:
        repaired_values: NaN and infinite features that became 0.
        repaired_utterances: Utterances that they were in.
        absent: Utterances without the modality.
    """

    repaired_values: dict[str, int] = field(default_factory=lambda: {"audio": 0, "vision": 0})
    repaired_utterances: dict[str, int] = field(default_factory=lambda: {"audio": 0, "vision": 0})
    absent: dict[str, int] = field(default_factory=lambda: {"audio": 0, "vision": 0})


class Reading(Mapping[str, Iterable[Utterance]]):
    """The splits of a data set, each an iterable of checked utterances that are read as they come.

    Attributes:
        files: The file that each split is read from.
        sizes: Number of utterances of each split, None where it is known only after reading.
    """

    def __init__(self, dataset: DatasetConfig, sources: Mapping[str, Source]) -> None:
        ordered = {split: sources[split] for split in SPLITS if split in sources}
        checks = _Checks(dataset)
        self._parts = {split: _Part(split, ordered[split], checks) for split in ordered}
        self.files = {split: str(source.file) for split, source in ordered.items()}
        self.sizes = {split: source.size for split, source in ordered.items()}

    @property
    def counts(self) -> dict[str, Counts]:
        """What was found in each split; complete once the split has been read to its end."""
        return {split: part.counts for split, part in self._parts.items()}

    def __getitem__(self, split: str) -> Iterable[Utterance]:
        return self._parts[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class _Part(Iterable[Utterance]):
    """One split; each iteration reads it from its first utterance on."""

    def __init__(self, split: str, source: Source, checks: _Checks) -> None:
        self.counts = Counts()
        self._split = split
        self._source = source
        self._checks = checks

    def __iter__(self) -> Iterator[Utterance]:
        self.counts = Counts()
        self._checks.ids[self._split] = {}
        empty = True
        for record in self._source.records():
            yield self._checks.utterance(self._split, self._source.file, record, self.counts)
            empty = False
        if empty:
            raise ReadError(
                f"{self._source.file}: the split '{self._split}' has no utterance. Check that the "
                "file is complete; a data set may be without a valid split, but not with an empty "
                "one."
            )


class _Checks:
    """What must hold for every utterance of a data set, and what is remembered between them."""

    def __init__(self, dataset: DatasetConfig) -> None:
        self.ids: dict[str, dict[str, str]] = {}
        self._labels = dataset.labels
        self._repair = dataset.repair
        self._configured = {"audio": dataset.audio_dim, "vision": dataset.vision_dim}
        self._widths: dict[str, tuple[int, str]] = {}

    def utterance(self, split: str, file: Path, record: Record, counts: Counts) -> Utterance:
        identity = _identity(record.id)
        where = f"{file}: utterance '{identity}' ({split}, {record.position})"
        self._check_identity(split, identity, record, where)
        return Utterance(
            id=identity,
            text=_words(record.text, where),
            labels={MAIN_LABEL: self._label(record.label, where)},
            features={
                name: frames
                for name, given in (("audio", record.audio), ("vision", record.vision))
                if (frames := self._frames(name, given, where, counts)) is not None
            },
            group=record.group or None,
            speaker=record.speaker or None,
        )

    def _check_identity(self, split: str, identity: str, record: Record, where: str) -> None:
        if not identity.strip():
            raise ReadError(f"{where} has no id. Give every utterance an id of its own.")
        for other, ids in self.ids.items():
            if identity in ids:
                raise ReadError(
                    f"{where} has the id of an earlier utterance ({other}, {ids[identity]}). Ids "
                    "are unique in the whole data set, all splits together; rename or remove one "
                    "of the two."
                )
        self.ids[split][identity] = record.position

    def _label(self, label: Any, where: str) -> float | str:
        label = _single(label)
        if isinstance(label, str):
            label = label.strip()
        if label is None or label == "":
            raise ReadError(f"{where} has no label. Label it or remove it.")
        kind, names = self._labels.kind, self._labels.names
        if kind is LabelKind.emotions or (kind is LabelKind.infer and names):
            return self._emotion(label, names, where)
        if kind is LabelKind.infer and isinstance(label, str):
            return label
        return self._intensity(label, where)

    def _emotion(self, label: Any, names: list[str], where: str) -> str:
        if not isinstance(label, str) or label not in names:
            raise ReadError(
                f"{where} has the unknown label {label!r}; dataset.labels.names lists "
                f"{', '.join(names)}. Mend the label, remove the utterance, or add the name."
            )
        return label

    def _intensity(self, label: Any, where: str) -> float:
        low, high = self._labels.low, self._labels.high
        try:
            value = float(label)
        except (TypeError, ValueError) as error:
            raise ReadError(
                f"{where} has the label {label!r}, which is not a number, but the data set's "
                "labels are intensities. Mend the label, or set dataset.labels.kind=emotions and "
                "dataset.labels.names."
            ) from error
        if not math.isfinite(value):
            raise ReadError(
                f"{where} has the label {value}. Give it a finite intensity or remove it."
            )
        below = low is not None and value < low - _RANGE_TOLERANCE
        above = high is not None and value > high + _RANGE_TOLERANCE
        if below or above:
            raise ReadError(
                f"{where} has the label {value:g}, out of range from {_bound(low)} to "
                f"{_bound(high)} (dataset.labels.low and dataset.labels.high). Mend the "
                "label, remove the utterance, or widen the range."
            )
        return value

    def _frames(
        self, modality: str, frames: Frames | None, where: str, counts: Counts
    ) -> NDArray[np.float32] | None:
        """The real frames (L, d) of one modality; None where there are none."""
        values = None if frames is None else _trim(modality, frames, where)
        if values is None or len(values) == 0:
            counts.absent[modality] += 1
            return None
        self._check_width(modality, values.shape[1], where)
        with np.errstate(over="ignore"):
            result = values.astype(np.float32, order="C")
        broken = ~np.isfinite(result)
        if broken.any():
            if self._repair is Repair.refuse:
                raise ReadError(
                    f"{where} has {_describe_broken(values, broken)} among its {modality} "
                    "features. Extract them anew, or set dataset.repair=zero, which replaces such "
                    "values by 0 and counts them."
                )
            result[broken] = 0
            counts.repaired_values[modality] += int(broken.sum())
            counts.repaired_utterances[modality] += 1
        return result

    def _check_width(self, modality: str, width: int, where: str) -> None:
        wanted = self._configured[modality]
        if wanted is not None and width != wanted:
            raise ReadError(
                f"{where} has {width} {modality} features per frame, but dataset.{modality}_dim is "
                f"{wanted}. Use the features that the data set is published with, or set "
                f"dataset.{modality}_dim={width} for your own."
            )
        first, first_where = self._widths.setdefault(modality, (width, where))
        if width != first:
            raise ReadError(
                f"{where} has {width} {modality} features per frame, but {first_where} has "
                f"{first}. All utterances of a data set have the same features: extract those of "
                "one of the two anew, or remove it."
            )


def shorten(names: Iterable[str]) -> str:
    """A list of names for an error message: at most ten of them, and how many more."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return (", ".join(listed[:_SHOWN]) or "none") + more


def split_keys(found: Iterable[str], where: str) -> dict[str, str]:
    """What a file calls its splits.

    Args:
        found: The names in the file; those that are no split's are left aside.
        where: The file, for the error message.

    Returns:
        For each split that is there the name that it has in the file.

    Raises:
        ReadError: where train or test is missing, or one split is there under two names.
    """
    names = list(found)
    keys: dict[str, str] = {}
    for name in names:
        split = SPLIT_NAMES.get(name)
        if split is not None and split in keys:
            raise ReadError(
                f"{where} holds the split '{split}' twice, as '{keys[split]}' and '{name}'. "
                "Remove one of them."
            )
        if split is not None:
            keys[split] = name
    for split in ("train", "test"):
        if split not in keys:
            raise ReadError(
                f"{where} has no split '{split}'; found {shorten(names)}. Check dataset.path and "
                "dataset.reader, or fetch the file again."
            )
    return keys


def _identity(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return "_".join(_identity(part) for part in value)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _single(value: Any) -> Any:
    """The one value in an array or list of one; text of bytes."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _words(value: Any, where: str) -> str:
    text = _single(value)
    if not isinstance(text, str):
        raise ReadError(
            f"{where} has a text of type {type(text).__name__}, expected words. Check "
            "dataset.reader, or give the utterance its transcript."
        )
    if not text.strip():
        raise ReadError(
            f"{where} has an empty text. Every utterance has words: give it its transcript or "
            "remove it."
        )
    return str(text)


def _trim(modality: str, frames: Frames, where: str) -> NDArray[Any]:
    try:
        values = np.asarray(frames.values)
    except ValueError as error:
        raise ReadError(
            f"{where} has {modality} features that are not a table of numbers ({error}). Extract "
            "them anew."
        ) from error
    if values.dtype.kind not in "biuf":
        raise ReadError(
            f"{where} has {modality} features of type {values.dtype}, expected numbers. Extract "
            "them anew."
        )
    if values.ndim != 2:
        raise ReadError(
            f"{where} has {modality} features of shape {values.shape}, expected (frames, "
            "features). Give one row of features per frame."
        )
    if frames.length is None:
        # Comparing with 0 keeps NaN: a frame of NaN is broken, not padding.
        filled = np.flatnonzero((values != 0).any(axis=1))
        return values[filled[0] : filled[-1] + 1] if len(filled) else values[:0]
    length = _single(frames.length)
    if isinstance(length, bool) or not isinstance(length, int | float) or length != length // 1:
        raise ReadError(
            f"{where} has the {modality} length {length!r}, expected a whole number of frames. "
            "Mend the length or fetch the file again."
        )
    if not 0 <= length <= len(values):
        raise ReadError(
            f"{where} has the {modality} length {int(length)}, but {len(values)} frames of "
            f"{modality} features. Mend the length or fetch the file again."
        )
    return values[: int(length)]


def _describe_broken(values: NDArray[Any], broken: NDArray[np.bool_]) -> str:
    cases = {
        "NaN": np.isnan(values),
        "+inf": np.isposinf(values),
        "-inf": np.isneginf(values),
        "too large for float32": np.isfinite(values) & broken,
    }
    found = [f"{int(case.sum())} {name}" for name, case in cases.items() if case.any()]
    return f"{int(broken.sum())} of {broken.size} values that are not finite ({', '.join(found)})"


def _bound(value: float | None) -> str:
    return "anything" if value is None else f"{value:g}"
