"""Fingerprints that tell one language model from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from msea_lightning.backbone.loading.spread import is_spread, stored_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROWS = 16
"""Rows of each weight matrix that enter a fingerprint."""


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What tells this language model from any other, by part.

    ``model`` covers the architecture, ``embeddings`` some rows of the embedding matrix and all
    vectors (norms, biases), ``linear`` some rows of every weight matrix, ``tokenizer`` the
    vocabulary. Numbers are rounded to bfloat16, so that compute dtypes do not matter. Quantised
    matrices are not comparable to dense ones, and have a key such as ``linear-bitsandbytes``.
    """
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    shape = [config.model_type, embedding.shape[1], embedding.shape[0], config.num_hidden_layers]
    tied = model.all_tied_weights_keys if is_spread(model) else {}  # one tensor no longer
    named = [item for item in sorted(model.named_parameters()) if item[0] not in tied]
    (name,) = (name for name, tensor in named if tensor is embedding)
    others = [item for item in named if item[1] is not embedding]

    def numbers(chosen: list[tuple[str, Tensor]]) -> Iterator[Tensor]:
        return (stored_weight(model, name, tensor) for name, tensor in chosen)

    vectors = [(name, embedding), *(item for item in others if item[1].dim() <= 1)]
    method = getattr(model, "quantization_method", None)
    return {
        "model": _digest([repr(shape).encode()]),
        "tokenizer": _digest([repr(sorted(tokenizer.get_vocab().items())).encode()]),
        "embeddings": _digest(_samples(numbers(vectors))),
        "linear" if method is None else f"linear-{method.value}": _digest(
            _samples(numbers([item for item in others if item[1].dim() > 1]))
        ),
    }


def same_model(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two fingerprints are of one language model, as far as both tell."""
    return all(one[part] == other[part] for part in one.keys() & other.keys())


def _samples(tensors: Iterable[Tensor]) -> Iterator[bytes]:
    for tensor in tensors:
        rows = tensor.detach().reshape(tensor.shape[0], -1)
        sample = rows[:: max(1, rows.shape[0] // _ROWS)].contiguous().cpu()
        if sample.is_floating_point():
            # The bit pattern of bfloat16 is the upper half of float32's.
            sample = sample.to(torch.bfloat16).view(torch.int16)
        yield repr(tuple(tensor.shape)).encode() + sample.numpy().tobytes()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
