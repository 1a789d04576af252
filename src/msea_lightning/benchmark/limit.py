"""How near to a machine's limit a variant comes: the work that has to be done, and the rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msea_lightning.backbone.flops import UtteranceFlops, matrix_rate
from msea_lightning.benchmark.subject import Subject


@dataclass(frozen=True)
class Limit:
    """Floating point operations that have to be done, and those that the machine does.

    What a variant manages to leave out counts as done.

    Attributes:
        train: Forward and input-gradient pass through the frozen model, mean of the training
            utterances.
        evaluate: Forward pass, mean of the test utterances.
        rate: Operations per second of a product of large matrices in the same dtype.
    """

    train: float
    evaluate: float
    rate: float


def limit(subject: Subject) -> Limit:
    """Counts the work of a variant, without padding, and measures its machine.

    Args:
        subject: The variant, started.
    """
    work = subject.workload()
    train = UtteranceFlops(work.language, labels=work.labels)
    evaluate = UtteranceFlops(work.language, nodes=work.nodes)
    return Limit(
        train=_mean(train, work.train, work.opening),
        evaluate=_mean(evaluate, work.test, work.opening),
        rate=matrix_rate(work.dtype, subject.device),
    )


def _mean(flops: UtteranceFlops, lengths: NDArray[np.int64], opening: int) -> float:
    """Operations of an utterance, which does not have to read the opening."""
    first = flops.shortest
    return float(flops(lengths).mean()) - (flops(first + opening) - flops(first))
