"""Shapes: generated utterances have the lengths, widths and labels of the paper's data sets."""

from __future__ import annotations

import csv
import dataclasses
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from msea_lightning.backbone import load_tokenizer
from msea_lightning.backbone.loading.load import tiny_backbone
from msea_lightning.benchmark import shapes
from msea_lightning.benchmark.shapes import ShapeError, generate, write_published
from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import PrepareConfig
from msea_lightning.data.options import DatasetConfig, LabelKind, Reader
from msea_lightning.data.prepare import prepare_store
from msea_lightning.data.readers import read_files
from msea_lightning.data.utterance import Utterance
from msea_lightning.paper import lengths as published
from msea_lightning.paper import paper_table
from msea_lightning.paper.lengths import SHAPES, Lengths, Shape

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
    writer = shapes._Writer(tokenizer, dataset.language)
    texts = writer.texts(tokens, np.random.default_rng(0))
    return counted(tokenizer, texts) - tokens, texts


# --- Lengths ------------------------------------------------------------------------------------


LENGTHS = [
    Lengths((1, 4, 40)),
    *(getattr(shape, part) for shape in SHAPES.values() for part in ("text", "audio", "vision")),
]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_mean_is_that_of_the_distribution(lengths: Lengths) -> None:
    middles = (np.arange(200_000) + 0.5) / 200_000
    ends = np.linspace(0, 1, len(lengths.quantiles))
    assert lengths.mean == pytest.approx(np.interp(middles, ends, lengths.quantiles).mean())
    assert lengths.mean == pytest.approx(lengths.at(middles).mean(), rel=0.01)


def test_a_mean_by_hand() -> None:
    assert Lengths((2, 4, 10)).mean == 5
    assert Lengths((16, 16)).mean == 16


def test_samples_are_within_bounds_and_reproducible() -> None:
    lengths = Lengths((0, 3, 50))
    drawn = lengths.sample(2000, np.random.default_rng(1))
    assert drawn.dtype == np.int64
    assert (drawn.min(), drawn.max()) == (1, 50)
    assert np.mean(drawn <= 3) == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(drawn, lengths.sample(2000, np.random.default_rng(1)))
    assert not np.array_equal(drawn, lengths.sample(2000, np.random.default_rng(2)))


def test_lengths_at_probabilities() -> None:
    found = Lengths((0, 10, 30)).at(np.array([0, 0.25, 0.5, 0.75, 1]))
    assert found.tolist() == [1, 5, 10, 20, 30]


# --- The shapes of the data sets ----------------------------------------------------------------


def test_shapes_are_those_of_the_papers_data_sets() -> None:
    assert set(SHAPES) == set(ROWS)


@pytest.mark.parametrize("name", SHAPES)
def test_quantiles_ascend_to_at_most_the_published_steps(name: str) -> None:
    shape, row = SHAPES[name], ROWS[name]
    for lengths in (shape.text, shape.audio, shape.vision):
        assert list(lengths.quantiles) == sorted(lengths.quantiles)
        assert lengths.quantiles[0] >= 1
    # Padded sequences are as long as the longest one, so that one there was.
    assert shape.audio.quantiles[-1] == int(row["audio_steps"])
    assert shape.vision.quantiles[-1] == int(row["vision_steps"])
    assert shape.text.quantiles[-1] > dataset_of(name).text_tokens


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_says_where_its_lengths_come_from(name: str) -> None:
    assert re.search("measured", SHAPES[name].source)
    assert re.search("assumed", SHAPES[name].source)


@pytest.fixture(scope="module")
def llama2(shared: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(shared / "tokenizers" / "llama2")


def percentiles(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.percentile(values, np.arange(101), method="nearest")]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def seconds(stamp: str) -> float:
    hours, minutes, rest = stamp.replace(",", ".").split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def test_meld_is_as_measured(shared: Path, llama2: PreTrainedTokenizerBase) -> None:
    rows = rows_of(shared / "data" / "meld_text" / "train.csv")
    tokens = counted(llama2, [row["Utterance"] for row in rows])
    assert tuple(percentiles(tokens)) == SHAPES["meld"].text.quantiles == published._MELD_TOKENS
    assert round(tokens.mean(), 2) == published._MELD_MEAN_TOKENS
    lasted = np.array([seconds(row["EndTime"]) - seconds(row["StartTime"]) for row in rows])
    np.testing.assert_allclose(percentiles(lasted), published._MELD_SECONDS, atol=0.0051)
    assert round(lasted.mean(), 3) == published._MELD_MEAN_SECONDS
    ranks = stats.spearmanr(tokens, lasted).statistic
    assert 2 * np.sin(np.pi * ranks / 6) == pytest.approx(shapes._CORRELATION, abs=0.001)


def test_the_others_are_stretched_from_what_was_measured(
    shared: Path, llama2: PreTrainedTokenizerBase
) -> None:
    texts = [row["text"] for row in rows_of(shared / "data" / "mosi_utterance" / "utterances.csv")]
    tokens = counted(llama2, [text.lower() for text in texts])
    assert tuple(percentiles(tokens)) == published._MOSI_TOKENS
    assert tokens.mean() == pytest.approx(published._MOSI_MEAN_TOKENS, abs=0.005)
    prompts = "".join(row["prompt"] for row in rows_of(shared / "paper" / "prompts.csv"))
    chinese = "".join(re.findall("[\u4e00-\u9fff]+", prompts))
    ratio = counted(llama2, [chinese])[0] / len(chinese)
    assert ratio == pytest.approx(published._TOKENS_PER_CHARACTER, abs=0.0005)


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


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_tokenizer_without_words_gets_letters(
    bytes_only: PreTrainedTokenizerBase, language: str
) -> None:
    missed, texts = deviations(bytes_only, language, np.arange(1, 61))
    assert np.abs(missed).max() <= 1
    assert texts[8] == " ".join(texts[8].split())
    assert len(set(texts)) > 50


def test_a_tokenizer_without_chinese_gets_english(tiny: PreTrainedTokenizerBase) -> None:
    vocabulary = {"[UNK]": 0, **{word: 1 + i for i, word in enumerate(shapes._WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    missed, texts = deviations(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer), "zh", np.arange(2, 30)
    )
    assert not missed.any()
    assert all(set(text.split()) <= set(shapes._WORDS) for text in texts)


# --- Utterances ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_utterances_are_those_of_the_data_set(tiny: PreTrainedTokenizerBase, name: str) -> None:
    dataset, row = dataset_of(name), ROWS[name]
    parts = lists(generate(SHAPES[name], dataset, tiny, COUNTS, seed=3))
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
    found = list(generate(shape, dataset, tiny, {"train": count}, seed=0)["train"])
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
    found = generate(SHAPES["simsv2"], dataset, tiny, {"test": 600}, seed=0)["test"]
    labels = {utterance.label for utterance in found}
    assert labels == {tenths / 10 for tenths in range(-10, 11)}


def test_lengths_are_cut_at_the_published_steps(tiny: PreTrainedTokenizerBase) -> None:
    long = Lengths((5000, 6000))
    shape = Shape(Lengths((1, 3)), long, long, "assumed")
    (found,) = generate(shape, dataset_of("mosei"), tiny, {"train": 1}, seed=0)["train"]
    assert (found.features["audio"].shape, found.features["vision"].shape) == ((500, 74), (375, 35))


def test_one_seed_gives_one_data_set(tiny: PreTrainedTokenizerBase) -> None:
    dataset = dataset_of("meld")
    first = lists(generate(SHAPES["meld"], dataset, tiny, COUNTS, seed=7))
    # The splits in another order, one of them left out, and read in turns.
    again = generate(SHAPES["meld"], dataset, tiny, {"test": 3, "train": 5}, seed=7)
    for index in range(3):
        for split, part in again.items():
            assert_same(next(part), first[split][index])
    other = lists(generate(SHAPES["meld"], dataset, tiny, COUNTS, seed=8))
    assert [u.text for u in other["train"]] != [u.text for u in first["train"]]
    assert len({u.text for part in first.values() for u in part}) > 7


def test_labels_that_cannot_be_generated(tiny: PreTrainedTokenizerBase) -> None:
    dataset = dataset_of("meld")
    dataset.labels.kind = LabelKind.infer
    with pytest.raises(ShapeError, match=r"labels\.kind=infer, but .* Leave dataset\.labels as"):
        generate(SHAPES["meld"], dataset, tiny, COUNTS, seed=0)


# --- Published files ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_published_files_hold_the_same_utterances(
    tiny: PreTrainedTokenizerBase, tmp_path: Path, name: str
) -> None:
    dataset = dataset_of(name)
    path = write_published(dataset, SHAPES[name], tiny, COUNTS, tmp_path / "files", seed=5)
    assert path.is_file() == (dataset.reader is Reader.mmsa)
    expected = lists(generate(SHAPES[name], dataset, tiny, COUNTS, seed=5))
    reading = read_files(path, dataset)
    for split, part in reading.items():
        for found, utterance in zip(part, expected[split], strict=True):
            assert_same(found, utterance)
        assert not any(reading.counts[split].absent.values())
    assert list(reading) == list(COUNTS)


def test_published_files_are_padded_and_plain(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = write_published(dataset_of("mosei"), SHAPES["mosei"], tiny, COUNTS, tmp_path, seed=5)
    assert path == tmp_path / "unaligned_50.pkl"
    content = pickle.loads(path.read_bytes())
    assert type(content) is dict
    part = content["valid"]
    assert (part["audio"].shape, part["vision"].shape) == ((2, 500, 74), (2, 375, 35))
    assert part["audio"].dtype == part["vision"].dtype == part["regression_labels"].dtype == "f4"
    for frames, length in zip(part["audio"], part["audio_lengths"], strict=True):
        assert frames[:length].any(axis=1).all()
        assert not frames[length:].any()
    folder = write_published(dataset_of("meld"), SHAPES["meld"], tiny, COUNTS, tmp_path, seed=5)
    assert folder == tmp_path
    items = pickle.loads((folder / "meld_test.pkl").read_bytes())
    assert type(items) is list
    for item in items:
        features = item["features"]
        assert (features["audio"].shape, features["video"].shape) == ((157, 64), (32, 64))
        assert not features["video"][features["video_len"] :].any()


@pytest.mark.parametrize("name", ["mosei", "meld"])
def test_published_files_become_a_store(
    tiny: PreTrainedTokenizerBase, tmp_path: Path, name: str
) -> None:
    dataset = dataset_of(name)
    path = write_published(dataset, SHAPES[name], tiny, COUNTS, tmp_path / "files", seed=5)
    dataset = dataclasses.replace(dataset, path=str(path), cache=str(tmp_path / "cache"))
    store = prepare_store(dataset)
    expected = lists(generate(SHAPES[name], dataset, tiny, COUNTS, seed=5))
    for split, part in expected.items():
        for found, utterance in zip(store.splits[split], part, strict=True):
            assert_same(found, utterance)
    store.close()


def test_layouts_that_are_not_written(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    dataset = dataclasses.replace(dataset_of("cherma"), reader=Reader.cherma)
    with pytest.raises(ShapeError, match=r"reader=cherma, but .* mmsa and dialogue only\. Leave"):
        write_published(dataset, SHAPES["cherma"], tiny, COUNTS, tmp_path / "files", seed=0)
    assert not (tmp_path / "files").exists()
