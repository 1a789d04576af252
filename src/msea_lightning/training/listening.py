"""How well a language model can hear an adapter.

Pseudo tokens that are far longer or shorter than the embeddings that the language model knows, or
that are the same for every utterance, are what it learns least from.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from msea_lightning.data.store import StoreSplit
from msea_lightning.model.adapted_lm import AdaptedLM

_log = logging.getLogger(__name__)

_UTTERANCES = 64
"""As many as are looked at: the first ones of the training part."""

_FAINT = 0.01
"""Below this share of their norm, what pseudo tokens tell of an utterance is hardly heard."""


@dataclass(frozen=True)
class Listening:
    """What the pseudo tokens of some utterances are like.

    Attributes:
        norm: Their mean norm.
        text_norm: The mean norm of the embeddings of the utterances' texts; zero without any.
        variation: Mean distance of an utterance's pseudo tokens from the mean of all utterances',
            as a share of their norm.
    """

    norm: float
    text_norm: float
    variation: float

    @classmethod
    def of(cls, pseudo: Tensor, text: Tensor) -> Listening:
        """From pseudo tokens (B, N, d) and embeddings (T, d) of all tokens of the texts."""
        pseudo = pseudo.float()
        norm = float(pseudo.norm(dim=-1).mean())
        distance = float((pseudo - pseudo.mean(0)).norm(dim=-1).mean())
        text_norm = float(text.float().norm(dim=-1).mean()) if len(text) else 0.0
        return cls(norm, text_norm, distance / norm if norm else 0.0)

    def __str__(self) -> str:
        """One line."""
        beside = f", those of the texts {self.text_norm:.3g}" if self.text_norm else ""
        return (
            f"pseudo tokens have a norm of {self.norm:.3g}{beside}, and vary by "
            f"{100 * self.variation:.2g} % of it between utterances"
        )


def log_listening(model: AdaptedLM, train: StoreSplit, *, trained: bool = False) -> None:
    """Says how the pseudo tokens stand; warns where untrained ones hardly vary.

    Nothing where the adapter makes none, reads neither audio nor vision, or there are fewer than
    two utterances. Untrained anchored ones are the same for all: of these it says which words they
    begin as.
    """
    adapter = model.adapter
    if not adapter.pseudo_tokens or not (adapter.audio or adapter.vision) or len(train) < 2:
        return
    batch = train.batch(list(range(min(_UTTERANCES, len(train))))).to(model.device)
    was_training = model.training
    with torch.no_grad():
        pseudo, text = model.eval().adapted(batch)
    model.train(was_training)
    assert pseudo is not None
    found = Listening.of(pseudo, text)
    if trained:
        _log.info("after training %s", found)
    elif model.prompt.anchor_ids:
        words = model.prompt.decode(model.prompt.anchor_ids)
        _log.info("%s: they begin as the task prompt's last tokens, %r", found, words)
    elif found.variation >= _FAINT:
        _log.info("%s", found)
    else:
        _log.warning(
            "%s: the language model can hardly tell by them what was heard and seen. "
            "adapter.normalization=matched makes them differ from the start",
            found,
        )
