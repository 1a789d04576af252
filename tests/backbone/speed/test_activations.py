"""Activation functions whose results are computed again: less is kept, nothing else changes."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.activations import ACT2FN

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.speed.activations import (
    Perceptron,
    _same,
    perceptrons,
    results_forgotten,
)
from tests.backbone.test_frozen import CONFIGS, random_model

KEPT = ["silu", "gelu", "gelu_pytorch_tanh"]
"""Functions that keep what they are given, and that alone."""
OTHERS = ["relu", "tanh", "gelu_new", "quick_gelu", "linear"]


class Gated(nn.Module):
    """A perceptron as most language models have it."""

    def __init__(self, function: str = "silu") -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.function = ACT2FN[function]
        self.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(self.function(self.gate(x)) * self.up(x))
        return result


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, 8, generator=generator).requires_grad_()


def gradient(module: nn.Module, x: Tensor) -> Tensor:
    """Of the sum of squares."""
    (found,) = torch.autograd.grad(module(x).square().sum(), x)
    return found


@pytest.mark.parametrize("kind", CONFIGS)
def test_states_and_gradients_stay_to_the_bit(kind: str, backbone: FrozenBackbone) -> None:
    frozen = FrozenBackbone(
        random_model(kind, backbone.tokenizer), backbone.tokenizer, pad_token="<pad>"
    )
    assert bool(frozen._perceptrons) == (kind != "gpt2")
    embedded = torch.randn(3, 7, frozen.width, generator=torch.Generator().manual_seed(1))
    mask, positions = torch.ones(3, 7, dtype=torch.bool), torch.arange(7).expand(3, -1)
    results = []
    for found in (frozen._perceptrons, []):
        frozen._perceptrons = found
        given = embedded.clone().requires_grad_()
        states = frozen.hidden(given, mask, positions)
        results.append((states, torch.autograd.grad(states.square().sum(), given)[0]))
    for forgotten, kept in zip(*results, strict=True):
        assert torch.equal(forgotten, kept)


@pytest.mark.parametrize("function", KEPT)
def test_a_result_is_gone_when_the_perceptron_has_computed(function: str) -> None:
    module, given = Gated(function), inputs()
    found = perceptrons(module)
    assert found == [Perceptron(module, module.function)]
    seen: list[weakref.ref[Any]] = []
    module.function.register_forward_hook(
        lambda _, __, result: seen.append(weakref.ref(result.untyped_storage()))
    )
    kept = module(given)
    with results_forgotten(found):
        forgotten = module(given)
    assert [storage() is None for storage in seen] == [False, True]
    (expected,) = torch.autograd.grad(kept.sum(), given)
    assert torch.equal(torch.autograd.grad(forgotten.sum(), given)[0], expected)


@pytest.mark.parametrize("function", OTHERS)
def test_functions_that_keep_something_else_are_left_alone(function: str) -> None:
    assert perceptrons(Gated(function)) == []


def test_memory_that_another_tensor_has_by_now_is_not_taken_for_the_result() -> None:
    class Late(Gated):
        """Multiplies by what may lie where the result of the function was."""

        def forward(self, x: Tensor) -> Tensor:
            total: Tensor = self.function(x).sum() + 0.0 * x
            for number in range(20):
                total = total + (x + number) * (x - number)
            return total

    module = Late()
    expected = gradient(module, inputs())
    with results_forgotten(perceptrons(module)):
        assert torch.equal(gradient(module, inputs()), expected)


def test_a_part_of_the_result_is_kept() -> None:
    class Halves(Gated):
        def forward(self, x: Tensor) -> Tensor:
            result = self.function(x)
            return (result[:, :4] * x[:, 4:]).sum() + (result.T * x.T).sum() + result.exp().sum()

    module = Halves()
    expected = gradient(module, inputs())
    with results_forgotten(perceptrons(module)):
        assert torch.equal(gradient(module, inputs()), expected)


def test_a_result_that_was_changed_is_kept() -> None:
    class Doubling(Gated):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.function(self.gate(x)).mul_(2.0) * self.up(x)
            return result

    module = Doubling()
    expected = gradient(module, inputs())
    with results_forgotten(perceptrons(module)):
        assert torch.equal(gradient(module, inputs()), expected)


def test_what_is_changed_after_its_use_is_noticed() -> None:
    class Spoiling(Gated):
        def forward(self, x: Tensor) -> Tensor:
            gate = self.gate(x)
            result: Tensor = self.function(gate) * self.up(x)
            gate.add_(1.0)
            return result

    module = Spoiling()
    with results_forgotten(perceptrons(module)), pytest.raises(RuntimeError, match="changed in pl"):
        gradient(module, inputs())


def test_what_keeps_its_own_result_is_freed_without_a_backward_pass() -> None:
    class Squashing(Gated):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.function(self.gate(x)).tanh()
            return result

    module = Squashing()
    with results_forgotten(perceptrons(module)):
        storage = weakref.ref(module(inputs()).untyped_storage())
    assert storage() is None


def test_places_in_one_storage_are_told_apart() -> None:
    rows = torch.zeros(2, 4)
    assert _same(rows[0], rows[0])
    assert not _same(rows[0], rows[1])


@pytest.mark.parametrize("ending", [ArithmeticError, KeyboardInterrupt])
def test_nothing_stays_on_the_model_or_in_autograd(ending: type[BaseException]) -> None:
    class Failing(Gated):
        def forward(self, x: Tensor) -> Tensor:
            raise ending(str(super().forward(x).shape))

    module = Failing()
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda kept: kept):
        with pytest.raises(ending), results_forgotten(perceptrons(module)):
            module(inputs())
        packed.clear()  # what the functions were tried with
        # The hooks on top are the outer ones again.
        inputs().exp()
        assert len(packed) == 1
    for part in (module, module.function):
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
