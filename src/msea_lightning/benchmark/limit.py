"""How near to a machine's limit a variant comes: the work that has to be done, and the rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msea_lightning.backbone.flops import UtteranceFlops, matrix_rate
from msea_lightning.benchmark.subject import Subject


@dataclass(frozen=True)
class Limit:
    """Floating point operations that a round has to do, and those that the machine does.

    Attributes:
        train: Forward and input-gradient passes through the frozen model, for a training round.
        evaluate: Forward passes, for an evaluation round.
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
        train=_all(train, work.train, work.opening),
        evaluate=_all(evaluate, work.test, work.opening),
        rate=matrix_rate(work.dtype, subject.device),
    )


def _all(flops: UtteranceFlops, lengths: NDArray[np.int64], opening: int) -> float:
    """Operations of all utterances, of which none has to read the opening."""
    return float(flops(lengths).sum()) - len(lengths) * (flops(1 + opening) - flops(1))
