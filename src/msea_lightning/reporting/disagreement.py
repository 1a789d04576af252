"""Utterances on which models disagree most."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from statistics import fmean, stdev
from typing import Any

from msea_lightning.metrics.options import MetricKind
from msea_lightning.reporting.grouping import Configuration


def most_disputed(configurations: Sequence[Configuration]) -> list[tuple[str, ...]]:
    """The utterances with the largest spread over all runs of one data set and kind of labels.

    Those on which all runs agree are left out.

    Returns:
        Of each its id, its text, its label, the answer of each configuration (of emotions the most
        frequent one and how many seeds gave it, of intensities the mean; empty where it has none),
        and the spread: of emotions the share of answers that are not the most frequent one, of
        intensities the sample standard deviation of all answers.
    """
    emotions = any(one.kind is MetricKind.emotion for one in configurations)
    answers: dict[tuple[str, str], list[list[Any]]] = {}
    texts: dict[tuple[str, str], str] = {}
    for index, one in enumerate(configurations):
        for part in (run.predictions for run in one.runs if run.predictions is not None):
            for name, text, label, answer in zip(*part[:4], strict=True):
                key = (name, label if emotions else f"{label:g}")
                texts.setdefault(key, text)
                by_configuration = answers.setdefault(key, [[] for _ in configurations])
                if emotions or not math.isnan(answer):
                    by_configuration[index].append(answer)
    spread, write = (_minority, _most_frequent) if emotions else (_deviation, _mean)
    spreads = {key: spread(list(chain(*given))) for key, given in answers.items()}
    disputed = sorted((key for key in spreads if spreads[key] > 0), key=lambda k: (-spreads[k], k))
    return [
        (
            name,
            texts[name, label],
            label,
            *(write(given) if given else "" for given in answers[name, label]),
            f"{spreads[name, label]:.2f}",
        )
        for name, label in disputed[:20]
    ]


def _minority(answers: Sequence[str]) -> float:
    return 1 - max(Counter(answers).values()) / len(answers)


def _deviation(answers: Sequence[float]) -> float:
    return stdev(answers) if len(answers) > 1 else 0.0


def _most_frequent(answers: Sequence[str]) -> str:
    answer, count = Counter(sorted(answers)).most_common(1)[0]
    return f"{answer} ({count}/{len(answers)})"


def _mean(answers: Sequence[float]) -> str:
    return f"{fmean(answers):+.2f}"
