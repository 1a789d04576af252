"""The work on one clip and on one batch: functions that run in any process that sees the files."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

from msea_lightning.config.errors import UserError
from msea_lightning.data.utterance import Clip, Utterance
from msea_lightning.features.contract import Frames
from msea_lightning.features.extraction import Extraction, clip_errors
from msea_lightning.inference.outputs import answer_values
from msea_lightning.plugin import Plugin, Predictor
from msea_lightning.plugin.options import RecordedBackboneConfig


@dataclass(frozen=True)
class ClipTask:
    """A recording whose features a plugin needs.

    Attributes:
        number: Row of the input.
        clip: The recording, or a part of it.
        plugin: Where the plugin is.
    """

    number: int
    clip: Clip
    plugin: str


@dataclass(frozen=True)
class AnswerTask:
    """Utterances that are answered together.

    Attributes:
        numbers: Rows of the input.
        utterances: With their features.
        before: What was said before each.
        plugin: Where the plugin is.
        language_model: Where its language model is, and how it is stored.
        decode: How an answer is picked; None for the plugin's own way.
    """

    numbers: list[int]
    utterances: list[Utterance]
    before: list[list[Utterance]]
    plugin: str
    language_model: RecordedBackboneConfig
    decode: str | None


def read_clip(task: ClipTask) -> tuple[int, dict[str, Frames] | str]:
    """The row, and the features of the clip by name, or why there are none."""
    path, start, end = task.clip
    try:
        with clip_errors(path):
            return task.number, _extraction(task.plugin).extract(path, start, end)
    except UserError as error:
        return task.number, str(error)


def answer_batch(task: AnswerTask) -> tuple[list[int], list[dict[str, Any]]]:
    """The rows, and what is written of the answer about each."""
    predictor = load_predictor(task.plugin, task.language_model)
    answers = predictor.predict(
        task.utterances,
        decode=task.decode,
        batch_size=len(task.utterances),
        before=task.before,
    )
    return task.numbers, [answer_values(answer) for answer in answers]


def load_predictor(plugin: str, language_model: RecordedBackboneConfig) -> Predictor:
    """The plugin in front of its language model, loaded once a process."""
    return _predictor(plugin, astuple(language_model))


@lru_cache(maxsize=1)
def _predictor(plugin: str, language_model: tuple[Any, ...]) -> Predictor:
    options = RecordedBackboneConfig(*language_model)
    return Plugin.from_pretrained(plugin).load(**options.arguments())


@lru_cache(maxsize=1)
def _extraction(plugin: str) -> Extraction:
    return Extraction.from_facts(Plugin.from_pretrained(plugin).facts.features)
