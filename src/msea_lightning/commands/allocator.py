"""Where PyTorch puts large tensors in a CPU's memory.

PyTorch asks glibc for blocks that begin at multiples of 64 bytes. What glibc cuts off in front of
such a block goes into its cache of small blocks, from where small objects take it: between large
blocks that were freed there is always something in use, and they do not grow together again. Blocks
that begin at a memory page leave larger cuttings, which are not cached. PyTorch has a setting for
that, for tensors of 2 MiB and more; it asks the system for huge pages as well.
"""

from __future__ import annotations

import os

SETTING = "THP_MEM_ALLOC_ENABLE"
"""PyTorch's environment variable. Elsewhere than on Linux it does nothing."""


def begin_at_pages() -> None:
    """Lets large tensors begin at memory pages, in processes that this one starts as well.

    It has to come before the first tensor. Where the environment has the setting, that holds.
    """
    os.environ.setdefault(SETTING, "1")
