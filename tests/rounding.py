"""The bound that results in float32 keep which may be summed in another order.

A sum of n numbers is off by at most n * eps * (sum of their sizes), whatever the order and the
processor (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2). Matrix products,
softmax and norms are such sums, one after another; 1,000 terms stand for them all.
"""

from __future__ import annotations

import torch
from torch import Tensor

BOUND = 1000 * torch.finfo(torch.float32).eps
"""Largest difference, in multiples of the largest number: 1.2e-4."""


def assert_same(
    found: Tensor,
    expected: Tensor,
    *,
    scale: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Fails where two results differ by more than rounding.

    Args:
        found: A result.
        expected: Another one, of the same shape.
        scale: The largest number that went into them; that of ``expected`` where not given.
        dtype: What they were computed in; of two, the coarser.
    """
    found, expected = found.detach().double(), expected.detach().double()
    assert found.shape == expected.shape
    size = float(expected.abs().max()) if scale is None else scale
    difference = float((found - expected).abs().max())
    bound = 1000 * torch.finfo(dtype).eps
    assert difference <= bound * size, f"differs by {difference:.3g}, numbers up to {size:.3g}"


def assert_trained_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Fails where two runs end with weights that differ by more than rounding may have grown to.

    Adam divides by the size of the gradient, so that single weights with hardly any gradient can
    go another way; of a whole tensor's length that is little.
    """
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        length = float(tensor.norm())
        difference = float((found[name] - tensor).norm())
        assert difference <= 1e-3 * length, f"{name} differs by {difference:.3g} of {length:.3g}"
