"""Options of the extractors, each registered with its class."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from msea_lightning.config.options import option
from msea_lightning.config.registry import Choice, Registry


class Engine(enum.Enum):
    """Where work on many clips or utterances runs."""

    local = "local"
    """On this machine."""
    ray = "ray"
    """On the Ray cluster that this machine belongs to; on one started here where there is none."""


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


@AUDIO_EXTRACTORS.register("log_mel", "msea_lightning.features.log_mel.LogMel")
@dataclass
class LogMelOptions(AudioOptions):
    """Log-mel spectra."""

    mels: int = option(64, "mel bands", low=1)
    rate: int = option(16000, "samples a second", low=1000)
    window: int = option(2048, "samples of a window", low=16)
    hop: int = option(512, "samples from one frame to the next", low=1)


@AUDIO_EXTRACTORS.register("egemaps", "msea_lightning.features.egemaps.EGeMAPS")
@dataclass
class EGeMAPSOptions(AudioOptions):
    """The 25 low-level descriptors of eGeMAPSv02 by openSMILE, whose core is non-commercial."""


@AUDIO_EXTRACTORS.register("audio_encoder", "msea_lightning.features.audio_encoder.AudioEncoder")
@dataclass
class AudioEncoderOptions(AudioOptions):
    """The last layer of an audio encoder of transformers, such as HuBERT, WavLM or Whisper."""

    unrecorded = ("device",)

    path: str = option("???", "encoder: a folder or a Hugging Face Hub id")
    chunk: float = option(20.0, "seconds that the encoder sees at a time", low=1.0)
    device: str = option("cpu", "where it computes: cpu, cuda, cuda:1, ...")


@AUDIO_EXTRACTORS.register("none")
@dataclass
class NoAudioOptions(AudioOptions):
    """Nothing is heard."""


@VISION_EXTRACTORS.register("none")
@dataclass
class NoVisionOptions(VisionOptions):
    """Nothing is seen."""


@VISION_EXTRACTORS.register("face", "msea_lightning.features.face.FaceExtractor")
@dataclass
class FaceOptions(VisionOptions):
    """Emotion, head pose and shape of the largest face, from networks that run on a CPU."""

    fps: float = option(10.0, "pictures a second", above=0)


@VISION_EXTRACTORS.register("openface", "msea_lightning.features.openface.OpenFace")
@dataclass
class OpenFaceOptions(VisionOptions):
    """Columns of the CSV files that OpenFace 2 has written beside the clips."""

    columns: str = option(
        "action_units",
        "action_units (35 columns), simsv2 (177: head pose, 68 points, action units) or all (709)",
    )
    fps: float = option(25.0, "frames a second", above=0)


@VISION_EXTRACTORS.register("image_encoder", "msea_lightning.features.image_encoder.ImageEncoder")
@dataclass
class ImageEncoderOptions(VisionOptions):
    """The summary of each face by an image encoder of transformers: ViT, CLIP, DINOv2, ..."""

    unrecorded = ("device", "batch")

    path: str = option("???", "encoder: a folder or a Hugging Face Hub id")
    crop: bool = option(True, "the face alone, where one is found; false: the whole picture")
    fps: float = option(5.0, "pictures a second", above=0)
    batch: int = option(16, "pictures that the encoder sees at a time", low=1)
    device: str = option("cpu", "where it computes: cpu, cuda, cuda:1, ...")
