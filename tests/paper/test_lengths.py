"""The published lengths of the paper's data sets, counted again where the texts are at hand."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]
from transformers import PreTrainedTokenizerBase

from msea_lightning.backbone import load_tokenizer
from msea_lightning.benchmark.generate import CORRELATION
from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import PrepareConfig
from msea_lightning.paper import lengths as lengths_module
from msea_lightning.paper import paper_table
from msea_lightning.paper.lengths import SHAPES, Lengths

ROWS = {row["dataset"]: row for row in paper_table("datasets")}


def counted(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return np.array([len(ids) for ids in encoded])


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


def test_lengths_at_probabilities() -> None:
    found = Lengths((0, 10, 30)).at(np.array([0, 0.25, 0.5, 0.75, 1]))
    assert found.tolist() == [1, 5, 10, 20, 30]


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
    assert (
        shape.text.quantiles[-1]
        > compose("prepare", PrepareConfig, [f"dataset={name}"]).dataset.text_tokens
    )


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
    assert (
        tuple(percentiles(tokens)) == SHAPES["meld"].text.quantiles == lengths_module._MELD_TOKENS
    )
    assert round(tokens.mean(), 2) == lengths_module._MELD_MEAN_TOKENS
    lasted = np.array([seconds(row["EndTime"]) - seconds(row["StartTime"]) for row in rows])
    np.testing.assert_allclose(percentiles(lasted), lengths_module._MELD_SECONDS, atol=0.0051)
    assert round(lasted.mean(), 3) == lengths_module._MELD_MEAN_SECONDS
    ranks = stats.spearmanr(tokens, lasted).statistic
    assert 2 * np.sin(np.pi * ranks / 6) == pytest.approx(CORRELATION, abs=0.001)


def test_the_others_are_stretched_from_what_was_measured(
    shared: Path, llama2: PreTrainedTokenizerBase
) -> None:
    texts = [row["text"] for row in rows_of(shared / "data" / "mosi_utterance" / "utterances.csv")]
    tokens = counted(llama2, [text.lower() for text in texts])
    assert tuple(percentiles(tokens)) == lengths_module._MOSI_TOKENS
    assert tokens.mean() == pytest.approx(lengths_module._MOSI_MEAN_TOKENS, abs=0.005)
    prompts = "".join(row["prompt"] for row in rows_of(shared / "paper" / "prompts.csv"))
    chinese = "".join(re.findall("[\u4e00-\u9fff]+", prompts))
    ratio = counted(llama2, [chinese])[0] / len(chinese)
    assert ratio == pytest.approx(lengths_module._TOKENS_PER_CHARACTER, abs=0.0005)
