"""The unit of data, the utterance, and a batch of utterances as the model receives it.

Features and labels go by name: a data set has any number of feature sequences (``audio``,
``vision``, ...) and of labels (``M`` is the one that is learned).

Shape legend: B utterances, L frames of one feature, d values a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as short_repr
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from msea_lightning.config.errors import UserError

MAIN_LABEL = "M"
"""The multimodal label, which is learned and scored; CH-SIMS and CHERMA have T, A, V beside it."""

_LATEST = 1e9
"""Seconds that no clip is long; times far beyond overflow in decoders."""

Label = float | str
"""An intensity (MSA) or the name of an emotion (ERC)."""


class DataError(UserError):
    """A data set that cannot be trained or evaluated on."""


class Clip(NamedTuple):
    """A recording, or a part of it, whose features are extracted when they are needed.

    Attributes:
        path: The file.
        start: Where the utterance begins, in seconds; None for the start of the file.
        end: Where it ends, in seconds; None for the end of the file.
    """

    path: Path
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, eq=False, init=False)
class Utterance:
    """One utterance: what readers yield, the store keeps, and plugins give an answer for.

    Args:
        id: Unique within a data set; predictions need none.
        text: The words; empty where there are none.
        labels: Labels by name; empty where the utterance is unlabelled.
        features: Name of a feature to (L, d) frames without padding; a name that is missing is an
            absent modality. A single frame may be (d,).
        group: Video or dialogue that the utterance belongs to.
        speaker: Who speaks.
        clip: Recording to extract the features from that are not given.
        audio: ``features["audio"]``.
        vision: ``features["vision"]``.

    Attributes:
        features: All features as float32; those without any frame are absent.

    Raises:
        DataError: if the text is no Unicode, or a feature is no array of numbers.
    """

    id: str
    text: str
    labels: Mapping[str, Label]
    features: Mapping[str, NDArray[np.float32]]
    group: str | None
    speaker: str | None
    clip: Clip | None

    def __init__(
        self,
        id: str = "",
        text: str = "",
        labels: Mapping[str, Label] | None = None,
        features: Mapping[str, ArrayLike] | None = None,
        group: str | None = None,
        speaker: str | None = None,
        clip: Clip | None = None,
        *,
        audio: ArrayLike | None = None,
        vision: ArrayLike | None = None,
    ) -> None:
        if flaw := flaw_of_text(text):
            raise DataError(f"utterance {id!r} has a text that is {flaw}.")
        given = dict(features or {})
        for name, value in (("audio", audio), ("vision", vision)):
            if value is not None:
                if name in given:
                    raise DataError(f"utterance {id!r}: {name} is given twice; leave one out.")
                given[name] = value
        if not all(name.strip() for name in given):
            raise DataError(f"utterance {id!r} has features without a name: call them audio, say.")
        frames = {name: _frames(id, name, value) for name, value in given.items()}
        values = {
            "id": id,
            "text": text,
            "labels": labels or {},
            "features": {name: found for name, found in frames.items() if len(found)},
            "group": group,
            "speaker": speaker,
            "clip": clip,
        }
        for name, found in values.items():
            object.__setattr__(self, name, found)

    @classmethod
    def from_media(
        cls,
        path: str | Path,
        text: str = "",
        *,
        id: str | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> Utterance:
        """An utterance in a clip, whose features the plugin extracts that is asked about it.

        Args:
            path: Sound or video file.
            text: What is said.
            id: The file's name where not given.
            start: Where the utterance begins, in seconds.
            end: Where it ends, in seconds.

        Raises:
            DataError: if there is no such file, or the part is none.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise DataError(f"There is no file {path}: give the path of a sound or video file.")
        for value in (start, end):
            if value is not None and not _is_time(value):
                raise DataError(
                    f"{path}: a part begins and ends at seconds, not at {short_repr(value)}."
                )
        if start is not None and end is not None and start >= end:
            raise DataError(f"{path}: a part from {start} s to {end} s is empty.")
        return cls(path.name if id is None else id, text, clip=Clip(path, start, end))

    @property
    def label(self) -> Label | None:
        """The main label; None where the utterance has none."""
        return self.labels.get(MAIN_LABEL)


def flaw_of_text(text: object) -> str:
    """Why something is no text that can be read and written; empty where it is one."""
    if not isinstance(text, str):
        return f"of type {type(text).__name__}: give its words"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            f"not valid Unicode ({error.reason} at character {error.start + 1}): save or send it "
            "as UTF-8"
        )
    return ""


def _is_time(value: object) -> bool:
    """Whether it is a time in seconds that a clip may have."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= _LATEST


def _frames(id: str, name: str, value: ArrayLike) -> NDArray[np.float32]:
    """A feature as (L, d) float32."""
    try:
        _refuse_words(value)
        with np.errstate(over="ignore"):  # beyond float32 is infinity, which plugins refuse
            frames = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"utterance {id!r}: {name} is no array of numbers ({error}). Give (frames, values)."
        ) from error
    if frames.ndim == 1:
        frames = frames[None] if len(frames) else frames.reshape(0, 0)
    if frames.ndim != 2:
        raise DataError(
            f"utterance {id!r}: {name} has the shape {frames.shape}; give (frames, values), or "
            "(values,) for a single frame."
        )
    return frames


def _refuse_words(value: ArrayLike) -> None:
    """Refuses what NumPy would take for numbers: texts, and in lists true, false and null."""
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufO":
        raise TypeError(f"it is an array of {value.dtype}")
    rows = value if isinstance(value, list | tuple) else [value]
    for row in rows:
        for kind in set(map(type, row if isinstance(row, list | tuple) else [row])):
            if issubclass(kind, str | bytes | bool | np.bool_ | type(None)):
                raise TypeError(f"there is a value of type {kind.__name__} in it")


class PaddedSequences(NamedTuple):
    """One feature of a batch.

    Attributes:
        values: (B, L, d) float32, zeros beyond each length.
        lengths: (B,) int64 on the CPU, frames of each utterance; 0 where the feature is absent.
    """

    values: Tensor
    lengths: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of utterances on its way to the model.

    Attributes:
        index: (B,) int64, position of each utterance in its split.
        ids: B utterance ids.
        texts: B texts.
        labels: Name of a label to B labels, None where an utterance does not have it.
        features: All features of the data set by name, in its order.
        groups: B groups (video or dialogue), None where an utterance has none.
        speakers: B speakers, None where an utterance has none.
        positions: (B,) int64, position of each utterance in its group.
        tokens: B arrays of token ids, uncut, where the texts have been tokenised beforehand.
        contexts: B arrays of token ids of what was said before, where it is read.
    """

    index: Tensor
    ids: list[str]
    texts: list[str]
    labels: Mapping[str, list[Label | None]]
    features: Mapping[str, PaddedSequences]
    groups: list[str | None]
    speakers: list[str | None]
    positions: Tensor
    tokens: Sequence[NDArray[np.int32]] | None = None
    contexts: Sequence[NDArray[np.int32]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> list[Label]:
        """The B main labels; a DataError names the first utterance that is unlabelled."""
        return complete_labels(self.ids, self.labels)

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its feature values on another device; lengths stay on the CPU."""
        # What comes back to the CPU would be read before it is there.
        non_blocking = torch.device(device).type != "cpu"
        return self._with_values(lambda values: values.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch with its feature values in page-locked memory (called by the DataLoader)."""
        return self._with_values(Tensor.pin_memory)

    def _with_values(self, move: Callable[[Tensor], Tensor]) -> Batch:
        moved = {
            name: PaddedSequences(move(found.values), found.lengths)
            for name, found in self.features.items()
        }
        return replace(self, features=moved)


def complete_labels(
    ids: Sequence[str], labels: Mapping[str, Sequence[Label | None]], name: str = MAIN_LABEL
) -> list[Label]:
    """The labels of one name of N utterances; a DataError names the first that has none."""
    found = [label for label in labels[name] if label is not None]
    if len(found) < len(ids):
        missing = f"has no label {name}" if name != MAIN_LABEL else "is unlabelled"
        raise DataError(
            f"utterance '{ids[labels[name].index(None)]}' {missing} ({len(ids) - len(found):,} of "
            f"these {len(ids):,}). Label it, or leave it out of what is trained and "
            "scored; predictions need no label."
        )
    return found


def pad(sequences: Sequence[NDArray[np.float32] | None], dim: int) -> PaddedSequences:
    """B sequences (L, d), padded to the longest; None becomes one frame of zeros of length 0."""
    values = [torch.zeros(1, dim) if s is None else torch.from_numpy(s) for s in sequences]
    lengths = [0 if s is None else len(s) for s in sequences]
    return PaddedSequences(pad_sequence(values, batch_first=True), torch.tensor(lengths))
