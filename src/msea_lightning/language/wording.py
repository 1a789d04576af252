"""How what is said is written for the language model, before it is tokenised.

Utterances stay as they are in stores, batches and answers; only what the model reads of them is
written anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from msea_lightning.data.options import TextCase
from msea_lightning.language.options import CONTEXT_TEMPLATE, SegmentConfig, SegmentKind

_PRONOUN = re.compile(r"\bi\b")  # also that of i'm and i'll
_BEGINNING = re.compile(r"^\W*\w")


@dataclass(frozen=True)
class Wording:
    """How texts are written.

    Attributes:
        case: What becomes of texts that are wholly in capitals.
        context: Utterances before that are read too.
        context_tokens: They are cut on the left to so many tokens.
        template: How one of them is written (``PromptConfig.context_template``).
    """

    case: TextCase = TextCase.keep
    context: int = 0
    context_tokens: int = 128
    template: str = CONTEXT_TEMPLATE

    def text(self, said: str) -> str:
        """The words of an utterance as they are written."""
        if self.case is TextCase.keep or not said.isupper():
            return said
        return sentence_case(said)

    def line(self, text: str, speaker: str | None) -> str:
        """An utterance as it is written when it stands before another."""
        after = self.template.partition("{text}")[2]
        return f"{self._front(speaker)}{self.text(text)}{_with_lines(after)}"

    def lead(self, speaker: str | None) -> str:
        """What stands directly before the words of an utterance itself: who speaks, if known.

        Without a blank at its end: a tokenizer has those at the beginning of a word, if at all.
        """
        return self._front(speaker).rstrip(" ")

    def _front(self, speaker: str | None) -> str:
        """What a template has before the words; nothing where the name that it needs is missing."""
        front = self.template.partition("{text}")[0]
        if "{speaker}" not in front:
            return _with_lines(front)
        return "" if speaker is None else _with_lines(front).replace("{speaker}", speaker)


def with_context(layout: Sequence[SegmentConfig]) -> list[SegmentConfig]:
    """The layout with a segment for what was said before: directly before the text, if it has none.

    A layout without a text has no place for it, and stays as it is.
    """
    kinds = [segment.kind for segment in layout]
    found = list(layout)
    if SegmentKind.context not in kinds and SegmentKind.text in kinds:
        found.insert(kinds.index(SegmentKind.text), SegmentConfig(SegmentKind.context))
    return found


def _with_lines(template: str) -> str:
    """A part of a template, which is one line on the command line, with its lines."""
    return template.replace("\\n", "\n")


def sentence_case(text: str) -> str:
    """The text in small letters, with its first letter and the pronoun I as capitals."""
    lowered = _PRONOUN.sub("I", text.lower())
    return _BEGINNING.sub(lambda found: found[0].upper(), lowered)
