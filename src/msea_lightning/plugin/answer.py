"""What a plugin answers about one utterance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from msea_lightning.data.files.errors import shorten
from msea_lightning.data.utterance import DataError
from msea_lightning.language.answers import Answers
from msea_lightning.language.labels import LabelSpace

_TAIL = 0.1
"""Mass on either side of the 80 % interval."""


@dataclass(frozen=True)
class Answer:
    """The answer about one utterance.

    Attributes:
        id: Of the utterance.
        plugin: Name of the plugin that answers.
        label: The emotion, or the sentiment intensity.
        probability: Probability of the label among all legal answers.
        distribution: Probability of every legal answer; they sum to one.
        mean: Mean of the distribution; None for emotions.
        median: Its median; None for emotions.
        interval: Lowest and highest intensity of the middle 80 % of the distribution; None for
            emotions.
    """

    id: str
    plugin: str
    label: float | str
    probability: float
    distribution: Mapping[float | str, float]
    mean: float | None = None
    median: float | None = None
    interval: tuple[float, float] | None = None


def answers_of(ids: list[str], plugin: str, space: LabelSpace, found: Answers) -> list[Answer]:
    """The answers about B utterances, from their values and distributions.

    Raises:
        DataError: naming the utterances whose probabilities are not finite.
    """
    assert found.distribution is not None
    distributions = found.distribution.cpu().numpy()
    broken = [
        id_ for id_, row in zip(ids, distributions, strict=True) if not np.isfinite(row).all()
    ]
    if broken:
        raise DataError(
            f"the plugin {plugin!r} gives no probabilities for {shorten(map(repr, broken))}, but "
            "NaN: its weights or the language model's are damaged, or overflow in its dtype."
        )
    values = np.asarray(space.values)
    rows = zip(ids, found.value.tolist(), found.probability.tolist(), distributions, strict=True)
    answers = []
    for id_, value, probability, row in rows:
        distribution: dict[float | str, float] = {}
        for answer, mass in zip(map(space.label, space.values), row.tolist(), strict=True):
            # "-0.0" and "0.0" are one intensity.
            distribution[answer] = distribution.get(answer, 0.0) + mass
        label = space.label(value)
        if not space.ordered:
            answers.append(Answer(id_, plugin, label, probability, distribution))
            continue
        low, median, high = (
            float(values[int(np.argmax(row.cumsum() >= mass))]) for mass in (_TAIL, 0.5, 1 - _TAIL)
        )
        mean = float(row @ values)
        interval = low, high
        answers.append(
            Answer(id_, plugin, label, probability, distribution, mean, median, interval)
        )
    return answers
