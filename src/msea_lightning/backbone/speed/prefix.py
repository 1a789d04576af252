"""Tokens that every sequence begins with, read once instead of with every utterance.

What a causal language model makes of them does not depend on what follows, so their keys and values
serve every batch of a run, in training as well: no gradient goes to where nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class Opening(Cache):
    """Keys and values of the opening tokens, in the form that transformers' layers ask for them.

    Unlike a cache for generation it does not grow: each batch reads on from the same place.

    Args:
        layers: For each layer the keys and values, (1, heads, O, d) each.

    Attributes:
        tokens: Number O of opening tokens.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__(layers=[_OpeningLayer(keys, values) for keys, values in layers])
        self.tokens = layers[0][0].shape[-2]

    @classmethod
    def read(cls, body: torch.nn.Module, embedded: Tensor) -> Opening:
        """Reads the opening.

        Args:
            body: The language model without its head.
            embedded: (1, O, d) embeddings of the opening tokens.
        """
        # Not an inference tensor, even where the first batch is one of an evaluation: the next may
        # be one of training.
        with torch.inference_mode(mode=False), torch.no_grad():
            read: Any = body(inputs_embeds=embedded.clone(), use_cache=True).past_key_values
            return cls([(layer.keys, layer.values) for layer in read.layers])


class _OpeningLayer(DynamicLayer):
    """One layer's keys and values."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """(B, heads, O + S, d) keys and values; nothing is kept."""
        assert self.keys is not None
        assert self.values is not None
        return _after(self.keys, key_states), _after(self.values, value_states)


def _after(opening: Tensor, states: Tensor) -> Tensor:
    """(1, heads, O, d) and (B, heads, S, d) to (B, heads, O + S, d)."""
    return torch.cat([opening.expand(len(states), -1, -1, -1), states], dim=-2)
