"""``backbone.checkpoint_activations``: layers that compute again instead of keeping."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, CTRLConfig, GPT2Config, OPTConfig

from msea_lightning.backbone import BackboneError, FrozenBackbone
from tests.backbone.test_frozen import CONFIGS, random_model

LENGTHS = torch.tensor([7, 3, 5])


def sequences(frozen: FrozenBackbone) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, mask and positions of three sequences, padded on the left."""
    torch.manual_seed(1)
    width = int(LENGTHS.max())
    mask = torch.arange(width) >= width - LENGTHS[:, None]
    ids = torch.randint(3, 60, mask.shape)
    return frozen.embed(ids), mask, (mask.long().cumsum(-1) - 1).clamp(min=0)


def step(frozen: FrozenBackbone) -> tuple[Tensor, Tensor]:
    """States and the gradient of the embeddings."""
    embedded, mask, positions = sequences(frozen)
    embedded = embedded.clone().requires_grad_()
    states = frozen.hidden(embedded, mask, positions)
    (gradient,) = torch.autograd.grad(frozen.logits(states).square().sum(), embedded)
    return states.detach(), gradient


@pytest.mark.parametrize("name", list(CONFIGS))
def test_states_and_gradients_are_the_same(backbone: FrozenBackbone, name: str) -> None:
    tokenizer = backbone.tokenizer
    plain = FrozenBackbone(random_model(name, tokenizer), tokenizer)
    model = random_model(name, tokenizer)
    frozen = FrozenBackbone(model, tokenizer, checkpoint_activations=True)
    for found, expected in zip(step(frozen), step(plain), strict=True):
        assert torch.equal(found, expected)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_layer_keeps_its_input_alone(backbone: FrozenBackbone) -> None:
    """What is kept between forward and backward grows with the layers by little else."""

    def kept(layers: int, **options: bool) -> int:
        config = copy.deepcopy(CONFIGS["llama"])
        config.num_hidden_layers, config.vocab_size = layers, len(backbone.tokenizer)
        model = AutoModelForCausalLM.from_config(config)
        frozen = FrozenBackbone(model, backbone.tokenizer, **options)
        embedded, mask, positions = sequences(frozen)
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            found[storage._cdata] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            states = frozen.hidden(embedded.clone().requires_grad_(), mask, positions)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        assert states.requires_grad
        return sum(size for storage, size in found.items() if storage not in weights)

    tokens = int(LENGTHS.max()) * len(LENGTHS)
    inputs = tokens * CONFIGS["llama"].hidden_size * 4
    few, many = (kept(layers, checkpoint_activations=True) for layers in (2, 6))
    assert many - few <= 4 * inputs
    assert kept(6) - kept(2) > 4 * 4 * inputs


def test_generating_is_as_before_at_any_time(backbone: FrozenBackbone) -> None:
    tokenizer = backbone.tokenizer
    ids = torch.tensor([[5, 9, 3, 17]])
    generate = {"max_new_tokens": 8, "do_sample": False}
    expected = random_model("llama", tokenizer).generate(ids, **generate)
    model = random_model("llama", tokenizer)
    frozen = FrozenBackbone(model, tokenizer, checkpoint_activations=True)
    assert torch.equal(model.generate(ids, **generate), expected)
    embedded, mask, positions = sequences(frozen)
    embedded = embedded.clone().requires_grad_()
    states = frozen.hidden(embedded, mask, positions)
    assert torch.equal(model.generate(ids, **generate), expected)
    states.sum().backward()
    assert torch.equal(model.generate(ids, **generate), expected)
    with torch.no_grad():
        assert torch.equal(frozen.hidden(embedded, mask, positions), states)


def test_no_prefix_is_cached(backbone: FrozenBackbone) -> None:
    model = random_model("llama", backbone.tokenizer)
    frozen = FrozenBackbone(model, backbone.tokenizer, checkpoint_activations=True)
    assert frozen.cached_prefix([5, 9, 3]) is None


def test_dropout_within_layers_stays_off(backbone: FrozenBackbone) -> None:
    """GPT-2 drops in modules of their own, which stay in evaluation mode."""
    small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    config = GPT2Config(**small, **dropout, vocab_size=len(backbone.tokenizer))
    results = []
    for options in ({}, {"checkpoint_activations": True}):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        results.append(step(FrozenBackbone(model, backbone.tokenizer, **options)))
    assert all(torch.equal(found, expected) for found, expected in zip(*results, strict=True))


def opt(backbone: FrozenBackbone, dropout: float) -> FrozenBackbone:
    """OPT, whose layers drop by themselves where they are in training mode."""
    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        dropout=dropout,
        vocab_size=len(backbone.tokenizer),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    return FrozenBackbone(model, backbone.tokenizer, checkpoint_activations=True)


def test_layers_that_would_drop_something_are_refused(backbone: FrozenBackbone) -> None:
    step(opt(backbone, dropout=0.0))
    with pytest.raises(BackboneError, match="OPTForCausalLM cannot be a backbone"):
        opt(backbone, dropout=0.5)


def test_an_architecture_whose_layers_cannot_is_refused(backbone: FrozenBackbone) -> None:
    size = {"n_embd": 32, "n_layer": 1, "n_head": 4, "dff": 64}
    model = AutoModelForCausalLM.from_config(CTRLConfig(**size, vocab_size=len(backbone.tokenizer)))
    with pytest.raises(
        BackboneError,
        match=r"^backbone\.checkpoint_activations=true: the layers of a ctrl backbone cannot "
        r"compute their activations again\. Leave it false; trainer\.accumulate=2 or more takes "
        r"less memory too\.$",
    ):
        FrozenBackbone(model, backbone.tokenizer, checkpoint_activations=True)
