"""The data module: splits, label space, statistics, batches, and Lightning's use of them."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from msea_lightning.adapter import FeatureStandardizer
from msea_lightning.data import module as module_under_test
from msea_lightning.data.module import (
    DataError,
    UtteranceDataModule,
    absent_features,
)
from msea_lightning.data.options import DatasetConfig, LabelConfig, LabelKind, Reader
from msea_lightning.data.sampler import SamplerError
from msea_lightning.data.splits.held_out import ValidationError
from msea_lightning.data.store import Store, write_store
from msea_lightning.data.utterance import Batch, PaddedSequences, Utterance
from msea_lightning.metrics.options import MetricKind
from tests.data.corpus import corpus, stored, utterance

# Lightning asks torch in a way that torch is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")


def build(store: Store, *, seed: int = 1, **options: Any) -> UtteranceDataModule:
    """A data module over a ready store, training batches of 4, evaluation batches of 3."""
    options = {"name": "table", "reader": Reader.table} | options
    sizes = {"batch_size": 4, "eval_batch_size": 3} | {
        name: options.pop(name) for name in ("micro_batches", "whole_dialogues") if name in options
    }
    return UtteranceDataModule(DatasetConfig(**options), seed=seed, store=store, **sizes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return stored(tmp_path, corpus({"train": 22, "valid": 7, "test": 8}))


def test_a_data_set_is_prepared_on_first_use(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def prepare_store(dataset: DatasetConfig) -> Store:
        calls.append(dataset.name)
        return store

    monkeypatch.setattr(module_under_test, "prepare_store", prepare_store)
    data = UtteranceDataModule(
        DatasetConfig(name="mosi", reader=Reader.mmsa), batch_size=16, seed=5
    )
    assert calls == []
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert calls == ["mosi"]
    assert [len(split) for split in data.splits.values()] == [22, 7, 8]


def test_what_is_known_after_setup(store: Store) -> None:
    data = build(store)
    data.setup()
    assert data.dims == {"audio": 4, "vision": 3}
    assert data.labels == LabelConfig(LabelKind.scale, -1, 1, 0.2, [])
    assert data.metrics is MetricKind.simsv2
    assert list(data.splits) == ["train", "valid", "test"]


def test_inferences_are_said_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = corpus({"train": 40, "test": 4}, labels=["positive", "negative"])
    without = {
        name: [utterance(one.id, label=one.label, group=one.group, vision=None) for one in split]
        for name, split in splits.items()
    }
    data = build(stored(tmp_path, without), seed=1111, valid_fraction=0.15)
    with caplog.at_level(logging.INFO):
        data.setup()
        data.setup()
    assert [record.getMessage() for record in caplog.records] == [
        "labels: 2 emotions (negative, positive), inferred from the labels",
        "no valid split: 6 of 40 training utterances, 2 of 14 groups, held out for validation, "
        "seed 1111",
        "the data set has no vision: no branch is trained for it",
    ]
    assert [record.levelno == logging.WARNING for record in caplog.records] == [False, True, False]
    assert data.dims == {"audio": 4}
    assert all(list(batch.features) == ["audio"] for batch in data.train_dataloader())


def test_configured_labels_are_said_to_be_so(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    scale = LabelConfig(LabelKind.scale, -1, 1, 0.1)
    with caplog.at_level(logging.INFO):
        build(store, labels=scale).setup()
    assert caplog.messages == ["labels: intensities from -1 to 1 in steps of 0.1, as configured"]


def test_the_held_out_part_shares_no_group_with_train(tmp_path: Path) -> None:
    store = stored(tmp_path, corpus({"train": 60, "test": 4}))
    first, again, other = (build(store, seed=seed) for seed in (1, 1, 2))
    for data in (first, again, other):
        data.setup()
    train, valid = first.splits["train"], first.splits["valid"]
    assert sorted(train.ids + valid.ids) == sorted(store.splits["train"].ids)
    assert not set(train.groups) & set(valid.groups)
    assert 6 <= len(valid) <= 12
    assert valid.ids == again.splits["valid"].ids != other.splits["valid"].ids
    assert valid[0].id == valid.ids[0]


def test_runs_of_a_release_that_drew_another_part_are_told_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = corpus({"train": 30, "test": 4})
    build(stored(tmp_path / "a", splits), split_version=1).setup()
    assert "held out another validation part, which may have been trained on" in caplog.text
    caplog.clear()
    build(stored(tmp_path / "b", splits | corpus({"valid": 4})), split_version=1).setup()
    assert "validation part" not in caplog.text


def test_groupless_data_sets_are_held_out_by_utterance(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = [utterance(f"{number}", label=float(number % 2)) for number in range(1600)]
    data = build(stored(tmp_path, {"train": train, "test": [utterance("t", label=1.0)]}))
    data.setup()
    assert "no valid split: 240 of 1,600 training utterances held out" in caplog.text
    assert caplog.text.count("dialogues may be cut through") == 1
    assert sum(map(float, data.splits["valid"].targets)) == 120


@pytest.mark.parametrize("valid", [7, None])
def test_a_fraction_is_taken_of_the_training_part_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, valid: int | None
) -> None:
    """Also where the validation part comes out of train: it is held out first."""
    counts = {"train": 60, "test": 8} if valid is None else {"train": 60, "valid": valid, "test": 8}
    store = stored(tmp_path, corpus(counts, labels=[-1.0, 0.2, 0.6, 0.9]))
    whole, half = build(store), build(store, train_fraction=0.5, standardize=True)
    whole.setup()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        half.setup()
    size = len(whole.splits["train"])
    assert size == 60 if valid else size < 60
    message = f"training on a part: {round(size / 2)} of {size} utterances (train_fraction 0.5)"
    assert caplog.messages[-1] == f"{message}, stratified by label, seed 1"
    for split in ("valid", "test"):
        assert half.splits[split].ids == whole.splits[split].ids
    kept = half.splits["train"].ids
    assert kept == [identity for identity in whole.splits["train"].ids if identity in set(kept)]
    assert len(kept) == round(size / 2)
    frames = np.concatenate([one.features["audio"] for one in half.splits["train"]])
    expected = frames.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(half.statistics["audio"][0], expected, atol=1e-12)


def test_label_space_and_metrics_do_not_depend_on_the_fraction(tmp_path: Path) -> None:
    """One utterance is trained on; the space still has what only the others show."""
    store = stored(tmp_path, corpus({"train": 40, "valid": 4, "test": 4}, labels=[0.2, -0.4, 0.8]))
    whole, one = build(store), build(store, train_fraction=0.01)
    whole.setup()
    one.setup()
    assert len(one.splits["train"]) == 1
    assert (one.labels, one.metrics) == (whole.labels, whole.metrics)
    assert one.dims == whole.dims
    assert [len(batch) for batch in one.train_dataloader()] == [1]


def test_the_whole_training_part_is_no_sample(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    data = build(store, train_fraction=1.0)
    with caplog.at_level(logging.INFO):
        data.setup()
    assert data.splits["train"] is store.splits["train"]
    assert "part" not in caplog.text


def test_a_third_feature_passes_from_the_files_to_the_standardizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through reader, store and batch, by its name alone."""
    monkeypatch.setenv("MSEA_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    lines = ["id,split,text,label"]
    (tmp_path / "features").mkdir()
    widths = {"audio": 4, "text_features": 6, "vision": 3}
    arrays = {}
    for number in range(30):
        split = ("train", "valid", "test")[max(0, number // 4 - 5)]
        lines.append(f"u{number},{split},words {number},{('sad', 'glad')[number % 2]}")
        for name, width in widths.items():
            frames = random.normal(3.0, 2.0, size=(random.integers(1, 9), width))
            arrays[f"{name}/u{number}"] = frames.astype(np.float32)
    (tmp_path / "features" / "utterances.csv").write_text("\n".join(lines) + "\n")
    np.savez(tmp_path / "features" / "features.npz", **arrays)
    data = UtteranceDataModule(
        DatasetConfig(name="table", reader=Reader.table, path=str(tmp_path / "features")),
        batch_size=4,
        seed=1,
    )
    data.setup()
    assert data.dims == widths
    standardizer = FeatureStandardizer(data.statistics)
    seen = []
    for batch in data.train_dataloader():
        assert list(batch.features) == list(data.dims)
        for row, index in enumerate(batch.index.tolist()):
            check_row(batch, row, data.splits["train"][index])
        values, lengths = standardizer(batch.features)["text_features"]
        seen += [row[:length] for row, length in zip(values, lengths.tolist(), strict=True)]
    frames = torch.cat(seen).double()
    # Values of magnitude 10 lose an eps of theirs each in the subtraction and in the division.
    bound = 2 * 10 * torch.finfo(torch.float32).eps
    assert frames.mean(0).abs().max() < bound
    assert (frames.std(0, correction=0) - 1).abs().max() < bound


def test_labels_go_by_name_down_to_the_batch(tmp_path: Path) -> None:
    """Those that only some utterances have, too; utterances keep dialogue, speaker and position."""

    def labelled(number: int) -> Utterance:
        labels: dict[str, float | str] = {"M": float(number % 2)}
        if number % 3:
            labels |= {"T": float(number), "V": -1.0}
        return replace(
            utterance(f"{number}", group=f"g{number // 4}", speaker=f"s{number % 2}"), labels=labels
        )

    train = [labelled(number) for number in range(12)]
    rest = {name: [utterance(name, label=1.0)] for name in ("valid", "test")}
    data = build(stored(tmp_path, {"train": train, **rest}))
    data.setup()
    for batch in data.train_dataloader():
        assert list(batch.labels) == ["M", "T", "V"]
        assert batch.targets == batch.labels["M"]
        for row, index in enumerate(batch.index.tolist()):
            assert {n: labels[row] for n, labels in batch.labels.items()} == {
                n: train[index].labels.get(n) for n in ("M", "T", "V")
            }
            assert (batch.groups[row], batch.speakers[row]) == (f"g{index // 4}", f"s{index % 2}")
            assert batch.positions[row] == index % 4


@pytest.mark.parametrize("given", [True, False])
def test_training_utterances_may_be_unlabelled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, given: bool
) -> None:
    """Whether the model needs their labels is for its builder to check; metrics do need them."""
    splits = corpus({"train": 40, "valid": 4, "test": 4}, labels=["joy", "anger"])
    splits["train"] = [
        replace(one, labels={}) if number % 3 else one for number, one in enumerate(splits["train"])
    ]
    if not given:
        del splits["valid"]
    data = build(stored(tmp_path, splits), train_fraction=0.9)
    data.setup()
    labels = data.splits["train"].labels["M"]
    assert {"joy", "anger", None} == set(labels)
    assert labels.count(None) / len(labels) == pytest.approx(26 / 40, abs=0.1)
    assert None not in data.splits["valid"].labels["M"]
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("train" in warning for warning in warnings) != given
    assert sorted(flat(batch.ids for batch in data.train_dataloader())) == sorted(
        data.splits["train"].ids
    )


@pytest.mark.parametrize("split", ["valid", "test"])
def test_unlabelled_utterances_are_not_scored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str
) -> None:
    splits = corpus({"train": 12, "valid": 4, "test": 4}, labels=["joy", "anger"])
    splits[split][2] = replace(splits[split][2], labels={})
    data = build(stored(tmp_path, splits))
    data.setup()
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [f"1 of 4 {split} utterances are unlabelled: they are not scored"]
    scored = flat(batch.ids for batch in data.evaluation_dataloader(split))
    assert sorted(scored) == [f"{split}-0", f"{split}-1", f"{split}-3"]
    splits[split] = [replace(one, labels={}) for one in splits[split]]
    with pytest.raises(DataError, match=f"all 4 {split} utterances of 'table' are unlabelled, so"):
        build(stored(tmp_path / "unlabelled", splits)).setup()


def test_features_that_most_of_a_split_lacks_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = corpus({"train": 12, "valid": 4, "test": 8})
    for number in range(6):
        one = splits["test"][number]
        splits["test"][number] = replace(one, features={"audio": one.features["audio"]})
    data = build(stored(tmp_path, splits))
    with caplog.at_level(logging.WARNING):
        data.setup()
    assert caplog.messages == ["most utterances have no vision features: 75.0% of test"]
    assert data.splits["test"].present == {"audio": 1.0, "vision": 0.25}


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([3, 4], [3, 4], []),
        ([3, 0, 4], [3, 4], []),
        ([3, 4], [0, 0, 5], ["most utterances have no vision features: 66.7% of test"]),
        ([0, 0], [0, 0], []),  # a data set without vision, and no fault of it
        ([0, 4], [0, 0, 0], ["most utterances have no vision features: 100.0% of test"]),
    ],
)
def test_absent_features(
    tmp_path: Path, train: list[int], test: list[int], expected: list[str]
) -> None:
    splits = {
        split: [
            Utterance(
                f"{split}{number}",
                "yes",
                features={
                    "audio": np.ones((2, 3), np.float32),
                    "vision": np.ones((frames, 4), np.float32),
                },
            )
            for number, frames in enumerate(lengths)
        ]
        for split, lengths in (("train", train), ("test", test))
    }
    assert absent_features(write_store(tmp_path / "store", splits, info={}).splits) == expected


def test_batches_of_whole_dialogues(store: Store) -> None:
    """Three utterances to a dialogue; batches have room for four, in evaluation for three."""
    data = build(store, whole_dialogues=True)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        seen: list[str | None] = []
        for batch in loader:
            groups = list(dict.fromkeys(batch.groups))
            sizes = [batch.groups.count(group) for group in groups]
            assert batch.positions.tolist() == flat(range(size) for size in sizes)
            seen += groups
        assert len(set(seen)) == len(seen)
    trained = [batch.ids for batch in data.train_dataloader()]
    assert sorted(flat(trained)) == sorted(store.splits["train"].ids)


def test_refused_data_sets(tmp_path: Path) -> None:
    without_test = stored(tmp_path / "a", corpus({"train": 6, "valid": 3}))
    with pytest.raises(DataError, match=r"'table' has no test split .* has train, valid. Mark"):
        build(without_test).setup()
    without_train = stored(tmp_path / "b", corpus({"test": 3}))
    with pytest.raises(DataError, match="'table' has no train split to train on; it has test"):
        build(without_train).setup()
    one_group = stored(tmp_path / "c", corpus({"train": 3, "test": 3}))
    with pytest.raises(ValidationError, match="all belong to one group"):
        build(one_group).setup()


def test_training_batches_hold_every_utterance_once(store: Store) -> None:
    data = build(store)
    data.setup()
    found = list(data.train_dataloader())
    assert [len(batch) for batch in found].count(4) == 4
    assert len(found) == 6
    assert sorted(identity for batch in found for identity in batch.ids) == sorted(
        data.splits["train"].ids
    )
    for batch in found:
        for row, index in enumerate(batch.index.tolist()):
            check_row(batch, row, data.splits["train"][index])


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_goes_from_the_longest_to_the_shortest(store: Store, split: str) -> None:
    data = build(store)
    data.setup()
    loaders = {"valid": data.val_dataloader, "test": data.test_dataloader}
    part = data.splits[split]
    for loader in (loaders[split](), data.evaluation_dataloader(split)):
        found = list(loader)
        assert sorted(flat(batch.ids for batch in found)) == sorted(part.ids)
        lengths = [len(text) for text in flat(batch.texts for batch in found)]
        assert lengths == sorted(lengths, reverse=True)
        assert [len(batch) for batch in found][:-1] == [3] * (len(found) - 1)
        for batch in found:
            for row, index in enumerate(batch.index.tolist()):
                check_row(batch, row, part[index])


@pytest.mark.parametrize(("device", "expected"), [("cpu", False), ("meta", True)])
def test_only_what_goes_to_another_device_may_be_under_way(
    store: Store, device: str, *, expected: bool
) -> None:
    data = build(store)
    data.setup()
    values, lengths = Mock(), torch.ones(4)
    features = {"audio": PaddedSequences(values, lengths)}
    moved = replace(next(iter(data.train_dataloader())), features=features).to(device)
    values.to.assert_called_once_with(device, non_blocking=expected)
    assert moved.features["audio"].lengths is lengths


def by_words(texts: list[str]) -> list[list[int]]:
    """A tokenizer that makes a token of every word, the number of its letters."""
    return [[len(word) for word in text.split()] for text in texts]


def test_tokenised_batches_carry_the_ids(store: Store) -> None:
    data = build(store)
    data.setup()
    assert all(batch.tokens is None for batch in data.train_dataloader())
    assert data.splits["train"].tokens is None
    data.tokenize(lambda texts: [list(map(ord, text)) for text in texts])
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert batch.tokens is not None
            for text, ids in zip(batch.texts, batch.tokens, strict=True):
                assert ids.dtype == np.int32
                assert ids.tolist() == list(map(ord, text))
    # The store, which other modules may read, is as it was.
    assert store.splits["test"].tokens is None


def test_a_part_of_a_tokenised_split_keeps_its_ids(store: Store) -> None:
    encode = [[1], [], [2, 3], *[[4]] * 5]
    whole = store.splits["test"].tokenized(lambda _: encode)
    picked = whole.select(np.array([2, 1, 0]))
    assert whole.tokens is not None
    assert picked.tokens is not None
    assert [ids.tolist() for ids in whole.tokens] == encode
    assert [ids.tolist() for ids in picked.tokens] == [[2, 3], [], [1]]
    assert picked.ids == [whole.ids[index] for index in (2, 1, 0)]


def with_texts(folder: Path, texts: list[str], frames: list[int] | None = None) -> Store:
    """A store whose training part says these things, with so many frames of audio each."""
    lengths = frames or [1] * len(texts)
    train = [
        utterance(
            f"{number}",
            text=text,
            label=float(number % 2),
            audio=np.zeros((length, 4), dtype=np.float32),
            vision=None,
        )
        for number, (text, length) in enumerate(zip(texts, lengths, strict=True))
    ]
    rest = {split: [utterance(split, vision=None, label=0.0)] for split in ("valid", "test")}
    return stored(folder, {"train": train, **rest})


@pytest.mark.parametrize(
    ("text_tokens", "tokenised", "expected"),
    [
        # 50, 3, 5 and 4 words.
        (100, True, ["0", "2", "3", "1"]),
        (100, False, ["0", "2", "3", "1"]),
        (4, True, ["3", "2", "0", "1"]),
        (3, True, ["1", "3", "2", "0"]),
    ],
)
def test_what_is_cut_off_a_text_costs_nothing(
    tmp_path: Path, text_tokens: int, tokenised: bool, expected: list[str]
) -> None:
    """Of texts that are read alike, the frames decide."""
    texts = ["a " * words for words in (50, 3, 5, 4)]
    data = build(with_texts(tmp_path, texts, [1, 9, 2, 3]), text_tokens=text_tokens)
    data.setup()
    if tokenised:
        data.tokenize(by_words)
    found = flat(batch.ids for batch in data.evaluation_dataloader("train"))
    assert found == expected


def test_batches_by_real_lengths_hold_less_padding(tmp_path: Path) -> None:
    """Long words are few tokens: what a text looks like is not what it is read as."""
    random = np.random.default_rng(0)
    sizes = random.integers(1, 20, (400, 2)).tolist()
    store = with_texts(tmp_path, [" ".join(["x" * letters] * words) for letters, words in sizes])

    def padding(*, tokenised: bool) -> float:
        """Share of the tokens in the batches of an epoch that are padding."""
        data = build(store)
        data.setup()
        if tokenised:
            data.tokenize(by_words)
        lengths = [
            np.array([len(text.split()) for text in batch.texts])
            for batch in data.train_dataloader()
        ]
        padded = sum(len(batch) * int(batch.max()) for batch in lengths)
        return 1 - sum(int(batch.sum()) for batch in lengths) / padded

    assert 2 * padding(tokenised=True) < padding(tokenised=False)


def test_a_batch_in_micro_batches_is_the_same_batch(store: Store) -> None:
    def loaded(micro_batches: int) -> list[Batch]:
        data = build(store, micro_batches=micro_batches)
        data.setup()
        return list(data.train_dataloader())

    whole, halves = loaded(1), loaded(2)
    assert len(halves) == 2 * len(whole)
    for number, batch in enumerate(whole):
        pieces = halves[2 * number : 2 * number + 2]
        assert flat(piece.ids for piece in pieces) == batch.ids
    with pytest.raises(
        SamplerError, match=r"4 micro-batches cannot share .* of 3 .* trainer\.accumulate"
    ):
        loaded(4)


@pytest.mark.parametrize(("given", "taken"), [(None, 32), (7, 7)])
def test_evaluation_batches_where_no_size_is_given(
    store: Store, given: int | None, taken: int
) -> None:
    dataset = DatasetConfig(name="table", reader=Reader.table)
    data = UtteranceDataModule(dataset, batch_size=4, eval_batch_size=given, seed=1, store=store)
    data.setup()
    assert data.eval_batch_size == taken
    data.eval_batch_size = 5
    assert [len(batch) for batch in data.test_dataloader()] == [5, 3]


def check_row(batch: Batch, row: int, expected: Utterance) -> None:
    """A row of a batch is the utterance, padded with zeros."""
    assert batch.ids[row] == expected.id
    assert batch.texts[row] == expected.text
    assert batch.groups[row] == expected.group
    assert batch.speakers[row] == expected.speaker
    assert {name: labels[row] for name, labels in batch.labels.items()} == expected.labels
    for name, (values, lengths) in batch.features.items():
        length = int(lengths[row])
        frames = expected.features.get(name)
        assert length == (0 if frames is None else len(frames))
        if frames is not None:
            assert np.array_equal(values[row, :length], frames)
        assert not values[row, length:].any()


def test_absent_features_in_a_batch(tmp_path: Path) -> None:
    utterances = [utterance("a", vision=None), utterance("b", vision=None, audio=None)]
    splits = {"train": utterances, "test": [utterance("c")]}
    batch = stored(tmp_path, splits).splits["train"].batch([1, 0])
    assert batch.index.tolist() == [1, 0]
    audio, vision = batch.features["audio"], batch.features["vision"]
    assert audio.lengths.tolist() == [0, 3]
    assert vision.lengths.tolist() == [0, 0]
    assert audio.lengths.dtype == batch.index.dtype == batch.positions.dtype == torch.int64
    assert audio.values.shape == (2, 3, 4)
    assert not audio.values[0].any()
    assert vision.values.shape == (2, 1, 5)


def test_loading_leaves_the_global_random_state_alone(store: Store) -> None:
    data = build(store)
    data.setup()
    before = torch.random.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(loader)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_statistics_of_the_training_part_only(tmp_path: Path) -> None:
    splits = corpus({"train": 30, "test": 5})
    constant = 1e4 + 0.1  # not a float32, and large beside its deviation of zero
    for one in (one for split in splits.values() for one in split):
        audio = one.features["audio"]
        audio[:, 0] = constant
        audio[:, 1] = audio[:, 1] * 1e-2 + 1e3
    data = build(stored(tmp_path, splits))
    data.setup()
    statistics = data.statistics
    assert statistics is data.statistics
    for modality in ("audio", "vision"):
        frames = np.concatenate(
            [one.features[modality] for one in data.splits["train"]], dtype=np.float64
        )
        mean, deviation = statistics[modality]
        assert mean.dtype == deviation.dtype == np.float64
        np.testing.assert_allclose(mean, frames.mean(axis=0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(deviation, frames.std(axis=0), rtol=1e-9)


def test_statistics_of_absent_modalities(tmp_path: Path) -> None:
    """Vision that occurs in the test split only is left as it is, audio has no statistics."""
    train = [utterance(f"{n}", label=float(n % 2), audio=None, vision=None) for n in range(8)]
    data = build(stored(tmp_path, {"train": train, "test": [utterance("t", audio=None)]}))
    data.setup()
    statistics = data.statistics
    assert list(statistics) == ["vision"]
    vision = PaddedSequences(torch.randn(1, 3, 5), torch.tensor([3]))
    values, _ = FeatureStandardizer(statistics)({"vision": vision})["vision"]
    assert torch.equal(values, vision.values)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_load_the_same_batches(store: Store, start: str) -> None:
    alone, helped = build(store), build(store, workers=1)
    for data in (alone, helped):
        data.setup()
    list(helped.splits["train"])  # opens the file before the worker starts
    loader = helped.train_dataloader()
    loader.multiprocessing_context = start
    assert loader.persistent_workers
    for batch, expected in zip(loader, alone.train_dataloader(), strict=True):
        assert batch.ids == expected.ids
        for name, (values, lengths) in expected.features.items():
            assert torch.equal(batch.features[name].values, values)
            assert torch.equal(batch.features[name].lengths, lengths)


def test_the_module_can_be_pickled(store: Store) -> None:
    data = build(store)
    data.setup()
    expected = [batch.ids for batch in data.val_dataloader()]
    copy: UtteranceDataModule = pickle.loads(pickle.dumps(data))
    assert [batch.ids for batch in copy.val_dataloader()] == expected


class Recorder(pl.LightningModule):
    """Notes which utterances it is given in which epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[list[str]]] = {}

    def note(self, stage: str, batch: Batch) -> None:
        self.seen.setdefault(f"{stage} {self.current_epoch}", []).append(batch.ids)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.note("train", batch)
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.note("valid", batch)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        self.note("test", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def flat(lists: Iterable[Any]) -> list[Any]:
    return list(chain.from_iterable(lists))


def trainer(epochs: int, folder: Path, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        callbacks=list(callbacks),
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=bool(callbacks),
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("after_training", [True, False])
def test_lightning_trains_in_the_order_of_seed_and_epoch(
    store: Store, tmp_path: Path, workers: int, micro_batches: int, after_training: bool
) -> None:
    """Also in the epoch that a run is resumed in, for which workers read ahead."""
    options = {"workers": workers, "micro_batches": micro_batches}
    whole, first, resumed = Recorder(), Recorder(), Recorder()
    trainer(3, tmp_path / "whole").fit(whole, build(store, **options))
    assert sorted(whole.seen) == [f"{s} {e}" for s in ("train", "valid") for e in range(3)]
    orders = [whole.seen[f"train {epoch}"] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert all(sorted(flat(order)) == sorted(store.splits["train"].ids) for order in orders)
    data = build(store, **options)
    data.setup()
    loader = data.train_dataloader()
    assert isinstance(loader, DataLoader)
    loader.sampler.set_epoch(2)  # type: ignore[attr-defined]
    assert [batch.ids for batch in loader] == orders[2]

    for recorder, epochs, resumes in ((first, 1, False), (resumed, 3, True)):
        saving = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=after_training)
        trainer(epochs, tmp_path / "part", saving).fit(
            recorder,
            build(store, **options),
            ckpt_path=tmp_path / "last.ckpt" if resumes else None,
        )
    assert first.seen | resumed.seen == whole.seen


def test_workers_do_not_read_ahead_before_the_first_batch_is_asked_for(store: Store) -> None:
    """Lightning makes the iterator, then sets the epoch."""
    data = build(store, workers=1)
    data.setup()
    loader = data.train_dataloader()
    for epoch in (3, 1):
        batches = iter(loader)
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        expected = loader.sampler.global_batches(epoch)  # type: ignore[attr-defined]
        assert [batch.index.tolist() for batch in batches] == expected


def test_lightning_tests_everything_once(store: Store, tmp_path: Path) -> None:
    recorder, data = Recorder(), build(store)
    trainer(1, tmp_path).test(recorder, data, verbose=False)
    expected = flat(batch.ids for batch in data.test_dataloader())
    assert sorted(expected) == sorted(store.splits["test"].ids)
    assert flat(recorder.seen["test 0"]) == expected


def test_devices_share_the_work(store: Store) -> None:
    def loaded(rank: int, world: int) -> dict[str, list[list[str]]]:
        data = build(store)
        data.setup()
        data.trainer = Mock(global_rank=rank, world_size=world)
        loaders = {"train": data.train_dataloader(), "test": data.test_dataloader()}
        return {name: [batch.ids for batch in loader] for name, loader in loaders.items()}

    alone, first, second = loaded(0, 1), loaded(0, 2), loaded(1, 2)
    for whole, one, other in zip(alone["train"], first["train"], second["train"], strict=True):
        assert sorted(one + other) == sorted(whole)
    shares = [flat(part["test"]) for part in (first, second)]
    assert sorted(shares[0] + shares[1]) == sorted(flat(alone["test"]))
    with pytest.raises(SamplerError, match="9 devices cannot share"):
        loaded(0, 9)
