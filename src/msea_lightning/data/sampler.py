"""Which utterances form a batch, and in which order, on one device or several.

Batches hold utterances of similar length, so that little of a batch is padding, or whole dialogues
in their order. Training batches are *global*: the same whatever the number of devices and of parts
that a device takes its share in, so that neither changes what is trained on.
"""

from __future__ import annotations

import heapq
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from msea_lightning.config.errors import UserError

_LETTERS_PER_TOKEN = 4
# Scripts in which one character takes about as long to read as a short word in Latin letters:
# Chinese, Japanese, Korean and full-width forms.
_WIDE = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


class SamplerError(UserError):
    """Fewer utterances, or dialogues, than devices to share them."""


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


class TrainingSampler(Sampler[list[int]], ABC):
    """Global training batches, of which each device takes its share in parts.

    The order of an epoch depends on the seed and the epoch alone.

    Args:
        seed: Seed of the order.
        rank: This device's number.
        world: Number of devices.
        parts: A device takes its share of a batch in as many parts, one after another.
    """

    def __init__(self, *, seed: int, rank: int = 0, world: int = 1, parts: int = 1) -> None:
        self._seed, self._rank, self._world, self._parts = seed, rank, world, parts
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, counted from 0, that the next iteration goes through."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches(self._epoch):
            yield from self.shares(batch)

    @abstractmethod
    def global_batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch in order, all devices together, as positions in the split."""

    @abstractmethod
    def shares(self, batch: list[int]) -> list[list[int]]:
        """This device's parts of a global batch."""

    def _check_sharing(self, smallest: int, what: str, batch_size: int) -> None:
        """Refuses batches that have fewer utterances or dialogues than there are shares."""
        if smallest >= self._world * self._parts:
            return
        sharing, remedy = f"{self._world} devices", "trainer.devices"
        if self._parts > 1:
            sharing = f"{self._world * self._parts} parts"
            remedy = "trainer.accumulate or trainer.devices"
        raise SamplerError(
            f"{sharing} cannot share training batches of {smallest} {what}, "
            f"training.batch_size={batch_size}): each needs at least one. Raise "
            f"training.batch_size or lower {remedy}."
        )


class TrainingBatchSampler(TrainingSampler):
    """Shuffled batches of utterances of similar cost, every utterance exactly once per epoch.

    The utterances are shuffled and cut into windows of some batches; each window is sorted by cost
    and cut into batches; the batches are shuffled. An epoch has ceil(N / batch_size) batches whose
    sizes differ by at most one, so no small last batch moves the weights as far as a full one. A
    device takes every world-th utterance of each batch.

    Args:
        costs: (N,) what to sort by, see :func:`reading_costs`.
        batch_size: Utterances per batch, all devices and parts together.
        window: Batches per window; at most a quarter of the epoch is taken, because a window of the
            whole epoch would make the same batches in every epoch.
        **options: ``seed``, ``rank``, ``world`` and ``parts``, as for :class:`TrainingSampler`.

    Raises:
        SamplerError: where a batch has fewer utterances than there are devices, or parts of it.
    """

    def __init__(
        self,
        costs: NDArray[np.int64],
        batch_size: int,
        *,
        window: int = 50,
        **options: int,
    ) -> None:
        super().__init__(**options)
        self._costs = np.asarray(costs)
        self._batches = -(-len(self._costs) // batch_size)
        self._window = max(1, min(window, self._batches // 4))
        smallest = len(self._costs) // max(1, self._batches)
        self._check_sharing(smallest, f"utterances ({len(costs)} utterances", batch_size)

    def __len__(self) -> int:
        return self._batches * self._parts

    def global_batches(self, epoch: int) -> list[list[int]]:
        """See the base class."""
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(len(self._costs))
        bounds = np.arange(self._batches + 1) * len(order) // self._batches
        for first in range(0, self._batches, self._window):
            start, stop = bounds[first], bounds[min(first + self._window, self._batches)]
            members = order[start:stop]
            order[start:stop] = members[np.argsort(self._costs[members], kind="stable")]
        batches = np.split(order, bounds[1:-1])
        return [batches[index].tolist() for index in random.permutation(self._batches)]

    def shares(self, batch: list[int]) -> list[list[int]]:
        """See the base class."""
        own = np.array_split(batch[self._rank :: self._world], self._parts)
        return [part.tolist() for part in own]


class DialogueBatchSampler(TrainingSampler):
    """Shuffled batches of whole dialogues, every utterance exactly once per epoch.

    The utterances of a dialogue stand one after another, in order. A dialogue goes into the batch
    that has the fewest utterances so far, the longest dialogues first, those of one length in
    random order; then the batches are shuffled. There are as many batches as it takes for none to
    be larger than ``batch_size``, or than the longest dialogue; their number is the same in every
    epoch. Devices and parts share a batch by whole dialogues.

    Args:
        groups: N dialogues; an utterance of group None is a dialogue of its own.
        positions: (N,) place of each utterance in its dialogue.
        batch_size: Most utterances per batch, all devices and parts together.
        **options: ``seed``, ``rank``, ``world`` and ``parts``, as for :class:`TrainingSampler`.

    Raises:
        SamplerError: where a batch has fewer dialogues than there are devices, or parts of it.
    """

    def __init__(
        self,
        groups: Sequence[str | None],
        positions: NDArray[np.int64],
        batch_size: int,
        **options: int,
    ) -> None:
        super().__init__(**options)
        self._dialogues = dialogues(groups, positions)
        self._dialogue_of = {
            index: number for number, dialogue in enumerate(self._dialogues) for index in dialogue
        }
        sizes = [len(dialogue) for dialogue in self._dialogues]
        limit = max([batch_size, *sizes])
        self._batches = min(-(-sum(sizes) // batch_size), len(sizes))
        order = range(len(sizes))
        while max(self._load(packed) for packed in self._pack(order, self._batches)) > limit:
            self._batches += 1
        smallest = min(len(packed) for packed in self._pack(order, self._batches))
        self._check_sharing(smallest, f"dialogues ({len(sizes)} dialogues", batch_size)

    def __len__(self) -> int:
        return self._batches * self._parts

    def global_batches(self, epoch: int) -> list[list[int]]:
        """See the base class."""
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(len(self._dialogues)).tolist()
        packed = self._pack(order, self._batches)
        return [
            [index for number in packed[place] for index in self._dialogues[number]]
            for place in random.permutation(self._batches)
        ]

    def shares(self, batch: list[int]) -> list[list[int]]:
        """See the base class."""
        order = list(dict.fromkeys(self._dialogue_of[index] for index in batch))
        packed = self._pack(order, self._world * self._parts)
        own = packed[self._rank * self._parts : (self._rank + 1) * self._parts]
        return [[index for number in part for index in self._dialogues[number]] for part in own]

    def _pack(self, order: Sequence[int], bins: int) -> list[list[int]]:
        """Dialogues in bins of about equally many utterances."""
        packed: list[list[int]] = [[] for _ in range(bins)]
        heap = [(0, place) for place in range(bins)]
        for number in sorted(order, key=lambda number: -len(self._dialogues[number])):
            load, place = heap[0]
            heapq.heapreplace(heap, (load + len(self._dialogues[number]), place))
            packed[place].append(number)
        return packed

    def _load(self, packed: list[int]) -> int:
        return sum(len(self._dialogues[number]) for number in packed)


def dialogues(groups: Sequence[str | None], positions: NDArray[np.int64]) -> list[list[int]]:
    """The utterances of each dialogue in order, as positions in the split.

    Args:
        groups: N dialogues; an utterance of group None is a dialogue of its own.
        positions: (N,) place of each utterance in its dialogue.
    """
    found: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault((index,) if group is None else group, []).append(index)
    return [sorted(members, key=lambda index: int(positions[index])) for members in found.values()]


class EvaluationBatchSampler(Sampler[list[int]]):
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
        _check_devices(len(costs), "utterances", world)
        self._order = np.argsort(-np.asarray(costs), kind="stable")
        self._batch_size, self._rank, self._world = batch_size, rank, world

    def __len__(self) -> int:
        return -(-len(self._order[self._rank :: self._world]) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches():
            if own := batch[self._rank :: self._world]:
                yield own

    def global_batches(self) -> list[list[int]]:
        """What all devices together read at a time."""
        step = self._batch_size * self._world
        return [
            self._order[start : start + step].tolist() for start in range(0, len(self._order), step)
        ]


def evaluation_dialogues(
    groups: Sequence[str | None],
    positions: NDArray[np.int64],
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
) -> list[list[int]]:
    """Batches of whole dialogues of a split, the longest dialogues first.

    Args:
        groups: N dialogues; an utterance of group None is a dialogue of its own.
        positions: (N,) place of each utterance in its dialogue.
        batch_size: Most utterances per batch of a device; a longer dialogue is a batch of its own.
        rank: This device's number.
        world: Number of devices. Each takes every world-th dialogue.

    Returns:
        This device's batches, as positions in the split.

    Raises:
        SamplerError: where there are fewer dialogues than devices.
    """
    found = sorted(dialogues(groups, positions), key=len, reverse=True)
    _check_devices(len(found), "dialogues", world)
    batches: list[list[int]] = []
    for dialogue in found[rank::world]:
        if not batches or len(batches[-1]) + len(dialogue) > batch_size:
            batches.append([])
        batches[-1] += dialogue
    return batches


def _check_devices(count: int, what: str, world: int) -> None:
    if count < world:
        raise SamplerError(
            f"{world} devices cannot share a split of {count} {what}: each device needs at least "
            "one. Lower trainer.devices."
        )
