"""The rate of a device in floating point operations."""

from __future__ import annotations

import time

import torch

_SQUARE_GPU, _SQUARE_CPU = 4096, 1024
"""Rows and columns of the matrices that a device's rate is measured with."""

_QUEUED = 8
"""Products that a GPU is given at a time, so that starting them takes no part in the rate."""

_MEASURING = 0.7
"""Seconds of measuring a rate, not counting the first product."""


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float | None:
    """Operations per second of a device in products of square matrices: the best of several tries.

    It takes about a second, or as long as a few products do. None where a GPU has no room for three
    such matrices, 100 MB in half precision, and what its library needs beside them.
    """
    on_gpu = device.type == "cuda"
    size, products = (_SQUARE_GPU, _QUEUED) if on_gpu else (_SQUARE_CPU, 1)
    # Random numbers, for GPUs multiply zeros faster; of an own generator, which no run draws from.
    own = torch.Generator(device).manual_seed(0)
    try:
        left, right = torch.randn(2, size, size, generator=own, dtype=dtype, device=device)
        out = torch.empty_like(left)

        def seconds(products: int) -> float:
            start = time.perf_counter()
            for _ in range(products):
                torch.mm(left, right, out=out)
            if on_gpu:
                torch.cuda.synchronize(device)
            return time.perf_counter() - start

        seconds(1)  # loads the library, and chooses the algorithm
        tries = [seconds(products), seconds(products)]
        while sum(tries) < _MEASURING:
            tries.append(seconds(products))
    except RuntimeError:  # on a full GPU the library fails, if not the allocator
        return None
    return 2 * size**3 * products / min(tries)
