"""Norms with a gradient in one piece: the same results, the same gradient, less kept."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.speed.norms import FrozenNorm, join_norms, part_norms
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

    class OutsideRMSNorm(LlamaRMSNorm):
        """Adds eps to the root, where it makes a difference for small inputs alone."""

        def forward(self, hidden_states: Tensor) -> Tensor:
            size = hidden_states.square().mean(-1, keepdim=True).sqrt() + self.variance_epsilon
            return self.weight * hidden_states / size

    class TwofoldRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
            result: Tensor = super().forward(hidden_states * gate)
            return result

    class FailingRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            raise ValueError(hidden_states.shape)

    kinds = (CenteredRMSNorm, OutsideRMSNorm, TwofoldRMSNorm, FailingRMSNorm, Gemma2RMSNorm)
    others = nn.Sequential(*(kind(8) for kind in kinds), nn.LayerNorm(8))
    others.requires_grad_(requires_grad=False)
    assert join_norms(others) == 0
    assert join_norms(nn.Sequential(LlamaRMSNorm(8))) == 0, "its weight is trained"
    assert not any(isinstance(module, FrozenNorm) for module in others)


def test_joined_norms_are_copied_and_pickled() -> None:
    joined = nn.Sequential(norm())
    join_norms(joined)
    x = torch.randn(3, 32)
    for other in (copy.deepcopy(joined), pickle.loads(pickle.dumps(joined))):
        assert type(other[0]) is type(joined[0])
        assert torch.equal(gradient(other, x)[1], gradient(joined, x)[1])


def test_hooks_on_a_norm_are_called_once() -> None:
    joined = nn.Sequential(norm())
    join_norms(joined)
    calls: list[int] = []
    joined[0].register_forward_hook(lambda *_: calls.append(1))
    gradient(joined, torch.randn(3, 32))
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore")  # what torch.compile imports
def test_only_what_is_not_compiled_is_joined(backbone: FrozenBackbone) -> None:
    model = random_model("llama", backbone.tokenizer)
    for compiled, expected in ((False, 5), (True, 0)):
        FrozenBackbone(model, backbone.tokenizer, compile=compiled)
        assert sum(isinstance(part, FrozenNorm) for part in model.modules()) == expected


def test_a_model_may_be_wrapped_in_inference_mode(backbone: FrozenBackbone) -> None:
    model = random_model("llama", backbone.tokenizer)
    model.requires_grad_(requires_grad=False)
    with torch.inference_mode():
        assert join_norms(model) == 5


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
