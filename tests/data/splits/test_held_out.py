"""The held-out part: whole groups, the size asked for, labels spread as in the whole."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msea_lightning.data.splits.held_out import ValidationError, hold_out

fractions = st.floats(0.02, 0.98)
seeds = st.integers(0, 2**32 - 1)
rows = st.lists(
    st.tuples(st.sampled_from("abc"), st.none() | st.sampled_from("pqrstuvw")),
    min_size=2,
    max_size=120,
).filter(lambda found: len(found) > 1 and (len({g for _, g in found}) > 1 or found[0][1] is None))


@given(rows, fractions, seeds)
def test_whole_groups_and_the_size_asked_for(
    found: list[tuple[str, str | None]], fraction: float, seed: int
) -> None:
    labels, groups = [label for label, _ in found], [group for _, group in found]
    held = hold_out(labels, groups, fraction=fraction, seed=seed).tolist()
    assert held == sorted(set(held))
    assert 0 < len(held) < len(labels)
    kept = set(range(len(labels))) - set(held)
    assert not ({groups[i] for i in held} & {groups[i] for i in kept}) - {None}
    largest = max([count for group, count in Counter(groups).items() if group is not None] or [1])
    # So many groups of average size, and one more or fewer.
    assert abs(len(held) - fraction * len(labels)) <= 2 * largest
    assert held == hold_out(labels, groups, fraction=fraction, seed=seed).tolist()


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.floats(0.1, 0.9), seeds)
def test_without_groups_every_label_gets_its_share(
    counts: list[int], fraction: float, seed: int
) -> None:
    labels = [str(name) for name, count in enumerate(counts) for _ in range(count)]
    held = hold_out(labels, [None] * len(labels), fraction=fraction, seed=seed)
    if 1 < len(held) < len(labels) - 1:
        for name, found in Counter(labels[index] for index in held).items():
            # Rounded up or down, of a total that is rounded itself.
            assert abs(found - fraction * counts[int(name)]) < 1.5


def test_intensities_keep_their_distribution() -> None:
    random = np.random.default_rng(0)
    labels = random.normal(size=2000).clip(-3, 3)
    groups = [f"video {number}" for number in random.integers(0, 150, 2000)]
    held = hold_out(labels.tolist(), groups, fraction=0.15, seed=1)
    levels = [0.1, 0.25, 0.5, 0.75, 0.9]
    assert np.abs(np.quantile(labels[held], levels) - np.quantile(labels, levels)).max() < 0.15


def test_labels_that_differ_between_groups_are_balanced() -> None:
    """Videos that are all positive or all negative, which a blind draw would get wrong."""
    sizes = np.random.default_rng(3).integers(5, 40, 60)
    labels = [f"{video % 2}" for video, size in enumerate(sizes) for _ in range(size)]
    groups = [f"{video}" for video, size in enumerate(sizes) for _ in range(size)]
    share = np.mean([label == "1" for label in labels])
    for seed in range(10):
        held = hold_out(labels, groups, fraction=0.15, seed=seed)
        assert np.mean([labels[index] == "1" for index in held]) == pytest.approx(share, abs=0.03)
        assert len(held) == pytest.approx(0.15 * len(labels), abs=20)


def test_seeds_draw_differently() -> None:
    groups = [f"{number // 5}" for number in range(300)]
    labels = [f"{number % 2}" for number in range(300)]
    drawn = {tuple(hold_out(labels, groups, fraction=0.2, seed=seed)) for seed in range(8)}
    assert len(drawn) == 8


def test_one_group_is_refused() -> None:
    with pytest.raises(ValidationError, match="3 utterances that all belong to one group"):
        hold_out(["a", "b", "a"], ["video"] * 3, fraction=0.2, seed=0)


def test_real_videos(shared: Path) -> None:
    with (shared / "data/mosi_utterance/utterances.csv").open(encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row["split"] == "train"]
    labels, groups = [row["label"] for row in found], [row["group"] for row in found]
    whole = np.mean([label == "positive" for label in labels])
    for seed in (1111, 2222, 3333):
        held = hold_out(labels, groups, fraction=0.15, seed=seed)
        assert len(held) == pytest.approx(0.15 * len(labels), abs=0.005 * len(labels))
        assert np.mean([labels[index] == "positive" for index in held]) == pytest.approx(
            whole, abs=0.01
        )
