"""Linear layers in int8 that do not keep their inputs for the backward pass."""

from __future__ import annotations

from typing import Any, cast

import torch
from bitsandbytes.nn.modules import Linear8bitLt
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def frozen_int8(module: nn.Module) -> nn.Module | None:
    """What stands for an int8 layer in a frozen model; None for any other module."""
    return FrozenLinear8bit(module) if isinstance(module, Linear8bitLt) else None


class FrozenLinear8bit(nn.Module):
    """An int8 layer of bitsandbytes with a backward pass to its input alone.

    bitsandbytes keeps the input of each layer for the gradient of the weight, which a frozen layer
    does not have. The result is computed by bitsandbytes' own code.
    """

    def __init__(self, layer: Linear8bitLt) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if torch.is_grad_enabled() and x.requires_grad:
            return cast("Tensor", _InputGradient.apply(x, self.layer))  # type: ignore[no-untyped-call]
        return cast("Tensor", self.layer(x))


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Linear8bitLt) -> Tensor:
        """The layer's result; ``x`` is not saved."""
        ctx.layer, ctx.dtype = layer, x.dtype
        with torch.no_grad():
            return cast("Tensor", layer(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of the input, as bitsandbytes computes it."""
        state = ctx.layer.state
        # The scale of a row stands for the 127 steps of an int8 to either side.
        matrix = state.CB.to(ctx.dtype, copy=True).mul_(state.SCB[:, None] * (1.0 / 127))
        return grad.to(ctx.dtype) @ matrix, None
