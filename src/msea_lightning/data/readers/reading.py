"""Reading a data set: a layout says where its records are, here they become utterances.

A :class:`Layout` turns published files into :class:`Record` objects, one at a time and unchecked.
A :class:`Reading` checks them, trims them to their real lengths, converts and counts.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msea_lightning.data.files.errors import MissingFileError, ReadError, shorten
from msea_lightning.data.options import SPLITS, DatasetConfig, EmptyText, Repair
from msea_lightning.data.readers import checks
from msea_lightning.data.readers.checks import Frames
from msea_lightning.data.utterance import Utterance

SPLIT_NAMES = {split: split for split in SPLITS} | dict.fromkeys(
    ("dev", "val", "validation"), "valid"
)
"""What published files call the splits, and what we do."""

NEEDED_SPLITS = ("train", "test")
"""The splits that a published data set must have; a missing valid split is drawn from train."""

_DIALOGUE = re.compile(
    r"((?P<meld>.*dia\d+)_?utt\d+"  # dia12_utt3.mp4
    r"|(.*/)?(?P<iemocap>Ses\d+[FM]_\w+)_[FM]\d+)(\.\w+)?",  # Ses01F_impro01_M003
    re.I,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What a file says about one utterance, unchecked.

    Attributes:
        position: Where in the file it is, for error messages: ``number 7``, ``line 12``.
        id: Anything that names the utterance: text, bytes, a number, or several of these.
        text: The words.
        labels: A number or a name each; without ``M`` where the utterance is unlabelled.
        features: Feature sequences; None where the utterance lacks one that others have.
        group: Video or dialogue.
        speaker: Who speaks.
    """

    position: str
    id: Any
    text: Any
    labels: Mapping[str, Any]
    features: Mapping[str, Frames | None]
    group: str | None = None
    speaker: str | None = None


class Source(NamedTuple):
    """Where the records of a split come from.

    Attributes:
        file: The file, for error messages.
        records: Reads the split's records, from the first on, at each call.
        size: Number of records, where it is known before they are read.
    """

    file: Path
    records: Callable[[], Iterator[Record]]
    size: int | None = None


class Layout(ABC):
    """The published files of a data set in one layout, which are found but not yet read.

    Attributes:
        dataset: The data set's options.
        files: All files that belong to it.
        notes: Sentences on how they were read, known once :meth:`sources` has been called.
    """

    notes: Sequence[str] = ()

    def __init__(self, path: Path, dataset: DatasetConfig) -> None:
        self.dataset = dataset
        self.files = self.find(path)
        broken = [str(file) for file in self.files if not file.is_file()]
        if broken:
            raise ReadError(
                f"{shorten(broken)}: a folder, or a link to what is not there, in place of a file. "
                "Correct or remove it."
            )

    @abstractmethod
    def find(self, path: Path) -> list[Path]:
        """All files of the data set in a published file or folder.

        Raises:
            MissingFileError: naming what is not there.
            ReadError: where it is not clear which files are meant.
        """

    def extractors(self) -> Mapping[str, Mapping[str, Any]]:
        """Facts of the extractors of features by name; of those that are missing nothing is known.

        They are those of :class:`~msea_lightning.features.contract.ExtractorFacts`, as JSON.
        """
        return {}

    @abstractmethod
    def sources(self) -> Mapping[str, Source]:
        """Opens the files: where the records of each split come from."""


class Reading(Mapping[str, Iterator[Utterance]]):
    """The splits of a data set, each an iterator over checked utterances, read as they come.

    Attributes:
        files: The file that each split is read from.
        sizes: Number of records of each split, None where it is known only after reading.
        counts: What was found in each split that has been read: ``repaired_values`` (by feature,
            the NaN and infinite ones that became 0) and ``empty_text`` (utterances without words).
        extractors: See :meth:`Layout.extractors`.
        notes: See :attr:`Layout.notes`.
    """

    def __init__(
        self,
        dataset: DatasetConfig,
        sources: Mapping[str, Source],
        extractors: Mapping[str, Mapping[str, Any]] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self._dataset = dataset
        self.notes = list(notes)
        self.extractors = dict(extractors or {})
        self._sources = {split: sources[split] for split in SPLITS if split in sources}
        self._seen: dict[str, set[str]] = {}
        self.files = {split: str(source.file) for split, source in self._sources.items()}
        self.sizes = {split: source.size for split, source in self._sources.items()}
        self.counts: dict[str, dict[str, Any]] = {}
        self._empty_text = dataset.empty_text
        if self._empty_text is EmptyText.auto:
            self._empty_text = EmptyText.keep if self.extractors else EmptyText.refuse

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, split: str) -> Iterator[Utterance]:
        return self._read(split, self._sources[split])

    def _read(self, split: str, source: Source) -> Iterator[Utterance]:
        empty_text = self._empty_text
        repaired: Counter[str] = Counter()
        counts = self.counts[split] = {"repaired_values": repaired, "empty_text": 0}
        self._seen[split] = set()
        for record in source.records():
            identity = checks.identity(record.id)
            where = f"{source.file}: utterance '{identity}' ({split}, {record.position})"
            if not identity.strip():
                raise ReadError(f"{where} has no id. Give every utterance an id of its own.")
            if any(identity in ids for ids in self._seen.values()):
                raise self._repeated()
            self._seen[split].add(identity)
            text = checks.words(record.text, where)
            if not text and empty_text is EmptyText.refuse:
                raise ReadError(
                    f"{where} has an empty text. Give it its transcript, or set "
                    "dataset.empty_text=keep (it is read without words) or dataset.empty_text=drop."
                )
            counts["empty_text"] += not text
            if not text and empty_text is EmptyText.drop:
                continue
            labels = {
                name: checks.label(value, self._dataset.labels, where)
                for name, value in record.labels.items()
            }
            features = {
                name: values
                for name, found in record.features.items()
                if found is not None and len(values := self._frames(name, found, where, repaired))
            }
            group, speaker = record.group or None, record.speaker or None
            yield Utterance(identity, text, labels, features, group, speaker)
        if counts["empty_text"]:
            what = "dropped" if empty_text is EmptyText.drop else "kept"
            _log.warning("%d utterances of %s have no words: %s", counts["empty_text"], split, what)

    def _frames(
        self, name: str, found: Frames, where: str, repaired: Counter[str]
    ) -> NDArray[np.float32]:
        """The real frames (L, d) of one feature."""
        values = checks.frames(name, found, where)
        wanted = {"audio": self._dataset.audio_dim, "vision": self._dataset.vision_dim}.get(name)
        width = values.shape[1]
        if len(values) and wanted not in (None, width):
            raise ReadError(
                f"{where} has {width} {name} features per frame, but dataset.{name}_dim is "
                f"{wanted}. Use the features that the data set is published with, or set "
                f"dataset.{name}_dim={width} for your own."
            )
        made = self.extractors.get(name, {"dim": width})
        if len(values) and made["dim"] != width:
            raise ReadError(
                f"{where} has {width} {name} features per frame, but features.json says that they "
                f"are of {made.get('name')} with {made['dim']}. Extract them anew, or remove "
                "features.json; then their origin is unknown."
            )
        with np.errstate(over="ignore"):
            result = values.astype(np.float32, order="C")
        broken = ~np.isfinite(result)
        count = int(broken.sum())
        if count and self._dataset.repair is Repair.refuse:
            raise ReadError(
                f"{where} has {count} of {broken.size} {name} features that are NaN, infinite or "
                f"too large, such as {values[broken][0]}. Extract them anew, or set "
                "dataset.repair=zero, which replaces such values by 0 and counts them."
            )
        result[broken] = 0
        repaired[name] += count
        return result

    def _repeated(self) -> ReadError:
        """Reads all ids and names those that come more than once."""
        places: dict[str, list[str]] = {}
        for split, source in self._sources.items():
            for record in source.records():
                place = f"{split}, {record.position}"
                places.setdefault(checks.identity(record.id), []).append(place)
        repeated = {name: found for name, found in places.items() if len(found) > 1}
        listed = shorten((f"'{name}' ({'; '.join(at)})" for name, at in repeated.items()), 3)
        files = ", ".join(dict.fromkeys(self.files.values()))
        return ReadError(
            f"{files}: {len(repeated)} ids occur more than once: {listed}. Ids are unique in the "
            "whole data set, all splits together. Where every split counts from the beginning, as "
            "in MELD, put the split before each id and group (train_dia0_utt0, train_dia0), and "
            "into the names of the features; else rename or remove one of each."
        )


def list_files(folder: Path, *patterns: str) -> list[Path]:
    """What lies in a folder, without what file managers and editors put there (``._a``)."""
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    hidden = re.compile(r"(.*/)?(\.|__MACOSX(/|$))", re.DOTALL)
    return [path for path in found if not hidden.match(path.relative_to(folder).as_posix())]


def split_files(folder: Path, suffix: str) -> dict[str, dict[str, Path]]:
    """Files called ``<name>_<split>`` or ``<split>`` in a folder or the one below, by both."""
    found: dict[str, dict[str, Path]] = {}
    for file in list_files(folder, f"*.{suffix}", f"*/*.{suffix}"):
        name, _, split = file.stem.rpartition("_")
        if split in SPLIT_NAMES:
            found.setdefault(name, {}).setdefault(SPLIT_NAMES[split], file)
    return found


def refuse_missing(found: Mapping[str, Path], folder: Path, form: str) -> None:
    """Refuses a folder without the files of a split that a published data set must have."""
    missing = [form.format(split) for split in NEEDED_SPLITS if split not in found]
    if missing:
        raise MissingFileError(f"{folder} holds no {' and no '.join(missing)}")


def dialogue_of(identity: str) -> str | None:
    """The dialogue in an id of MELD or IEMOCAP; None in any other id."""
    found = _DIALOGUE.fullmatch(identity)
    return (found["meld"] or found["iemocap"]) if found else None
