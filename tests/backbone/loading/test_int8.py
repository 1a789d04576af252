"""Int8 layers of a frozen model keep no inputs, and compute what bitsandbytes' own do."""

from __future__ import annotations

import gc

import pytest
import torch
from bitsandbytes.nn.modules import Linear8bitLt
from torch import Tensor, nn

from msea_lightning.backbone import FrozenBackbone, load_backbone
from msea_lightning.backbone.loading.int8 import FrozenLinear8bit
from msea_lightning.backbone.options import Quantization

WIDTH = 96
"""Of the built-in backbone."""


@pytest.fixture(scope="module")
def quantised() -> FrozenBackbone:
    return load_backbone(None, quantization=Quantization.int8)


@pytest.fixture
def layer(quantised: FrozenBackbone) -> FrozenLinear8bit:
    return next(m for m in quantised.body.modules() if isinstance(m, FrozenLinear8bit))


def step(layer: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What a layer returns, and the gradient of its input."""
    torch.manual_seed(0)
    x = torch.randn(2, 7, WIDTH, dtype=dtype, requires_grad=True)
    found = layer(x)
    (gradient,) = torch.autograd.grad(found, x, torch.randn_like(found))
    return found.detach(), gradient


def kept(layer: nn.Module) -> int:
    """Bytes that are there between forward and backward, without what is returned."""
    x = torch.randn(2, 7, WIDTH, requires_grad=True)
    before = living()
    found = layer(x * 1)
    return living() - before - found.nbytes


def living() -> int:
    """Bytes of all tensors that there are on the CPU."""
    gc.collect()
    storages = [item.untyped_storage() for item in gc.get_objects() if type(item) is Tensor]
    sizes = {s.data_ptr(): s.nbytes() for s in storages if s.device.type == "cpu"}
    return sum(sizes.values())


def test_the_language_model_itself_stays_as_it_is(quantised: FrozenBackbone) -> None:
    kinds = {type(m) for m in quantised.model.modules() if isinstance(m, Linear8bitLt)}
    assert kinds == {Linear8bitLt}
    wrapped = {m.layer for m in quantised.body.modules() if isinstance(m, FrozenLinear8bit)}
    assert wrapped == {m for m in quantised.model.modules() if isinstance(m, Linear8bitLt)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradient_are_those_of_bitsandbytes(
    layer: FrozenLinear8bit, dtype: torch.dtype
) -> None:
    found, gradient = step(layer, dtype)
    expected, its_gradient = step(layer.layer, dtype)
    assert torch.equal(found, expected)
    assert torch.equal(gradient, its_gradient)
    assert gradient.dtype == dtype


def test_nothing_is_kept(layer: FrozenLinear8bit) -> None:
    layer(torch.randn(1, WIDTH))  # the first puts the scales aside
    assert kept(layer) == 0
    assert kept(layer.layer) > 0


def test_nothing_of_a_layer_learns(layer: FrozenLinear8bit) -> None:
    found = layer(torch.randn(3, WIDTH))
    assert not found.requires_grad
    assert not any(parameter.requires_grad for parameter in layer.parameters())
