"""How what is said is written for the language model, before it is tokenised.

Utterances stay as they are in stores, batches and answers; only what the model reads of them is
written anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from msea_lightning.data.options import TextCase

_PRONOUN = re.compile(r"\bi\b")  # also that of i'm and i'll
_BEGINNING = re.compile(r"^\W*\w")


@dataclass(frozen=True)
class Wording:
    """How texts are written.

    Attributes:
        case: What becomes of texts that are wholly in capitals.
    """

    case: TextCase = TextCase.keep

    def text(self, said: str) -> str:
        """The words of an utterance as they are written."""
        if self.case is TextCase.keep or not said.isupper():
            return said
        return sentence_case(said)


def sentence_case(text: str) -> str:
    """The text in small letters, with its first letter and the pronoun I as capitals."""
    lowered = _PRONOUN.sub("I", text.lower())
    return _BEGINNING.sub(lambda found: found[0].upper(), lowered)
