"""Batches: every utterance once per epoch, the same however they are shared, little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from msea_lightning.data.sampler import (
    DialogueBatchSampler,
    SamplerError,
    TrainingBatchSampler,
    TrainingSampler,
    dialogues_of,
    evaluation_batches,
)

costs = st.lists(st.integers(0, 50), min_size=1, max_size=300).map(np.array)
batch_sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)
worlds = st.integers(1, 5)
micro_batches_of_a_share = st.integers(1, 4)
epochs = st.integers(0, 100)


def batches(sampler: TrainingSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@given(costs, batch_sizes, seeds, epochs)
def test_every_utterance_exactly_once_in_batches_of_equal_size(
    values: NDArray[np.int64], batch_size: int, seed: int, epoch: int
) -> None:
    sampler = TrainingBatchSampler(values, batch_size, seed=seed)
    found = batches(sampler, epoch)
    assert sorted(index for batch in found for index in batch) == list(range(len(values)))
    assert len(found) == len(sampler) == -(-len(values) // batch_size)
    sizes = [len(batch) for batch in found]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@given(costs, batch_sizes, seeds, epochs, worlds)
def test_devices_share_the_batches_of_one_device(
    values: NDArray[np.int64], batch_size: int, seed: int, epoch: int, world: int
) -> None:
    alone = batches(TrainingBatchSampler(values, batch_size, seed=seed), epoch)
    assume(min(len(batch) for batch in alone) >= world)
    shares = [
        batches(TrainingBatchSampler(values, batch_size, seed=seed, rank=rank, world=world), epoch)
        for rank in range(world)
    ]
    assert {len(share) for share in shares} == {len(alone)}
    for whole, *parts in zip(alone, *shares, strict=True):
        assert all(parts)
        assert sorted(index for part in parts for index in part) == sorted(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(costs, batch_sizes, seeds, epochs, worlds, micro_batches_of_a_share)
def test_micro_batches_make_up_the_share_of_a_device_one_after_another(
    values: NDArray[np.int64],
    batch_size: int,
    seed: int,
    epoch: int,
    world: int,
    micro_batches: int,
) -> None:
    alone = batches(TrainingBatchSampler(values, batch_size, seed=seed), epoch)
    assume(min(len(batch) for batch in alone) >= world * micro_batches)
    for rank in range(world):
        options = {"seed": seed, "rank": rank, "world": world}
        whole = batches(TrainingBatchSampler(values, batch_size, **options), epoch)
        sampler = TrainingBatchSampler(values, batch_size, micro_batches=micro_batches, **options)
        taken = batches(sampler, epoch)
        assert len(taken) == len(sampler) == micro_batches * len(alone)
        assert sampler.global_batches(epoch) == alone
        for number, share in enumerate(whole):
            pieces = taken[number * micro_batches : (number + 1) * micro_batches]
            assert [index for piece in pieces for index in piece] == share
            sizes = [len(piece) for piece in pieces]
            assert min(sizes) >= 1
            assert max(sizes) - min(sizes) <= 1


@given(costs, batch_sizes, seeds, epochs)
def test_the_order_depends_on_seed_and_epoch_alone(
    values: NDArray[np.int64], batch_size: int, seed: int, epoch: int
) -> None:
    fresh = batches(TrainingBatchSampler(values, batch_size, seed=seed), epoch)
    used = TrainingBatchSampler(values, batch_size, seed=seed)
    for earlier in (0, epoch + 1, 3):
        batches(used, earlier)
    np.random.default_rng().random()
    assert batches(used, epoch) == fresh


def test_epochs_and_seeds_differ() -> None:
    values = np.arange(200) % 17
    sampler = TrainingBatchSampler(values, 8, seed=1)
    orders = [batches(sampler, epoch) for epoch in range(3)]
    orders.append(batches(TrainingBatchSampler(values, 8, seed=2), 0))
    members = [sorted(map(sorted, order)) for order in orders]
    assert all(members[i] != members[j] for i in range(4) for j in range(i))


@pytest.mark.parametrize("size", [400, 5000])
def test_batches_hold_utterances_of_similar_cost(size: int) -> None:
    values = np.random.default_rng(0).integers(1, 1000, size)
    found = batches(TrainingBatchSampler(values, 10, seed=0), 0)
    padded = sum(len(batch) * values[batch].max() for batch in found)
    shuffled = sum(values[part].max() * 10 for part in np.arange(size).reshape(-1, 10))
    assert padded / values.sum() < 1.15
    assert shuffled / values.sum() > 1.7


def test_batches_come_in_no_order_of_cost() -> None:
    values = np.arange(1000)
    found = batches(TrainingBatchSampler(values, 10, seed=0), 0)
    means = [np.mean(values[batch]) for batch in found]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_a_set_smaller_than_a_batch() -> None:
    (batch,) = batches(TrainingBatchSampler(np.zeros(3), 16, seed=0), 0)
    assert sorted(batch) == [0, 1, 2]


def test_more_devices_than_a_batch_has_utterances() -> None:
    with pytest.raises(SamplerError, match=r"4 devices cannot share .* of 2 utterances \(7 utt.*3"):
        TrainingBatchSampler(np.zeros(7), 3, seed=0, world=4)
    with pytest.raises(SamplerError, match=r"3 devices .* of 2 utterances .* Raise training"):
        TrainingBatchSampler(np.zeros(8), 3, seed=0, world=3)


def test_more_micro_batches_than_a_batch_has_utterances() -> None:
    TrainingBatchSampler(np.zeros(8), 4, seed=0, micro_batches=4)
    with pytest.raises(
        SamplerError,
        match=r"^5 micro-batches cannot share training batches of 4 utterances \(8 utterances, "
        r"training\.batch_size=4\): each needs at least one\. Raise training\.batch_size, or lower "
        r"trainer\.accumulate, trainer\.devices or trainer\.num_nodes\.$",
    ):
        TrainingBatchSampler(np.zeros(8), 4, seed=0, micro_batches=5)
    TrainingBatchSampler(np.zeros(8), 4, seed=0, world=2, micro_batches=2)
    with pytest.raises(SamplerError, match="6 micro-batches cannot share training batches of 4"):
        TrainingBatchSampler(np.zeros(8), 4, seed=0, world=2, micro_batches=3)


@given(st.integers(1, 300), batch_sizes, worlds)
def test_evaluation_in_the_order_given_and_nothing_twice(
    count: int, batch_size: int, world: int
) -> None:
    assume(count >= world)
    units = [[index] for index in range(count)]
    shares = [
        evaluation_batches(units, batch_size, rank=rank, world=world) for rank in range(world)
    ]
    together = evaluation_batches(units, batch_size * world)
    for rank, share in enumerate(shares):
        # A device may have no part of the last batch.
        assert share == [batch[rank::world] for batch in together[: len(share)]]
        assert {len(batch) for batch in share[:-1]} <= {batch_size}
        assert 1 <= len(share[-1]) <= batch_size
    indices = [index for share in shares for batch in share for index in batch]
    assert sorted(indices) == [index for batch in together for index in batch] == list(range(count))


def test_more_devices_than_a_split_has_utterances() -> None:
    with pytest.raises(SamplerError, match="3 devices cannot share a split of 2 utterances"):
        evaluation_batches([[0], [1]], 8, world=3)


dialogue_sizes = st.lists(st.integers(1, 30), min_size=1, max_size=60)


def spoken(sizes: list[int]) -> tuple[list[str | None], NDArray[np.int64]]:
    """Groups and positions of dialogues whose utterances stand in turns, not one after another."""
    groups: list[str | None] = [
        f"dialogue {number}"
        for turn in range(max(sizes))
        for number, size in enumerate(sizes)
        if turn < size
    ]
    positions = [turn for turn in range(max(sizes)) for size in sizes if turn < size]
    return groups, np.array(positions, dtype=np.int64)


def whole_dialogues(
    batch: list[int], groups: list[str | None], positions: NDArray[np.int64]
) -> list[str | None]:
    """The dialogues of a batch, each of which stands there from its first utterance to its last."""
    names = [groups[index] for index in batch]
    told = list(dict.fromkeys(names))
    expected = [(name, position) for name in told for position in range(groups.count(name))]
    assert [(groups[index], int(positions[index])) for index in batch] == expected
    return told


@given(dialogue_sizes, batch_sizes, seeds, epochs)
def test_batches_of_whole_dialogues_in_order(
    sizes: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    groups, positions = spoken(sizes)
    sampler = DialogueBatchSampler(dialogues_of(groups, positions), batch_size, seed=seed)
    found = batches(sampler, epoch)
    told = [name for batch in found for name in whole_dialogues(batch, groups, positions)]
    assert sorted(map(str, told)) == sorted(set(map(str, groups)))
    assert max(map(len, found)) <= max(batch_size, *sizes, 0)
    assert len(found) == len(sampler) == len(batches(sampler, epoch + 1))
    assert found == batches(
        DialogueBatchSampler(dialogues_of(groups, positions), batch_size, seed=seed), epoch
    )


@given(dialogue_sizes, batch_sizes, seeds, epochs, worlds, micro_batches_of_a_share)
def test_devices_and_micro_batches_share_whole_dialogues(
    sizes: list[int], batch_size: int, seed: int, epoch: int, world: int, micro_batches: int
) -> None:
    groups, positions = spoken(sizes)
    alone = batches(
        DialogueBatchSampler(dialogues_of(groups, positions), batch_size, seed=seed), epoch
    )
    fewest = min(len(whole_dialogues(batch, groups, positions)) for batch in alone)

    def shared(rank: int) -> list[list[int]]:
        options = {"seed": seed, "rank": rank, "world": world, "micro_batches": micro_batches}
        return batches(
            DialogueBatchSampler(dialogues_of(groups, positions), batch_size, **options), epoch
        )

    if fewest < world * micro_batches:
        with pytest.raises(SamplerError, match=f"share training batches of {fewest} dialogues"):
            shared(0)
        return
    ranks = [shared(rank) for rank in range(world)]
    for number, whole in enumerate(alone):
        pieces = [
            p for rank in ranks for p in rank[number * micro_batches : (number + 1) * micro_batches]
        ]
        assert sorted(index for piece in pieces for index in piece) == sorted(whole)
        assert all(whole_dialogues(piece, groups, positions) for piece in pieces)


def test_epochs_mix_dialogues_anew() -> None:
    groups, positions = spoken([5, 6, 7, 8] * 10)
    sampler = DialogueBatchSampler(dialogues_of(groups, positions), 16, seed=1)
    members = [sorted(map(sorted, batches(sampler, epoch))) for epoch in range(4)]
    assert all(members[i] != members[j] for i in range(4) for j in range(i))


def test_utterances_without_a_dialogue_are_dialogues_of_their_own() -> None:
    groups = ["a", None, "a", None]
    positions = np.array([1, 0, 0, 0])
    found = batches(DialogueBatchSampler(dialogues_of(groups, positions), 2, seed=0), 0)
    assert sorted(found) in ([[1, 3], [2, 0]], [[2, 0], [3, 1]])


@given(dialogue_sizes, batch_sizes, worlds)
def test_evaluation_of_whole_dialogues(sizes: list[int], batch_size: int, world: int) -> None:
    assume(len(sizes) >= world)
    groups, positions = spoken(sizes)
    told = []
    for rank in range(world):
        units = dialogues_of(groups, positions)
        found = evaluation_batches(units, batch_size, rank=rank, world=world)
        assert max(map(len, found)) <= max(batch_size, *sizes, 0)
        told += [name for batch in found for name in whole_dialogues(batch, groups, positions)]
    assert sorted(map(str, told)) == sorted(set(map(str, groups)))
