"""Openings: tokens that every sequence begins with, read once instead of with every sequence."""

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
from msea_lightning.backbone.speed.prefix import Opening
from tests.backbone.test_frozen import CONFIGS, random_model

OPENING = [5, 9, 3, 17]
LENGTHS = [6, 2, 9]
"""Tokens of each sequence after the opening."""


@pytest.fixture(params=list(CONFIGS))
def frozen(request: pytest.FixtureRequest, backbone: FrozenBackbone) -> FrozenBackbone:
    model = random_model(request.param, backbone.tokenizer)
    return FrozenBackbone(model, backbone.tokenizer, pad_token="<pad>")


@pytest.fixture
def llama(backbone: FrozenBackbone) -> FrozenBackbone:
    return FrozenBackbone(random_model("llama", backbone.tokenizer), backbone.tokenizer)


def padded(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Mask and positions of sequences that are padded on the left."""
    width = max(lengths)
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return mask, (mask.long().cumsum(-1) - 1).clamp(min=0)


def sequences(frozen: FrozenBackbone) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, mask and positions of what follows the opening."""
    torch.manual_seed(1)
    ids = torch.randint(3, 60, (len(LENGTHS), max(LENGTHS)))
    mask, positions = padded(LENGTHS)
    return frozen.embed(ids), mask, positions + len(OPENING)


def with_opening(frozen: FrozenBackbone) -> tuple[Tensor, Tensor, Tensor]:
    """The same sequences with their opening."""
    embedded, *_ = sequences(frozen)
    opening = frozen.embed(torch.tensor([OPENING]))[0]
    rows = [
        torch.cat([row[:-length], opening, row[-length:]])
        for row, length in zip(embedded, LENGTHS, strict=True)
    ]
    return torch.stack(rows), *padded([len(OPENING) + length for length in LENGTHS])


def test_states_and_gradients_are_those_of_whole_sequences(frozen: FrozenBackbone) -> None:
    opening = frozen.opening(OPENING)
    assert opening is not None
    results = []
    for read_before, (embedded, mask, positions) in (
        (opening, sequences(frozen)),
        (None, with_opening(frozen)),
    ):
        inputs = embedded.clone().requires_grad_()
        states = frozen.hidden(inputs, mask, positions, read_before)
        real = [states[row, -length:] for row, length in enumerate(LENGTHS)]
        (gradient,) = torch.autograd.grad(torch.cat(real).square().sum(), inputs)
        results.append([*real, *(gradient[row, -length:] for row, length in enumerate(LENGTHS))])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_a_mask_between_positions_is_one_of_what_follows(frozen: FrozenBackbone) -> None:
    embedded, mask, positions = sequences(frozen)
    width = embedded.shape[1]
    between = torch.ones(width, width, dtype=torch.bool).tril() & mask[:, None]
    between |= torch.eye(width, dtype=torch.bool)
    opening = frozen.opening(OPENING)
    torch.testing.assert_close(
        frozen.hidden(embedded, between, positions, opening),
        frozen.hidden(embedded, mask, positions, opening),
    )


def test_every_batch_goes_on_from_the_same_place(llama: FrozenBackbone) -> None:
    """Unlike a cache for generation an opening does not grow."""
    opening = llama.opening(OPENING)
    assert opening is not None
    embedded, mask, positions = sequences(llama)
    first = llama.hidden(embedded, mask, positions, opening)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in opening.layers]
    llama.hidden(embedded[:1, 2:], mask[:1, 2:], positions[:1, 2:], opening)
    assert torch.equal(llama.hidden(embedded, mask, positions, opening), first)
    assert opening.get_seq_length() == opening.tokens == len(OPENING)
    for layer, (keys, values) in zip(opening.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


def test_an_opening_is_read_once(llama: FrozenBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = []
    read = Opening.read

    def counted(body: torch.nn.Module, embedded: Tensor) -> Opening:
        readings.append(embedded.shape[1])
        return read(body, embedded)

    monkeypatch.setattr(Opening, "read", counted)
    assert llama.opening(OPENING) is llama.opening(list(OPENING))
    assert llama.opening(OPENING[:2]) is not llama.opening(OPENING)
    assert llama.opening([]) is None
    assert readings == [4, 2]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_read_first_in_an_evaluation_it_serves_training(llama: FrozenBackbone, mode: type) -> None:
    embedded, mask, positions = sequences(llama)
    with mode():
        opening = llama.opening(OPENING)
        evaluated = llama.hidden(embedded, mask, positions, opening)
    assert opening is not None
    assert not any(tensor.is_inference() for layer in opening.layers for tensor in parts(layer))
    embedded = embedded.requires_grad_()
    states = llama.hidden(embedded, mask, positions, opening)
    assert torch.equal(states, evaluated)
    states.square().sum().backward()
    assert embedded.grad.abs().sum() > 0
    assert not any(tensor.requires_grad for layer in opening.layers for tensor in parts(layer))


def parts(layer: object) -> Iterator[Tensor]:
    yield from (layer.keys, layer.values)  # type: ignore[attr-defined]


def test_the_model_itself_generates_as_before(llama: FrozenBackbone) -> None:
    ids = torch.tensor([OPENING])
    generate = {"max_new_tokens": 8, "do_sample": False}
    before = llama.model.generate(ids, **generate)
    llama.hidden(*sequences(llama), llama.opening(OPENING))
    assert torch.equal(llama.model.generate(ids, **generate), before)
    assert torch.equal(llama.model(ids, use_cache=False).logits, llama.model(ids).logits)


def test_an_attention_that_takes_no_masks_reads_the_opening_every_time(
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
        assert (frozen.opening(OPENING) is not None) == once
