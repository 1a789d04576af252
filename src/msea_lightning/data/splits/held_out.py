"""A validation part taken out of the training split, where a data set has none of its own.

Utterances of one video or dialogue give each other away: features recognise the speaker and the
room. So whole groups are held out, and among all choices of groups one is taken whose labels are
spread as in the whole split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msea_lightning.config.errors import UserError
from msea_lightning.data.splits.strata import label_strata


class ValidationError(UserError):
    """A split of which no part can be held out."""


def hold_out(
    labels: Sequence[float | str],
    groups: Sequence[str | None],
    *,
    fraction: float,
    seed: int,
) -> NDArray[np.int64]:
    """Chooses the utterances to hold out: whole groups, stratified by label, seeded.

    Groups are first drawn at random as long as each brings the number of utterances nearer to the
    fraction asked for, then held-out groups are exchanged for others as long as that brings the
    label counts nearer to the same fraction of each label's utterances. Intensities count by fifths
    of their distribution.

    Args:
        labels: N labels.
        groups: N groups; an utterance of group None is a group of its own.
        fraction: Part of the utterances to hold out, between 0 and 1.
        seed: Seed of the draw.

    Returns:
        Their positions, ascending: at least one group, and not all of them. Their number differs
        from ``fraction * N`` by at most the size of the largest group.

    Raises:
        ValidationError: where all utterances belong to one group.
    """
    group_of = _numbers_of_groups(groups)
    group_count = int(group_of.max(initial=-1)) + 1
    if group_count < 2:
        raise ValidationError(
            f"a validation part cannot be held out of {len(labels)} utterances that all belong to "
            "one group (video or dialogue), because utterances of one group give each other away. "
            "Give the data set a valid split, or more groups."
        )
    counts = _counts(labels, group_of, group_count)
    random = np.random.default_rng(seed)
    held = _draw(counts.sum(axis=1), fraction, random)
    held = _exchange(counts, held, fraction, random)
    return np.flatnonzero(held[group_of])


def _numbers_of_groups(groups: Sequence[str | None]) -> NDArray[np.int64]:
    """(N,) number of each utterance's group, counted in order of first appearance."""
    numbers: dict[object, int] = {}
    keys = ((position,) if group is None else group for position, group in enumerate(groups))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _counts(
    labels: Sequence[float | str], group_of: NDArray[np.int64], group_count: int
) -> NDArray[np.int64]:
    """(G, K) utterances of each group in each stratum of labels."""
    stratum_of = label_strata(labels)
    counts = np.zeros((group_count, int(stratum_of.max()) + 1), dtype=np.int64)
    np.add.at(counts, (group_of, stratum_of), 1)
    return counts


def _draw(
    sizes: NDArray[np.int64], fraction: float, random: np.random.Generator
) -> NDArray[np.bool_]:
    """(G,) held-out groups: in random order, each that brings the total nearer to the target.

    A group is passed over only where it is more than twice what is missing, so the total ends
    within half of the largest group's size.
    """
    target = fraction * sizes.sum()
    held = np.zeros(len(sizes), dtype=np.bool_)
    total = 0
    for group in random.permutation(len(sizes)):
        if abs(total + sizes[group] - target) < abs(total - target):
            held[group] = True
            total += sizes[group]
    if not held.any():
        held[sizes.argmin()] = True
    elif held.all():
        held[sizes.argmin()] = False
    return held


def _exchange(
    counts: NDArray[np.int64],
    held: NDArray[np.bool_],
    fraction: float,
    random: np.random.Generator,
) -> NDArray[np.bool_]:
    """Exchanges groups while that lowers the squared distance of the counts from their targets.

    The target of each stratum, and of the total, is the fraction of it. Groups of equal counts are
    interchangeable, so one of each kind is looked at, which keeps thousands of groups of a single
    utterance cheap.
    """
    sizes = counts.sum(axis=1)
    measured = np.concatenate([counts, sizes[:, None]], axis=1)  # (G, K + 1)
    target = fraction * measured.sum(axis=0)
    allowed = max(sizes.max() / 2, abs(sizes[held].sum() - target[-1]))
    kinds, kind_of = np.unique(measured, axis=0, return_inverse=True)
    order = random.permutation(len(held))
    inside: list[list[int]] = [[] for _ in kinds]
    outside: list[list[int]] = [[] for _ in kinds]
    for group in order.tolist():
        (inside if held[group] else outside)[kind_of[group]].append(group)
    gap = measured[held].sum(axis=0) - target
    improved = True
    while improved:
        improved = False
        for kind in random.permutation(len(kinds)).tolist():
            while inside[kind]:
                others = np.array([bool(groups) for groups in outside])
                gaps = gap - kinds[kind] + kinds  # (kinds, K + 1) after each exchange
                distances = (gaps**2).sum(axis=1)
                distances[~others | (np.abs(gaps[:, -1]) > allowed)] = np.inf
                best = int(distances.argmin())
                if not distances[best] < (gap**2).sum() - 1e-9:
                    break
                gap = gaps[best]
                out, into = inside[kind].pop(), outside[best].pop()
                inside[best].append(into)
                outside[kind].append(out)
                improved = True
    result = np.zeros(len(held), dtype=np.bool_)
    result[[group for groups in inside for group in groups]] = True
    return result
