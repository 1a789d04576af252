"""The last layer computes only what somebody reads.

Of the last layer's states only those are wanted that predict a token of a label or of an answer.
Its attention has to read all positions, but its perceptron works on each position by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def last_perceptron(body: nn.Module, layers: int) -> nn.Module | None:
    """The perceptron of the last layer; None where the architecture has none of that name.

    Args:
        body: The language model without its head.
        layers: Number of its layers.
    """
    for module in body.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            found = getattr(module[-1], "mlp", None)
            return found if isinstance(found, nn.Module) else None
    return None


@contextmanager
def narrowed(perceptron: nn.Module, wanted: int) -> Iterator[None]:
    """Lets a perceptron compute the last positions alone; it adds nothing to all others.

    Args:
        perceptron: Takes (B, S, d) and returns as much.
        wanted: How many of the S positions are read.

    Raises:
        TypeError: from within, if it takes or returns anything else.
    """
    left_out = 0

    def narrow(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        nonlocal left_out
        if len(args) != 1 or not isinstance(args[0], Tensor) or args[0].dim() != 3:
            raise TypeError("the perceptron takes something else than one tensor of positions")
        left_out = max(0, args[0].shape[1] - wanted)
        # As a whole layer has them: some layers take no others.
        return (args[0][:, left_out:].contiguous(),)

    def widen(_: nn.Module, args: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError("the perceptron returns something else than a tensor")
        return functional.pad(output, (0, 0, left_out, 0))

    hooks = [
        perceptron.register_forward_pre_hook(narrow),
        perceptron.register_forward_hook(widen),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
