"""Options of what the language model reads and how its answers are picked."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import option


class SegmentKind(enum.Enum):
    """Kinds of segments in a sequence layout (see :class:`SegmentConfig`)."""

    token = "token"
    bos = "bos"
    literal = "literal"
    pseudo = "pseudo"
    text = "text"
    context = "context"
    prompt = "prompt"


class Order(enum.Enum):
    """Order of text, task prompt and pseudo tokens in the sequence."""

    pseudo_first = "pseudo_first"
    """The paper's: the layout of the backbone as it is."""
    text_first = "text_first"
    """Text, task prompt, pseudo tokens: what stands before the pseudo tokens is read once."""
    prompt_first = "prompt_first"
    """Task prompt, text, pseudo tokens: likewise, and the prompt is read once for all texts."""


class Loss(enum.Enum):
    """What the probability of a label's tokens is normalised over."""

    vocabulary = "vocabulary"
    """All tokens of the language model (paper, Eq. 2)."""
    answers = "answers"
    """At each position the tokens that continue a legal answer: what decoding picks from."""


class Decode(enum.Enum):
    """How an answer is picked from the legal ones."""

    greedy = "greedy"
    median = "median"
    mean = "mean"


@dataclass
class SegmentConfig:
    """One segment of the sequence that the backbone reads.

    ``token`` is one special token; ``bos`` the way in which the tokenizer itself begins a text (the
    special tokens that it puts in front, else its beginning token, else nothing); ``literal`` is
    ordinary text, tokenised by itself without special tokens; ``pseudo`` the pseudo tokens;
    ``text`` the utterance; ``context`` what was said before it, and who speaks now, which stands
    before ``text`` where a layout does not name it; ``prompt`` the task prompt. The label follows
    the last segment.
    """

    kind: SegmentKind = option(SegmentKind.literal, "kind of segment")
    token: str = option("", "token: the special token's name, such as <s>")
    en: str = option("", "literal: the string in English data sets")
    zh: str = option("", "literal: the string in Chinese data sets")

    def check(self, where: str) -> None:
        """Refuses a segment whose string is missing."""
        if self.kind is SegmentKind.token and not self.token:
            raise ConfigError(f"{where}: a segment of kind 'token' names its token.")
        if self.kind is SegmentKind.literal and not (self.en and self.zh):
            raise ConfigError(f"{where}: a segment of kind 'literal' has both 'en' and 'zh'.")


@dataclass
class TextConfig:
    """Treatment of the utterance's text; the defaults are right, the rest is for comparison."""

    pad_to: int | None = option(
        None, "pad every text on the left to this many tokens, as the original does", low=1
    )
    attend_padding: bool = option(
        False, "attend to padding and average it into the text mean, as the original does"
    )

    def check(self, where: str) -> None:
        """Refuses attention to padding that is not there."""
        if self.attend_padding and self.pad_to is None:
            raise ConfigError(
                f"{where}.attend_padding=true needs {where}.pad_to, the length that texts are "
                "padded to."
            )


CONTEXT_TEMPLATE = r"{speaker}:\n{text}\n"
"""On a line of their own, the words begin as a tokenizer writes them by themselves."""


@dataclass
class PromptConfig:
    """The task prompt, the order of what is read, and what is read of what was said before."""

    task: str | None = option(
        None,
        "the prompt itself, in which {labels} stands for the legal answers; made from the label "
        "space and language where not given",
    )
    order: Order = option(Order.pseudo_first, "order of text, task prompt and pseudo tokens")
    calibrate: bool = option(
        False,
        "subtract the log probabilities that the prompt gives the answers without any utterance",
    )
    context: int = option(
        0, "utterances before, of the same dialogue or video, that are read too", low=0
    )
    context_tokens: int = option(
        128, "what was said before is cut on the left to this many tokens", low=1
    )
    context_template: str = option(
        CONTEXT_TEMPLATE,
        r"how one of them is written; from {text} on where its speaker is not known; \n: new line",
    )

    def check(self, where: str) -> None:
        """Refuses a template without words, or with a name behind them."""
        names, text, after = self.context_template.partition("{text}")
        flawed = not text or "{text}" in after or "{speaker}" in after
        if flawed or names.count("{speaker}") > 1:
            raise ConfigError(
                f"{where}.context_template={self.context_template!r} has to have {{text}} once, "
                f"and {{speaker}} at most once before it, such as {CONTEXT_TEMPLATE!r}."
            )
