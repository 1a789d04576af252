"""Readouts: from the language model's last states to the probabilities of the legal answers.

Shape legend: B utterances, N label tokens, d width of the language model, V vocabulary, A legal
answers, L tokens of the longest answer, M nodes of the answer tree, C legal tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.language.answers import AnswerTree, stepwise_logp
from msea_lightning.language.labels import LabelSpace
from msea_lightning.language.options import Loss
from msea_lightning.model.options import ReadoutKind


class Readout(nn.Module, ABC):
    """What turns last states into probabilities of answers.

    Attributes:
        kind: Which one it is.
        tree: The legal answers.
        loss: What probabilities are normalised over.
    """

    kind: ClassVar[ReadoutKind]

    def __init__(self, tree: AnswerTree, loss: Loss) -> None:
        super().__init__()
        self.tree = tree
        self.loss = loss

    @abstractmethod
    def label_loss(
        self, states: Tensor, targets: Tensor, rows: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Summed cross-entropy of label tokens, a scalar with a gradient to the states.

        Args:
            states: (N, d) the states that predict them.
            targets: (N,) their token ids.
            rows: (N,) the row of the tree that predicts each; 0 is the prompt's last token.
            weights: (N,) what each counts; one where not given.
        """

    @abstractmethod
    def token_logp(self, hidden: Tensor) -> Tensor:
        """Log probability (B, A, L) of the tokens of every answer, from (B, 1 + M, d) states."""

    def features(self, states: Tensor) -> Tensor:
        """(..., d) float32, what a linear layer would read of (..., d) states."""
        return states.float()


class TokenReadout(Readout):
    """The language model writes the label, as in the paper: its own output head.

    Args:
        backbone: The frozen language model.
        tree: The legal answers as its tokenizer writes them.
        loss: What probabilities are normalised over.
        prior: (1 + M, C) log probabilities to subtract; none where not given.
    """

    kind = ReadoutKind.tokens
    prior: Tensor | None

    def __init__(
        self,
        backbone: FrozenBackbone,
        tree: AnswerTree,
        loss: Loss = Loss.vocabulary,
        prior: Tensor | None = None,
    ) -> None:
        super().__init__(tree, loss)
        self._backbone = backbone
        self.register_buffer("prior", prior)

    def label_loss(
        self, states: Tensor, targets: Tensor, rows: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """See the base class."""
        if self.loss is Loss.vocabulary:
            logits = self._backbone.logits(states)
        else:
            tree = self.tree.to(states.device)
            logits = self._scores(states)
            if self.prior is not None:
                logits = logits - self.prior[rows]
            logits = logits.masked_fill(~tree.follows[rows], -torch.inf)
            targets = torch.searchsorted(tree.legal, targets)
        return summed_cross_entropy(logits, targets, weights)

    def token_logp(self, hidden: Tensor) -> Tensor:
        """See the base class."""
        if self.loss is Loss.vocabulary:
            tree = self.tree
            return self._backbone.token_logp(hidden, tree.predictors, tree.answer_ids)
        return self._stepwise(self._scores(hidden))

    def renormalized(self, token_logp: Tensor) -> Tensor:
        """What :meth:`token_logp` gives, (B, A, L), from log probabilities over the vocabulary."""
        if self.loss is Loss.vocabulary:
            return token_logp
        tree = self.tree.to(token_logp.device)
        scores = token_logp.new_zeros(len(token_logp), *tree.follows.shape)
        real = tree.slots >= 0
        scores[:, tree.predictors[real], tree.slots[real]] = token_logp[:, real]
        return self._stepwise(scores)

    def _scores(self, states: Tensor) -> Tensor:
        """(..., C) logits of the legal tokens from (..., d) states."""
        return self._backbone.logits(states, self.tree.to(states.device).legal)

    def _stepwise(self, scores: Tensor) -> Tensor:
        if self.prior is not None:
            scores = scores - self.prior
        return stepwise_logp(self.tree, scores)


class LinearReadout(Readout):
    """A trained linear layer on the prompt's last state, with an output for each legal answer.

    The state is layer-normalised first, without parameters, so that the layer and the adapter can
    be trained at one rate whatever the scale of the language model's states.

    Args:
        width: Width d of the language model.
        tree: The legal answers of :func:`numbered_answers`.
    """

    kind = ReadoutKind.linear

    def __init__(self, width: int, tree: AnswerTree) -> None:
        super().__init__(tree, Loss.answers)
        self.linear = nn.Linear(width, len(tree.answer_ids))

    def label_loss(
        self, states: Tensor, targets: Tensor, rows: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """See the base class; ``targets`` are the numbers of the answers."""
        return summed_cross_entropy(self._logits(states), targets, weights)

    def token_logp(self, hidden: Tensor) -> Tensor:
        """See the base class."""
        return self._logits(hidden[:, 0]).log_softmax(-1)[:, :, None]

    def features(self, states: Tensor) -> Tensor:
        """See the base class."""
        states = states.float()
        return functional.layer_norm(states, states.shape[-1:])

    def start(self, weight: Tensor, bias: Tensor) -> None:
        """Sets the weights (A, d) and (A,) that training begins with."""
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)

    def _logits(self, states: Tensor) -> Tensor:
        """(..., A) from (..., d) states, in the dtype of the weights (float32)."""
        # The device "meta" has no autocast.
        kind = "cpu" if states.device.type == "meta" else states.device.type
        with torch.autocast(kind, enabled=False):
            logits: Tensor = self.linear(self.features(states))
        return logits


def numbered_answers(space: LabelSpace) -> AnswerTree:
    """The answer tree of a readout that writes no tokens: answer k is the one token k."""
    numbers = {answer: [number] for number, answer in enumerate(space.answers)}
    return AnswerTree(space, numbers.__getitem__, lambda ids: space.answers[ids[0]])


def summed_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Cross-entropy of (N, K) logits and (N,) targets, summed with (N,) weights if any."""
    if weights is None:
        return functional.cross_entropy(logits, targets, reduction="sum")
    return weights @ functional.cross_entropy(logits, targets, reduction="none")
