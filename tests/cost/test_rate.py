"""The rate of a device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NoReturn

import pytest
import torch

from msea_lightning.cost import rate
from msea_lightning.cost.rate import matrix_rate

CPU = torch.device("cpu")


def test_the_rate_is_that_of_the_best_try(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that says of every product how long it took: the first, which does not count, the
    # fastest of the others, one that is held up, and one that ends the measuring.
    durations = iter([0.001, 0.25, 0.5])
    clock = _ticks(durations)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    state = torch.get_rng_state()
    size = rate._SQUARE_CPU
    assert matrix_rate(torch.float32, CPU) == 2 * size**3 / 0.25
    assert next(durations, None) is None
    assert torch.equal(torch.get_rng_state(), state)


def test_a_full_device_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "mm", full)
    assert matrix_rate(torch.float32, CPU) is None


def _ticks(durations: Iterator[float]) -> Iterator[float]:
    for duration in durations:
        yield 0.0
        yield duration
