"""From the store to batches: the LightningDataModule of every data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from msea_lightning.config.logging import log_once
from msea_lightning.data.options import (
    EVALUATION_BATCH,
    SPLIT_VERSION,
    SPLITS,
    DatasetConfig,
    LabelConfig,
)
from msea_lightning.data.prepare import prepare_store
from msea_lightning.data.resolve import describe_labels, resolve_labels, resolve_metrics
from msea_lightning.data.sampler import (
    DialogueBatchSampler,
    EvaluationBatchSampler,
    TrainingBatchSampler,
    estimated_tokens,
    evaluation_dialogues,
    reading_costs,
)
from msea_lightning.data.splits.fraction import sample
from msea_lightning.data.splits.held_out import hold_out
from msea_lightning.data.store import Store, StoreSplit
from msea_lightning.data.utterance import MAIN_LABEL, Batch, DataError, collate
from msea_lightning.metrics.options import MetricKind

_log = logging.getLogger(__name__)

_MOSTLY_ABSENT = 0.5
"""Where fewer utterances of a split have a feature, that is said."""


class UtteranceDataModule(LightningDataModule):
    """Batches of one data set; prepares it on first use.

    Its loaders bring their own samplers, which share the work among devices themselves: the trainer
    is built with ``use_distributed_sampler=False``.

    Args:
        dataset: The data set's options; ``dataset.reader`` says in which layout its files are.
        batch_size: Utterances per training batch, all devices together.
        eval_batch_size: Utterances per evaluation batch and device.
        seed: Seed of the training order, of a held-out validation part, and of a part to train on.
        parts: A device takes its share of a training batch in as many parts, one after another.
        whole_dialogues: Batches are of whole dialogues in their order, instead of utterances of
            similar length.
        store: The prepared data set, where it is at hand; else it is prepared on first use.

    Attributes:
        eval_batch_size: As given; it changes no result, and may be set later.
    """

    def __init__(
        self,
        dataset: DatasetConfig,
        *,
        batch_size: int,
        eval_batch_size: int | None = None,
        seed: int,
        parts: int = 1,
        whole_dialogues: bool = False,
        store: Store | None = None,
    ) -> None:
        super().__init__()
        self._dataset = dataset
        self._batch_size = batch_size
        self.eval_batch_size = eval_batch_size or EVALUATION_BATCH
        self._seed = seed
        self._parts = parts
        self._whole_dialogues = whole_dialogues
        self._store = store
        self._splits: dict[str, StoreSplit] | None = None
        self._labels: LabelConfig | None = None
        self._statistics: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] | None = None

    def prepare_data(self) -> None:
        """Prepares the data set unless it has been prepared before; one process a machine."""
        if self._store is None:
            self._store = prepare_store(self._dataset)

    def setup(self, stage: str | None = None) -> None:
        """Opens the data set, settles its label space, and splits its utterances.

        A validation part is held out where there is none, then ``dataset.train_fraction`` of what
        remains is sampled to train on. The label space comes before both. Test utterances without a
        label are predicted (:meth:`predict_dataloader`), but not part of the test split.

        Args:
            stage: Lightning's stage; all stages use the same splits.

        Raises:
            UserError: where the data set has no training or test split, no validation part can be
                held out, a label lies outside the label space, or an utterance that is trained or
                validated on is unlabelled, or all of the test split are.
        """
        if self._splits is not None:
            return
        self.prepare_data()
        assert self._store is not None
        splits = dict(self._store.splits)
        self._require(splits, "train", "to train on")
        self._require(splits, "test", "to test on once training has ended")
        self._labels = resolve_labels(self._dataset.labels, splits)
        given = self._labels == self._dataset.labels
        origin = "as configured" if given else "inferred from the labels"
        log_once(_log, f"labels: {describe_labels(self._labels)}, {origin}")
        for name in ("audio", "vision"):
            if name not in self._store.dims:
                log_once(_log, f"no {name} in {self._dataset.name}: no branch is trained for it")
        if "valid" not in splits:
            splits |= self._hold_out(splits["train"])
        if self._dataset.train_fraction < 1:
            splits["train"] = self._sample(splits["train"])
        for split in ("train", "valid"):
            _ = splits[split].targets  # refuses unlabelled utterances
        splits["predict"] = splits["test"]
        splits["test"] = self._labelled(splits["test"])
        self._splits = splits
        self._log_absent_features()

    def teardown(self, stage: str | None = None) -> None:
        """Lets go of the memory-mapped files; reading opens them again."""
        if self._store is not None:
            self._store.close()

    @property
    def labels(self) -> LabelConfig:
        """The label space, with nothing left to infer."""
        self._require_setup()
        assert self._labels is not None
        return self._labels

    @property
    def metrics(self) -> MetricKind:
        """The metric definitions, with nothing left to infer."""
        return resolve_metrics(self._dataset.metrics, self.labels)

    @property
    def splits(self) -> dict[str, StoreSplit]:
        """The splits ``train``, ``valid`` and ``test``."""
        return {split: self._require_setup()[split] for split in SPLITS}

    @property
    def dims(self) -> Mapping[str, int]:
        """Name of each feature of the data set to its values per frame."""
        return self.splits["train"].dims

    def feature_statistics(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Mean and standard deviation of each feature over all frames of the training part.

        Returns:
            For each named feature, mean (d,) and standard deviation (d,), summed up in float64.
            The deviation of a value that does not vary is 1.
        """
        if self._statistics is None:
            train = self.splits["train"]
            self._statistics = {
                name: _frame_statistics(train, name, dim) for name, dim in train.dims.items()
            }
        return self._statistics

    def tokenize(self, encode: Callable[[list[str]], Sequence[Sequence[int]]]) -> None:
        """Tokenises all texts at once, so that no step has to, and batches go by real lengths.

        Args:
            encode: Tokenises N texts, without special tokens and uncut.
        """
        parts = {id(part): part for part in self._require_setup().values()}
        encoded = {key: part.tokenized(encode) for key, part in parts.items()}
        self._splits = {name: encoded[id(part)] for name, part in self._require_setup().items()}

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of the training part; see :class:`TrainingSampler`."""
        train = self.splits["train"]
        size, options = self._batch_size, {"seed": self._seed, "parts": self._parts, **self._ranks}
        if self._whole_dialogues:
            dialogues = DialogueBatchSampler(train.groups, train.positions, size, **options)
            return self.loader(train, dialogues)
        return self.loader(train, TrainingBatchSampler(self._costs(train), size, **options))

    def evaluation_dataloader(self, split: str) -> DataLoader[Batch]:
        """Batches of a split, the longest utterances, or dialogues, first.

        Args:
            split: ``train``, ``valid`` or ``test``; ``predict`` has the unlabelled utterances of
                the test split, too.
        """
        part, size = self._require_setup()[split], self.eval_batch_size
        if self._whole_dialogues:
            dialogues = evaluation_dialogues(part.groups, part.positions, size, **self._ranks)
            return self.loader(part, dialogues)
        return self.loader(part, EvaluationBatchSampler(self._costs(part), size, **self._ranks))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of the validation part."""
        return self.evaluation_dataloader("valid")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test split."""
        return self.evaluation_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test split, its unlabelled utterances among them."""
        return self.evaluation_dataloader("predict")

    def _costs(self, split: StoreSplit) -> NDArray[np.int64]:
        if split.tokens is None:
            tokens = estimated_tokens(split.texts)
        else:
            tokens = np.array([len(ids) for ids in split.tokens])
        # What is cut off costs nothing.
        read = np.minimum(tokens, self._dataset.text_tokens)
        return reading_costs(read, split.lengths)

    def loader(
        self, split: StoreSplit, sampler: Sampler[list[int]] | Sequence[list[int]]
    ) -> DataLoader[Batch]:
        """Batches of utterances of one's own choice.

        Args:
            split: One of ``splits``.
            sampler: Positions of the utterances of each batch.
        """
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
    def _ranks(self) -> dict[str, int]:
        return {"rank": self._rank, "world": self._world}

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _require(self, splits: Mapping[str, StoreSplit], split: str, purpose: str) -> None:
        if split not in splits:
            raise DataError(
                f"the data set '{self._dataset.name}' has no {split} split {purpose}; it has "
                f"{', '.join(splits)}. Mark some utterances as {split}. Only a missing valid split "
                "is drawn from the training utterances: results on a test split made up here could "
                "not be compared with anybody's."
            )

    def _require_setup(self) -> dict[str, StoreSplit]:
        if self._splits is None:
            raise RuntimeError("the data module has not been set up: call setup() first")
        return self._splits

    def _hold_out(self, train: StoreSplit) -> dict[str, StoreSplit]:
        """Takes the validation part out of the training split."""
        fraction, seed = self._dataset.valid_fraction, self._seed
        if self._dataset.split_version != SPLIT_VERSION:
            log_once(
                _log,
                "this run is of a release that held out another validation part, which may have "
                "been trained on: results on train and valid are not those of the run",
                level=logging.WARNING,
            )
        held = hold_out(train.targets, train.groups, fraction=fraction, seed=seed)
        kept = np.setdiff1d(np.arange(len(train)), held)
        groups, held_groups = (
            set(part) - {None} for part in (train.groups, train.select(held).groups)
        )
        by_group = f", {len(held_groups):,} of {len(groups):,} groups," if groups else ""
        log_once(
            _log,
            f"no valid split: {len(held):,} of {len(train):,} training utterances{by_group} held "
            f"out for validation, seed {seed}",
            level=logging.WARNING,
        )
        return {"train": train.select(kept), "valid": train.select(held)}

    def _labelled(self, test: StoreSplit) -> StoreSplit:
        """The test utterances that can be scored."""
        labels = test.labels[MAIN_LABEL]
        labelled = [index for index, label in enumerate(labels) if label is not None]
        if len(labelled) == len(test):
            return test
        if not labelled:
            raise DataError(
                f"all {len(test):,} test utterances of '{self._dataset.name}' are unlabelled, so "
                "there is nothing to score. Label some of them."
            )
        missing = f"{len(test) - len(labelled):,} of {len(test):,} test utterances are unlabelled"
        log_once(_log, f"{missing}: they are not scored", level=logging.WARNING)
        return test.select(labelled)

    def _sample(self, train: StoreSplit) -> StoreSplit:
        """Takes a part of the training utterances (paper, Figure 4)."""
        fraction, seed = self._dataset.train_fraction, self._seed
        kept = sample(train.targets, fraction=fraction, seed=seed)
        log_once(
            _log,
            f"training on a part: {len(kept):,} of {len(train):,} utterances (train_fraction "
            f"{fraction}), stratified by label, seed {seed}",
        )
        return train.select(kept)

    def _log_absent_features(self) -> None:
        """Says which features most utterances of a split do not have."""
        for split, part in self.splits.items():
            for name, share in part.present.items():
                if share < _MOSTLY_ABSENT:
                    utterances = f"{1 - share:.0%} of the {len(part):,} {split} utterances"
                    log_once(_log, f"{utterances} have no {name}", level=logging.WARNING)


class _Loader(DataLoader[Batch]):
    """Starts reading ahead at the first batch, not when the iterator is made.

    Lightning (2.6.6, its issue 21938) makes the first iterator of a resumed run before it sets the
    sampler's epoch. A DataLoader with workers would draw its first batches at once, in the order of
    epoch 0.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        yield from super().__iter__()


class _Batches(Dataset[Batch]):
    """Batches of a split."""

    def __init__(self, split: StoreSplit) -> None:
        self._split = split

    def __getitem__(self, indices: list[int]) -> Batch:
        split = self._split
        batch = collate(
            [split[index] for index in indices],
            split.dims,
            index=indices,
            positions=split.positions[indices].tolist(),
            labels=list(split.labels),
        )
        if split.tokens is None:
            return batch
        return replace(batch, tokens=[split.tokens[index] for index in indices])


def _frame_statistics(
    split: StoreSplit, name: str, dim: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (d,) and standard deviation (d,) over all frames, one utterance in memory at a time.

    Means and squared deviations of utterances are merged (Chan, Golub and LeVeque 1983), which
    loses nothing where a value's mean is large beside its deviation.
    """
    count, mean, squares = 0, np.zeros(dim), np.zeros(dim)
    for index in np.flatnonzero(split.lengths[name]).tolist():
        frames = split.frames(name, index)
        assert frames is not None
        part = frames.astype(np.float64)
        difference = part.mean(axis=0) - mean
        total = count + len(part)
        squares += ((part - part.mean(axis=0)) ** 2).sum(axis=0)
        squares += difference**2 * (count * len(part) / total)
        mean += difference * (len(part) / total)
        count = total
    deviation = np.sqrt(squares / max(1, count))
    constant = deviation <= np.finfo(np.float32).eps * np.abs(mean)
    return mean, np.where(constant, 1.0, deviation)
