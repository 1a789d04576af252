"""Results of activation functions are computed again in the backward pass instead of being kept.

A gated perceptron multiplies ``activation(gate(x))`` by ``up(x)``. PyTorch keeps for the backward
pass what the activation function is given, what it returns, and the other factor, each as wide as
the perceptron. What it returns follows from what it is given, for the price of one pass over it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.activations import ACT2CLS


class Perceptron(NamedTuple):
    """A module and the activation function that it applies."""

    module: nn.Module
    function: nn.Module


class _Kept(NamedTuple):
    """What is kept: a tensor, or what an activation function was given instead of its result.

    As soon as autograd has hooks, it leaves it to them to notice changes in place.
    """

    tensor: Tensor
    version: int
    function: nn.Module | None = None

    def unpack(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor of shape {tuple(self.tensor.shape)} that the gradient of a perceptron "
                "needs was changed in place after it had been used: no gradient goes through this "
                "language model. Choose another backbone."
            )
        if self.function is None:
            return self.tensor
        with torch.no_grad():
            result: Tensor = self.function(self.tensor)
        return result


def perceptrons(body: nn.Module) -> list[Perceptron]:
    """Modules with an activation function whose result need not be kept.

    Args:
        body: The language model without its head.
    """
    return [
        Perceptron(module, child)
        for module in body.modules()
        for child in module.children()
        if _is_activation(child) and _keeps_what_it_is_given(child)
    ]


@contextmanager
def results_forgotten(found: Sequence[Perceptron]) -> Iterator[None]:
    """Lets perceptrons keep what their activation functions are given, and not the results.

    Args:
        found: The perceptrons. Neither their results nor their gradients change.

    Raises:
        RuntimeError: in the backward pass, if the model changed in place what it needs.
    """
    with ExitStack() as hooks:
        for module, function in found:
            scope = _Scope()
            for handle in (
                module.register_forward_pre_hook(scope.open),
                function.register_forward_hook(scope.remember),
                module.register_forward_hook(scope.close, always_call=True),
            ):
                hooks.callback(handle.remove)
            # PyTorch does not call hooks after an interrupt.
            hooks.callback(scope.close)
        yield


class _Scope:
    """One perceptron while it computes."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._result: weakref.ref[Tensor] | None = None
        self._version = 0
        self._origin: _Kept | None = None

    def open(self, *_: object) -> None:
        self._opened.enter_context(saved_tensors_hooks(self._pack, _Kept.unpack))

    def remember(self, function: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        # Weakly: the memory of a result that is gone may be another tensor's by now.
        self._result, self._version = weakref.ref(result), result._version
        self._origin = _Kept(args[0].detach(), args[0]._version, function) if args else None

    def close(self, *_: object) -> None:
        self._opened.close()
        self._result = self._origin = None

    def _pack(self, kept: Tensor) -> _Kept:
        result = self._result() if self._result is not None else None
        if (
            self._origin is not None
            and result is not None
            and _same(kept, result)
            and kept._version == self._version
        ):
            return self._origin
        # Detached: an operator that keeps its own result would otherwise never be freed.
        return _Kept(kept.detach(), kept._version)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same place."""
    return (
        one.untyped_storage()._cdata == other.untyped_storage()._cdata
        and one.storage_offset() == other.storage_offset()
        and one.shape == other.shape
        and one.stride() == other.stride()
    )


def _is_activation(module: nn.Module) -> bool:
    kinds = {kind[0] if isinstance(kind, tuple) else kind for kind in ACT2CLS.values()}
    return type(module) in kinds


def _keeps_what_it_is_given(function: nn.Module) -> bool:
    """Whether it keeps that alone: some keep their result anyway, others what lies between."""
    given = torch.ones(1, requires_grad=True)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage()._cdata)
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        function(given)
    return set(kept) == {given.untyped_storage()._cdata}
