"""Which utterances form a batch, and in which order, on one device or several.

Batches hold utterances of similar length, so that little of a batch is padding. Training batches
are *global*: the same whatever the number of devices and of parts that one takes them in, so that
neither changes what is trained on. Evaluation goes through a split from its longest utterances to
its shortest; what is computed of an utterance does not depend on its company.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from msea_lightning.config.errors import UserError

_LETTERS_PER_TOKEN = 4
# Scripts in which one character takes about as long to read as a short word in Latin letters:
# Chinese, Japanese, Korean and full-width forms.
_WIDE = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


class SamplerError(UserError):
    """Fewer utterances than devices to share them."""


class Share(NamedTuple):
    """What one device reads at a time.

    Attributes:
        indices: Positions of its utterances in the split.
        step: Positions of all utterances of the optimizer step that they belong to; in evaluation,
            of those that all devices read at that time.
    """

    indices: list[int]
    step: list[int]


def estimated_tokens(texts: Sequence[str]) -> NDArray[np.int64]:
    """About how many tokens texts are, without a tokenizer: four Latin letters or one wide one.

    Args:
        texts: N texts.

    Returns:
        (N,) numbers.
    """
    letters = np.array(
        [len(text) + (_LETTERS_PER_TOKEN - 1) * len(_WIDE.findall(text)) for text in texts],
        dtype=np.int64,
    )
    return np.asarray(-(-letters // _LETTERS_PER_TOKEN), dtype=np.int64)


def reading_costs(
    tokens: NDArray[np.int64], lengths: Mapping[str, NDArray[np.int64]]
) -> NDArray[np.int64]:
    """How long each utterance takes, for sorting; the unit is arbitrary.

    The tokens of the text decide, because the language model takes most of the time; among texts of
    equally many the frames do.

    Args:
        tokens: (N,) tokens of the texts that are read.
        lengths: Name of each feature to (N,) frames.

    Returns:
        (N,) costs.
    """
    frames = np.sum(list(lengths.values()), axis=0, dtype=np.int64) if lengths else 0 * tokens
    return np.asarray(tokens * (frames.max(initial=0) + 1) + frames, dtype=np.int64)


class TrainingBatchSampler(Sampler[Share]):
    """Shuffled batches of utterances of similar cost, every utterance exactly once per epoch.

    The utterances are shuffled and cut into windows of some batches; each window is sorted by cost
    and cut into batches; the batches are shuffled. The order of an epoch depends on the seed and
    the epoch alone. An epoch has ceil(N / batch_size) batches whose sizes differ by at most one, so
    no small last batch moves the weights as far as a full one.

    Args:
        costs: (N,) what to sort by, see :func:`reading_costs`.
        batch_size: Utterances per batch, all devices and parts together.
        seed: Seed of the order.
        rank: This device's number.
        world: Number of devices. The device takes every world-th utterance of each batch.
        parts: A device takes its share of a batch in as many parts, one after another.
        window: Batches per window; at most a quarter of the epoch is taken, because a window of the
            whole epoch would make the same batches in every epoch.

    Raises:
        SamplerError: where a batch has fewer utterances than there are devices, or parts of it.
    """

    def __init__(
        self,
        costs: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
        window: int = 50,
    ) -> None:
        self._costs = np.asarray(costs)
        self._batches = -(-len(self._costs) // batch_size)
        self._window = max(1, min(window, self._batches // 4))
        self._seed, self._rank, self._world, self._parts = seed, rank, world, parts
        self._epoch = 0
        smallest = len(self._costs) // max(1, self._batches)
        if smallest < world * parts:
            sharing = f"{world} devices" if parts == 1 else f"{world * parts} parts"
            remedy = "trainer.devices" if parts == 1 else "trainer.accumulate or trainer.devices"
            raise SamplerError(
                f"{sharing} cannot share training batches of {smallest} utterances "
                f"({len(self._costs)} utterances, training.batch_size={batch_size}): each "
                f"needs at least one. Raise training.batch_size or lower {remedy}."
            )

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, counted from 0, that the next iteration goes through."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._batches * self._parts

    def __iter__(self) -> Iterator[Share]:
        for batch in self.global_batches(self._epoch):
            step = batch.tolist()
            for part in np.array_split(batch[self._rank :: self._world], self._parts):
                yield Share(part.tolist(), step)

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


class EvaluationBatchSampler(Sampler[Share]):
    """The utterances of a split from the costliest to the cheapest, in batches.

    The first batch is the largest: what does not fit fails at once. Device r of k takes numbers r,
    r + k, r + 2k, ... of that order, so that devices have equal work; every utterance belongs to
    one device alone, and none is counted twice.

    Args:
        costs: (N,) what to sort by, see :func:`reading_costs`.
        batch_size: Utterances per batch of a device.
        rank: This device's number.
        world: Number of devices.

    Raises:
        SamplerError: where there are fewer utterances than devices.
    """

    def __init__(
        self, costs: NDArray[np.int64], batch_size: int, *, rank: int = 0, world: int = 1
    ) -> None:
        if len(costs) < world:
            raise SamplerError(
                f"{world} devices cannot share a split of {len(costs)} utterances: each device "
                "needs at least one. Lower trainer.devices."
            )
        order = np.argsort(-np.asarray(costs), kind="stable")
        own = order[rank::world]
        self._shares = [
            Share(
                own[start : start + batch_size].tolist(),
                order[start * world : (start + batch_size) * world].tolist(),
            )
            for start in range(0, len(own), batch_size)
        ]

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[Share]:
        return iter(self._shares)
