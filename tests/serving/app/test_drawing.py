"""Answers as HTML: what is shown, and that no text in it is taken for HTML."""

from __future__ import annotations

import re

import numpy as np
import pytest

from msea_lightning.plugin import Answer
from msea_lightning.serving.app.asking import Reply
from msea_lightning.serving.app.curves import Panel
from msea_lightning.serving.app.drawing import (
    bars,
    columns,
    effects,
    lines,
    message,
    reply,
    signed,
    ticks,
)

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m"

EMOTION = Answer("u", "p", "joy", 0.7, {"anger": 0.1, "joy": 0.7, HOSTILE: 0.2})
SENTIMENT = Answer(
    "u",
    "p",
    0.5,
    0.5,
    {-1.0: 0.05, 0.0: 0.25, 0.5: 0.5, 1.0: 0.2},
    mean=0.4,
    median=0.5,
    interval=(0.0, 0.5),
)


def shown(answer: Answer, **others: object) -> str:
    values = {"without": {}, "notes": [], "panels": [], "seconds": 0.0, **others}
    return reply(Reply(answer, **values))  # type: ignore[arg-type]


def test_emotions_are_bars_the_most_probable_first() -> None:
    assert [bar.name for bar in bars(EMOTION)] == ["joy", HOSTILE, "anger"]
    assert [bar.chosen for bar in bars(EMOTION)] == [True, False, False]
    html = shown(EMOTION)
    assert re.findall(r"width: ([\d.]+)%", html) == ["70.00", "20.00", "10.00"]
    assert "80 % interval" not in html


def test_intensities_are_columns_from_low_to_high_with_the_interval_chosen() -> None:
    found = columns(SENTIMENT)
    assert [bar.name for bar in found] == ["−1.0", "0.0", "+0.5", "+1.0"]
    assert [bar.chosen for bar in found] == [False, True, True, False]
    assert [bar.height for bar in found] == [0.1, 0.5, 1.0, 0.4]
    assert "80 % interval <b>0.0 to +0.5</b>" in shown(SENTIMENT)


def test_a_modality_contributed_what_is_missing_without_it() -> None:
    other = Answer("u", "p", "anger", 0.6, {"anger": 0.6, "joy": 0.4, HOSTILE: 0.0})
    [effect] = effects(EMOTION, {"text": other})
    assert (effect.part, effect.answer, effect.change) == ("text", "anger (60.0 %)", "+30.0 points")
    assert effect.share == pytest.approx(0.3)
    lower = Answer("u", "p", 1.0, 0.5, SENTIMENT.distribution, 0.8, 1.0, (0.5, 1.0))
    [effect] = effects(SENTIMENT, {"audio": lower})
    assert (effect.answer, effect.change) == ("mean +0.80", "−0.40")
    assert effect.share == pytest.approx(-0.2)
    assert "What each modality contributed" not in shown(EMOTION)
    assert "msea-less" in shown(SENTIMENT, without={"audio": lower})


def test_a_curve_is_interrupted_where_it_has_no_value() -> None:
    values = np.array([0.0, 1.0, np.nan, np.nan, 0.5])
    [line] = lines(Panel("Seen", {"happy": values}, 0.0, 1.0))
    assert line.path == "M0.00 100.00h0L25.00 0.00M100.00 50.00h0"
    [dot] = lines(Panel("Seen", {"happy": np.array([1.0])}, 0.0, 1.0))
    assert dot.path == "M50.00 0.00h0"


def test_every_text_is_escaped() -> None:
    panel = Panel(HOSTILE, {HOSTILE: np.ones(2), "b": np.zeros(2)}, 0.0, 1.0)
    hostile = Answer("u", "p", HOSTILE, 0.2, {HOSTILE: 0.2, "joy": 0.8})
    html = shown(
        hostile, without={HOSTILE: hostile}, notes=[HOSTILE], panels=[panel], seconds=2.0
    ) + message(HOSTILE, alarm=True)
    assert "<img" not in html
    assert "\x1b" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;\\x1b[31m") >= 8


def test_an_alarm_is_announced() -> None:
    assert 'role="alert"' in message("broken", alarm=True)
    assert 'role="status"' in message("write a text")


def test_numbers_have_a_sign_unless_they_are_zero() -> None:
    assert [signed(value) for value in (0.4, -0.4, 0.04, -0.0)] == ["+0.4", "−0.4", "0.0", "0.0"]


def test_time_has_digits_where_the_clip_is_short() -> None:
    assert ticks(2.0) == ["0.0", "0.5", "1.0", "1.5", "2.0"]
    assert ticks(60.0) == ["0", "15", "30", "45", "60"]
