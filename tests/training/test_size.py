"""Sizes without a run: what Table 1 of the paper counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from msea_lightning.config.roots import TrainConfig
from msea_lightning.cost.published import (
    is_published,
    published_estimator,
    published_flops,
)
from msea_lightning.paper import paper_table
from msea_lightning.paper.lengths import LONGEST
from msea_lightning.training.size import measure_size

Options = Callable[..., TrainConfig]
CPU = torch.device("cpu")


def size(options: Options, *words: str) -> dict[str, int]:
    run = measure_size(options(*words, "size_only=true"))
    assert not run.last.exists()
    measured: dict[str, int] = json.loads(run.metrics.read_text())["size"]
    memory = json.loads(run.memory.read_text())
    assert measured["trainable_parameters"] == memory["trainable_parameters"]
    assert measured["memory_bytes"] == memory["needed"]
    return measured


def paper(model: str, dataset: str) -> float:
    (row,) = (row for row in paper_table("trainable_parameters") if row["model"] == model)
    return float(row[dataset])


@pytest.mark.parametrize(
    ("backbone", "model", "frozen"),
    [("qwen", "MSE-Qwen-1.8B", 1_836_828_672), ("chatglm3", "MSE-ChatGLM3-6B", 6_243_584_000)],
)
def test_a_configuration_of_the_paper_is_measured_as_it_is_published(
    options: Options, backbone: str, model: str, frozen: int
) -> None:
    measured = size(options, "dataset=mosei", f"backbone={backbone}")
    assert round(measured["trainable_parameters"] / 1e6, 2) == paper(model, "mosei")
    assert measured["backbone_parameters"] == frozen
    assert measured["memory_bytes"] > 2 * frozen


def test_a_part_of_the_features_has_no_published_size(options: Options) -> None:
    pair = ["dataset=mosei", "backbone=qwen"]
    assert is_published(options(*pair))
    assert not is_published(options(*pair, "dataset.features=[audio]"))


@pytest.mark.parametrize(
    ("adapter", "parameters", "model"),
    [("mag", 34_471_936, "MAG-ChatGLM3-6B"), ("chfn", 50_786_304, "CHFN-ChatGLM3-6B")],
)
def test_other_adapters_have_the_size_of_table_5(
    options: Options, adapter: str, parameters: int, model: str
) -> None:
    measured = size(options, "dataset=mosei", "backbone=chatglm3", f"adapter={adapter}")
    assert measured["trainable_parameters"] == parameters
    assert round(parameters / 1e6, 2) == paper(model, "mosei")


@pytest.mark.parametrize(
    ("word", "more"),
    [
        ("adapter.pseudo_tokens=9", 5),
        ("adapter=mag", -4),
        ("adapter=chfn", -4),
        ("dataset.text_tokens=30", -20),
        ("text.pad_to=60", 10),
        ("prompt.task=Positive or negative?", None),
    ],
)
def test_an_option_that_changes_a_published_length_counts(
    options: Options, word: str, more: int | None
) -> None:
    pair = ["dataset=mosei", "backbone=qwen"]
    published, changed = (
        published_estimator(options(*words), CPU) for words in (pair, [*pair, word])
    )
    assert published.meter.prompt.longest == LONGEST["mosei", "qwen"]
    if more is None:
        assert changed.meter.prompt.longest < published.meter.prompt.longest
    else:
        assert changed.meter.prompt.longest == published.meter.prompt.longest + more


def test_a_longer_sequence_takes_more_memory_and_operations(options: Options) -> None:
    pair = ("dataset=mosei", "backbone=qwen")
    configs = [options(*pair, f"dataset.text_tokens={tokens}") for tokens in (10, 40)]
    short, long = (published_estimator(config, CPU) for config in configs)
    assert long.estimate().activations > 1.2 * short.estimate().activations
    few, many = (
        published_flops(config.dataset, estimator)[0]
        for config, estimator in zip(configs, (short, long), strict=True)
    )
    assert many > 1.2 * few


def test_a_language_model_that_is_named_is_read(options: Options, tmp_path: Path) -> None:
    small = AutoConfig.for_model(
        "llama", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=6000
    )
    small.save_pretrained(tmp_path / "model")
    words = ("dataset=mosei", "backbone=llama2", f"backbone.path={tmp_path / 'model'}")
    estimator = published_estimator(options(*words), CPU)
    assert estimator.meter.language.hidden_size == 64
    assert estimator.meter.prompt.longest == LONGEST["mosei", "llama2"]


def test_any_other_pair_is_measured_on_its_files(options: Options) -> None:
    """And measured again it has the same size, whatever the process holds by then."""
    measured = size(options)
    held = torch.ones(2_000_000)
    assert size(options) == measured
    assert held.is_contiguous()
    assert (measured["trainable_parameters"], measured["backbone_parameters"]) == (164_884, 883_392)


def test_a_finished_measurement_is_left_alone(options: Options) -> None:
    first = measure_size(options("size_only=true", "ckpt=auto"))
    when = first.metrics.stat().st_mtime_ns
    second = measure_size(options("size_only=true", "ckpt=auto"))
    assert (second.path, second.metrics.stat().st_mtime_ns) == (first.path, when)
