"""The answer tree, and decoding restricted to legal answers.

A language model writes its answer as text. Instead of parsing free text, we know every legal
answer beforehand, arrange their token ids in a prefix tree (:class:`AnswerTree`), and read the
model's distribution over exactly those (:func:`decode`). No answer is ever unparsable.

Shape legend: B utterances, A legal answers, L tokens of the longest answer, M nodes of the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from msea_lightning.language.labels import LabelSpace, LabelSpaceError
from msea_lightning.language.options import Decode


class AnswerTree:
    """The token ids of all legal answers as a prefix tree.

    Its inner nodes are appended to the prompt in one go, each attending to its ancestors only, so
    that one forward pass gives the model's distribution wherever an answer may branch. Where every
    answer is one token after a shared prefix, the tree is that prefix alone.

    Attributes:
        answer_ids: (A, L) token ids of the answers, -1 beyond an answer's end.
        predictors: (A, L) row of the logits that predict each token: 0 is the prompt's last
            token, 1 + m is node m; -1 beyond an answer's end.
        tokens: (M,) token id of each node; parents come before children.
        depths: (M,) distance from the prompt's last token, 1 for its direct followers.
        attends: (M, M) bool, whether node i attends to node j (its ancestors and itself).
        values: (A,) float64, what each answer means: the intensity or the class number.
        legal: (C,) the token ids that occur in answers, ascending.
        slots: (A, L) place of each token of each answer among ``legal``; -1 beyond an answer's end.
        follows: (1 + M, C) bool, which of the legal tokens may follow at each row.
    """

    def __init__(
        self,
        space: LabelSpace,
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
    ) -> None:
        """Builds the tree from tokenising one string without special tokens, and its reverse."""
        self.space = space
        self._written = {answer: encode(answer) for answer in space.answers}
        _check_written(self._written, decode)
        ids = list(self._written.values())
        nodes: dict[tuple[int, ...], int] = {}
        for end in range(1, max(map(len, ids))):
            for path in ids:
                if len(path) > end:
                    nodes.setdefault(tuple(path[:end]), len(nodes))
        rows = [[0, *(1 + nodes[tuple(path[:end])] for end in range(1, len(path)))] for path in ids]
        self.answer_ids, self.predictors = (
            pad_sequence([torch.tensor(row) for row in table], batch_first=True, padding_value=-1)
            for table in (ids, rows)
        )
        self.tokens = torch.tensor([path[-1] for path in nodes], dtype=torch.long)
        self.depths = torch.tensor([len(path) for path in nodes], dtype=torch.long)
        self.attends = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
        for prefix, node in nodes.items():
            for end in range(1, len(prefix) + 1):
                self.attends[node, nodes[prefix[:end]]] = True
        self.values = torch.tensor(space.values, dtype=torch.float64)
        self.legal = torch.unique(self.answer_ids[self.answer_ids >= 0])
        self.slots = torch.searchsorted(self.legal, self.answer_ids).masked_fill(
            self.answer_ids < 0, -1
        )
        self.follows = torch.zeros(1 + len(nodes), len(self.legal), dtype=torch.bool)
        real = self.slots >= 0
        self.follows[self.predictors[real], self.slots[real]] = True
        self._order = {answer: number for number, answer in enumerate(space.answers)}
        self._moved: dict[torch.device, AnswerTree] = {}

    def ids(self, label: float | str) -> list[int]:
        """Token ids of the answer that training teaches for a label."""
        return self._written[self.space.text(label)]

    def number(self, label: float | str) -> int:
        """Which answer training teaches for a label, 0 to A - 1."""
        return self._order[self.space.text(label)]

    def to(self, device: torch.device) -> AnswerTree:
        """The tree with its tensors on a device; moved there once."""
        if device not in self._moved:
            moved = self._moved[device] = copy(self)
            for name in (
                *("answer_ids", "predictors", "tokens", "depths", "attends", "values"),
                *("legal", "slots", "follows"),
            ):
                setattr(moved, name, getattr(self, name).to(device))
        return self._moved[device]

    def __len__(self) -> int:
        return len(self.tokens)


def _check_written(written: Mapping[str, list[int]], decode: Callable[[list[int]], str]) -> None:
    """Refuses answers that cannot be told apart, or of which the end cannot be known."""
    answers = {tuple(path): answer for answer, path in written.items()}
    for answer, path in written.items():
        if not path:
            raise LabelSpaceError(f"The tokenizer writes the label {answer!r} with no token.")
        if (same := answers[tuple(path)]) != answer:
            raise LabelSpaceError(
                f"The tokenizer writes the labels {answer!r} and {same!r} with the same tokens "
                f"{path}; it cannot be used with this label space."
            )
        # The piece may begin with a space of the tokenizer's own, as those of LLaMA do.
        if (back := decode(path)).strip() != answer:
            raise LabelSpaceError(
                f"The tokenizer does not keep the label {answer!r}: its tokens {path} read "
                f"back as {back!r}. Give the backbone's own tokenizer with backbone.tokenizer."
            )
        for end in range(1, len(path)):
            if shorter := answers.get(tuple(path[:end])):
                raise LabelSpaceError(
                    f"The tokenizer's tokens of the label {shorter!r} begin those of {answer!r}; "
                    "it cannot be used with this label space."
                )


@dataclass(frozen=True, eq=False)
class Answers:
    """Decoded answers of B utterances.

    Attributes:
        value: (B,) float64, the intensity or the class number.
        probability: (B,) probability of the answer that ``value`` is written as, among all legal
            ones (of the nearest answer where ``value`` is a mean).
        distribution: (B, A) probability of every legal answer; each row sums to one. None where a
            model has none, or it is not kept.
    """

    value: Tensor
    probability: Tensor
    distribution: Tensor | None = None


def check_rule(space: LabelSpace, how: Decode) -> None:
    """Refuses a rule that labels have no order for; LabelSpaceError."""
    if how is not Decode.greedy and not space.ordered:
        raise LabelSpaceError(
            f"decode={how.value} needs intensities; emotions have no order. Use decode=greedy."
        )


def stepwise_logp(tree: AnswerTree, scores: Tensor) -> Tensor:
    """Log probability of every token of every answer among those that may stand in its place.

    Args:
        tree: The legal answers.
        scores: (B, 1 + M, C) logits, or log probabilities, of the legal tokens at each row.

    Returns:
        (B, A, L); anything beyond an answer's end.
    """
    on_device = tree.to(scores.device)
    logp = scores.float().masked_fill(~on_device.follows, -torch.inf).log_softmax(-1)
    return logp[:, on_device.predictors.clamp(min=0), on_device.slots.clamp(min=0)]


def decode(tree: AnswerTree, token_logp: Tensor, how: Decode) -> Answers:
    """Picks an answer from the legal ones.

    The probability of an answer is the product of its tokens' probabilities under the language
    model, divided by the sum over all legal answers.

    * ``greedy`` goes down the tree token by token, taking the likeliest legal token each time:
      what the original's generation does wherever its answer is legal.
    * ``median`` of the distribution over intensities, the choice with the least expected MAE.
    * ``mean`` of that distribution, which need not be an intensity that can be written.

    Args:
        tree: The legal answers.
        token_logp: (B, A, L) log probability of each token of each answer given the tokens before
            it; anything beyond an answer's end.
        how: The rule; emotions have no order, so that ``median`` and ``mean`` are refused.
    """
    check_rule(tree.space, how)
    on_device = tree.to(token_logp.device)
    answer_ids, values = on_device.answer_ids, on_device.values
    beyond = answer_ids < 0
    logp = token_logp.double().masked_fill(beyond, 0.0)
    distribution = logp.sum(-1).softmax(-1)
    if how is Decode.mean:
        value = distribution @ values
        nearest = (value[:, None] - values).abs().argmin(-1)
        probability = _of_value(distribution, values, values[nearest])
        return Answers(value, probability, distribution)
    if how is Decode.median:
        # Answers are in ascending order; the first one that reaches half of the mass.
        reached = distribution.cumsum(-1) >= 0.5
        chosen = reached.double().argmax(-1)
    else:
        alive = torch.ones_like(distribution, dtype=torch.bool)
        for position in range(answer_ids.shape[1]):
            candidates = logp[:, :, position].masked_fill(~alive, -torch.inf)
            best = answer_ids[candidates.argmax(-1), position]
            alive &= answer_ids[None, :, position] == best[:, None]
        chosen = alive.double().argmax(-1)
    value = values[chosen]
    return Answers(value, _of_value(distribution, values, value), distribution)


def _of_value(distribution: Tensor, values: Tensor, value: Tensor) -> Tensor:
    """Mass of all answers that mean a value: "-0.0" and "0.0" are one intensity."""
    return (distribution * (values[None, :] == value[:, None])).sum(-1)
