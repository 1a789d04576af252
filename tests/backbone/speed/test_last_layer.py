"""The last layer at the read positions only: the same states there, and the same gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import ApertusConfig, AutoModelForCausalLM

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.speed.last_layer import LastPositions, positionwise_modules
from tests.backbone.test_frozen import CONFIGS, SMALL, assert_same, random_model

LAST = 3
MODULES = {"llama": 5, "qwen2": 5, "gemma2": 7, "gpt2": 1}
"""Modules of the last layer that are computed at the last positions only."""


@pytest.mark.parametrize("checkpoint_activations", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_read_is_the_same(
    kind: str, checkpoint_activations: bool, backbone: FrozenBackbone
) -> None:
    backbone = FrozenBackbone(
        random_model(kind, backbone.tokenizer, dtype=torch.float64),
        backbone.tokenizer,
        pad_token="<pad>",
        checkpoint_activations=checkpoint_activations,
    )
    assert len(backbone.last_modules) == MODULES[kind]
    inputs = torch.randn(4, 11, backbone.width, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(4, 11, dtype=torch.bool)
    mask[1:3, :4] = False
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    found = []
    for last in (None, LAST):
        embedded = inputs.double().requires_grad_()
        states = backbone.hidden(embedded, mask, positions, last=last)[:, -LAST:]
        (gradient,) = torch.autograd.grad(states.square().sum(), embedded)
        found.append((states, gradient))
    for whole, few in zip(*found, strict=True):
        assert_same(few, whole)


def test_the_last_layer_computes_no_other_position(backbone: FrozenBackbone) -> None:
    attention, mlp = (
        getattr(backbone.model.model.layers[-1], name) for name in ("self_attn", "mlp")
    )
    seen = []

    def note(_: nn.Module, args: tuple[Tensor], __: Tensor) -> None:
        seen.append(args[0].shape[1])

    inputs = torch.zeros(2, 9, backbone.width)
    mask, positions = torch.ones(2, 9, dtype=torch.bool), torch.arange(9).expand(2, -1)
    for part in (attention.q_proj, attention.k_proj, attention.o_proj, mlp.gate_proj):
        handle = part.register_forward_hook(note)
        backbone.hidden(inputs, mask, positions, last=LAST)
        backbone.hidden(inputs, mask, positions)
        handle.remove()
    assert seen == [LAST, 9, 9, 9, LAST, 9, LAST, 9]


def test_a_module_of_another_kind_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            return x + residual

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return x, None

    x = torch.zeros(1, 2, 3)
    with pytest.raises(TypeError, match="takes something else"):
        LastPositions(Two(), 1)(x, x)
    with pytest.raises(TypeError, match="returns something else"):
        LastPositions(Pair(), 1)(x)


def test_modules_by_their_names() -> None:
    whole = nn.Module()
    whole.mlp, whole.attention = nn.Linear(2, 2), nn.Module()
    whole.attention.q_proj = nn.Linear(2, 2)
    alone = nn.Module()
    alone.mlp = nn.Linear(2, 2)

    def found(*layers: nn.Module, number: int | None = None) -> list[tuple[str, ...]]:
        body = nn.Module()
        body.layers = nn.ModuleList(copy.deepcopy(layers))
        return positionwise_modules(body, number or len(layers))

    assert found(alone, whole) == [("layers.1.mlp", "layers.1.attention.q_proj"), ("layers.1.mlp",)]
    assert found(whole, alone) == [("layers.1.mlp",)]
    assert found(whole, alone, number=3) == []
    assert found(nn.Linear(2, 2)) == []


def test_norms_before_attention_see_all_positions(backbone: FrozenBackbone) -> None:
    config = ApertusConfig(**SMALL, vocab_size=len(backbone.tokenizer))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():  # a part so small that the check could take it for rounding
        model.model.layers[-1].self_attn.o_proj.weight.mul_(1e-3)
    found = FrozenBackbone(model, backbone.tokenizer).last_modules
    assert "layers.1.feedforward_layernorm" in found
    assert "layers.1.attention_layernorm" not in found


class Mixing(nn.Module):
    """Queries that are mixed across positions."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.own(x).cumsum(1)
        return mixed


def test_queries_that_depend_on_each_other_are_all_computed(backbone: FrozenBackbone) -> None:
    model = random_model("llama", backbone.tokenizer)
    layer = model.model.layers[-1]
    layer.self_attn.q_proj = Mixing(layer.self_attn.q_proj)
    assert FrozenBackbone(model, backbone.tokenizer).last_modules == ("layers.1.mlp",)
