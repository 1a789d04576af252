"""The extractors of a data set or a plugin together: clips to features, and what made them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msea_lightning.config.errors import ConfigError, UserError, first_line
from msea_lightning.config.registry import Registry
from msea_lightning.features import media
from msea_lightning.features.contract import (
    AudioExtractor,
    Extractor,
    ExtractorFacts,
    FeatureError,
    Frames,
    MediaError,
    VisionExtractor,
)
from msea_lightning.features.options import (
    AUDIO_EXTRACTORS,
    VISION_EXTRACTORS,
    AudioOptions,
    ExtractorOptions,
    NoAudioOptions,
    NoVisionOptions,
    VisionOptions,
)

_HASHES = "fingerprints"
"""Among the settings of facts, the hashes of local models."""

_log = logging.getLogger(__name__)

REGISTRIES: Mapping[str, Registry[Any]] = {"audio": AUDIO_EXTRACTORS, "vision": VISION_EXTRACTORS}
"""The extractors of each feature."""

Facts = Mapping[str, ExtractorFacts | Mapping[str, Any]]
"""Facts by feature, as they are or as JSON has them."""


class ExtractionOptions(NamedTuple):
    """Options of both extractors."""

    audio: AudioOptions
    vision: VisionOptions


class Extraction:
    """What is heard and what is seen in a clip, as features.

    Args:
        audio: Options of the audio extractor.
        vision: Options of the vision extractor.

    Attributes:
        options: Those of both; of ``none`` where there is no extractor.
        audio: The audio extractor, or None.
        vision: The vision extractor, or None.
    """

    def __init__(
        self, audio: AudioOptions | None = None, vision: VisionOptions | None = None
    ) -> None:
        self.options = ExtractionOptions(audio or NoAudioOptions(), vision or NoVisionOptions())
        self.audio: AudioExtractor | None = _build("audio", self.options.audio)
        self.vision: VisionExtractor | None = _build("vision", self.options.vision)

    @classmethod
    def from_facts(
        cls, facts: Facts, options: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Extraction:
        """The extractors that facts are of.

        Args:
            facts: What :meth:`facts` gave, also as JSON.
            options: By feature, options to set anew: those that facts do not hold, such as
                ``device``, and the ``path`` of a model that lies somewhere else here.

        Raises:
            FeatureError: where this version has no such extractor, or one that gives other numbers.
        """
        built: dict[str, Any] = {}
        for feature, recorded in _typed(facts).items():
            if feature not in REGISTRIES:
                raise FeatureError(
                    f"the feature {feature} is of the extractor {recorded.name}; extractors are "
                    f"there for {', '.join(REGISTRIES)} alone. Give this feature yourself."
                )
            registry = REGISTRIES[feature]
            given = (options or {}).get(feature, {})
            settings = {**recorded.settings, **given}
            hashes = settings.pop(_HASHES, {})
            for name in hashes.keys() & settings.keys() - given.keys():
                raise FeatureError(
                    f"the {feature} features are of {recorded.name} with {name}="
                    f"{settings[name]}, a local copy: give {feature}.{name}=... where it is here."
                )
            try:
                schema = OmegaConf.structured(registry.options(recorded.name))
                built[feature] = OmegaConf.to_object(OmegaConf.merge(schema, settings))
                version = registry.load(recorded.name).version
            except (ConfigError, OmegaConfBaseException) as error:
                raise FeatureError(
                    f"the {feature} extractor {recorded.name} with {_shown(recorded.settings)} "
                    f"cannot be built ({first_line(error)}). Use the version of msea_lightning "
                    "that made the features."
                ) from error
            if version != recorded.version:
                raise FeatureError(
                    f"the {feature} features are of {recorded.name}, version {recorded.version}; "
                    f"here it has version {version}, which gives other numbers. Use the version "
                    "of msea_lightning that made them, or extract them and train anew."
                )
        extraction = cls(**built)
        check_facts(facts, extraction.facts())
        return extraction

    def facts(self) -> dict[str, ExtractorFacts]:
        """What made the features, by feature.

        A model in a local folder is recorded by the folder's name and its hash, not by its place.

        Raises:
            FeatureError: where an extractor lacks what it needs.
        """
        found = {}
        for feature, extractor in self._extractors().items():
            options: ExtractorOptions = getattr(self.options, feature)
            hashes = extractor.fingerprints()
            settings = {
                name: Path(value).name if name in hashes else value
                for name, value in options.arguments().items()
                if name not in options.unrecorded
            }
            if hashes:
                settings[_HASHES] = hashes
            found[feature] = ExtractorFacts(
                options.name, extractor.version, settings, len(extractor.columns)
            )
        return found

    def extract(
        self, path: Path | str, start: float | None = None, end: float | None = None
    ) -> dict[str, Frames]:
        """The features of a clip, or of its part from ``start`` to ``end`` (seconds).

        Returns:
            (L, d) float32 frames by feature; one that the clip does not have has no key.

        Raises:
            MediaError: where the clip cannot be decoded, or the part holds nothing.
            FeatureError: where an extractor lacks what it needs.
        """
        path = Path(path)
        info = media.probe(path)
        found: dict[str, Frames] = {}
        if self.audio is not None and info.sound:
            found["audio"] = self.audio.extract(
                media.audio_blocks(path, self.audio.rate, start, end)
            )
        if self.vision is not None:
            frames = self.vision.read(path, start, end)
            if frames is None and info.pictures:
                frames = self.vision.extract(media.pictures(path, self.vision.fps, start, end))
            if frames is not None:
                found["vision"] = frames
        present = {name: frames for name, frames in found.items() if len(frames)}
        if found and not present:
            part = f" from {start or 0:g} s to {'its end' if end is None else f'{end:g} s'}"
            raise MediaError(f"{path} holds too little{part}: no extractor makes a frame of it.")
        return present

    def _extractors(self) -> dict[str, Extractor]:
        both: dict[str, Extractor | None] = {"audio": self.audio, "vision": self.vision}
        return {name: extractor for name, extractor in both.items() if extractor is not None}


@contextmanager
def clip_errors(path: Path | str) -> Iterator[None]:
    """Makes whatever goes wrong with a clip its own reason: one must not end thousands of others.

    Errors that say what is wrong pass as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        _log.debug("%s", path, exc_info=True)
        raise MediaError(
            f"{path} cannot be extracted ({type(error).__name__}: {error})."
        ) from error


def check_facts(expected: Facts, found: Facts) -> None:
    """Refuses features of another extractor than those expected.

    A feature that one of the two does not name is of unknown origin, which is allowed. A model with
    a fingerprint is told by it, not by its name.

    Raises:
        FeatureError: naming both extractors.
    """
    wanted, given = _typed(expected), _typed(found)
    for feature in wanted.keys() & given.keys():
        one, other = wanted[feature], given[feature]
        if _compared(one) != _compared(other):
            raise FeatureError(
                f"the {feature} features are of {_named(other)}, but those of {_named(one)} are "
                "expected. Features of different extractors are different numbers: extract them "
                f"anew with {feature}={one.name} and these settings."
            )


def to_json(facts: Mapping[str, ExtractorFacts]) -> dict[str, dict[str, Any]]:
    """Facts as JSON has them."""
    return {feature: asdict(found) for feature, found in facts.items()}


def _build(feature: str, options: ExtractorOptions) -> Any:
    if options.name == "none":
        return None
    return REGISTRIES[feature].load(options.name)(**options.arguments())


def _typed(facts: Facts) -> dict[str, ExtractorFacts]:
    try:
        return {
            feature: found if isinstance(found, ExtractorFacts) else ExtractorFacts(**found)
            for feature, found in facts.items()
        }
    except TypeError as error:
        raise FeatureError(
            f"what is recorded of the feature extractors is damaged ({error}). Extract the "
            "features anew."
        ) from error


def _compared(facts: ExtractorFacts) -> tuple[Any, ...]:
    hashed = facts.settings.get(_HASHES, {})
    settings = {name: value for name, value in facts.settings.items() if name not in hashed}
    return facts.name, facts.version, facts.dim, settings


def _named(facts: ExtractorFacts) -> str:
    settings = f" with {_shown(facts.settings)}" if facts.settings else ""
    return f"{facts.name}, version {facts.version}{settings}, {facts.dim} values a frame"


def _shown(settings: Mapping[str, Any]) -> str:
    flat = {**settings, **{f"hash of {k}": v[:12] for k, v in settings.get(_HASHES, {}).items()}}
    flat.pop(_HASHES, None)
    return ", ".join(f"{name}={value}" for name, value in flat.items()) or "no options"
