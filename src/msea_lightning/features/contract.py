"""The contract of everything that turns sound or pictures into a feature sequence.

Shape legend: L frames of one feature, d values a frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msea_lightning.config.errors import UserError

Frames = NDArray[np.float32]
"""(L, d) feature frames without padding."""


class MediaError(UserError):
    """A clip that cannot be decoded, or holds nothing that could be extracted."""


class FeatureError(UserError):
    """Features of another extractor, or an extractor that lacks what it needs."""


class Picture(NamedTuple):
    """One video frame, upright.

    Attributes:
        time: Seconds from the start of the clip.
        rgb: (height, width, 3) uint8.
    """

    time: float
    rgb: NDArray[np.uint8]


@dataclass(frozen=True)
class ExtractorFacts:
    """What tells the features of one extractor from those of any other.

    Kept with the data, in runs and in plugins; features are taken where all of it is equal.

    Attributes:
        name: The extractor's registered name.
        version: Changes whenever the same clip gives other numbers.
        settings: Options that change the numbers, and fingerprints of local files that they name.
        dim: Values a frame.
    """

    name: str
    version: int
    settings: dict[str, Any]
    dim: int


class Extractor(ABC):
    """Turns one stream of a clip into a feature sequence, without keeping the stream in memory.

    An extractor is registered with its options in ``features/options.py`` and built as
    ``Class(**options)``; it must be picklable, and loads files and models at its first use.

    Attributes:
        version: See :class:`ExtractorFacts`.
    """

    version: ClassVar[int] = 1

    @property
    @abstractmethod
    def columns(self) -> Sequence[str]:
        """Names of the d values of a frame."""

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of local models by option; part of the settings in :class:`ExtractorFacts`."""
        return {}


class AudioExtractor(Extractor):
    """An extractor of what is heard.

    Attributes:
        rate: Samples a second that it wants.
    """

    rate: int

    @abstractmethod
    def extract(self, blocks: Iterable[NDArray[np.float32]]) -> Frames:
        """(L, d) frames of mono sound in blocks of (n,) samples between -1 and 1."""


class VisionExtractor(Extractor):
    """An extractor of what is seen.

    Attributes:
        fps: Pictures a second that it wants.
    """

    fps: float

    def beside(self, path: Path) -> Path | None:
        """The file beside a clip that :meth:`read` reads; None where it reads none."""
        return None

    def read(self, path: Path, start: float | None, end: float | None) -> Frames | None:
        """(L, d) frames that lie beside a clip; None where its pictures have to be extracted.

        An extractor that reads what another program wrote overrides this and :meth:`beside`. It
        raises MediaError where there is nothing to read.
        """
        return None

    @abstractmethod
    def extract(self, pictures: Iterable[Picture]) -> Frames:
        """(L, d) frames, one a picture unless the extractor says otherwise."""
