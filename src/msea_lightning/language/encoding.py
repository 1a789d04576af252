"""Many texts at once to token ids, as the language model shall read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msea_lightning.language.prompt import encode_all
from msea_lightning.language.wording import Wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Texts to token ids, written as a wording has them."""

    tokenizer: PreTrainedTokenizerBase
    wording: Wording

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, uncut, without special tokens."""
        return encode_all(self.tokenizer, [self.wording.text(text) for text in texts])
