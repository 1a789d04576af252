"""Lines of JSON, an utterance each: every line is parsed once, into a checked shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msea_lightning.data.files.arrays import load_array
from msea_lightning.data.files.errors import ReadError, show_value
from msea_lightning.data.utterance import Clip, DataError, Utterance

_MODALITIES = ("audio", "vision")

_WORDS = ("text", "label", "group", "speaker")

_KEYS = ("id", *_WORDS, *_MODALITIES, "features", "clip", "start", "end")
"""What a line may have."""


@dataclass(frozen=True)
class Line:
    """What a line says.

    Attributes:
        where: The file, and the number of the line.
        id: What the utterance is called; ``line`` and its number where it says nothing.
        text: Its words.
        label: Its label as text; empty where it has none.
        group: Dialogue or video that it belongs to, as text; empty where it has none.
        speaker: Who speaks, as text; empty where nobody knows.
        features: Features that the line holds.
        arrays: Files of further features.
        clip: The recording that it names.
        flaw: Why it is no utterance; empty where it is one.
    """

    where: str
    id: str
    text: str = ""
    label: str = ""
    group: str = ""
    speaker: str = ""
    features: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Path] = field(default_factory=dict)
    clip: Clip | None = None
    flaw: str = ""

    @property
    def files(self) -> list[Path]:
        """The files that the line names."""
        return [*self.arrays.values(), *([self.clip.path] if self.clip else [])]

    def utterance(self) -> Utterance:
        """The utterance, with the features in files; a UserError where there is none."""
        if self.flaw:
            raise DataError(self.flaw)
        loaded = {name: self._load(path) for name, path in self.arrays.items()}
        found = Utterance(
            self.id,
            self.text,
            features={**self.features, **loaded},
            group=self.group or None,
            speaker=self.speaker or None,
        )
        if self.clip is None:
            return found
        path, start, end = self.clip
        return replace(found, clip=Utterance.from_media(path, start=start, end=end).clip)

    def _load(self, path: Path) -> Any:
        if not path.is_file():
            raise DataError(f"{self.where}: there is no file {path}. Correct the path.")
        return load_array(path, self.where)


def read_lines(path: Path) -> list[Line]:
    """All lines of a file that are not blank; ReadError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return [
                _read(content, path, number)
                for number, content in enumerate(file, 1)
                if content.strip()
            ]
    except OSError as error:
        raise ReadError(f"{path} cannot be read ({error}): check its permissions.") from error


def _read(content: bytes, path: Path, number: int) -> Line:
    where = f"{path}, line {number}"
    values: dict[str, Any] = {}
    try:
        values = _parsed(content, where)
        return _checked(values, path, number)
    except DataError as error:
        named = _shown(values, "id") or f"line {number}"
        text, label, group, speaker = (_shown(values, key) for key in _WORDS)
        return Line(where, named, text, label, group, speaker, flaw=str(error))


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON: {error}. Give one object a line.") from error
    if not isinstance(values, dict):
        raise DataError(f"{where} is {type(values).__name__}, not an object with id and text.")
    return values


def _checked(values: Mapping[str, Any], path: Path, number: int) -> Line:
    where = f"{path}, line {number}"
    if unknown := sorted(values.keys() - set(_KEYS)):
        raise DataError(
            f"{where} has {', '.join(unknown)}; known are {', '.join(_KEYS)}. Correct or remove it."
        )
    identity = _word(values, "id", where) or f"line {number}"
    # Not relative, because '~' at the beginning would be a home.
    folder = path.absolute().parent
    given = _features(values, where)
    numbers = {name: value for name, value in given.items() if not isinstance(value, str)}
    arrays = {name: folder / value for name, value in given.items() if isinstance(value, str)}
    text = _word(values, "text", where)
    features = Utterance(identity, text, features=numbers).features
    return Line(
        where,
        identity,
        text,
        _word(values, "label", where),
        _word(values, "group", where),
        _word(values, "speaker", where),
        features,
        arrays,
        _clip(values, folder, where),
    )


def _word(values: Mapping[str, Any], key: str, where: str) -> str:
    """A text, or a number as text unless it stands for words; empty where there is none."""
    value = values.get(key)
    if value is None:
        return ""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, str) or (is_number and key != "text"):
        return str(value)
    kinds = "a text" if key == "text" else "a text or a number"
    raise DataError(f"{where} has {show_value(value)} as its {key}: give {kinds}, or leave it out.")


def _shown(values: Mapping[str, Any], key: str) -> str:
    """The same of a line with a flaw; empty where that is the flaw."""
    try:
        return _word(values, key, "")
    except DataError:
        return ""


def _features(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All features that are given, as lists or as paths."""
    more = {} if values.get("features") is None else values["features"]
    if not isinstance(more, dict):
        raise DataError(f"{where}: features is no object of names and arrays. Correct it.")
    found = {name: value for name, value in more.items() if value is not None}
    for name in _MODALITIES:
        if values.get(name) is not None:
            if name in found:
                raise DataError(
                    f"{where}: {name} is given twice, as {name} and in features. Leave one out."
                )
            found[name] = values[name]
    return found


def _clip(values: Mapping[str, Any], folder: Path, where: str) -> Clip | None:
    clip = values.get("clip")
    start, end = values.get("start"), values.get("end")
    if clip is None:
        if start is not None or end is not None:
            raise DataError(f"{where} has a start or an end, but no clip. Give it, or leave them.")
        return None
    if not isinstance(clip, str):
        raise DataError(f"{where} has {show_value(clip)} as its clip: give the path of a file.")
    return Clip(folder / clip, start, end)
