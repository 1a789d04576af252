"""Norms with a gradient in one piece: the same results, the same gradient, less kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.norms import FrozenNorm, join_norms, part_norms
from tests.backbone.test_frozen import CONFIGS, random_model

JOINED = {"llama": 5, "qwen2": 5, "gemma2": 0, "gpt2": 0}
"""Norms of models of two layers; Gemma's and GPT-2's are others."""
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def norm(dtype: torch.dtype = torch.float32, width: int = 32) -> LlamaRMSNorm:
    made = LlamaRMSNorm(width, eps=1e-5)
    generator = torch.Generator().manual_seed(2)
    made.weight.data = torch.randn(width, generator=generator)
    return made.to(dtype).requires_grad_(requires_grad=False)


def gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the gradient that one of size one has."""
    given = x.clone().requires_grad_()
    result = module(given)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(4)).to(x.dtype)
    return result, torch.autograd.grad(result, given, weights)[0]


@pytest.mark.parametrize("kind", CONFIGS)
def test_states_stay_to_the_bit_and_gradients_up_to_rounding(
    kind: str, backbone: FrozenBackbone
) -> None:
    model = random_model(kind, backbone.tokenizer)
    inputs = torch.randn(3, 7, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    results = []
    for joined in (False, True):
        model.eval().requires_grad_(requires_grad=False)
        if joined:
            assert join_norms(model) == JOINED[kind]
        given = inputs.clone().requires_grad_()
        states = getattr(model, model.base_model_prefix)(inputs_embeds=given).last_hidden_state
        results.append((states, torch.autograd.grad(states.square().sum(), given)[0]))
    (states, expected), (same, found) = results
    assert torch.equal(states, same)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_one_norm_in_every_precision(dtype: torch.dtype, scale: float) -> None:
    plain, joined = norm(dtype), nn.Sequential(norm(dtype))
    assert join_norms(joined) == 1
    assert isinstance(joined[0], LlamaRMSNorm)
    x = (scale * torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))).to(dtype)
    (result, expected), (same, found) = gradient(plain, x), gradient(joined, x)
    assert torch.equal(result, same)
    assert found.dtype is dtype
    size = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCES[dtype] * size)


def test_its_input_is_all_that_is_kept() -> None:
    joined = nn.Sequential(norm(torch.bfloat16))
    join_norms(joined)
    given = torch.randn(4, 32).to(torch.bfloat16).requires_grad_()
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        joined(given)
    assert [tensor.data_ptr() for tensor in kept] == [given.data_ptr()]


def test_norms_that_compute_anything_else_are_left_alone() -> None:
    class CenteredRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            result: Tensor = super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))
            return result

    others = nn.Sequential(CenteredRMSNorm(8), Gemma2RMSNorm(8), nn.LayerNorm(8))
    assert join_norms(others) == 0
    assert not any(isinstance(module, FrozenNorm) for module in others)


def test_no_run_draws_other_numbers_because_of_it_and_twice_is_as_once() -> None:
    joined = nn.Sequential(norm(), norm())
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert join_norms(joined) == 2
    assert torch.equal(torch.rand(1), expected)
    kinds = [type(module) for module in joined]
    assert join_norms(joined) == 2
    assert [type(module) for module in joined] == kinds
    part_norms(joined)
    assert [type(module) for module in joined] == [LlamaRMSNorm, LlamaRMSNorm]
