"""A part of the training utterances, to see what fewer of them do (paper, Figure 4).

The paper samples "in proportion" from the training split and leaves validation and test unchanged
(appendix, "The Impact of Training Data Volume"); it says neither how nor with which seed. Here the
parts are stratified by label, so that each emotion keeps its share, and nested, so that a larger
fraction adds utterances and exchanges none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msea_lightning.data.utterance import Label

_INTENSITY_STRATA = 5


def sample(labels: Sequence[Label | None], *, fraction: float, seed: int) -> NDArray[np.int64]:
    """Chooses the utterances to train on: stratified by label, seeded, nested.

    Every stratum is shuffled, then utterances are dealt from the strata one at a time so that at
    every moment each stratum has given its share of all that were dealt, rounded up or down: the
    next one comes from the stratum that is due first among those that may give one already (the
    quota method of Balinski and Young 1975, which never takes back what it has given). A sample is
    the beginning of that deal, so the one of a smaller fraction is part of the one of a larger.

    Returns:
        Their positions, ascending: n = round(fraction * N), halves to the even number, and at least
        1. Of a stratum of M utterances there are floor(n * M / N) or ceil(n * M / N).
    """
    strata = label_strata(labels)
    sizes = np.bincount(strata)
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(strata))
    # Shuffled within each stratum; the strata in random order, which breaks ties.
    queues = [shuffled[strata[shuffled] == stratum] for stratum in random.permutation(len(sizes))]
    lengths = np.array([len(queue) for queue in queues])
    given = np.zeros(len(queues), dtype=np.int64)
    chosen = []
    for dealt in range(1, max(1, round(fraction * len(strata))) + 1):
        due = (given + 1) / lengths
        due[given * len(strata) >= dealt * lengths] = np.inf  # would exceed its share rounded up
        stratum = int(due.argmin())
        chosen.append(queues[stratum][given[stratum]])
        given[stratum] += 1
    return np.sort(np.array(chosen, dtype=np.int64))


def label_strata(labels: Sequence[Label | None]) -> NDArray[np.int64]:
    """The stratum of each label: an emotion by name, an intensity by fifth of the distribution.

    Intensities of at most five different values are a stratum each, as names are; so are the
    utterances without a label. Strata are counted from 0 in ascending order of the label; each
    number up to the largest one occurs.
    """
    labelled = np.array([label is not None for label in labels])
    values = np.array([label for label in labels if label is not None])
    if values.dtype.kind == "f" and len(np.unique(values)) > _INTENSITY_STRATA:
        edges = np.quantile(values, np.linspace(0, 1, _INTENSITY_STRATA + 1)[1:-1])
        values = np.searchsorted(np.unique(edges), values, side="right")
    strata = np.full(len(labels), -1)
    strata[labelled] = np.unique(values, return_inverse=True)[1]
    return np.unique(strata, return_inverse=True)[1].astype(np.int64)
