"""What is inferred from labels, and which labels are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msea_lightning.data.options import LabelConfig, LabelKind, LabelWords
from msea_lightning.data.resolve import (
    LabelError,
    bounds,
    describe_labels,
    resolve_labels,
    resolve_metrics,
)
from msea_lightning.data.utterance import Label
from msea_lightning.metrics.options import MetricKind

SCALE = LabelConfig(kind=LabelKind.scale, low=-1, high=1, step=0.1)
EMOTIONS = LabelConfig(kind=LabelKind.emotions, names=["joy", "anger"])


@dataclass
class Split:
    """Labels with ids that say where they are."""

    labels: dict[str, list[Label | None]]

    @property
    def ids(self) -> list[str]:
        return [f"u{number}" for number in range(len(self.labels["M"]))]


def splits(train: Sequence[Label | None], **others: Sequence[Label | None]) -> dict[str, Split]:
    everything = {"train": train, **others}
    return {name: Split({"M": list(labels)}) for name, labels in everything.items()}


@pytest.mark.parametrize(
    ("labels", "low", "high", "step", "metrics"),
    [
        pytest.param([-3, -1 / 3, 0, 2.6667, 3], -3, 3, 0.1, "mosei", id="MOSI"),
        pytest.param([-2.6, 1 / 3, 1.6], -3, 3, 0.1, "mosei", id="part of MOSI"),
        pytest.param([-1, -0.8, 0, 0.2, 1], -1, 1, 0.2, "simsv2", id="SIMS"),
        pytest.param([-0.7, 0, 0.1, 0.6], -1, 1, 0.1, "simsv2", id="SIMS-V2"),
        pytest.param([1, 2, 3, 4, 5], 1, 5, 1, "scale", id="Likert"),
        pytest.param([1.33, 4.8], 1, 5, 0.1, "scale", id="mean of Likert"),
        pytest.param([1, 3.5, 5], 1, 5, 0.5, "scale", id="stars"),
        pytest.param([0, 1], 0, 1, 1, "scale", id="binary"),
        pytest.param([-1, 0, 1], -1, 1, 1, "simsv2", id="polarity"),
        pytest.param([0.11, 0.97], 0, 1, 0.01, "scale", id="probability"),
        pytest.param([3.3, 17.1, 99], 0, 100, 1, "scale", id="per cent"),
        pytest.param([-5, -1], -5, -1, 1, "scale", id="negative"),
        pytest.param([1001, 1002, 1004], 1001, 1004, 1, "scale", id="far from zero"),
    ],
)
def test_inferred_scales(
    labels: list[float], low: float, high: float, step: float, metrics: str
) -> None:
    for precise in (labels, [float(np.float32(label)) for label in labels]):
        found = resolve_labels(LabelConfig(), splits([float(label) for label in precise]))
        assert found == LabelConfig(LabelKind.scale, low, high, step, [])
        assert resolve_metrics(MetricKind.infer, found).value == metrics


@given(
    st.lists(
        st.floats(-1e4, 1e4).filter(lambda x: x == 0 or abs(x) > 1e-3), min_size=2, unique=True
    ).filter(lambda labels: np.ptp(labels) > 1e-2)
)
def test_any_scale_holds_its_labels_on_a_grid_of_some_answers(labels: list[float]) -> None:
    found = resolve_labels(LabelConfig(), splits(labels))
    low, high = bounds(found)
    assert found.step is not None
    assert low <= min(labels) + 1e-5
    assert max(labels) - 1e-5 <= high
    if min(labels) < 0 < max(labels):
        assert low == -high
    for bound in (low, high):
        assert bound / found.step == pytest.approx(round(bound / found.step), abs=1e-3)
    assert 1 <= round((high - low) / found.step) <= 200


def test_what_is_configured_is_not_inferred() -> None:
    config = LabelConfig(low=-4, high=4)
    found = resolve_labels(config, splits([-2.5, 2.0]))
    assert found == LabelConfig(LabelKind.scale, -4, 4, 0.5, [])
    assert resolve_labels(SCALE, splits([0.0, 1.0])) == SCALE
    assert resolve_labels(EMOTIONS, splits(["joy", "joy"])) == EMOTIONS
    config = LabelConfig(names=["joy", "anger"])
    assert resolve_labels(config, splits(["anger", "joy"])) == EMOTIONS
    assert resolve_metrics(MetricKind.scale, SCALE) is MetricKind.scale


def test_inferred_emotions_are_sorted() -> None:
    found = resolve_labels(LabelConfig(), splits(["sad", "joy", "anger", "joy"]))
    assert found == LabelConfig(LabelKind.emotions, names=["anger", "joy", "sad"])
    assert resolve_metrics(MetricKind.infer, found) is MetricKind.emotion


def test_how_emotions_are_written_is_not_inferred() -> None:
    config = LabelConfig(kind=LabelKind.emotions, names=["a", "b"], words=LabelWords.names)
    assert resolve_labels(config, splits(["a", "b"])) == config


def test_label_spaces_in_words() -> None:
    assert describe_labels(SCALE) == "intensities from -1 to 1 in steps of 0.1"
    assert describe_labels(EMOTIONS) == "2 emotions (joy, anger)"


def test_unlabelled_utterances_have_no_say() -> None:
    config = LabelConfig()
    assert resolve_labels(config, splits([None, -2.5, 2.0], test=[None])) == resolve_labels(
        config, splits([-2.5, 2.0])
    )
    found = resolve_labels(config, splits(["sad", None, "joy"], valid=["joy", None]))
    assert found.names == ["joy", "sad"]
    with pytest.raises(LabelError, match=r"no training utterance has a label.* Label them"):
        resolve_labels(config, splits([None, None], test=[1.0]))


@pytest.mark.parametrize(
    ("config", "found", "message"),
    [
        (
            LabelConfig(),
            splits(["a", "b"], test=["a", "c"]),
            r"'u1' \(test\) has the label 'c', but the labels are 2 emotions \(a, b\), inferred",
        ),
        (
            EMOTIONS,
            splits(["joy"], valid=["fear"]),
            r"'u0' \(valid\) has the label 'fear', but .* \(joy, anger\), as configured\. Correct",
        ),
        (
            SCALE,
            splits([0.0, 1.0, 1.5]),
            r"'u2' \(train\) has the label 1\.5, but the labels are intensities from -1 to 1 .* as",
        ),
        (
            LabelConfig(),
            splits([1.0, 2.0], test=[3.0]),
            r"'u0' \(test\) has the label 3, but .* from 1 to 2 in .*, inferred from the training",
        ),
        (EMOTIONS, splits([0.0, 1.0]), r"'u0' \(train\) has the label 0\.0, .* expects the name"),
        (SCALE, splits(["joy", "anger"]), r"the label 'joy', but .*kind=scale expects a number"),
        (LabelConfig(), splits(["a", "a"]), "all training utterances have the label 'a'"),
        (LabelConfig(), splits([2.0, 2.0]), "all training utterances have the label 2,"),
        (LabelConfig(low=9), splits([1.0, 2.0]), "intensity 9 is not below the highest 2; .* 1 a"),
    ],
)
def test_refused_labels(config: LabelConfig, found: dict[str, Split], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        resolve_labels(config, found)


@pytest.mark.parametrize(
    ("metrics", "labels"), [(MetricKind.emotion, SCALE), (MetricKind.mosei, EMOTIONS)]
)
def test_metrics_that_do_not_fit(metrics: MetricKind, labels: LabelConfig) -> None:
    with pytest.raises(LabelError, match=f"dataset.metrics={metrics.value} does not fit the lab"):
        resolve_metrics(metrics, labels)


@pytest.mark.parametrize(
    ("labels", "config", "warned"),
    [
        ([0, 1, 2, 3, 4, 5, 6], LabelConfig(), True),
        ([1.0, 3.0, 7.0], LabelConfig(), True),
        ([-3, 0, 3], LabelConfig(), False),
        ([0, 0.5, 1], LabelConfig(), False),
        (list(range(40)), LabelConfig(), False),
        ([0, 1, 2], LabelConfig(low=0, high=6), False),
        ([0, 1, 2], LabelConfig(kind=LabelKind.scale, low=0, high=2), False),
    ],
)
def test_class_numbers_are_not_taken_for_a_scale_in_silence(
    labels: list[Label], config: LabelConfig, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    resolve_labels(config, splits([float(label) for label in labels]))
    assert ("set dataset.labels.kind=emotions and" in caplog.text) == warned
    if warned:
        listed = ",".join(f"{float(label):.0f}" for label in labels)
        assert f"'dataset.labels.names=[{listed}]'" in caplog.text
