"""Utterances on which models disagree most."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from msea_lightning.metrics.options import MetricKind
from msea_lightning.reporting.grouping import Configuration

SHOWN = 20
"""Utterances shown per data set."""


def most_disputed(
    configurations: Sequence[Configuration], limit: int = SHOWN
) -> list[tuple[str, ...]]:
    """The utterances with the largest spread over all runs of some configurations.

    Args:
        configurations: Of one data set and one kind of labels, all of them with finished runs.
        limit: How many utterances at most; those on which all runs agree are left out.

    Returns:
        Of each its id, its text, its label, the answer of each configuration (of emotions the most
        frequent one and how many seeds gave it, of intensities the mean; empty where it has none),
        and the spread: of emotions the share of answers that are not the most frequent one, of
        intensities the sample standard deviation of all answers.
    """
    emotions = configurations[0].kind is MetricKind.emotion
    answers: dict[tuple[str, str], dict[int, list[str | float]]] = defaultdict(dict)
    texts: dict[tuple[str, str], str] = {}
    for index, one in enumerate(configurations):
        for part in (run.predictions for run in one.runs if run.predictions is not None):
            for name, text, label, answer in zip(
                part.ids, part.texts, list(part.labels), list(part.answers), strict=True
            ):
                key = (name, str(label) if emotions else repr(float(label)))
                texts.setdefault(key, text)
                answers[key].setdefault(index, []).append(answer if emotions else float(answer))
    spread = _share_of_minority if emotions else _deviation
    spreads = {
        key: spread([answer for given in by_configuration.values() for answer in given])
        for key, by_configuration in answers.items()
    }
    disputed = sorted((key for key in spreads if spreads[key] > 0), key=lambda k: (-spreads[k], k))
    write = _majority if emotions else _mean
    return [
        (
            name,
            texts[name, label],
            label if emotions else f"{float(label):g}",
            *(
                write(answers[name, label][index]) if index in answers[name, label] else ""
                for index in range(len(configurations))
            ),
            f"{spreads[name, label]:.2f}",
        )
        for name, label in disputed[:limit]
    ]


def _share_of_minority(answers: Sequence[str | float]) -> float:
    return 1 - max(Counter(answers).values()) / len(answers)


def _deviation(answers: Sequence[str | float]) -> float:
    known = _known(answers)
    return statistics.stdev(known) if len(known) > 1 else 0.0


def _majority(answers: Sequence[str | float]) -> str:
    counts = Counter(str(answer) for answer in answers)
    answer, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
    return f"{answer} ({count}/{len(answers)})"


def _mean(answers: Sequence[str | float]) -> str:
    known = _known(answers)
    return f"{math.fsum(known) / len(known):+.2f}" if known else "undefined"


def _known(answers: Sequence[str | float]) -> list[float]:
    return [float(answer) for answer in answers if not math.isnan(float(answer))]
