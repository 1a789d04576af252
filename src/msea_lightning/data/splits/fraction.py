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

from msea_lightning.data.splits.strata import label_strata
from msea_lightning.data.utterance import Label


def sample(labels: Sequence[Label | None], *, fraction: float, seed: int) -> NDArray[np.int64]:
    """Chooses the utterances to train on: stratified by label, seeded, nested.

    Every stratum is shuffled, then utterances are dealt from the strata one at a time so that at
    every moment each stratum has given its share of all that were dealt, rounded up or down: the
    next one comes from the stratum that is due first among those that may give one already (the
    quota method of Balinski and Young 1975, which never takes back what it has given). A sample is
    the beginning of that deal, so the one of a smaller fraction is part of the one of a larger.

    Args:
        labels: N labels, at least one; None where an utterance is unlabelled.
        fraction: Part of the utterances to choose, above 0 and up to 1.
        seed: Seed of the draw.

    Returns:
        Their positions, ascending: n = round(fraction * N), halves to the even number, and at least
        1. Of a stratum of M utterances there are floor(n * M / N) or ceil(n * M / N), hence less
        than 1.5 more or fewer than ``fraction * M`` where n was not raised to 1.
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
