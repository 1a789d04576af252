"""Options of the extractors, each registered with its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from msea_lightning.config.registry import Choice, Registry


@dataclass
class ExtractorOptions(Choice):
    """What all extractors have.

    Attributes:
        unrecorded: Options that do not change the numbers, such as the device; they are no part of
            :class:`~msea_lightning.features.contract.ExtractorFacts`.
    """

    unrecorded: ClassVar[Sequence[str]] = ()


@dataclass
class AudioOptions(ExtractorOptions):
    """What all audio extractors have."""


@dataclass
class VisionOptions(ExtractorOptions):
    """What all vision extractors have."""


AUDIO_EXTRACTORS: Registry[type[AudioOptions]] = Registry("audio extractor")
"""``audio.name`` to the extractor's options; ``load`` gives its class, but of ``none``."""

VISION_EXTRACTORS: Registry[type[VisionOptions]] = Registry("vision extractor")
"""``vision.name`` to the extractor's options; ``load`` gives its class, but of ``none``."""


@AUDIO_EXTRACTORS.register("none")
@dataclass
class NoAudioOptions(AudioOptions):
    """Nothing is heard."""


@VISION_EXTRACTORS.register("none")
@dataclass
class NoVisionOptions(VisionOptions):
    """Nothing is seen."""
