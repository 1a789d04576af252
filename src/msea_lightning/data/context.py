"""What was said before an utterance: the last ones of its dialogue or video, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Said(NamedTuple):
    """The words of an utterance, and who speaks; None where nobody knows."""

    text: str
    speaker: str | None = None


class ContextWriter(Protocol):
    """Writes what was said before utterances as token ids.

    Attributes:
        number: Most utterances that stand before one.
    """

    @property
    def number(self) -> int:
        """See the class."""
        ...

    def __call__(
        self, said: Sequence[Said], before: Sequence[Sequence[Said]]
    ) -> Sequence[Sequence[int]]:
        """Token ids of what stands before each of N utterances, given what was said before."""
        ...


def said_before(
    utterances: Iterable[tuple[Hashable | None, Said]], number: int
) -> list[tuple[Said, ...]]:
    """For each utterance the last of its group that come before it, at most ``number`` of them.

    Args:
        utterances: Group and words of each, in the order in which they were said; other groups may
            come in between. One of group None has nothing before it.
        number: At least 1. Utterances without words are passed over.

    Returns:
        For each the ones before, the earliest first.
    """
    found: list[tuple[Said, ...]] = []
    recent: dict[Hashable, deque[Said]] = {}
    for group, said in utterances:
        if group is None:
            found.append(())
            continue
        last = recent.setdefault(group, deque(maxlen=number))
        found.append(tuple(last))
        if said.text.strip():
            last.append(said)
    return found


def token_arrays(rows: Sequence[Sequence[int]]) -> list[NDArray[np.int32]]:
    """Token ids of many texts; one array in memory, of which each has its part."""
    flat = np.fromiter((token for row in rows for token in row), dtype=np.int32)
    return np.split(flat, np.cumsum([len(row) for row in rows])[:-1])
