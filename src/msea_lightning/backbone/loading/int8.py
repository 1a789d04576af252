"""Linear layers in int8 that keep nothing for gradients which nobody asks for."""

from __future__ import annotations

from typing import Any, cast

import torch
from bitsandbytes.nn.modules import Linear8bitLt
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_STEPS = 127.0
"""Steps of an int8 to either side; the scale of a row stands for so many of them."""


def keep_no_inputs(model: nn.Module) -> None:
    """Makes the int8 layers of a frozen model forget their inputs.

    bitsandbytes keeps the input of each layer until the backward pass, for the gradient of a weight
    that has none here. The layers compute what they did before, with bitsandbytes' own code.

    Args:
        model: The language model; its layers become :class:`FrozenLinear8bit`.
    """
    for module in model.modules():
        if type(module) is Linear8bitLt:
            module.__class__ = FrozenLinear8bit


class FrozenLinear8bit(Linear8bitLt):
    """bitsandbytes' layer with a backward pass that goes to the input alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if torch.is_grad_enabled() and x.requires_grad:
            return cast("Tensor", _ToInputAlone.apply(x, self))  # type: ignore[no-untyped-call]
        return cast("Tensor", super().forward(x))


class _ToInputAlone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear8bit) -> Tensor:
        """What the layer makes of ``x``; the graph is not to hold on to it."""
        ctx.layer, ctx.dtype = layer, x.dtype
        with torch.no_grad():
            return cast("Tensor", Linear8bitLt.forward(layer, x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of the input, as bitsandbytes computes it."""
        state = ctx.layer.state
        matrix = state.CB.to(ctx.dtype, copy=True).mul_(state.SCB[:, None] * (1.0 / _STEPS))
        return grad.to(ctx.dtype) @ matrix, None
