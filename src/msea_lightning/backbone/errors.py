"""Errors of the frozen language model."""

from __future__ import annotations

import torch

from msea_lightning.config.errors import UserError

MODEL_FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, IndexError)
"""What a language model raises that cannot do what it is asked to."""


class BackboneError(UserError):
    """A language model that cannot be loaded or cannot serve as a backbone."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's or the machine's memory is full."""
    full = "can't allocate memory" in str(error)  # as PyTorch says on a CPU
    return full or isinstance(error, (MemoryError, torch.OutOfMemoryError))
