"""What becomes of each class: precision, recall and F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support


class ClassScore(NamedTuple):
    """How well a class is found; shares lie between 0 and 1.

    Attributes:
        precision: Share of the answers of this class that are right; NaN where there is none.
        recall: Share of its utterances that are found; NaN where there is none.
        f1: Harmonic mean of the two; NaN where the class is neither answered nor true.
        utterances: Number of its utterances.
    """

    precision: float
    recall: float
    f1: float
    utterances: int


def class_scores(
    preds: NDArray[np.int64], targets: NDArray[np.int64], names: Sequence[str]
) -> dict[str, ClassScore]:
    """Scores of each class by its name, in the order of the C names.

    Args:
        preds: (N,) numbers of the predicted classes, below C.
        targets: (N,) numbers of the true classes.
        names: (C,) names of the classes.
    """
    columns = precision_recall_fscore_support(
        targets, preds, labels=range(len(names)), zero_division=np.nan
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    # scikit-learn counts in floats where few classes are there at all.
    scores = [ClassScore(p, r, f1, int(count)) for p, r, f1, count in rows]
    return dict(zip(names, scores, strict=True))
