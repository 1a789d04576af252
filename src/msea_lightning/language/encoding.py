"""Many texts at once to token ids, as the language model shall read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
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


@dataclass(frozen=True, eq=False)
class ContextEncoder(TextEncoder):
    """What was said before utterances, and who speaks, to token ids.

    Each utterance is tokenised by itself, so that it has the same tokens before every other.
    """

    @property
    def number(self) -> int:
        """Most utterances that stand before one."""
        return self.wording.context

    def __call__(
        self,
        said: Sequence[tuple[str, str | None]],
        before: Sequence[Sequence[tuple[str, str | None]]],
    ) -> list[list[int]]:
        """Token ids of what stands before each of N texts, cut on the left.

        Args:
            said: N texts, each with its speaker.
            before: What was said before each, the earliest first.
        """
        lines = [[self.wording.line(*one) for one in last] for last in before]
        leads = [self.wording.lead(speaker) for _, speaker in said]
        ids = self._ids(chain(leads, *lines))
        rows = (
            chain(*(ids[line] for line in last), ids[lead])
            for last, lead in zip(lines, leads, strict=True)
        )
        return [list(row)[-self.wording.context_tokens :] for row in rows]

    def _ids(self, strings: Iterable[str]) -> dict[str, list[int]]:
        """Token ids by string; none of the empty one, to which tokenizers add blanks."""
        distinct = list(dict.fromkeys(filter(None, strings)))
        ids = encode_all(self.tokenizer, distinct) if distinct else []
        return {"": [], **dict(zip(distinct, ids, strict=True))}
