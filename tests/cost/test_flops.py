"""How many operations a language model takes, before it is loaded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from msea_lightning.backbone import BackboneError, backbone_config
from msea_lightning.backbone.loading import memory
from msea_lightning.backbone.loading.memory import Reading
from msea_lightning.backbone.options import Weights
from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import TrainConfig
from msea_lightning.cost import flops
from msea_lightning.cost.flops import UtteranceFlops, matrix_rate, reading_flops, with_layers

CPU = torch.device("cpu")
WIDTH, INNER, LAYERS, VOCABULARY = 64, 160, 5, 300
LLAMA = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 5, "n_head": 4, "vocab_size": 300}


def architecture(fields: dict[str, Any], **changes: Any) -> PretrainedConfig:
    """A config of transformers."""
    return AutoConfig.for_model(**(fields | changes))


def preset(name: str) -> PretrainedConfig:
    """The published architecture of a choice of ``conf/backbone``."""
    config = compose("train", TrainConfig, [f"backbone={name}"]).backbone
    assert config.path is not None
    return backbone_config(config.path, weights=Weights.random, architecture=config.architecture)


def by_hand(
    tokens: int, read: int, *, keys: int = WIDTH, width: int = WIDTH, before: int = 0
) -> int:
    """Operations of a forward pass over a sequence, without the head.

    Of the last layer, all but its keys and values is there for the positions that are read alone;
    of what was read before, only keys and values are there, and nobody makes them again.
    """
    new = tokens - before
    keys_and_values = 2 * WIDTH * keys
    others = 2 * WIDTH * width + 3 * WIDTH * INNER
    scores_and_mixing = LAYERS * 4 * tokens * new * width
    narrowed = 2 * others * ((LAYERS - 1) * new + read)
    return LAYERS * 2 * keys_and_values * new + narrowed + scores_and_mixing


def head(places: int) -> int:
    return 2 * WIDTH * VOCABULARY * places


@pytest.mark.parametrize(("batch", "tokens", "labels"), [(1, 20, 1), (3, 50, 4), (2, 4, 4)])
def test_training_takes_what_is_counted_by_hand(batch: int, tokens: int, labels: int) -> None:
    # The gradient of a product by a fixed matrix is one more product; that of a product of two
    # activations, of which attention consists, is two.
    matrices = by_hand(tokens, labels) - LAYERS * 4 * tokens**2 * WIDTH
    attention = LAYERS * 4 * tokens**2 * WIDTH
    expected = 2 * matrices + 3 * attention + 2 * head(labels)
    found = reading_flops(architecture(LLAMA), Reading(batch, tokens, labels=labels))
    assert found == batch * expected


@pytest.mark.parametrize(("batch", "tokens", "nodes"), [(1, 20, 0), (3, 50, 7), (64, 30, 500)])
def test_evaluation_reads_the_nodes_too(batch: int, tokens: int, nodes: int) -> None:
    found = reading_flops(architecture(LLAMA), Reading(batch, tokens, nodes=nodes))
    assert found == batch * (by_hand(tokens + nodes, 1 + nodes) + head(1 + nodes))


def test_heads_that_share_keys_save_the_matrices_of_keys_alone() -> None:
    config = architecture(LLAMA, num_key_value_heads=1, head_dim=32)
    assert reading_flops(config, Reading(1, 30)) == by_hand(30, 1, keys=32, width=128) + head(1)


def test_neither_dtype_nor_attention_of_the_config_matters() -> None:
    config, reading = architecture(LLAMA), Reading(2, 30, labels=2)
    expected = reading_flops(config, reading)
    config.dtype = torch.bfloat16
    config._attn_implementation = "sdpa"
    before = config.to_dict()
    assert reading_flops(config, reading) == expected
    assert config.to_dict() == before


@pytest.mark.parametrize("kind", [{"labels": 3}, {"nodes": 5}], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    "fields",
    [
        LLAMA,
        LLAMA | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 32},
        GPT2,
    ],
    ids=lambda fields: fields["model_type"],
)
def test_three_lengths_tell_all_others(fields: dict[str, Any], kind: dict[str, int]) -> None:
    config = architecture(fields)
    utterance = UtteranceFlops(config, **kind)
    lengths = np.array([[3, 4, 7], [40, 133, 300]])
    expected = [[reading_flops(config, Reading(1, int(n), **kind)) for n in row] for row in lengths]
    found = utterance(lengths)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)
    alone = utterance(133)
    assert type(alone) is float
    assert alone == found[1, 1]


@pytest.mark.parametrize("before", [0, 6])
def test_what_was_read_before_costs_nothing_again(before: int) -> None:
    config, tokens, nodes, labels = architecture(LLAMA), 30, 7, 2
    evaluation = by_hand(tokens + nodes, 1 + nodes, before=before) + head(1 + nodes)
    assert UtteranceFlops(config, nodes=nodes)(tokens, read_before=before) == evaluation
    attention = LAYERS * 4 * tokens * (tokens - before) * WIDTH
    matrices = by_hand(tokens, labels, before=before) - attention
    expected = 2 * matrices + 3 * attention + 2 * head(labels)
    assert UtteranceFlops(config, labels=labels)(tokens, read_before=before) == expected


@pytest.mark.parametrize("name", ["gemma3-1b", "qwen3-0.6b", "smollm3-3b", "chatglm3"])
@pytest.mark.parametrize("reading", [Reading(1, 60, labels=2), Reading(1, 60, nodes=9)])
def test_small_models_tell_what_the_whole_one_takes(name: str, reading: Reading) -> None:
    config = preset(name)
    with torch.device("meta"):
        whole = flops._flops(flops._shadow(config), reading)
    assert reading_flops(config, reading) == whole


def test_layers_that_differ_are_all_counted() -> None:
    # A model whose deeper layers are others cannot be told from its first.
    config = architecture(LLAMA | {"model_type": "qwen2_moe"}, mlp_only_layers=[0, 1, 2, 4])
    counted = []

    def count(backbone: Any, reading: Reading) -> int:
        counted.append(len(backbone.model.model.layers))
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flops, "_flops", count)
        reading_flops(config, Reading(1, 10))
        reading_flops(architecture(LLAMA), Reading(1, 10))
    assert counted == [LAYERS, 1, 2]


@pytest.mark.parametrize("name", ["gemma3-1b", "qwen3-0.6b", "smollm3-3b"])
def test_what_a_config_says_of_each_layer_is_cut_too(name: str) -> None:
    config = preset(name)
    small = with_layers(config, 2)
    assert small.num_hidden_layers == 2
    assert small.layer_types == config.layer_types[:2]
    assert len(config.layer_types) == config.num_hidden_layers > 2
    if name == "smollm3-3b":
        assert small.no_rope_layers == config.no_rope_layers[:2]


def test_seven_billion_weights_are_counted_without_memory_for_them() -> None:
    reading_flops(architecture(LLAMA), Reading(1, 5, labels=1))  # what is imported only once
    config = preset("llama2")
    before = memory.process_bytes(CPU)
    memory.reset_peak(CPU)
    # Twice the weights of all layers for each token, forward and again backward, and attention.
    # Of the last layer two positions are read; keys and values are those of all.
    linear = 32 * 2 * 4096**2 * 100 + (2 * 4096**2 + 3 * 4096 * 11008) * (31 * 100 + 2)
    expected = 4 * linear + 3 * 32 * 4 * 100**2 * 4096 + 4 * 4096 * 32000 * 2
    assert UtteranceFlops(config, labels=2)(100) == expected
    assert memory.peak_bytes(CPU) - before < 100 << 20


def test_what_cannot_be_counted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def numbers(*_: Any) -> None:
        torch.ones(1, device="meta").item()

    monkeypatch.setattr(flops, "_train", numbers)
    with pytest.raises(
        BackboneError, match=r"operations of a llama backbone cannot be counted: .*\. Choose a "
    ):
        reading_flops(architecture(LLAMA), Reading(1, 5, labels=1))


def test_the_rate_is_that_of_the_best_try(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that says of every product how long it took: the first, which does not count, the
    # fastest of the others, one that is held up, and one that ends the measuring.
    durations = iter([0.001, 0.25, 0.5])
    clock = _ticks(durations)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    state = torch.get_rng_state()
    size = flops._SQUARE_CPU
    assert matrix_rate(torch.float32, CPU) == 2 * size**3 / 0.25
    assert next(durations, None) is None
    assert torch.equal(torch.get_rng_state(), state)


def _ticks(durations: Iterator[float]) -> Iterator[float]:
    for duration in durations:
        yield 0.0
        yield duration
