"""Strata of labels: what drawing a part of a split keeps in proportion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msea_lightning.data.utterance import Label

_INTENSITY_STRATA = 5


def label_strata(labels: Sequence[Label | None]) -> NDArray[np.int64]:
    """The stratum of each label: an emotion by name, an intensity by fifth of the distribution.

    Intensities of at most five different values are a stratum each, as names are; so are the
    utterances without a label.

    Args:
        labels: N labels, None where an utterance is unlabelled.

    Returns:
        (N,) numbers of the strata, counted from 0 in ascending order of the label; each number up
        to the largest one occurs.
    """
    labelled = np.array([label is not None for label in labels])
    values = np.array([label for label in labels if label is not None])
    if values.dtype.kind == "f" and len(np.unique(values)) > _INTENSITY_STRATA:
        edges = np.quantile(values, np.linspace(0, 1, _INTENSITY_STRATA + 1)[1:-1])
        values = np.searchsorted(np.unique(edges), values, side="right")
    strata = np.full(len(labels), -1)
    strata[labelled] = np.unique(values, return_inverse=True)[1]
    return np.unique(strata, return_inverse=True)[1].astype(np.int64)
