"""From the store to batches: the LightningDataModule of every data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from msea_lightning.config.logging import log_once
from msea_lightning.data.context import ContextWriter
from msea_lightning.data.options import (
    EVALUATION_BATCH,
    SPLIT_VERSION,
    SPLITS,
    DatasetConfig,
    LabelConfig,
    Split,
)
from msea_lightning.data.prepare import prepare_store
from msea_lightning.data.resolve import describe_labels, resolve_labels, resolve_metrics
from msea_lightning.data.sampler import (
    DialogueBatchSampler,
    TrainingBatchSampler,
    dialogues_of,
    evaluation_batches,
    reading_costs,
)
from msea_lightning.data.splits.fraction import sample
from msea_lightning.data.splits.held_out import hold_out
from msea_lightning.data.store import Store, StoreSplit
from msea_lightning.data.utterance import MAIN_LABEL, Batch, DataError
from msea_lightning.metrics.options import MetricKind

_log = logging.getLogger(__name__)

Statistics = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Name of each feature to mean (d,) and standard deviation (d,)."""


class UtteranceDataModule(LightningDataModule):
    """Batches of one data set; prepares it on first use.

    Its loaders bring their own samplers, which share the work among devices themselves: the trainer
    is built with ``use_distributed_sampler=False``.

    Args:
        dataset: The data set's options; ``dataset.reader`` says in which format its files are.
        batch_size: Utterances per training batch, all devices together.
        eval_batch_size: Utterances per evaluation batch and device.
        seed: Seed of the training order, of a held-out validation part, and of a part to train on.
        micro_batches: Micro-batches into which each device divides its share of a training batch.
        whole_dialogues: Batches are of whole dialogues in their order, instead of utterances of
            similar length.
        store: The prepared data set, where it is at hand; else it is prepared on first use.
        evaluated: The only split that is there after :meth:`setup`; ``dataset.labels`` leave
            nothing to infer then, and the data set needs no other split.

    Attributes:
        eval_batch_size: As given; it changes no result, and may be set later.
        labels: The label space; :meth:`setup` leaves nothing in it to infer.
        splits: The splits ``train``, ``valid`` and ``test``, once :meth:`setup` has been called.
    """

    def __init__(
        self,
        dataset: DatasetConfig,
        *,
        batch_size: int,
        eval_batch_size: int | None = None,
        seed: int,
        micro_batches: int = 1,
        whole_dialogues: bool = False,
        store: Store | None = None,
        evaluated: Split | None = None,
    ) -> None:
        super().__init__()
        self._dataset = dataset
        self._evaluated = evaluated
        self._batch_size = batch_size
        self.eval_batch_size = eval_batch_size or EVALUATION_BATCH
        self._seed = seed
        self._micro_batches = micro_batches
        self._whole_dialogues = whole_dialogues
        self._store = store
        self.labels: LabelConfig = dataset.labels
        self.splits: dict[str, StoreSplit] = {}

    def prepare_data(self) -> None:
        """Prepares the data set unless it has been prepared before; one process a machine."""
        if self._store is None:
            self._store = prepare_store(self._dataset)

    def setup(self, stage: str | None = None) -> None:
        """Opens the data set, settles its label space, and splits its utterances.

        A validation part is held out where there is none, then ``dataset.train_fraction`` of what
        remains is sampled to train on. The label space comes before both. Training utterances may
        be unlabelled; whether the model needs their labels is for its builder to check. Validation
        and test utterances without a label are left out, because they cannot be scored.
        """
        if self.splits:
            return
        self.prepare_data()
        assert self._store is not None
        for text in self._store.info.get("notes", []):
            log_once(_log, text)
        splits = self._chosen(self._store)
        if self._evaluated is not None:
            self._setup_evaluated(splits, self._evaluated.value)
            return
        for split, purpose in (("train", "to train on"), ("test", "to test on afterwards")):
            if split not in splits:
                raise DataError(
                    f"the data set '{self._dataset.name}' has no {split} split {purpose}; it has "
                    f"{', '.join(splits)}. Mark some utterances as {split}. Only a missing valid "
                    "split is drawn from the training utterances: results on a test split made up "
                    "here could not be compared with anybody's."
                )
        self.labels = resolve_labels(self._dataset.labels, splits)
        given = self.labels == self._dataset.labels
        origin = "as configured" if given else "inferred from the labels"
        log_once(_log, f"labels: {describe_labels(self.labels)}, {origin}")
        if "valid" not in splits:
            splits |= self._hold_out(splits["train"])
        if self._dataset.train_fraction < 1:
            splits["train"] = self._sample(splits["train"])
        for split in ("valid", "test"):
            splits[split] = self._labelled(splits[split], split)
        self.splits = {split: splits[split] for split in SPLITS}
        dims = self.splits["train"].dims
        if lacking := [name for name in ("audio", "vision") if name not in dims]:
            log_once(
                _log, f"the data set has no {' and no '.join(lacking)}: no branch is trained for it"
            )
        for text in absent_features(self.splits):
            self._warn(text)

    def _chosen(self, store: Store) -> dict[str, StoreSplit]:
        """The splits with the features that are to be read."""
        chosen = self._dataset.features
        if chosen is None:
            return dict(store.splits)
        if unknown := [name for name in chosen if name not in store.dims]:
            raise DataError(
                f"dataset.features names {', '.join(unknown)}, but '{self._dataset.name}' has "
                f"{', '.join(store.dims) or 'no features'}. Name some of these, or leave it out."
            )
        return {name: split.only(chosen) for name, split in store.splits.items()}

    def _setup_evaluated(self, splits: dict[str, StoreSplit], split: str) -> None:
        """Keeps the labelled utterances of one split; a valid one may be drawn from train."""
        if split == "valid" and "train" in splits and "valid" not in splits:
            splits |= self._hold_out(splits["train"])
        if split not in splits:
            raise DataError(
                f"the data set '{self._dataset.name}' has no {split} split to evaluate; it has "
                f"{', '.join(splits)}. Choose one with split=..., or mark some utterances as "
                f"{split}."
            )
        self.splits = {split: self._labelled(splits[split], split)}

    @property
    def metrics(self) -> MetricKind:
        """The metric definitions, with nothing left to infer."""
        return resolve_metrics(self._dataset.metrics, self.labels)

    @property
    def dims(self) -> Mapping[str, int]:
        """Name of each feature of the data set to its values per frame."""
        return next(iter(self.splits.values())).dims

    @property
    def extractors(self) -> Mapping[str, Mapping[str, Any]]:
        """What made the features, by name; see :attr:`Store.extractors`."""
        assert self._store is not None
        return self._store.extractors

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of each feature over all frames of the training part.

        They are summed up in float64, the deviations from the mean after it is known, so that
        nothing is lost where a mean is large beside its deviation; zero where there are no frames.
        """
        train = self.splits["train"]
        return {name: _frame_statistics(train, name) for name in train.dims}

    def tokenize(
        self,
        encode: Callable[[list[str]], Sequence[Sequence[int]]],
        context: ContextWriter | None = None,
    ) -> None:
        """Tokenises all texts, uncut, so that no step has to, and batches go by real lengths.

        ``context`` does it for what was said before them, where that is read.
        """
        self.splits = {
            name: split.tokenized(encode, context) for name, split in self.splits.items()
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of the training part; see :class:`TrainingSampler`."""
        train, size = self.splits["train"], self._batch_size
        options = {"seed": self._seed, "micro_batches": self._micro_batches, **self._devices}
        if self._whole_dialogues:
            dialogues = dialogues_of(train.groups, train.positions)
            return self.loader(train, DialogueBatchSampler(dialogues, size, **options))
        return self.loader(train, TrainingBatchSampler(self._costs(train), size, **options))

    def evaluation_dataloader(self, split: str) -> DataLoader[Batch]:
        """Batches of a split, the longest utterances, or dialogues, first."""
        batches = self.evaluation_batches(split, self.eval_batch_size, **self._devices)
        return self.loader(self.splits[split], batches)

    def evaluation_batches(
        self, split: str, batch_size: int, *, rank: int = 0, world: int = 1
    ) -> list[list[int]]:
        """A device's batches of a split; see :func:`~.sampler.evaluation_batches`."""
        part = self.splits[split]
        if self._whole_dialogues:
            units = sorted(dialogues_of(part.groups, part.positions), key=len, reverse=True)
        else:
            units = [[index] for index in np.argsort(-self._costs(part), kind="stable").tolist()]
        return evaluation_batches(units, batch_size, rank=rank, world=world)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of the validation part."""
        return self.evaluation_dataloader("valid")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test split."""
        return self.evaluation_dataloader("test")

    def _costs(self, split: StoreSplit) -> NDArray[np.int64]:
        """(N,) how long each utterance takes: by the tokens that are read, then by the frames."""
        if split.tokens is None:
            read = np.array([len(text) for text in split.texts])
        else:
            tokens = np.array([len(ids) for ids in split.tokens])
            read = np.minimum(tokens, self._dataset.text_tokens)
            if split.contexts is not None:
                read += np.array([len(ids) for ids in split.contexts])
        frames = sum(split.lengths.values(), start=np.zeros(len(split), dtype=np.int64))
        return reading_costs(read, frames)

    def loader(
        self, split: StoreSplit, sampler: Sampler[list[int]] | Sequence[list[int]]
    ) -> DataLoader[Batch]:
        """Batches of a split, from the positions of the utterances of each."""
        workers = self._dataset.workers
        return _Loader(
            _Batches(split),
            # An item of the sampler is a whole batch.
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Its own generator, so that loading draws nothing from the one that dropout draws from.
            generator=torch.Generator().manual_seed(self._seed),
        )

    @property
    def _devices(self) -> dict[str, int]:
        """This device's number, and how many there are."""
        if self.trainer is None:
            return {"rank": 0, "world": 1}
        return {"rank": self.trainer.global_rank, "world": self.trainer.world_size}

    def _hold_out(self, train: StoreSplit) -> dict[str, StoreSplit]:
        """Takes the validation part out of the training split."""
        if self._dataset.split_version != SPLIT_VERSION:
            self._warn(
                "this run is of a release that held out another validation part, which may have "
                "been trained on: results on train and valid are not those of the run"
            )
        held = hold_out(
            train.labels[MAIN_LABEL],
            train.groups,
            fraction=self._dataset.valid_fraction,
            seed=self._seed,
        )
        kept = np.setdiff1d(np.arange(len(train)), held)
        valid = train.select(held)
        groups, held_groups = (set(part.groups) - {None} for part in (train, valid))
        by_group = f", {len(held_groups):,} of {len(groups):,} groups," if groups else ""
        self._warn(
            f"no valid split: {len(held):,} of {len(train):,} training utterances{by_group} held "
            f"out for validation, seed {self._seed}"
        )
        if not groups:
            self._warn(
                "no utterance has a group (video or dialogue): dialogues may be cut through by the "
                "held-out part, and their utterances give each other away"
            )
        return {"train": train.select(kept), "valid": valid}

    def _labelled(self, part: StoreSplit, split: str) -> StoreSplit:
        """The utterances of a split that can be scored."""
        labels = part.labels[MAIN_LABEL]
        labelled = [index for index, label in enumerate(labels) if label is not None]
        if len(labelled) == len(part):
            return part
        if not labelled:
            raise DataError(
                f"all {len(part):,} {split} utterances of '{self._dataset.name}' are unlabelled, "
                "so there is nothing to score. Label some of them; python -m "
                "msea_lightning.predict answers utterances without a label."
            )
        missing = len(part) - len(labelled)
        self._warn(
            f"{missing:,} of {len(part):,} {split} utterances are unlabelled: they are not scored"
        )
        return part.select(labelled)

    def _sample(self, train: StoreSplit) -> StoreSplit:
        """Takes a part of the training utterances (paper, Figure 4)."""
        fraction, seed = self._dataset.train_fraction, self._seed
        kept = sample(train.labels[MAIN_LABEL], fraction=fraction, seed=seed)
        log_once(
            _log,
            f"training on a part: {len(kept):,} of {len(train):,} utterances (train_fraction "
            f"{fraction}), stratified by label, seed {seed}",
        )
        return train.select(kept)

    def _warn(self, message: str) -> None:
        log_once(_log, message, level=logging.WARNING)


class _Loader(DataLoader[Batch]):
    """Starts reading ahead at the first batch, not when the iterator is made.

    Lightning (2.6.6, its issue 21938) makes the first iterator of a resumed run before it sets the
    sampler's epoch: workers would draw their first batches in the order of epoch 0.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        yield from super().__iter__()


class _Batches(Dataset[Batch]):
    """Batches of a split, each by the positions of its utterances."""

    def __init__(self, split: StoreSplit) -> None:
        self._split = split

    def __getitem__(self, indices: list[int]) -> Batch:
        return self._split.batch(indices)


def absent_features(splits: Mapping[str, StoreSplit]) -> list[str]:
    """Sentences on features of the data set that no utterance has, or less than half of a split."""
    found = []
    for name in sorted(next(iter(splits.values())).dims):
        absent = {split: 1 - part.present.get(name, 0) for split, part in splits.items()}
        mostly = [f"{share:.1%} of {split}" for split, share in absent.items() if share > 0.5]
        if min(absent.values()) == 1:
            found.append(f"no utterance has {name} features: no branch is trained for them")
        elif mostly:
            found.append(f"most utterances have no {name} features: {', '.join(mostly)}")
    return found


def _frame_statistics(
    split: StoreSplit, name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (d,) and standard deviation (d,) over all frames, one utterance in memory at a time."""

    def frames() -> Iterator[NDArray[np.float64]]:
        for index in np.flatnonzero(split.lengths[name]).tolist():
            found = split.frames(name, index)
            assert found is not None
            yield found.astype(np.float64)

    count = max(1, split.lengths[name].sum())
    zero = np.zeros(split.dims[name])
    mean = sum((part.sum(axis=0) for part in frames()), start=zero) / count
    squares = sum((((part - mean) ** 2).sum(axis=0) for part in frames()), start=zero)
    return mean, np.sqrt(squares / count)
