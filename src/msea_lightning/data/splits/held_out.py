"""A validation part taken out of the training split, where a data set has none of its own.

Utterances of one video or dialogue give each other away: features recognise the speaker and the
room. So whole groups are held out, stratified by label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msea_lightning.config.errors import UserError
from msea_lightning.data.splits.fraction import label_strata, sample
from msea_lightning.data.utterance import Label

_DRAWS = 500
"""Choices of groups, of which the one is taken whose labels are spread most like those of all."""


class ValidationError(UserError):
    """A split of which no part can be held out."""


def hold_out(
    labels: Sequence[Label | None],
    groups: Sequence[str | None],
    *,
    fraction: float,
    seed: int,
) -> NDArray[np.int64]:
    """Chooses the utterances to hold out: whole groups, stratified by label, seeded.

    Of 500 random choices of groups (scikit-learn's ``GroupShuffleSplit``) the one is taken whose
    number of utterances, in total and of each label, is nearest to the fraction asked for.
    Intensities count by fifths of their distribution. Without any group, each label gives its share
    (:func:`~msea_lightning.data.splits.fraction.sample`). An utterance of group None is a group of
    its own.

    Returns:
        Their positions, ascending: at least one group, and not all of them.
    """
    number_of: dict[object, int] = {}
    keys = ((position,) if group is None else group for position, group in enumerate(groups))
    numbers = np.array([number_of.setdefault(key, len(number_of)) for key in keys])
    if len(number_of) < 2:
        raise ValidationError(
            f"a validation part cannot be held out of {len(labels)} utterances that all belong to "
            "one group (video or dialogue), because utterances of one group give each other away. "
            "Give the data set a valid split, or more groups."
        )
    if len(number_of) == len(labels):
        fewest = 1 / len(labels)
        return sample(labels, fraction=min(max(fraction, fewest), 1 - fewest), seed=seed)
    # Imported here, because it takes a second to load and is rarely needed.
    from sklearn.model_selection import GroupShuffleSplit

    strata = label_strata(labels)
    counts = np.zeros((len(number_of), strata.max() + 2))  # of each label, then in total
    np.add.at(counts, (numbers, strata), 1)
    counts[:, -1] = np.bincount(numbers)
    target = fraction * counts.sum(axis=0)
    size = min(max(round(fraction * len(counts)), 1), len(counts) - 1)
    draws = GroupShuffleSplit(_DRAWS, test_size=size, random_state=seed % 2**32)
    every = np.arange(len(counts))
    held = min(
        (drawn for _, drawn in draws.split(every, groups=every)),
        key=lambda drawn: float(((counts[drawn].sum(axis=0) - target) ** 2).sum()),
    )
    return np.flatnonzero(np.isin(numbers, held))
