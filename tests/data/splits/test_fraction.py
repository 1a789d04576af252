"""A part of the training utterances: its size, its strata, and that parts lie inside each other."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from msea_lightning.data.splits.fraction import label_strata, sample

fractions = st.floats(0, 1, exclude_min=True)
seeds = st.integers(0, 2**32 - 1)
emotions = st.lists(st.integers(1, 60), min_size=1, max_size=8).map(
    lambda counts: [f"emotion {name}" for name, count in enumerate(counts) for _ in range(count)]
)
intensities = st.lists(st.floats(-3, 3), min_size=1, max_size=200)


@given(emotions | intensities, fractions, seeds)
def test_size_order_and_seed(labels: list[str] | list[float], fraction: float, seed: int) -> None:
    chosen = sample(labels, fraction=fraction, seed=seed).tolist()
    assert len(chosen) == max(1, round(fraction * len(labels)))
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(len(labels)))
    assert chosen == sample(labels, fraction=fraction, seed=seed).tolist()


@given(emotions | intensities, fractions, seeds)
def test_every_stratum_gives_its_share_rounded_up_or_down(
    labels: list[str] | list[float], fraction: float, seed: int
) -> None:
    chosen = sample(labels, fraction=fraction, seed=seed)
    strata = label_strata(labels)
    for size, found in zip(
        np.bincount(strata), np.bincount(strata[chosen], minlength=strata.max() + 1), strict=True
    ):
        share = len(chosen) * size
        assert share // len(labels) <= found <= -(-share // len(labels))
        if fraction * len(labels) > 0.5:
            assert abs(found - fraction * size) < 1.5


@given(emotions | intensities, fractions, fractions, seeds)
def test_the_smaller_part_lies_in_the_larger(
    labels: list[str] | list[float], one: float, other: float, seed: int
) -> None:
    less, more = (
        set(sample(labels, fraction=fraction, seed=seed).tolist())
        for fraction in sorted((one, other))
    )
    assert less <= more


def test_tenths_of_a_skewed_set() -> None:
    """MELD's counts: its rarest emotion is in every part, never more than one off its share."""
    counts = {"neutral": 4710, "joy": 1743, "surprise": 1205, "anger": 1109, "sadness": 683}
    counts |= {"disgust": 271, "fear": 268}
    labels = [name for name, count in counts.items() for _ in range(count)]
    before: set[int] = set()
    for tenth in range(1, 11):
        chosen = sample(labels, fraction=tenth / 10, seed=1111)
        for name, found in Counter(labels[index] for index in chosen).items():
            assert abs(found - tenth / 10 * counts[name]) <= 1
        assert before < set(chosen.tolist())
        before = set(chosen.tolist())
    assert before == set(range(len(labels)))


def test_seeds_draw_differently() -> None:
    labels = [f"{number % 3}" for number in range(300)]
    drawn = {tuple(sample(labels, fraction=0.1, seed=seed).tolist()) for seed in range(8)}
    assert len(drawn) == 8


def test_strata_of_names_and_of_few_and_of_many_intensities() -> None:
    assert label_strata(["joy", "anger", "joy"]).tolist() == [1, 0, 1]
    assert label_strata([0.5, -1.0, 0.5]).tolist() == [1, 0, 1]
    assert label_strata(["joy", None, "anger"]).tolist() == [2, 0, 1]
    assert label_strata([None, None]).tolist() == [0, 0]
    assert np.bincount(label_strata(np.linspace(-3, 3, 1000).tolist())).tolist() == [200] * 5
