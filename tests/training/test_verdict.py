"""What a result is worth beside something simple."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from msea_lightning.data.options import LabelConfig, LabelKind, Language
from msea_lightning.language.labels import EmotionSet, LabelSpace, SentimentScale
from msea_lightning.metrics.options import MetricKind
from msea_lightning.model.contract import Prediction
from msea_lightning.training.references import references
from msea_lightning.training.verdict import Verdict, hardly_varies, judge

NAMES = ["neutral", "joy", "anger"]
EMOTIONS = EmotionSet(NAMES)
SCALE = SentimentScale(-3, 3)
WORDS = {"neutral": "the table is here", "joy": "what a wonderful day", "anger": "I hate it"}


class Part(SimpleNamespace):
    """A split with a length."""

    def __len__(self) -> int:
        return len(self.texts)


def split(labels: Sequence[Any], texts: Sequence[str]) -> Any:
    present = {"audio": 1.0, "vision": 1.0}
    return Part(texts=list(texts), labels={"M": list(labels)}, dims={}, present=present)


def verdict(answers: Sequence[Any], true: Sequence[Any], space: LabelSpace, **more: Any) -> Verdict:
    emotions = not space.ordered
    texts = [WORDS[label] if emotions else "word" for label in true]
    labels = LabelConfig(LabelKind.emotions, names=NAMES)
    if not emotions:
        labels = LabelConfig(LabelKind.scale, low=-3, high=3, step=0.1)
    rows = enumerate(zip(true, answers, texts, strict=True))
    given = {"best_epoch": 2, "epochs": 5} | more
    name = "wf1" if emotions else "mae"
    return judge(
        [Prediction(i, str(i), text, label, answer, 0.5) for i, (label, answer, text) in rows],
        {"test": {name: 0.5}, "valid": {name: 0.5}},
        {name: split(true, texts) for name in ("train", "valid", "test")},
        space=space,
        labels=labels,
        kind=MetricKind.emotion if emotions else MetricKind.mosei,
        language=Language.en,
        **given,
    )


TRUE = ["neutral"] * 50 + ["joy"] * 30 + ["anger"] * 20


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (TRUE, "Accuracy 100.0 %, 50.0 points better than always neutral (50.0 %; 95 % interval"),
        (
            ["neutral"] * 48 + ["joy", "neutral", "joy"] + ["neutral"] * 49,
            "Accuracy 50.0 %, no better than always neutral (50.0 %; 95 % interval of the",
        ),
        (["joy"] * 50 + ["neutral"] * 50, "Accuracy 0.0 %, 50.0 points WORSE than always neutral"),
    ],
)
def test_a_result_is_set_beside_the_most_frequent_training_label(
    answers: list[str], said: str
) -> None:
    sentences = verdict(answers, TRUE, EMOTIONS).sentences
    assert sentences[0].startswith(said)
    assert "than TF-IDF on the text (100.0 %; " in sentences[1]


def test_intensities_are_set_beside_the_median() -> None:
    true = np.random.default_rng(0).normal(size=60).clip(-3, 3).round(1).tolist()
    found = verdict(true, true, SCALE)
    median = f"{np.median(true):g}"
    assert found.references[0].name == f"always {median}"
    assert found.references[0].test["mae"] == pytest.approx(
        np.abs(np.array(true) - np.median(true)).mean(), abs=1e-6
    )
    assert re.match(rf"MAE 0\.000, 0\.\d+ better than always {median} \(0\.", found.sentences[0])


@pytest.mark.parametrize("space", [EMOTIONS, SCALE], ids=["emotions", "scale"])
@pytest.mark.parametrize("number", [1, 2, 19])
def test_a_handful_of_utterances_says_nothing(space: LabelSpace, number: int) -> None:
    true = [0.5 * (i % 3) for i in range(number)] if space.ordered else TRUE[-number:]
    found = verdict(true, true, space, best_epoch=0)
    assert found.sentences == [
        f"Too few test utterances ({number}) to say what the result is worth."
    ]
    assert found.warnings == []
    assert len(found.references) >= 1
    assert bool(found.intervals) is (number > 1)


def test_what_stands_beside_the_metrics() -> None:
    answers = ["neutral"] * 60 + ["joy"] * 40
    facts = verdict(answers, TRUE, EMOTIONS).facts()
    counts = {"neutral": 50, "joy": 30, "anger": 20}
    assert facts["data"] == {
        "utterances": {"train": 100, "valid": 100, "test": 100},
        "labels": {"train": counts, "valid": counts, "test": counts},
    }
    assert facts["classes"]["anger"]["recall"] == 0
    assert facts["classes"]["joy"] == pytest.approx(
        {"precision": 0.5, "recall": 2 / 3, "f1": 4 / 7, "utterances": 30}
    )
    low, high = facts["intervals"]["acc"]
    assert low < 0.7 < high
    assert facts["majority"] == 0.5
    assert facts["warnings"] == [
        "never predicted in test: anger (20.0%); the most frequent label, "
        "neutral, is 50.0% of the test labels"
    ]


def test_training_that_did_not_help_is_said() -> None:
    assert (
        "The best of 5 epochs was the first"
        in verdict(TRUE, TRUE, EMOTIONS, best_epoch=0).sentences[-1]
    )
    assert not any(
        "epochs was the first" in text
        for text in verdict(TRUE, TRUE, EMOTIONS, best_epoch=0, epochs=1).sentences
    )


@pytest.mark.parametrize(
    ("space", "true", "answers", "said"),
    [
        (EMOTIONS, TRUE, ["neutral"] * 97 + ["joy"] * 3, "97.0 % of them are neutral, 50.0 % of"),
        (EMOTIONS, TRUE, ["neutral"] * 90 + ["joy"] * 10, None),
        (EMOTIONS, TRUE[40:59], ["neutral"] * 18 + ["joy"], None),  # a handful
        (
            SCALE,
            [-2.0, 2.0] * 20,
            [0.1, 0.2] * 20,
            "their standard deviation is 0.050, the labels'",
        ),
        (SCALE, [-2.0, 2.0] * 20, [-1.0, 1.0] * 20, None),
    ],
)
def test_answers_that_hardly_vary(
    space: LabelSpace, true: list[Any], answers: list[Any], said: str | None
) -> None:
    rows = zip(true, answers, strict=True)
    found = hardly_varies(
        [Prediction(i, "", "", label, answer, 0.5) for i, (label, answer) in enumerate(rows)], space
    )
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


@pytest.mark.parametrize(
    ("texts", "language", "kinds"),
    [
        (["good", "bad"] * 5, Language.en, ["constant", "text"]),
        (["好", "坏"] * 5, Language.zh, ["constant", "text"]),
        (["", "!"] * 5, Language.en, ["constant"]),  # nobody says a word
    ],
)
def test_the_text_classifier_reads_words(
    texts: list[str], language: Language, kinds: list[str]
) -> None:
    labels = ["joy", "anger"] * 5
    found = references(
        [*texts, "unlabelled"],
        [*labels, None],
        texts,
        labels,
        space=EMOTIONS,
        kind=MetricKind.emotion,
        language=language,
    )
    assert [one.kind for one in found] == kinds
    if "text" in kinds:
        assert found[1].test["acc"] == 1
