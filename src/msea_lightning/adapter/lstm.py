"""The last hidden state of an LSTM over sequences of unequal length.

PyTorch's LSTM over packed sequences is one kernel on a GPU. On a CPU the time of its gradient grows
with the square of the length (every step's slice of the input gets a gradient as large as the whole
input), which at 900 frames is most of a training step; over padded sequences it computes the
padding, and its gradient is slow with wide features. For training on a CPU the steps are therefore
written out, forward and backward, and everything that does not depend on the step before is one
operation for all of them (docs/log.md has times).

Shape suffixes:
    B sequences, L steps of the longest, N steps of all sequences together, F features, H width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

_VANISHED, _STEPS_BETWEEN = 1e-25, 4
"""Gradients shrink on the way back through time, down to denormal numbers, which processors compute
with a hundred times slower. Every few steps smaller numbers than this are set to zero."""


_WITH_KERNEL = {"cuda"}
"""Types of devices that have a kernel for packed sequences."""


class LastStateLSTM(nn.LSTM):
    """A :class:`torch.nn.LSTM` of one layer and one direction; weights and names are the same."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width, batch_first=True)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """(B, H) states after the last step of each sequence.

        Args:
            frames: (B, L, F); frames beyond a length are never read.
            lengths: (B,) int64 on the CPU, each from 1 to L.
        """
        if frames.device.type not in _WITH_KERNEL and not torch.is_grad_enabled():
            # Without a gradient padding costs less than packing.
            states_BLH, _ = super().forward(frames)
            last_B = (lengths - 1).to(frames.device, non_blocking=True)
            picked_BH: Tensor = states_BLH[torch.arange(len(lengths), device=frames.device), last_B]
            return picked_BH
        # Sorted here, on the CPU: pack_padded_sequence would wait for the device.
        sorted_B, order_B = lengths.sort(descending=True, stable=True)
        place_B = order_B.argsort().to(frames.device, non_blocking=True)
        order_B = order_B.to(frames.device, non_blocking=True)
        packed = pack_padded_sequence(frames.index_select(0, order_B), sorted_B, batch_first=True)
        if frames.device.type not in _WITH_KERNEL:
            weight_in, weight_state, bias_in, bias_state = self._flat_weights
            assert bias_in is not None
            assert bias_state is not None
            last_BH: Tensor = _LastState.apply(  # type: ignore[no-untyped-call]
                packed.data,
                packed.batch_sizes.tolist(),
                weight_in,
                weight_state,
                bias_in + bias_state,
            )
            return last_BH.index_select(0, place_B)
        ordered = PackedSequence(packed.data, packed.batch_sizes, order_B, place_B)
        _, (last_1BH, _) = super().forward(ordered)
        return last_1BH[0]


class _LastState(torch.autograd.Function):
    """The recurrence over steps in the order of a packed sequence: the longest sequence first."""

    @staticmethod
    def forward(
        ctx: Any,
        steps_NF: Tensor,
        sizes: list[int],
        weight_in: Tensor,
        weight_state: Tensor,
        bias: Tensor,
    ) -> Tensor:
        """(B, H) last states; ``sizes`` has the sequences that are left at each of L steps."""
        width = weight_state.shape[1]
        # Input, forget, cell and output gate side by side, as PyTorch keeps the weights.
        gates_N4H = functional.linear(steps_NF, weight_in, bias)
        before_NH, kept_NH, squashed_NH = (
            gates_N4H.new_empty(len(gates_N4H), width) for _ in range(3)
        )
        state_BH, cell_BH = (gates_N4H.new_zeros(sizes[0], width) for _ in range(2))
        weight_H4H = weight_state.t()
        each_step = (
            torch.split(tensor, sizes) for tensor in (gates_N4H, before_NH, kept_NH, squashed_NH)
        )
        for size, gates, before, kept, squashed in zip(sizes, *each_step, strict=True):
            state, cell = state_BH[:size], cell_BH[:size]
            before.copy_(state)
            kept.copy_(cell)
            gates.addmm_(state, weight_H4H)
            entering, forgetting, new, leaving = gates.chunk(4, dim=1)
            gates[:, : 2 * width].sigmoid_()
            new.tanh_()
            leaving.sigmoid_()
            cell.mul_(forgetting).addcmul_(entering, new)
            torch.tanh(cell, out=squashed)
            torch.mul(leaving, squashed, out=state)
        if any(ctx.needs_input_grad):
            ctx.sizes = sizes
            ctx.save_for_backward(
                steps_NF, gates_N4H, before_NH, kept_NH, squashed_NH, weight_in, weight_state
            )
        return state_BH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BH: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the order of the arguments of ``forward``."""
        steps_NF, gates_N4H, before_NH, kept_NH, squashed_NH, weight_in, weight_state = (
            ctx.saved_tensors
        )
        sizes: list[int] = ctx.sizes
        gates_N4xH = gates_N4H.unflatten(1, (4, -1))
        entering, forgetting, new, leaving = gates_N4xH.unbind(1)
        # How much of the gradient of the cell goes to each of the first three gates, of the
        # gradient of the state to the last gate and to the cell: for all steps at once.
        shares_N4xH = gates_N4xH * (1 - gates_N4xH)
        shares_N4xH[:, 2] = 1 - new * new
        shares_N4xH *= torch.stack([new, kept_NH, entering, squashed_NH], dim=1)
        to_cell_NH = leaving * (1 - squashed_NH * squashed_NH)
        # Every sequence's gradient enters at its own last step, where its row begins to count.
        state_BH, cell_BH = grad_BH.clone(), torch.zeros_like(grad_BH)
        grad_N4xH = torch.empty_like(gates_N4xH)
        each_step = [
            torch.split(tensor, sizes)
            for tensor in (grad_N4xH, shares_N4xH, to_cell_NH, forgetting)
        ]
        for step in range(len(sizes) - 1, -1, -1):
            grad, share, to_cell, forgotten = (parts[step] for parts in each_step)
            state, cell = state_BH[: len(grad)], cell_BH[: len(grad)]
            cell.addcmul_(state, to_cell)
            torch.mul(cell[:, None], share[:, :3], out=grad[:, :3])
            torch.mul(state, share[:, 3], out=grad[:, 3])
            cell.mul_(forgotten)
            torch.mm(grad.flatten(1), weight_state, out=state)
            if step % _STEPS_BETWEEN == 0:
                for carried in (state, cell):
                    carried.copy_(functional.hardshrink(carried, _VANISHED))
        grad_N4H = grad_N4xH.flatten(1)
        needed = ctx.needs_input_grad
        return (
            grad_N4H @ weight_in if needed[0] else None,
            None,
            grad_N4H.t() @ steps_NF if needed[2] else None,
            grad_N4H.t() @ before_NH if needed[3] else None,
            grad_N4H.sum(dim=0) if needed[4] else None,
        )
