"""The KV cache of tokens that every sequence begins with, computed once for all batches.

Their keys and values depend on nothing that follows, and no gradient goes to frozen weights, so
that the cache serves training as well as evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class PrefixCache(Cache):
    """Keys and values of a prefix, as transformers' layers read them.

    Unlike a cache for generation it does not grow, and reading it changes nothing: every batch,
    of any thread, continues from the same prefix.

    Args:
        layers: For each layer the keys and values, (1, heads, O, d) each.

    Attributes:
        tokens: Number O of prefix tokens.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__(layers=[_PrefixLayer(keys, values) for keys, values in layers])
        self.tokens = layers[0][0].shape[-2]

    @classmethod
    def compute(cls, body: torch.nn.Module, embedded: Tensor) -> PrefixCache:
        """Runs a language model without its head over (1, O, d) embeddings of the prefix."""
        # No inference tensors, even where the first batch is one of an evaluation: the next may be
        # one of training.
        with torch.inference_mode(mode=False), torch.no_grad():
            filled: Any = body(inputs_embeds=embedded.clone(), use_cache=True).past_key_values
            return cls([(layer.keys, layer.values) for layer in filled.layers])


class _PrefixLayer(DynamicLayer):
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
        size = (len(key_states), -1, -1, -1)
        keys = torch.cat([self.keys.expand(size), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(size), value_states], dim=-2)
