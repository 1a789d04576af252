"""The last layer computes only what is read: the same states there, and the same gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.speed.last_layer import narrowable, narrowed
from tests.backbone.test_frozen import CONFIGS, random_model

WANTED = 3
PARTS = {"llama": 3, "qwen2": 3, "gemma2": 3, "gpt2": 1}
"""Modules of the last layer that are narrowed."""


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_read_is_the_same(kind: str, backbone: FrozenBackbone) -> None:
    backbone = FrozenBackbone(
        random_model(kind, backbone.tokenizer), backbone.tokenizer, pad_token="<pad>"
    )
    assert len(backbone._narrow) == PARTS[kind]
    inputs = torch.randn(4, 11, backbone.width, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(4, 11, dtype=torch.bool)
    mask[1:3, :4] = False
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    found = []
    for wanted in (None, WANTED):
        embedded = inputs.clone().requires_grad_()
        states = backbone.hidden(embedded, mask, positions, wanted=wanted)[:, -WANTED:]
        states.square().sum().backward()
        found.append((states.detach(), embedded.grad))
    (whole, gradient), (narrow, narrow_gradient) = found
    torch.testing.assert_close(narrow, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(narrow_gradient, gradient, atol=1e-5, rtol=1e-4)


def test_the_last_layer_computes_no_other_position(backbone: FrozenBackbone) -> None:
    attention, perceptron = (
        getattr(backbone.model.model.layers[-1], name) for name in ("self_attn", "mlp")
    )
    assert backbone._narrow == [perceptron, attention.q_proj, attention.o_proj]
    seen = []

    def note(_: nn.Module, args: tuple[torch.Tensor], __: torch.Tensor) -> None:
        seen.append(args[0].shape[1])

    parts = (attention.q_proj, attention.k_proj, attention.o_proj, perceptron.gate_proj)
    inputs = torch.zeros(2, 9, backbone.width)
    mask, positions = torch.ones(2, 9, dtype=torch.bool), torch.arange(9).expand(2, -1)
    for part in parts:
        handle = part.register_forward_hook(note)
        backbone.hidden(inputs, mask, positions, wanted=WANTED)
        backbone.hidden(inputs, mask, positions)
        handle.remove()
    assert seen == [WANTED, 9, 9, 9, WANTED, 9, WANTED, 9]


def test_nothing_stays_on_the_model() -> None:
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    with pytest.raises(RuntimeError), narrowed([one, two], 2):
        two(one(torch.zeros(1, 5, 3)))
    for module in (one, two):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert one(torch.ones(1, 5, 4)).shape == (1, 5, 4)


def test_a_module_of_another_kind_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
            return x + residual

    two = Two()
    with pytest.raises(TypeError, match="takes something else"), narrowed([two], 1):
        two(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))


def test_what_can_be_narrowed() -> None:
    perceptron = nn.Linear(2, 2)
    whole = nn.Module()
    whole.mlp, whole.attention = perceptron, nn.Module()
    whole.attention.q_proj = nn.Linear(2, 2)
    alone = nn.Module()
    alone.mlp = perceptron
    assert narrowable(nn.ModuleList([nn.ModuleList([alone, whole])]), 2) == [
        [perceptron, whole.attention.q_proj],
        [perceptron],
    ]
    assert narrowable(nn.ModuleList([nn.ModuleList([whole, alone])]), 2) == [[perceptron]]
    assert narrowable(nn.ModuleList([nn.ModuleList([whole, alone])]), 3) == []
    assert narrowable(nn.ModuleList([nn.Linear(2, 2)]), 1) == []


class Mixing(nn.Module):
    """Queries that are mixed over positions before they ask."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.own(x).cumsum(1)
        return mixed


def test_queries_that_depend_on_each_other_are_all_computed(backbone: FrozenBackbone) -> None:
    model = random_model("llama", backbone.tokenizer)
    layer = model.model.layers[-1]
    layer.self_attn.q_proj = Mixing(layer.self_attn.q_proj)
    assert FrozenBackbone(model, backbone.tokenizer)._narrow == [layer.mlp]
