"""The last layer computes only what is read: the same states there, and the same gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.narrowing import last_perceptron, narrowed

WANTED = 3


def test_what_is_read_is_the_same(backbone: FrozenBackbone) -> None:
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


def test_the_last_perceptron_reads_no_other_position(backbone: FrozenBackbone) -> None:
    perceptron = backbone._perceptron
    assert perceptron is backbone.model.model.layers[-1].mlp
    seen = []
    watch = perceptron.gate_proj.register_forward_hook(
        lambda _, args, __: seen.append(args[0].shape[1])
    )
    inputs = torch.zeros(2, 9, backbone.width)
    mask, positions = torch.ones(2, 9, dtype=torch.bool), torch.arange(9).expand(2, -1)
    backbone.hidden(inputs, mask, positions, wanted=WANTED)
    backbone.hidden(inputs, mask, positions)
    watch.remove()
    assert seen == [WANTED, 9]


def test_nothing_stays_on_the_model(backbone: FrozenBackbone) -> None:
    perceptron = nn.Linear(4, 4)
    with pytest.raises(RuntimeError), narrowed(perceptron, 2):
        perceptron(torch.zeros(1, 5, 3))
    assert not perceptron._forward_hooks
    assert not perceptron._forward_pre_hooks
    assert perceptron(torch.ones(1, 5, 4)).shape == (1, 5, 4)


def test_a_perceptron_of_another_kind_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
            return x + residual

    two = Two()
    with pytest.raises(TypeError, match="takes something else"), narrowed(two, 1):
        two(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))


def test_an_architecture_without_one(backbone: FrozenBackbone) -> None:
    layers = len(backbone.model.model.layers)
    assert last_perceptron(nn.Sequential(nn.Linear(2, 2)), layers) is None
    assert last_perceptron(nn.ModuleList([nn.Linear(2, 2)]), 1) is None
