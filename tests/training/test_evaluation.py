"""What is said of results that are worth little."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import TrainConfig
from msea_lightning.language.answers import Answers
from msea_lightning.language.labels import EmotionSet, LabelSpace, SentimentScale
from msea_lightning.metrics import METRICS
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.contract import Prediction
from msea_lightning.training.fit import fit
from msea_lightning.training.show import show_results
from msea_lightning.training.verdict import (
    better_than_test,
    degenerate,
    majority,
)

EMOTIONS = EmotionSet(["neutral", "joy", "anger"])
SCALE = SentimentScale(-3, 3)


def predicted(labels: Sequence[Any], predictions: Sequence[Any]) -> list[Prediction]:
    return [
        Prediction(place, str(place), "text", label, prediction, 0.5)
        for place, (label, prediction) in enumerate(zip(labels, predictions, strict=True))
    ]


@pytest.mark.parametrize(
    ("space", "labels", "predictions", "expected"),
    [
        (
            EMOTIONS,
            ["joy", "joy", "neutral", "anger"] * 5,
            ["neutral"] * 20,
            "all 20 test predictions are neutral; the most frequent label, joy, is 50.0% of the",
        ),
        (
            EMOTIONS,
            ["joy", "joy", "neutral", "anger"] * 10,
            ["joy", "neutral", "joy", "joy"] * 10,
            "never predicted in test: anger (25.0%); the most frequent label, joy, is 50.0%",
        ),
        (EMOTIONS, ["joy", "neutral"], ["neutral", "joy"], None),  # there is no anger to predict
        (SCALE, [1.2, -0.4] * 10, [0.4] * 20, "all 20 test predictions are 0.4; the most frequent"),
        # A handful says nothing: of all utterances, or of those of a class.
        (EMOTIONS, ["joy", "neutral"] * 9, ["neutral"] * 18, None),
        (EMOTIONS, ["joy"] * 30 + ["anger"] * 9, ["joy"] * 38 + ["neutral"], None),
        (SCALE, [1.2, -0.4, 1.2], [0.4, 0.4, 0.5], None),
    ],
)
def test_degenerate_predictions(
    space: LabelSpace, labels: list[Any], predictions: list[Any], expected: str | None
) -> None:
    found = degenerate(predicted(labels, predictions), space)
    assert [text[: len(expected or "")] for text in found] == ([expected] if expected else [])


def test_the_majority_is_that_of_the_labels_as_they_are_written() -> None:
    assert majority(predicted([0.42, 0.38, 1.0], [1.0] * 3), SCALE) == ("0.4", pytest.approx(2 / 3))


def test_names_are_shown_as_they_are_in_the_table_of_results(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = compose("train", TrainConfig, ["method=published"])
    options = replace(options, dataset=replace(options.dataset, name="[red]mine[/] \x1b[2J"))
    show_results(options, {"test": {"acc": 0.5, "wf1": 0.4}}, {"acc": (0.4, 0.6)})
    shown = capsys.readouterr().out
    assert "MSE-Adapter with tiny on [red]mine[/] \\x1b[2J" in shown
    assert "40.00 to 60.00" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("valid", "test", "size", "said"),
    [
        (0.9, 0.5, 200, True),
        (0.9, 0.5, 10, False),  # nine and five of ten: may be chance
        (0.6, 0.5, 2000, False),  # no chance, but not much
        (0.5, 0.9, 200, False),
        (float("nan"), 0.5, 200, False),
    ],
)
def test_validation_far_above_test_is_said_where_it_is_no_chance(
    valid: float, test: float, size: int, said: bool
) -> None:
    results = {"valid": {"wf1": valid}, "test": {"wf1": test}}
    found = better_than_test(results, {"valid": size, "test": size}, METRICS["wf1"])
    assert [text.partition(":")[0] for text in found] == said * [
        "WF1 is 90.00 in validation and 50.00 in test"
    ]


def test_a_run_that_gives_one_answer_says_so(
    options: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def always_the_first(model: AdaptedLM, batch: Any) -> Answers:
        return Answers(torch.zeros(len(batch)).double(), torch.ones(len(batch)).double())

    monkeypatch.setattr(AdaptedLM, "predict", always_the_first)
    with caplog.at_level(logging.WARNING):
        run = fit(options("training.schedule_epochs=1", "dataset.demo_utterances=200"))
    written = json.loads(run.metrics.read_text())
    (said,) = written["warnings"]
    assert said.startswith("all 30 test predictions are anger")
    assert f"is {written['majority']:.1%} of the test labels" in said
    assert said in caplog.text
