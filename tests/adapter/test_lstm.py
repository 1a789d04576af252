"""The LSTM of the adapter is PyTorch's, whatever is written out to make it faster."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from msea_lightning.adapter.lstm import LastStateLSTM
from tests.rounding import assert_same

FEATURES, WIDTH = 5, 7
DOUBLE = {"rtol": 1e-10, "atol": 1e-12}
"""In float64 another order of the sums is off by some 1e-14; anything else is a fault."""
LENGTHS = [
    [4, 9, 1, 7, 9, 2],
    [3, 3, 3],
    [1, 1],
    [6],
    [1, 8],
]
"""Unsorted, equal, of one step, a single sequence, and of one step beside a long one."""

every_length = pytest.mark.parametrize("lengths", LENGTHS, ids=str)


def pair(
    features: int = FEATURES, width: int = WIDTH, *, seed: int = 0
) -> tuple[LastStateLSTM, nn.LSTM]:
    """Our LSTM, and PyTorch's with the same weights, in float64."""
    torch.manual_seed(seed)
    own, reference = LastStateLSTM(features, width), nn.LSTM(features, width, batch_first=True)
    reference.load_state_dict(own.state_dict())
    return own.double(), reference.double()


def packed_state(lstm: nn.LSTM, frames: Tensor, lengths: Tensor) -> Tensor:
    """(B, H) what PyTorch makes of packed sequences."""
    packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
    _, (last_1BH, _) = lstm(packed)
    return last_1BH[0]


def sequences(lengths: list[int], *, more: int = 0, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """(B, L, F) random frames and their lengths; beyond each length, and ``more`` steps, a fill."""
    torch.manual_seed(1)
    frames = torch.randn(len(lengths), 12, FEATURES, dtype=torch.float64)[:, : max(lengths) + more]
    beyond = torch.arange(frames.shape[1]) >= torch.tensor(lengths)[:, None]
    return frames.masked_fill(beyond[:, :, None], fill), torch.tensor(lengths)


def gradients(state: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Of a number that depends on all of the state, in the inputs."""
    weights = torch.randn(state.shape, generator=torch.Generator().manual_seed(2)).to(state)
    return list(torch.autograd.grad((weights * state).sum() + state.square().sum(), inputs))


@every_length
def test_state_and_gradients_are_those_of_packed_sequences(lengths: list[int]) -> None:
    own, reference = pair()
    frames, lengths_B = sequences(lengths)
    found_frames, expected_frames = (frames.clone().requires_grad_() for _ in range(2))
    found = own(found_frames, lengths_B)
    expected = packed_state(reference, expected_frames, lengths_B)
    torch.testing.assert_close(found, expected, **DOUBLE)
    torch.testing.assert_close(
        gradients(found, found_frames, *own.parameters()),
        gradients(expected, expected_frames, *reference.parameters()),
        **DOUBLE,
    )


@every_length
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_gradient_the_state_is_the_same(lengths: list[int], mode: type) -> None:
    own, reference = pair()
    frames, lengths_B = sequences(lengths, more=2)
    with mode():
        found = own(frames, lengths_B)
        expected = packed_state(reference, frames, lengths_B)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, **DOUBLE)


@every_length
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 1e30])
def test_what_lies_beyond_a_length_is_never_read(lengths: list[int], fill: float) -> None:
    own, _ = pair()
    results = []
    for more, beyond in ((0, 0.0), (3, fill)):
        frames, lengths_B = sequences(lengths, more=more, fill=beyond)
        frames.requires_grad_()
        state = own(frames, lengths_B)
        found = gradients(state, frames, *own.parameters())
        assert not found[0][~frames.detach().isfinite()].any()
        found[0] = found[0][:, : max(lengths)]
        with torch.no_grad():
            results.append([state, own(frames, lengths_B), *found])
    for clean, dirty in zip(*results, strict=True):
        torch.testing.assert_close(dirty, clean, **DOUBLE)


def test_gradients_are_those_of_small_differences() -> None:
    own, _ = pair(3, 2)
    frames = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([2, 4, 1])
    names = [name for name, _ in own.named_parameters()]

    def state(frames: Tensor, *weights: Tensor) -> Tensor:
        given = dict(zip(names, weights, strict=True))
        found: Tensor = torch.func.functional_call(own, given, (frames, lengths))
        return found

    assert torch.autograd.gradcheck(state, (frames, *own.parameters()))


def test_gradients_that_vanish_become_zero_and_nothing_else_does() -> None:
    """Over 400 steps a gradient passes every number down to none; processors are slow at some."""
    own, reference = (lstm.float() for lstm in pair())
    with torch.no_grad():
        own.bias_ih_l0[WIDTH : 2 * WIDTH] -= 1.0  # forgets fast
        reference.load_state_dict(own.state_dict())
    torch.manual_seed(3)
    lengths = torch.tensor([400, 120, 400, 1])
    frames = torch.randn(4, 400, FEATURES)
    found_frames, expected_frames = (frames.clone().requires_grad_() for _ in range(2))
    found = own(found_frames, lengths)
    expected = packed_state(reference, expected_frames, lengths)
    assert_same(found, expected)
    found_frames_grad, *found_weights = gradients(found, found_frames, *own.parameters())
    frames_grad, *weights = gradients(expected, expected_frames, *reference.parameters())
    assert_same(found_frames_grad, frames_grad)
    for one, other in zip(found_weights, weights, strict=True):
        assert_same(one, other)
    smallest = torch.finfo(torch.float32).tiny
    # It is to pass those numbers, or shows nothing.
    assert ((frames_grad.abs() < smallest) & (frames_grad != 0)).any()
    assert not ((found_frames_grad.abs() < smallest) & (found_frames_grad != 0)).any()
    # Steps that still count are there to the digit.
    counting = frames_grad.abs() > 1e-20
    torch.testing.assert_close(
        found_frames_grad[counting], frames_grad[counting], atol=0.0, rtol=1e-3
    )


def test_backward_may_be_asked_twice() -> None:
    own, _ = pair()
    frames, lengths = sequences(LENGTHS[0])
    state = own(frames, lengths)
    first, second = (
        torch.autograd.grad(state.sum(), list(own.parameters()), retain_graph=True)
        for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_weights_have_the_names_and_the_start_of_pytorchs_lstm() -> None:
    torch.manual_seed(4)
    own = LastStateLSTM(FEATURES, WIDTH).state_dict()
    torch.manual_seed(4)
    reference = nn.LSTM(FEATURES, WIDTH).state_dict()
    assert list(own) == list(reference)
    assert all(torch.equal(own[name], reference[name]) for name in own)
