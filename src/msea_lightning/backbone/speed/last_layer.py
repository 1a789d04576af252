"""The last layer computes only what somebody reads.

Of the last layer's states only those are wanted that predict a token of a label or of an answer.
Its attention has to have the keys and values of all positions, but what asks, what is made of the
answers, and the perceptron behind it work on each position by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

_PERCEPTRON = "mlp"
_QUERY_AND_OUTPUT = ("q_proj", "o_proj")


def narrowable(body: nn.Module, layers: int) -> list[list[nn.Module]]:
    """Modules of the last layer that work on each position by itself, by the names they go by.

    Args:
        body: The language model without its head.
        layers: Number of its layers.

    Returns:
        What to try, best first: all of them, then the perceptron alone. A model may be built so
        that its attention does need all queries.
    """
    for module in body.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            perceptron = getattr(module[-1], _PERCEPTRON, None)
            if not isinstance(perceptron, nn.Module):
                return []
            of_attention = [
                part
                for name, part in module[-1].named_modules()
                if name.rpartition(".")[2] in _QUERY_AND_OUTPUT
            ]
            choices = [[perceptron, *of_attention], [perceptron]]
            return choices if of_attention else choices[1:]
    return []


@contextmanager
def narrowed(modules: Sequence[nn.Module], wanted: int) -> Iterator[None]:
    """Lets modules compute the last positions alone; they give zeros for all others.

    Args:
        modules: Each takes (B, S, ...) and returns (B, S, ...).
        wanted: How many of the S positions are read.

    Raises:
        TypeError: from within, if one takes or returns anything else.
    """
    with ExitStack() as hooks:
        for module in modules:
            narrow = _Narrow(wanted)
            for handle in (
                module.register_forward_pre_hook(narrow.take),
                module.register_forward_hook(narrow.fill),
            ):
                hooks.callback(handle.remove)
        yield


class _Narrow:
    """The hooks of one module."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._left_out = 0

    def take(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        if len(args) != 1 or not isinstance(args[0], Tensor) or args[0].dim() != 3:
            raise TypeError("the module takes something else than one tensor of positions")
        self._left_out = max(0, args[0].shape[1] - self._wanted)
        # As a whole layer has them: some layers take no others.
        return (args[0][:, self._left_out :].contiguous(),)

    def fill(self, _: nn.Module, args: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError("the module returns something else than a tensor")
        return functional.pad(output, (0, 0, self._left_out, 0))
