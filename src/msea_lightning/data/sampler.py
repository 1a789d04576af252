"""Which utterances form a batch, and in which order, on one device or several.

Training batches hold utterances of similar length, so that little of a batch is padding. They are
*global* batches: the same whatever the number of devices, each of which takes its share of each
batch, so several devices train on what one would. Evaluation goes through a split in its order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from msea_lightning.config import UserError

_LETTERS_PER_TOKEN = 4
# Scripts in which one character takes about as long to read as a short word in Latin letters:
# Chinese, Japanese, Korean and full-width forms.
_WIDE = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


class SamplerError(UserError):
    """Fewer utterances than devices to share them."""


def reading_costs(
    texts: Sequence[str],
    audio_lengths: NDArray[np.int64],
    vision_lengths: NDArray[np.int64],
) -> NDArray[np.int64]:
    """How long each utterance takes, for sorting; the unit is arbitrary.

    The text decides, counted in estimated tokens (four Latin letters or one Chinese character),
    because the language model takes most of the time; among texts of equal length the frames do.

    Args:
        texts: N texts.
        audio_lengths: (N,) audio frames.
        vision_lengths: (N,) vision frames.

    Returns:
        (N,) costs.
    """
    letters = np.array(
        [len(text) + (_LETTERS_PER_TOKEN - 1) * len(_WIDE.findall(text)) for text in texts],
        dtype=np.int64,
    )
    tokens = -(-letters // _LETTERS_PER_TOKEN)
    frames = audio_lengths + vision_lengths
    return np.asarray(tokens * (frames.max(initial=0) + 1) + frames, dtype=np.int64)


class TrainingBatchSampler(Sampler[list[int]]):
    """Shuffled batches of utterances of similar cost, every utterance exactly once per epoch.

    The utterances are shuffled and cut into windows of some batches; each window is sorted by cost
    and cut into batches; the batches are shuffled. The order of an epoch depends on the seed and
    the epoch alone. An epoch has ceil(N / batch_size) batches whose sizes differ by at most one, so
    no small last batch moves the weights as far as a full one.

    Args:
        costs: (N,) what to sort by, see :func:`reading_costs`.
        batch_size: Utterances per batch, all devices together.
        seed: Seed of the order.
        rank: This device's number.
        world: Number of devices. The device takes every world-th utterance of each batch.
        window: Batches per window; at most a quarter of the epoch is taken, because a window of the
            whole epoch would make the same batches in every epoch.

    Raises:
        SamplerError: where a batch has fewer utterances than there are devices.
    """

    def __init__(
        self,
        costs: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        window: int = 50,
    ) -> None:
        self._costs = np.asarray(costs)
        self._batches = -(-len(self._costs) // batch_size)
        self._window = max(1, min(window, self._batches // 4))
        self._seed, self._rank, self._world = seed, rank, world
        self._epoch = 0
        smallest = len(self._costs) // max(1, self._batches)
        if smallest < world:
            raise SamplerError(
                f"{world} devices cannot share training batches of {smallest} utterances "
                f"({len(self._costs)} utterances, training.batch_size={batch_size}): each device "
                "needs at least one. Raise training.batch_size or lower trainer.devices."
            )

    @property
    def sampler(self) -> TrainingBatchSampler:
        """Itself: Lightning calls ``set_epoch`` of a batch sampler's ``sampler`` only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, counted from 0, that the next iteration goes through."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches(self._epoch):
            yield batch[self._rank :: self._world].tolist()

    def global_batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """The batches of an epoch in order, all devices together."""
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(len(self._costs))
        bounds = np.arange(self._batches + 1) * len(order) // self._batches
        for first in range(0, self._batches, self._window):
            start, stop = bounds[first], bounds[min(first + self._window, self._batches)]
            members = order[start:stop]
            order[start:stop] = members[np.argsort(self._costs[members], kind="stable")]
        batches = np.split(order, bounds[1:-1])
        return [batches[index] for index in random.permutation(self._batches)]


class EvaluationSampler(Sampler[int]):
    """The utterances of a split in order; device r of k takes numbers r, r + k, r + 2k, ...

    Every utterance belongs to one device alone, so none is counted twice; devices may differ by
    one utterance.

    Args:
        size: Utterances of the split.
        rank: This device's number.
        world: Number of devices.

    Raises:
        SamplerError: where there are fewer utterances than devices.
    """

    def __init__(self, size: int, *, rank: int = 0, world: int = 1) -> None:
        if size < world:
            raise SamplerError(
                f"{world} devices cannot share a split of {size} utterances: each device needs at "
                "least one. Lower trainer.devices."
            )
        self._indices = range(rank, size, world)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)
