"""The input side of a language model, for where another process computes the rest."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from msea_lightning.backbone.errors import BackboneError
from msea_lightning.backbone.fingerprint import fingerprint
from msea_lightning.backbone.frozen import FrozenBackbone, freeze, padding_id
from msea_lightning.backbone.loading.hub import hub_commit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class EmbeddingsOnly(FrozenBackbone):
    """A frozen language model of which the input embeddings alone stay in memory.

    It has the tokenizer, the embeddings, the limits and the fingerprint of the whole one, so that
    plugins are checked against it and make their inputs as on the whole one. What needs a layer is
    refused.

    Args:
        model: A causal language model of transformers with its weights. It is not usable
            afterwards: all weights but the input embeddings are given up.
        tokenizer: Its tokenizer.
        pad_token: As in :class:`FrozenBackbone`.

    Raises:
        BackboneError: if tokenizer and embeddings are not of one model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pad_token: str | None = None,
    ) -> None:
        freeze(model)
        self.model = model
        self.tokenizer = tokenizer
        self.checkpoint_activations = False
        self.caches_prefix = self.caches_rows = False
        self.last_modules = ()
        self._turn = nullcontext()
        self.pad_id = padding_id(tokenizer, pad_token)
        self.revision = hub_commit(model.name_or_path)
        self._check_vocabulary()
        self._fingerprint = fingerprint(model, tokenizer)
        _give_up_all_but(model, model.get_input_embeddings())

    def fingerprint(self) -> dict[str, str]:
        """See the base class; computed while the whole model was there."""
        return dict(self._fingerprint)

    def to(self, device: torch.device) -> FrozenBackbone:
        """Moves the embeddings in place."""
        self._embedding.to(device)
        return self

    def hidden(self, *args: Any, **options: Any) -> NoReturn:
        """Refused."""
        raise BackboneError(
            "Of this language model only the embeddings were loaded (embeddings_only=True), so "
            "that it computes no hidden states: load the whole one."
        )

    logits = token_logp = hidden


def _give_up_all_but(model: nn.Module, kept: nn.Module) -> None:
    """Frees the memory of all parameters that are not those of one module."""
    keep = set(kept.modules())
    for module in model.modules():
        if module in keep:
            continue
        for name, weight in module.named_parameters(recurse=False):
            # A head that is tied to the embeddings lets go of them; they stay where they are.
            empty = torch.empty_like(weight, device="meta")
            setattr(module, name, nn.Parameter(empty, requires_grad=False))
