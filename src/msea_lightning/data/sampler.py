"""Which utterances form a batch, and in which order, on one device or several.

Batches hold utterances of similar length, so that little of a batch is padding, or whole dialogues
in their order. Training batches are *global*: the same whatever the number of devices and of
micro-batches on each, so that neither changes what is trained on.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from msea_lightning.config.errors import UserError

_WINDOW = 50
"""Batches of which the utterances are sorted by cost together, at most a quarter of an epoch."""


class SamplerError(UserError):
    """Fewer utterances, or dialogues, than devices to share them."""


class TrainingSampler(Sampler[list[int]], ABC):
    """Global training batches, of which each device takes its share in micro-batches.

    The order of an epoch depends on the seed and the epoch alone. ``rank`` is this device's number
    of ``world``; it takes its share of a batch in ``micro_batches``, one after another.
    """

    def __init__(self, *, seed: int, rank: int = 0, world: int = 1, micro_batches: int = 1) -> None:
        self._seed, self._rank, self._world = seed, rank, world
        self._micro_batches = micro_batches
        self._epoch = 0
        self._batches = 0  # of an epoch, all devices together

    def __len__(self) -> int:
        return self._batches * self._micro_batches

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, counted from 0, that the next iteration goes through."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches(self._epoch):
            yield from self._share(batch)

    @abstractmethod
    def global_batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch in order, all devices together, as positions in the split."""

    @abstractmethod
    def _share(self, batch: list[int]) -> list[list[int]]:
        """This device's micro-batches of a global batch."""

    def _check_sharing(self, smallest: int, total: int, unit: str, batch_size: int) -> None:
        """Refuses batches that have fewer utterances or dialogues than there are shares."""
        shares = self._world * self._micro_batches
        if smallest < shares:
            sharing = "devices" if self._micro_batches == 1 else "micro-batches"
            raise SamplerError(
                f"{shares} {sharing} cannot share training batches of {smallest} {unit} ({total} "
                f"{unit}, training.batch_size={batch_size}): each needs at least one. Raise "
                "training.batch_size, or lower trainer.accumulate, trainer.devices or "
                "trainer.num_nodes."
            )


class TrainingBatchSampler(TrainingSampler):
    """Shuffled batches of utterances of similar cost, every utterance exactly once per epoch.

    The utterances are shuffled and cut into windows of some batches; each window is sorted by cost
    and cut into batches; the batches are shuffled. An epoch has ceil(N / batch_size) batches whose
    sizes differ by at most one, so no small last batch moves the weights as far as a full one. A
    device takes every world-th utterance of each batch.

    Args:
        costs: (N,) how long an utterance takes, to sort by; the unit is arbitrary.
        batch_size: Utterances per batch, all devices and micro-batches together.
        **options: As for :class:`TrainingSampler`.
    """

    def __init__(self, costs: NDArray[np.int64], batch_size: int, **options: int) -> None:
        super().__init__(**options)
        self._costs = costs
        self._batches = -(-len(costs) // batch_size)
        # A window of the whole epoch would make the same batches in every epoch.
        self._window = max(1, min(_WINDOW, self._batches // 4))
        smallest = len(costs) // max(1, self._batches)
        self._check_sharing(smallest, len(costs), "utterances", batch_size)

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

    def _share(self, batch: list[int]) -> list[list[int]]:
        own = np.array_split(batch[self._rank :: self._world], self._micro_batches)
        return [micro_batch.tolist() for micro_batch in own]


class DialogueBatchSampler(TrainingSampler):
    """Shuffled batches of whole dialogues, every utterance exactly once per epoch.

    A dialogue goes into the batch that has the fewest utterances so far, the longest dialogues
    first, those of one length in random order; then the batches are shuffled. There are as many
    batches as it takes for none to be larger than ``batch_size``, or than the longest dialogue;
    their number is the same in every epoch. Devices and micro-batches share a batch by whole
    dialogues.

    Args:
        dialogues: Each as positions in the split, as :func:`dialogues_of` gives them.
        batch_size: Most utterances per batch, all devices and micro-batches together.
        **options: As for :class:`TrainingSampler`.
    """

    def __init__(self, dialogues: Sequence[list[int]], batch_size: int, **options: int) -> None:
        super().__init__(**options)
        self._dialogues = dialogues
        self._dialogue_of = {
            index: number for number, dialogue in enumerate(dialogues) for index in dialogue
        }
        sizes = [len(dialogue) for dialogue in dialogues]
        limit = max([batch_size, *sizes])
        order = range(len(sizes))
        self._batches = min(-(-sum(sizes) // batch_size), len(sizes))
        while max(map(len, self._flat(self._pack(order, self._batches)))) > limit:
            self._batches += 1
        smallest = min(map(len, self._pack(order, self._batches)))
        self._check_sharing(smallest, len(sizes), "dialogues", batch_size)

    def global_batches(self, epoch: int) -> list[list[int]]:
        """See the base class."""
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(len(self._dialogues)).tolist()
        batches = self._flat(self._pack(order, self._batches))
        return [batches[index] for index in random.permutation(self._batches)]

    def _share(self, batch: list[int]) -> list[list[int]]:
        order = list(dict.fromkeys(self._dialogue_of[index] for index in batch))
        packed = self._flat(self._pack(order, self._world * self._micro_batches))
        return packed[self._rank * self._micro_batches :][: self._micro_batches]

    def _pack(self, order: Sequence[int], bins: int) -> list[list[int]]:
        """Numbers of dialogues in bins of about equally many utterances."""
        packed: list[list[int]] = [[] for _ in range(bins)]
        heap = [(0, index) for index in range(bins)]
        for number in sorted(order, key=lambda number: -len(self._dialogues[number])):
            load, index = heap[0]
            heapq.heapreplace(heap, (load + len(self._dialogues[number]), index))
            packed[index].append(number)
        return packed

    def _flat(self, packed: list[list[int]]) -> list[list[int]]:
        """The utterances of the dialogues in each bin."""
        return [[index for number in bin_ for index in self._dialogues[number]] for bin_ in packed]


def dialogues_of(groups: Sequence[str | None], positions: NDArray[np.int64]) -> list[list[int]]:
    """The utterances of each dialogue in order, as positions in the split.

    An utterance of group None is a dialogue of its own; ``positions``, (N,), are those in it.
    """
    found: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault((index,) if group is None else group, []).append(index)
    return [sorted(members, key=lambda index: int(positions[index])) for members in found.values()]


def reading_costs(read: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) how long utterances take, to sort by: their tokens that are read, then their frames."""
    costs: NDArray[np.int64] = read * (frames.max(initial=0) + 1) + frames
    return costs


def evaluation_batches(
    units: Sequence[list[int]], batch_size: int, *, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """A device's evaluation batches; no utterance is in two of them, or on two devices.

    Device r of k takes units r, r + k, r + 2k, ..., so that devices have equal work. Units are
    utterances or whole dialogues, each as positions in the split, the costliest first: what does
    not fit into the memory fails at once. A dialogue longer than a batch is a batch of its own.
    """
    if len(units) < world:
        raise SamplerError(
            f"{world} devices cannot share a split of {len(units)} utterances, or dialogues: each "
            "device needs at least one. Lower trainer.devices or trainer.num_nodes."
        )
    batches: list[list[int]] = []
    for unit in units[rank::world]:
        if not batches or len(batches[-1]) + len(unit) > batch_size:
            batches.append([])
        batches[-1] += unit
    return batches
