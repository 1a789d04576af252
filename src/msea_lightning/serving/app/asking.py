"""One question of the page: a text and a clip, to all that is shown as the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msea_lightning.config.errors import UserError
from msea_lightning.data.utterance import Utterance
from msea_lightning.features.contract import Frames
from msea_lightning.plugin import Answer, Predictor
from msea_lightning.serving.app.curves import Panel, face_missing, names, panel, seconds
from msea_lightning.serving.plugins import about_context

LONGEST_TEXT = 5000
"""Characters; a plugin itself reads fewer, as many as in its training."""


class QuestionError(UserError):
    """A question that cannot be answered."""


@dataclass(frozen=True)
class Reply:
    """All that is shown of an answer.

    Attributes:
        answer: The answer about everything that was given.
        without: Each modality to the answer without it; empty where there is only one.
        notes: What the user should know of the clip.
        panels: What was heard and seen.
        seconds: How long the clip lasts; 0 without one.
    """

    answer: Answer
    without: Mapping[str, Answer]
    notes: Sequence[str]
    panels: Sequence[Panel]
    seconds: float


def ask(predictor: Predictor, plugin: str, text: str, clip: Path | None) -> Reply:
    """Asks a plugin about a text, a clip, or both.

    Raises:
        UserError: where there is nothing to read, or the clip cannot be read; its text names the
            clip without its folder.
    """
    if not text.strip() and clip is None:
        raise QuestionError("There is nothing to answer yet: write a text, or give a clip.")
    if len(text) > LONGEST_TEXT:
        raise QuestionError(
            f"The text has {len(text):,} characters, at most {LONGEST_TEXT:,} are read. Give one "
            "utterance."
        )
    if clip is None:
        return _reply(predictor, plugin, Utterance(text=text), [], [], 0.0)
    try:
        features = predictor.extraction(plugin).extract(clip)
        length = seconds(clip)
        notes, panels = _seen_and_heard(predictor, plugin, features)
        utterance = Utterance(clip.name, text, features=features)
        return _reply(predictor, plugin, utterance, notes, panels, length)
    except UserError as error:
        raise QuestionError(str(error).replace(str(clip), clip.name)) from error


def knows_clips(predictor: Predictor, plugin: str) -> bool:
    """Whether a plugin says how features of a clip are extracted."""
    return bool(predictor.plugins[plugin].facts.features)


def _reply(
    predictor: Predictor,
    plugin: str,
    utterance: Utterance,
    notes: Sequence[str],
    panels: Sequence[Panel],
    length: float,
) -> Reply:
    if note := about_context(predictor.plugins[plugin].facts):
        notes = [*notes, f"{note}."]
    answers = predictor.explain(utterance, plugin=plugin)
    whole = answers.pop("everything")
    without = {case.removeprefix("without "): answer for case, answer in answers.items()}
    return Reply(whole, without, notes, panels, length)


def _seen_and_heard(
    predictor: Predictor, plugin: str, features: Mapping[str, Frames]
) -> tuple[list[str], list[Panel]]:
    """What to know of the clip, and its curves."""
    extraction = predictor.extraction(plugin)
    columns = {"audio": names(extraction.audio), "vision": names(extraction.vision)}
    notes = []
    for feature, what in (("audio", "sound"), ("vision", "pictures")):
        if columns[feature] and feature not in features:
            notes.append(f"The clip has no {what}: the answer does without.")
    shown = dict(features)
    if "vision" in features and face_missing(features["vision"], columns["vision"]):
        notes.append("No face was found in the clip: what is seen tells the plugin nothing.")
        del shown["vision"]
    return notes, [panel(name, frames, columns[name]) for name, frames in shown.items()]
