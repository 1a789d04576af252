"""Strata of labels: what drawing a part of a split keeps in proportion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_INTENSITY_STRATA = 5


def label_strata(labels: Sequence[float | str]) -> NDArray[np.int64]:
    """The stratum of each label: an emotion by name, an intensity by fifth of the distribution.

    Intensities of at most five different values are a stratum each, as names are.

    Args:
        labels: N labels.

    Returns:
        (N,) numbers of the strata, counted from 0 in ascending order of the label; each number up
        to the largest one occurs.
    """
    values = np.asarray(labels)
    if values.dtype.kind == "f" and len(np.unique(values)) > _INTENSITY_STRATA:
        edges = np.quantile(values, np.linspace(0, 1, _INTENSITY_STRATA + 1)[1:-1])
        values = np.searchsorted(np.unique(edges), values, side="right")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
