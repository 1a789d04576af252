"""Exact numbers of parameters, by part of an adapter."""

from __future__ import annotations

from collections import Counter

from torch import nn


def parameter_counts(adapter: nn.Module) -> Counter[str]:
    """Name of each submodule that has parameters, with underscores, to their number."""
    counts: Counter[str] = Counter()
    for name, parameter in adapter.named_parameters():
        counts[name.rpartition(".")[0].replace(".", "_")] += parameter.numel()
    return counts
