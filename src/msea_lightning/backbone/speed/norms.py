"""Root mean square norms with a backward pass in one piece.

transformers writes these norms as a handful of operators. Their gradients go back through each of
them, over four times as many numbers as the norm reads, and where the model computes in half
precision a copy in float32 is kept of every input. Written as one, the gradient of
``y = w * x * r`` with ``r = 1 / sqrt(mean(x**2) + eps)`` is ``r * (g * w - x * r**2 * mean(g * w *
x))``, and of what it needs only the input is kept, which the residual stream keeps anyway.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ROWS = 3
"""Rows of random numbers with which a norm is tried."""

_CANNOT = (TypeError, ValueError, RuntimeError, AttributeError)
"""How a norm fails that is none, or cannot be tried."""

_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""What rounding may make of a gradient of size one."""


def join_norms(model: nn.Module) -> int:
    """Gives the norms of a frozen model a backward pass in one piece.

    Each is tried first: one that computes anything else is left as it is. What the norms return is
    computed by their own code as before.

    Args:
        model: The language model; its norms become :class:`FrozenNorm`, besides what they are.

    Returns:
        How many there are now.
    """
    norms = [module for module in model.modules() if _may_be(module)]
    for norm in norms:
        own: Any = type(norm)
        if not issubclass(own, FrozenNorm) and _is_right(norm):
            norm.__class__ = _joined(own)
    return sum(isinstance(norm, FrozenNorm) for norm in norms)


def part_norms(model: nn.Module) -> None:
    """Takes :func:`join_norms` back.

    Args:
        model: The language model; its norms are what they were.
    """
    joined: list[Any] = [module for module in model.modules() if isinstance(module, FrozenNorm)]
    for norm in joined:
        norm.__class__ = norm.own


class FrozenNorm(nn.Module):
    """A norm whose gradient goes to its input alone; the other base class computes it.

    Attributes:
        own: That class.
    """

    own: ClassVar[Any]
    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            return cast("Tensor", _Norm.apply(hidden_states, self))  # type: ignore[no-untyped-call]
        return cast("Tensor", super().forward(hidden_states))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickled by the class that it had: this one has no name in a module."""
        return _empty, (self.own,), self.__dict__


@cache
def _joined(own: Any) -> type[FrozenNorm]:
    """The class of norms that were of another."""
    return type(f"Frozen{own.__name__}", (FrozenNorm, own), {"own": own})


def _empty(own: Any) -> FrozenNorm:
    kind = _joined(own)
    return kind.__new__(kind)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: FrozenNorm) -> Tensor:
        """What the norm makes of ``x``."""
        ctx.save_for_backward(x)
        ctx.norm = norm
        result: Tensor = norm.own.forward(norm, x)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of the input."""
        (x,) = ctx.saved_tensors
        return input_gradient(x, grad, ctx.norm.weight, ctx.norm.variance_epsilon), None


def input_gradient(x: Tensor, grad: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The gradient of the input of ``weight * x / sqrt(mean(x**2) + eps)``, inside in float32.

    Args:
        x: (..., d) input.
        grad: (..., d) gradient of the result.
        weight: (d,) factors.
        eps: What is added to the mean square.

    Returns:
        (..., d) in the dtype of ``x``.
    """
    x32, scaled = x.float(), grad.float() * weight.float()
    width = x.shape[-1]
    inverse = (torch.linalg.vecdot(x32, x32)[..., None] / width + eps).rsqrt_()
    along = torch.linalg.vecdot(scaled, x32)[..., None]
    return scaled.addcmul(x32, along.mul_(inverse.square()).div_(-width)).mul_(inverse).to(x.dtype)


def _may_be(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__.endswith("RMSNorm")
        and isinstance(weight, Tensor)
        and weight.dtype in _TOLERANCE
        and not weight.requires_grad
        and len(inspect.signature(module.forward).parameters) == 1
        and isinstance(getattr(module, "variance_epsilon", None), float)
    )


def _is_right(norm: nn.Module) -> bool:
    """Whether the gradient that its own code gives is the one that is written here."""
    weight = cast("Tensor", norm.weight)
    # Of an own generator: no run is to draw other numbers because of this.
    own = torch.Generator().manual_seed(0)
    eps = cast("float", norm.variance_epsilon)
    # Of ordinary size, and so small that it matters where eps is added.
    sizes = torch.tensor([1.0, max(eps, 0.0) ** 0.5])[:, None, None]
    try:
        with torch.inference_mode(mode=False), torch.enable_grad():
            x, grad = torch.randn(2, len(sizes), _ROWS, *weight.shape, generator=own)
            x, grad = (part.to(weight.device, weight.dtype) for part in (sizes * x, grad))
            given = x.requires_grad_()
            (expected,) = torch.autograd.grad(norm(given), given, grad)
            found = input_gradient(x.detach(), grad, weight, eps)
    except _CANNOT:
        return False
    difference = (found.float() - expected.float()).abs().amax(-1)
    scale = expected.float().abs().amax(-1).clamp(min=1e-30)
    return bool((difference <= _TOLERANCE[weight.dtype] * scale).all())
