"""The KV cache of the tokens that every sequence begins with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.speed.prefix_cache import PrefixCache
from tests.backbone.test_frozen import assert_same, bound_of, random_model

PREFIX = [5, 9, 3, 17]
LENGTHS = [6, 2, 9]
"""Tokens of each sequence after the prefix."""


def padded(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Mask and positions of sequences that are padded on the left."""
    width = max(lengths)
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return mask, (mask.long().cumsum(-1) - 1).clamp(min=0)


def sequences(frozen: FrozenBackbone) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, mask and positions of what follows the prefix."""
    torch.manual_seed(1)
    ids = torch.randint(3, 60, (len(LENGTHS), max(LENGTHS)))
    mask, positions = padded(LENGTHS)
    return frozen.embed(ids), mask, positions + len(PREFIX)


def with_prefix(frozen: FrozenBackbone) -> tuple[Tensor, Tensor, Tensor]:
    """The same sequences with their prefix."""
    embedded, *_ = sequences(frozen)
    prefix = frozen.embed(torch.tensor([PREFIX]))[0]
    rows = [
        torch.cat([row[:-length], prefix, row[-length:]])
        for row, length in zip(embedded, LENGTHS, strict=True)
    ]
    return torch.stack(rows), *padded([len(PREFIX) + length for length in LENGTHS])


def test_states_and_gradients_are_those_of_whole_sequences(frozen: FrozenBackbone) -> None:
    prefix = frozen.cached_prefix(PREFIX)
    assert prefix is not None
    results = []
    for cache, (embedded, mask, positions) in (
        (prefix, sequences(frozen)),
        (None, with_prefix(frozen)),
    ):
        inputs = embedded.clone().requires_grad_()
        states = frozen.hidden(inputs, mask, positions, cache)
        real = [states[row, -length:] for row, length in enumerate(LENGTHS)]
        # Not of the squares: the last norm makes their sum a constant, which leaves rounding alone.
        weights = torch.linspace(-1, 1, frozen.width, dtype=frozen.dtype)
        (gradient,) = torch.autograd.grad((torch.cat(real) * weights).sum(), inputs)
        results.append([*real, *(gradient[row, -length:] for row, length in enumerate(LENGTHS))])
    for found, expected in zip(*results, strict=True):
        assert_same(found, expected, bound_of(frozen))


def test_a_mask_between_positions_is_one_of_what_follows(frozen: FrozenBackbone) -> None:
    embedded, mask, positions = sequences(frozen)
    width = embedded.shape[1]
    between = torch.ones(width, width, dtype=torch.bool).tril() & mask[:, None]
    between |= torch.eye(width, dtype=torch.bool)
    prefix = frozen.cached_prefix(PREFIX)
    torch.testing.assert_close(
        frozen.hidden(embedded, between, positions, prefix),
        frozen.hidden(embedded, mask, positions, prefix),
    )


def test_every_batch_continues_from_the_same_prefix(llama: FrozenBackbone) -> None:
    """Unlike a cache for generation an prefix does not grow."""
    prefix = llama.cached_prefix(PREFIX)
    assert prefix is not None
    embedded, mask, positions = sequences(llama)
    first = llama.hidden(embedded, mask, positions, prefix)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in prefix.layers]
    llama.hidden(embedded[:1, 2:], mask[:1, 2:], positions[:1, 2:], prefix)
    assert torch.equal(llama.hidden(embedded, mask, positions, prefix), first)
    assert prefix.get_seq_length() == prefix.tokens == len(PREFIX)
    for layer, (keys, values) in zip(prefix.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


def test_a_prefix_is_computed_once(llama: FrozenBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    compute = PrefixCache.compute

    def counted(body: torch.nn.Module, embedded: Tensor) -> PrefixCache:
        computed.append(embedded.shape[1])
        return compute(body, embedded)

    monkeypatch.setattr(PrefixCache, "compute", counted)
    assert llama.cached_prefix(PREFIX) is llama.cached_prefix(list(PREFIX))
    assert llama.cached_prefix(PREFIX[:2]) is not llama.cached_prefix(PREFIX)
    assert llama.cached_prefix([]) is None
    assert computed == [4, 2]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_computed_first_in_an_evaluation_it_serves_training(
    llama: FrozenBackbone, mode: type
) -> None:
    embedded, mask, positions = sequences(llama)
    with mode():
        prefix = llama.cached_prefix(PREFIX)
        evaluated = llama.hidden(embedded, mask, positions, prefix)
    assert prefix is not None
    assert not any(tensor.is_inference() for layer in prefix.layers for tensor in parts(layer))
    embedded = embedded.requires_grad_()
    states = llama.hidden(embedded, mask, positions, prefix)
    assert torch.equal(states, evaluated)
    states.square().sum().backward()
    assert embedded.grad.abs().sum() > 0
    assert not any(tensor.requires_grad for layer in prefix.layers for tensor in parts(layer))


def parts(layer: object) -> Iterator[Tensor]:
    yield from (layer.keys, layer.values)  # type: ignore[attr-defined]


def test_the_model_itself_generates_as_before(llama: FrozenBackbone) -> None:
    ids = torch.tensor([PREFIX])
    generate = {"max_new_tokens": 8, "do_sample": False}
    before = llama.model.generate(ids, **generate)
    llama.hidden(*sequences(llama), llama.cached_prefix(PREFIX))
    assert torch.equal(llama.model.generate(ids, **generate), before)
    assert torch.equal(llama.model(ids, use_cache=False).logits, llama.model(ids).logits)


def test_an_attention_that_takes_no_masks_computes_the_prefix_every_time(
    backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As flash attention, which is not here: whatever is neither sdpa nor eager."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "another", sdpa_attention_forward)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "another", sdpa_mask)
    config = random_model("llama", backbone.tokenizer).config
    for implementation, once in (("another", False), ("eager", True), ("sdpa", True)):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
        frozen = FrozenBackbone(model, backbone.tokenizer)
        assert (frozen.cached_prefix(PREFIX) is not None) == once
