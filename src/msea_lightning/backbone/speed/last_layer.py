"""The last layer is computed only at the positions that are read.

Only some of the last layer's states predict a token of a label or of an answer. Its attention needs
the keys and values of all positions, but its queries, its output projection and its MLP work on
each position alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from msea_lightning.backbone.speed.views import replaced

_LATE_NORM = re.compile("(post|feedforward|mlp|final).*norm")
"""Norms after attention. From the ones before it keys and values are computed; where its part is
small, that they are wrong would pass for rounding in reduced precision."""


def positionwise_modules(body: nn.Module, layers: int) -> list[tuple[str, ...]]:
    """Modules from the last layer on that work on each position alone, judged by their names.

    To try, best first: all of them; without the norms that follow attention; the MLP alone, because
    an architecture may mix its queries across positions.
    """
    for stack, module in body.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            layer = f"{stack}.{layers - 1}"
            names = [f"{layer}.{name}" for name, _ in module[-1].named_modules()]
            mlp = f"{layer}.mlp"
            if mlp not in names:
                return []
            of_attention = [name for name in names if name.endswith((".q_proj", ".o_proj"))]
            norms = [
                *(
                    f"{layer}.{name}"
                    for name, _ in module[-1].named_children()
                    if _LATE_NORM.search(name)
                ),
                *(
                    name
                    for name, _ in body.named_children()
                    if name == "norm" or _LATE_NORM.search(name)
                ),
            ]
            best = (mlp, *of_attention)
            return list(dict.fromkeys([(*best, *norms), best, (mlp,)]))
    return []


def at_last_positions(body: nn.Module, names: Sequence[str], last: int) -> nn.Module:
    """A view of the body in which the named modules compute the last positions only."""
    modules = {body.get_submodule(name) for name in names}
    return replaced(body, lambda one: LastPositions(one, last) if one in modules else None)


class LastPositions(nn.Module):
    """Computes a module at the last ``last`` positions and gives zeros for the others."""

    def __init__(self, module: nn.Module, last: int) -> None:
        super().__init__()
        self.module = module
        self.last = last

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """(B, S, d) to (B, S, d); TypeError if the module takes or returns anything else."""
        if options or len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].dim() != 3:
            raise TypeError("the module takes something else than one tensor of positions")
        skipped = max(0, inputs[0].shape[1] - self.last)
        # Contiguous, as the whole input is: some modules take nothing else.
        output = self.module(inputs[0][:, skipped:].contiguous())
        if not isinstance(output, Tensor):
            raise TypeError("the module returns something else than a tensor")
        return functional.pad(output, (0, 0, skipped, 0))
