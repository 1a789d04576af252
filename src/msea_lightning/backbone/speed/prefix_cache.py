"""The KV cache of what never changes at the beginning of sequences.

Keys and values of a token depend on nothing that follows it, and no gradient goes to frozen
weights, so that what stands before everything that is trained is computed without gradient, and
serves training as well as evaluation. What all sequences begin with is computed once for all
batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache, DynamicLayer

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, (B, heads, O, d) each."""


class PrefixCache(Cache):
    """Keys and values of the beginning of sequences, as transformers' layers read them.

    Unlike a cache for generation it does not grow, and reading it changes nothing: every batch,
    of any thread, continues from the same prefix.

    Args:
        layers: For each layer the keys and values, (1, heads, O, d) each where all sequences begin
            alike, else (B, heads, O, d).
        mask: (B, O) bool, False at padding; None where there is none.

    Attributes:
        keys_values: The layers as they were given.
        tokens: Number O of prefix tokens, padding included.
    """

    def __init__(self, layers: Sequence[KeysValues], mask: Tensor | None = None) -> None:
        super().__init__(layers=[_PrefixLayer(keys, values) for keys, values in layers])
        self.keys_values = list(layers)
        self.tokens = layers[0][0].shape[-2]
        self.mask = mask

    @classmethod
    def compute(cls, body: torch.nn.Module, embedded: Tensor) -> PrefixCache:
        """Runs a language model without its head over (1, O, d) embeddings of the prefix."""
        # No inference tensors, even where the first batch is one of an evaluation: the next may be
        # one of training.
        with torch.inference_mode(mode=False), torch.no_grad():
            filled: Any = body(inputs_embeds=embedded.clone(), use_cache=True).past_key_values
            return cls([(layer.keys, layer.values) for layer in filled.layers])

    def seen_by(self, mask: Tensor) -> Tensor:
        """A mask of what follows, (B, S) or (B, S, S), with O columns for the prefix in front."""
        if self.mask is None:
            return functional.pad(mask, (self.tokens, 0), value=True)
        before = self.mask.expand(len(mask), -1)
        if mask.dim() == 3:
            before = before[:, None].expand(-1, mask.shape[1], -1)
        return torch.cat([before, mask], dim=-1)


class Recorder(Cache):
    """Keeps the keys and values of what follows a prefix, each layer's as they are computed.

    Args:
        prefix: What stands before; None where nothing does.
        layers: Number of layers.
    """

    def __init__(self, prefix: PrefixCache | None, layers: int) -> None:
        before: Sequence[Any] = [None] * layers if prefix is None else prefix.layers
        self._recorded = [_RecordedLayer(layer) for layer in before]
        super().__init__(layers=[*self._recorded])

    @property
    def recorded(self) -> list[KeysValues]:
        """For each layer the keys and values of what followed, (B, heads, R, d) each."""
        return [layer.recorded for layer in self._recorded]


class _PrefixLayer(DynamicLayer):
    """One layer's keys and values."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> KeysValues:
        """(B, heads, O + S, d) keys and values; nothing is kept."""
        assert self.keys is not None
        assert self.values is not None
        size = (len(key_states), -1, -1, -1)
        keys = torch.cat([self.keys.expand(size), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(size), value_states], dim=-2)


class _RecordedLayer(DynamicLayer):
    """What follows one layer's part of a prefix, if any."""

    def __init__(self, before: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._before = before
        self.recorded: KeysValues = (torch.empty(0), torch.empty(0))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> KeysValues:
        """(B, heads, O + R, d) keys and values; keeps the (B, heads, R, d) that are new."""
        self.recorded = key_states, value_states
        if self._before is None:
            return key_states, value_states
        joined: KeysValues = self._before.update(key_states, value_states)
        return joined

    def get_seq_length(self) -> int:
        """Tokens of the prefix."""
        return 0 if self._before is None else int(self._before.get_seq_length())
