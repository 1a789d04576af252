"""Label spaces: label <-> answer string <-> token ids, and decoding restricted to legal answers.

A language model writes its answer as text. Instead of parsing free text, we know every legal
answer beforehand, arrange their token ids in a prefix tree (:class:`AnswerTree`), and read the
model's distribution over exactly those (:func:`decode`). No answer is ever unparsable.

Shape legend: B utterances, A legal answers, L tokens of the longest answer, M nodes of the tree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from msea_lightning.config.errors import UserError
from msea_lightning.data.options import LabelConfig, LabelKind
from msea_lightning.language.options import Decode


class LabelError(UserError):
    """A label outside the label space, or a label space that cannot be written."""


class LabelSpace(ABC):
    """All labels of a data set and how a language model writes them.

    Attributes:
        answers: Every legal answer string, in ascending order of the label.
        values: What each answer means: the intensity (MSA) or the class number (ERC).
        signed: Whether intensities of zero and above are written with a plus sign.
    """

    answers: list[str]
    values: list[float]
    signed: bool = False

    @abstractmethod
    def text(self, label: float | str) -> str:
        """The answer string that training teaches for a label.

        Raises:
            LabelError: if the label is not in the space; names the label and what is legal.
        """

    @abstractmethod
    def target(self, label: float | str) -> float:
        """The number that metrics compare: the intensity itself, or the class number."""

    @abstractmethod
    def label(self, value: float) -> float | str:
        """The label that a decoded value stands for: an intensity, or an emotion's name."""

    @property
    @abstractmethod
    def ordered(self) -> bool:
        """Whether the mean and the median of labels mean something."""

    @staticmethod
    def from_config(
        config: LabelConfig, *, signed: bool | None, encode: Callable[[str], list[int]]
    ) -> LabelSpace:
        """The label space that a resolved :class:`LabelConfig` describes.

        Args:
            config: Label space with nothing left to infer.
            signed: Whether the backbone writes a plus sign (paper, "Metrics"; Qwen). None takes
                the way in which the tokenizer writes all intensities with equally many tokens: as
                they are, else with the sign; as they are where neither does.
            encode: Tokenises one string without special tokens.

        Raises:
            LabelError: if something is left to infer, or the scale has no ends.
        """
        if config.kind is LabelKind.emotions:
            return EmotionSet(config.names)
        if config.kind is LabelKind.infer:
            raise LabelError(
                "The label space is still to be inferred: give labels.kind=scale with low and "
                "high, or labels.kind=emotions with names."
            )
        if config.low is None or config.high is None:
            raise LabelError(
                f"A scale needs both ends, got low={config.low} and high={config.high}."
            )
        ways = [
            SentimentScale(config.low, config.high, config.step or 0.1, signed=sign)
            for sign in (False, True)
        ]
        if signed is not None:
            return ways[signed]
        for way in ways:
            if len({len(encode(answer)) for answer in way.answers}) == 1:
                return way
        return ways[0]


class SentimentScale(LabelSpace):
    """Sentiment intensities from ``low`` to ``high`` in steps (MSA).

    A label is rounded to the nearest step as the original implementation does it: as float32,
    half-way cases to even (1.25 is written "1.2", -0.04 is written "-0.0"). Both "-0.0" and "0.0"
    are legal answers where the scale spans zero.

    Args:
        low: Lowest intensity, a multiple of ``step``.
        high: Highest intensity, a multiple of ``step``.
        step: Distance of neighbouring answers.
        signed: Write "+0.4" instead of "0.4" for intensities of zero and above.
    """

    def __init__(self, low: float, high: float, step: float = 0.1, *, signed: bool = False) -> None:
        exponent = Decimal(str(step)).normalize().as_tuple().exponent
        self._decimals = max(0, -exponent) if isinstance(exponent, int) else 0
        self._power_of_ten = np.isclose(step, 10.0**-self._decimals)
        first, last = round(low / step), round(high / step)
        if not (np.isclose(first * step, low) and np.isclose(last * step, high) and first < last):
            raise LabelError(
                f"A scale from {low} to {high} in steps of {step}: both ends must be multiples of "
                "the step, the lower one first. Set dataset.labels.low, .high and .step."
            )
        self.low, self.high, self.step, self.signed = low, high, step, signed
        grid = [k * step for k in range(first, last + 1)]
        if self._power_of_ten and low < 0 <= high:
            grid.insert(-first, -0.0)
        self.answers = [self._sign(value) + self._format(value) for value in grid]
        self.values = [float(answer) for answer in self.answers]

    def text(self, label: float | str) -> str:
        """See the base class.

        A label of minus zero with a sign is written "+0.0", where the original writes "+-0.0".
        """
        value = self.target(label)
        if self.signed and value == 0:
            value = 0.0
        rounded = value if self._power_of_ten else round(value / self.step) * self.step
        answer = self._format(rounded)
        if not self.low - 1e-6 <= float(answer) <= self.high + 1e-6:
            raise LabelError(f"Label {label} is outside the scale from {self.low} to {self.high}.")
        return ("+" if self.signed and value >= 0 else "") + answer

    def target(self, label: float | str) -> float:
        """The intensity as float32, the precision that the original's labels have."""
        try:
            value = float(np.float32(label))
        except ValueError as error:
            raise LabelError(
                f"Label {label!r} is not a number; this data set's labels are intensities from "
                f"{self.low} to {self.high}."
            ) from error
        if not np.isfinite(value):
            raise LabelError(f"Label {label} is not finite.")
        return value

    def label(self, value: float) -> float:
        """The intensity itself."""
        return value

    @property
    def ordered(self) -> bool:
        """Intensities have an order."""
        return True

    def _format(self, value: float) -> str:
        return f"{value:.{self._decimals}f}"

    def _sign(self, value: float) -> str:
        return "+" if self.signed and not np.signbit(value) else ""


class EmotionSet(LabelSpace):
    """A fixed set of emotions (ERC); emotion i is written as the number i, as in the prompt.

    With more than ten emotions all numbers have two digits, so that none begins another.

    Args:
        names: The emotions in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if len(names) < 2 or len(set(names)) != len(names):
            raise LabelError(f"An emotion set needs two or more different names, got {names}.")
        self.names = list(names)
        width = len(str(len(names) - 1))
        self.answers = [f"{index:0{width}d}" for index in range(len(names))]
        self.values = [float(index) for index in range(len(names))]

    def text(self, label: float | str) -> str:
        """See the base class."""
        return self.answers[int(self.target(label))]

    def target(self, label: float | str) -> float:
        """The class number."""
        try:
            return float(self.names.index(str(label)))
        except ValueError as error:
            raise LabelError(
                f"Label {label!r} is none of the emotions {', '.join(self.names)}."
            ) from error

    def label(self, value: float) -> str:
        """The emotion's name."""
        return self.names[int(value)]

    @property
    def ordered(self) -> bool:
        """Emotions have no order."""
        return False


class TreeTensors(NamedTuple):
    """An :class:`AnswerTree` on a device: its tensors of these names, and (A,) float64 values."""

    tokens: Tensor
    depths: Tensor
    attends: Tensor
    answer_ids: Tensor
    values: Tensor


class AnswerTree:
    """The token ids of all legal answers as a prefix tree.

    Its inner nodes are appended to the prompt in one go, each attending to its ancestors only, so
    that one forward pass gives the model's distribution at every place where an answer may
    branch. Where every answer is one token after a shared prefix, the tree is that prefix alone.

    Attributes:
        answer_ids: (A, L) token ids of the answers, -1 beyond an answer's end.
        predictors: (A, L) row of the logits that predict each token: 0 is the prompt's last
            token, 1 + m is node m; -1 beyond an answer's end.
        tokens: (M,) token id of each node; parents come before children.
        depths: (M,) distance from the prompt's last token, 1 for its direct followers.
        attends: (M, M) bool, whether node i attends to node j (its ancestors and itself).
    """

    def __init__(
        self,
        space: LabelSpace,
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
    ) -> None:
        """Builds the tree.

        Args:
            space: Label space whose answers are to be written.
            encode: Tokenises one string without special tokens.
            decode: The string that token ids stand for.

        Raises:
            LabelError: if the tokenizer gives two answers the same ids, no ids, ids that read back
                as something else, or makes one answer the beginning of another, because then the
                end of an answer is unknowable.
        """
        ids = [encode(answer) for answer in space.answers]
        paths = {tuple(path): answer for path, answer in zip(ids, space.answers, strict=True)}
        for path, answer in zip(ids, space.answers, strict=True):
            if not path:
                raise LabelError(f"The tokenizer writes the label {answer!r} with no token.")
            if paths[tuple(path)] != answer:
                raise LabelError(
                    f"The tokenizer writes the labels {answer!r} and {paths[tuple(path)]!r} with "
                    f"the same tokens {path}; it cannot be used with this label space."
                )
            # The piece may begin with a space of the tokenizer's own, as those of LLaMA do.
            if (back := decode(path)).strip() != answer:
                raise LabelError(
                    f"The tokenizer does not keep the label {answer!r}: its tokens {path} read "
                    f"back as {back!r}. Give the backbone's own tokenizer with backbone.tokenizer."
                )
            for end in range(1, len(path)):
                if tuple(path[:end]) in paths:
                    raise LabelError(
                        f"The tokenizer's tokens of the label {paths[tuple(path[:end])]!r} begin "
                        f"those of {answer!r}; it cannot be used with this label space."
                    )
        longest = max(map(len, ids))
        nodes: dict[tuple[int, ...], int] = {}
        for end in range(1, longest):
            for path in ids:
                if len(path) > end:
                    nodes.setdefault(tuple(path[:end]), len(nodes))
        self.space = space
        self._encode = encode
        self._written = dict(zip(space.answers, ids, strict=True))
        self.answer_ids = torch.tensor([path + [-1] * (longest - len(path)) for path in ids])
        self.predictors = torch.tensor(
            [
                [0, *(1 + nodes[tuple(path[:end])] for end in range(1, len(path)))]
                + [-1] * (longest - len(path))
                for path in ids
            ]
        )
        self.tokens = torch.tensor([path[-1] for path in nodes], dtype=torch.long)
        self.depths = torch.tensor([len(path) for path in nodes], dtype=torch.long)
        self.attends = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
        for prefix, node in nodes.items():
            for end in range(1, len(prefix) + 1):
                self.attends[node, nodes[prefix[:end]]] = True
        self._moved: dict[torch.device, TreeTensors] = {}

    def ids(self, label: float | str) -> list[int]:
        """Token ids of the answer that training teaches for a label."""
        text = self.space.text(label)
        if text not in self._written:
            self._written[text] = self._encode(text)
        return self._written[text]

    def to(self, device: torch.device) -> TreeTensors:
        """What scoring and decoding need, on a device; moved there once."""
        if device not in self._moved:
            values = torch.tensor(self.space.values, dtype=torch.float64)
            tensors = (self.tokens, self.depths, self.attends, self.answer_ids, values)
            self._moved[device] = TreeTensors(*(tensor.to(device) for tensor in tensors))
        return self._moved[device]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class Answers:
    """Decoded answers of B utterances.

    Attributes:
        value: (B,) float64, the intensity or the class number.
        probability: (B,) probability of the answer that ``value`` is written as, among all legal
            ones (of the nearest answer where ``value`` is a mean).
        distribution: (B, A) probability of every legal answer; each row sums to one.
    """

    value: Tensor
    probability: Tensor
    distribution: Tensor


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
        how: The rule.

    Raises:
        LabelError: for ``median`` and ``mean`` of emotions, which have no order.
    """
    if how is not Decode.greedy and not tree.space.ordered:
        raise LabelError(
            f"decode={how.value} needs intensities; emotions have no order. Use decode=greedy."
        )
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
        for place in range(answer_ids.shape[1]):
            candidates = logp[:, :, place].masked_fill(~alive, -torch.inf)
            best = answer_ids[candidates.argmax(-1), place]
            alive &= answer_ids[None, :, place] == best[:, None]
        chosen = alive.double().argmax(-1)
    value = values[chosen]
    return Answers(value, _of_value(distribution, values, value), distribution)


def _of_value(distribution: Tensor, values: Tensor, value: Tensor) -> Tensor:
    """Mass of all answers that mean a value: "-0.0" and "0.0" are one intensity."""
    return (distribution * (values[None, :] == value[:, None])).sum(-1)


def generated_prompt(space: LabelSpace, language: str) -> str:
    """A task prompt for a label space that has none of its own, in the paper's wording (Fig. 3).

    Args:
        space: Label space that the answer comes from.
        language: ``en`` or ``zh``.
    """
    if isinstance(space, EmotionSet):
        pairs = ", ".join(
            f"{name}:{answer}" for name, answer in zip(space.names, space.answers, strict=True)
        )
        return {
            "en": "Please recognize the emotion of the above multimodal content from the target "
            f"set <{pairs}>. Assistant: The emotion is",
            "zh": f"请选择适用于上述多模态内容的情绪标签：<{pairs}>。助手: 情绪为",
        }[language]
    ends = f"[{space.answers[0]}, {space.answers[-1]}]"
    return {
        "en": "Please predict the sentiment intensity of the above multimodal content in the "
        f"range {ends}. Assistant: The sentiment is",
        "zh": f"请对上述多模态内容的情感强度进行预测，范围在{ends}之间。响应: 情感为",
    }[language]
