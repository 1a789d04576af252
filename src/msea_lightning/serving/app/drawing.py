"""Answers, curves and messages as HTML; every text in it is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from msea_lightning.config.text import visible
from msea_lightning.data.options import LabelKind
from msea_lightning.metrics import METRICS
from msea_lightning.plugin import Answer
from msea_lightning.plugin.facts import PluginFacts, backbone_title
from msea_lightning.serving.app.asking import Reply
from msea_lightning.serving.app.curves import Panel, Values

_templates = Environment(
    loader=PackageLoader("msea_lightning.serving.app", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: visible(value) if type(value) is str else value,
)


class Bar(NamedTuple):
    """A legal answer in the chart of the distribution; ``chosen`` is the answer or its interval."""

    name: str
    probability: float
    height: float
    chosen: bool


class Effect(NamedTuple):
    """What leaving out a modality does to the answer; ``change`` is in ``share`` of the scale."""

    part: str
    answer: str
    change: str
    share: float


class Line(NamedTuple):
    """A curve as an SVG path in a square of 100 by 100, with its name."""

    name: str
    path: str


def reply(found: Reply) -> str:
    """The answer with its distribution, what each modality contributed, and the curves."""
    answer = found.answer
    chart = columns(answer) if answer.interval is not None else bars(answer)
    return _render(
        "reply",
        answer=answer,
        label=label(answer),
        chart=chart,
        effects=effects(answer, found.without),
        notes=found.notes,
        panels=[(panel, lines(panel)) for panel in found.panels],
        ticks=ticks(found.seconds),
    )


def message(text: str, *, alarm: bool = False) -> str:
    """A message in place of an answer; ``alarm`` says that something is wrong."""
    return _render("message", text=text, alarm=alarm)


def about(facts: PluginFacts) -> str:
    """What a plugin is: what it answers, its language model, and how good it was in its test."""
    kind = "the intensity of a sentiment" if facts.labels.kind is LabelKind.scale else "an emotion"
    scores = [
        (METRICS[name].title, METRICS[name].format(value) + (" %" if METRICS[name].percent else ""))
        for name, value in facts.test.items()
        if name in METRICS and value is not None
    ]
    extractors = [f"{name} by {found['name']}" for name, found in facts.features.items()]
    return _render(
        "about",
        kind=kind,
        dataset=facts.dataset,
        base=backbone_title(facts.backbone),
        extractors=" and ".join(extractors),
        scores=scores[:3],
    )


def label(answer: Answer) -> str:
    """The answer in words; an intensity has its sign."""
    return signed(answer.label) if isinstance(answer.label, float) else answer.label


def bars(answer: Answer) -> list[Bar]:
    """The distribution over emotions, the most probable first."""
    ordered = sorted(answer.distribution.items(), key=lambda item: -item[1])
    return [Bar(str(name), mass, mass, name == answer.label) for name, mass in ordered]


def columns(answer: Answer) -> list[Bar]:
    """The distribution over intensities, from low to high; chosen are those of the interval."""
    assert answer.interval is not None
    low, high = answer.interval
    most = max(answer.distribution.values())
    return [
        Bar(signed(float(value)), mass, mass / most, low <= float(value) <= high)
        for value, mass in sorted(answer.distribution.items(), key=lambda item: float(item[0]))
    ]


def effects(answer: Answer, without: Mapping[str, Answer]) -> list[Effect]:
    """What each modality contributed: what it moved the mean, or the answer's probability, by."""
    found = []
    for part, other in without.items():
        if answer.mean is not None and other.mean is not None:
            span = max(map(float, answer.distribution)) - min(map(float, answer.distribution))
            moved = answer.mean - other.mean
            found.append(
                Effect(part, f"mean {signed(other.mean, 2)}", signed(moved, 2), moved / span)
            )
        else:
            moved = answer.probability - other.distribution[answer.label]
            here = f"{label(other)} ({percent(other.probability)})"
            found.append(Effect(part, here, f"{signed(100 * moved, 1)} points", moved))
    return found


def lines(panel: Panel) -> list[Line]:
    """The curves of a panel as paths, interrupted where there is no value."""
    return [Line(name, _path(values, panel)) for name, values in panel.curves.items()]


def ticks(seconds: float) -> list[str]:
    """Labels at even distances below the curves."""
    digits = 0 if seconds >= 20 else 1
    return [f"{seconds * part / 4:.{digits}f}" for part in range(5)]


def _path(values: Values, panel: Panel) -> str:
    across = np.linspace(0, 100, len(values)) if len(values) > 1 else np.array([50.0])
    up = 100 - 100 * (values - panel.low) / (panel.high - panel.low)
    words, connected = [], False
    for x, y in zip(across.tolist(), up.clip(0, 100).tolist(), strict=True):
        if np.isnan(y):
            connected = False
            continue
        # A point between two gaps is a line of no length, which the round ends make a dot.
        words.append(f"L{x:.2f} {y:.2f}" if connected else f"M{x:.2f} {y:.2f}h0")
        connected = True
    return "".join(words)


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, of which zero has none."""
    number = round(value, digits)
    return f"{number:+.{digits}f}".replace("-", "\N{MINUS SIGN}") if number else f"{0:.{digits}f}"


def percent(probability: float) -> str:
    """A probability with one digit."""
    return f"{100 * probability:.1f} %"


def plain(number: float) -> str:
    """A number with three digits."""
    return f"{number:.3g}".replace("-", "\N{MINUS SIGN}")


_templates.filters |= {"signed": signed, "percent": percent, "plain": plain}


def _render(name: str, **values: Any) -> str:
    return _templates.get_template(f"{name}.html.jinja").render(**values)
