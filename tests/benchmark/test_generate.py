"""Generated utterances have the lengths, widths and labels of the paper's data sets."""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from msea_lightning.backbone import load_tokenizer
from msea_lightning.backbone.loading.load import tiny_backbone
from msea_lightning.benchmark import BenchError
from msea_lightning.benchmark.generate import _texts, _words, generate, write_published
from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import PrepareConfig
from msea_lightning.data.options import DatasetConfig, LabelKind, Reader
from msea_lightning.data.readers import read_files
from msea_lightning.data.store import Store, write_store
from msea_lightning.data.utterance import Utterance
from msea_lightning.paper import paper_table
from msea_lightning.paper.lengths import SHAPES

COUNTS = {"train": 5, "valid": 2, "test": 3}
ROWS = {row["dataset"]: row for row in paper_table("datasets")}


def dataset_of(name: str) -> DatasetConfig:
    return compose("prepare", PrepareConfig, [f"dataset={name}"]).dataset


def lists(parts: Mapping[str, Iterator[Utterance]]) -> dict[str, list[Utterance]]:
    return {split: list(part) for split, part in parts.items()}


def assert_same(found: Utterance, expected: Utterance) -> None:
    assert (found.id, found.text, found.group) == (expected.id, expected.text, None)
    if isinstance(expected.label, str):
        assert found.label == expected.label
    else:
        assert found.label == pytest.approx(expected.label, abs=1e-6)
    np.testing.assert_array_equal(found.features["audio"], expected.features["audio"])
    np.testing.assert_array_equal(found.features["vision"], expected.features["vision"])


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_backbone())


@pytest.fixture(scope="module")
def bytes_only() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer without merges: every letter and every space is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def counted(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return np.array([len(ids) for ids in encoded])


def deviations(
    tokenizer: PreTrainedTokenizerBase, language: str, tokens: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """By how many tokens texts miss those asked for, and the texts."""
    dataset = dataset_of({"en": "mosei", "zh": "cherma"}[language])
    words, joint = _words(tokenizer, dataset.language)
    texts = _texts(tokens, tokenizer, words, joint, np.random.default_rng(0))
    return counted(tokenizer, texts) - tokens, texts


# --- Texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "zh"])
def test_texts_have_as_many_tokens_as_asked_for(
    tiny: PreTrainedTokenizerBase, language: str
) -> None:
    tokens = np.arange(1, 121)
    missed, texts = deviations(tiny, language, tokens)
    assert np.abs(missed).max() <= 1
    assert np.mean(missed == 0) > 0.95
    assert len(set(texts)) > 110
    wide = re.compile("[\u4e00-\u9fff]+")
    assert all((wide.fullmatch(text) is not None) == (language == "zh") for text in texts)


@pytest.mark.parametrize("name", ["llama2", "qwen", "chatglm3"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_papers_tokenizers_count_as_many(shared: Path, name: str, language: str) -> None:
    tokenizer = load_tokenizer(shared / "tokenizers" / name)
    missed, _ = deviations(tokenizer, language, np.arange(1, 81).repeat(3))
    assert np.abs(missed).max() <= 1
    assert np.mean(missed == 0) > 0.95


def test_a_tokenizer_without_words_is_refused(bytes_only: PreTrainedTokenizerBase) -> None:
    with pytest.raises(BenchError, match=r"fewer than 16 words .* with backbone\.tokenizer"):
        deviations(bytes_only, "zh", np.arange(1, 61))


def test_a_tokenizer_without_chinese_gets_english() -> None:
    words = [first + second for first in "abcdef" for second in "uvwxyz"]
    vocabulary = {"[UNK]": 0, **{word: 1 + i for i, word in enumerate(words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    missed, texts = deviations(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer), "zh", np.arange(2, 30)
    )
    assert not missed.any()
    assert all(set(text.split()) <= set(words) for text in texts)


# --- Utterances ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_utterances_are_those_of_the_data_set(tiny: PreTrainedTokenizerBase, name: str) -> None:
    dataset, row = dataset_of(name), ROWS[name]
    parts = lists(generate(dataset, tiny, COUNTS, seed=3))
    assert {split: len(part) for split, part in parts.items()} == COUNTS
    found = [utterance for part in parts.values() for utterance in part]
    assert len({utterance.id for utterance in found}) == len(found)
    for utterance in found:
        assert list(utterance.features) == ["audio", "vision"]
        for modality, frames in utterance.features.items():
            assert frames.dtype == np.float32
            assert frames.shape[1] == int(row[f"{modality}_dim"])
            assert 1 <= len(frames) <= int(row[f"{modality}_steps"])
        assert utterance.group is None
        if dataset.labels.kind is LabelKind.emotions:
            assert utterance.label in dataset.labels.names
        else:
            assert isinstance(utterance.label, float)
            assert utterance.label == round(utterance.label, 1)
            assert dataset.labels.low is not None
            assert dataset.labels.high is not None
            assert dataset.labels.low <= utterance.label <= dataset.labels.high


def test_lengths_are_distributed_as_the_shape_says(tiny: PreTrainedTokenizerBase) -> None:
    dataset = dataclasses.replace(dataset_of("meld"), audio_dim=1, vision_dim=1)
    shape, count = SHAPES["meld"], 3000
    found = list(generate(dataset, tiny, {"train": count}, seed=0)["train"])
    tokens = counted(tiny, [utterance.text for utterance in found])
    audio = np.array([len(utterance.features["audio"]) for utterance in found])
    vision = np.array([len(utterance.features["vision"]) for utterance in found])
    assert tokens.mean() == pytest.approx(shape.text.mean, rel=0.06)
    assert audio.mean() == pytest.approx(shape.audio.mean, rel=0.06)
    assert vision.mean() == pytest.approx(shape.vision.mean, rel=0.06)
    # Long texts have long sequences, and the two sequences are one duration.
    assert 0.6 < np.corrcoef(tokens, audio)[0, 1] < 0.9
    assert np.corrcoef(audio, vision)[0, 1] > 0.99
    values = np.concatenate([utterance.features["audio"] for utterance in found[:300]])
    assert values.mean() == pytest.approx(0, abs=0.05)
    assert values.std() == pytest.approx(1, abs=0.05)


def test_labels_of_a_scale_reach_its_ends(tiny: PreTrainedTokenizerBase) -> None:
    dataset = dataclasses.replace(dataset_of("simsv2"), audio_dim=1, vision_dim=1)
    found = generate(dataset, tiny, {"test": 600}, seed=0)["test"]
    labels = {utterance.label for utterance in found}
    assert labels == {tenths / 10 for tenths in range(-10, 11)}


def test_one_seed_gives_one_data_set(tiny: PreTrainedTokenizerBase) -> None:
    dataset = dataset_of("meld")
    first = lists(generate(dataset, tiny, COUNTS, seed=7))
    # The splits in another order, one of them left out, and read in turns.
    again = generate(dataset, tiny, {"test": 3, "train": 5}, seed=7)
    for index in range(3):
        for split, part in again.items():
            assert_same(next(part), first[split][index])
    other = lists(generate(dataset, tiny, COUNTS, seed=8))
    assert [u.text for u in other["train"]] != [u.text for u in first["train"]]
    assert len({u.text for part in first.values() for u in part}) > 7


def test_labels_that_cannot_be_generated(tiny: PreTrainedTokenizerBase) -> None:
    dataset = dataset_of("meld")
    dataset.labels.kind = LabelKind.infer
    with pytest.raises(BenchError, match=r"labels\.kind=infer, but .* Leave dataset\.labels as"):
        generate(dataset, tiny, COUNTS, seed=0)


# --- Published files ----------------------------------------------------------------------------


def published(
    dataset: DatasetConfig, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> tuple[Path, dict[str, list[Utterance]]]:
    """Published files of generated data, and the utterances in them."""
    expected = lists(generate(dataset, tokenizer, COUNTS, seed=5))
    write_store(folder / "store", {split: iter(part) for split, part in expected.items()}, info={})
    (folder / "files").mkdir()
    return write_published(Store.open(folder / "store"), dataset, folder / "files"), expected


@pytest.mark.parametrize("name", SHAPES)
def test_published_files_hold_the_same_utterances(
    tiny: PreTrainedTokenizerBase, tmp_path: Path, name: str
) -> None:
    dataset = dataset_of(name)
    path, expected = published(dataset, tiny, tmp_path)
    assert path.is_file() == (dataset.reader is Reader.mmsa)
    reading = read_files(path, dataset)
    for split, part in reading.items():
        for found, utterance in zip(part, expected[split], strict=True):
            assert_same(found, utterance)
        assert all(set(one.features) == {"audio", "vision"} for one in reading[split])
    assert list(reading) == list(COUNTS)


def test_published_files_are_padded_and_plain(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path, _ = published(dataset_of("mosei"), tiny, tmp_path)
    assert path.name == "unaligned_50.pkl"
    content = pickle.loads(path.read_bytes())
    assert type(content) is dict
    part = content["valid"]
    assert (part["audio"].shape, part["vision"].shape) == ((2, 500, 74), (2, 375, 35))
    assert part["audio"].dtype == part["vision"].dtype == part["regression_labels"].dtype == "f4"
    for frames, length in zip(part["audio"], part["audio_lengths"], strict=True):
        assert frames[:length].any(axis=1).all()
        assert not frames[length:].any()
    (tmp_path / "meld").mkdir()
    folder, _ = published(dataset_of("meld"), tiny, tmp_path / "meld")
    items = pickle.loads((folder / "meld_test.pkl").read_bytes())
    assert type(items) is list
    for item in items:
        features = item["features"]
        assert (features["audio"].shape, features["video"].shape) == ((157, 64), (32, 64))
        assert not features["video"][features["video_len"] :].any()


def test_layouts_that_are_not_written(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    dataset = dataclasses.replace(dataset_of("cherma"), reader=Reader.cherma)
    with pytest.raises(BenchError, match=r"reader=cherma, but .* mmsa and dialogue only\. Leave"):
        published(dataset, tiny, tmp_path)
    assert not list((tmp_path / "files").iterdir())
