"""Lengths of the utterances in the paper's data sets: tokens of text, frames of audio and vision.

:attr:`Shape.source` says where the lengths come from. Three distributions are measured (the
tokens and seconds of MELD's utterances, the tokens of MOSI's); the others are these, stretched to
another average and cut at the published number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msea_lightning.paper import paper_table

_SOURCES = {row["dataset"]: row["source"] for row in paper_table("sources")}

_PERCENTILES = paper_table("percentiles")
_MELD_TOKENS = tuple(int(row["meld_tokens"]) for row in _PERCENTILES)
_MELD_SECONDS = tuple(float(row["meld_seconds"]) for row in _PERCENTILES)
_MOSI_TOKENS = tuple(int(row["mosi_tokens"]) for row in _PERCENTILES)

_MELD_MEAN_TOKENS = 12.66
_MELD_MEAN_SECONDS = 3.138
_MOSI_MEAN_TOKENS = 14.45
"""Means of what the percentiles are of."""

_TOKENS_PER_CHARACTER = 1.743
"""Tokens of LLaMA2's tokenizer for a Chinese character, measured on the paper's Chinese prompts."""


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths: its quantiles, with straight lines between them.

    Attributes:
        quantiles: At evenly spaced probabilities from 0 to 1, ascending; at least two.
    """

    quantiles: tuple[int, ...]

    @property
    def mean(self) -> float:
        """The mean of the distribution, lengths taken as real numbers."""
        ends = np.asarray(self.quantiles, dtype=np.float64)
        return float((ends[:-1] + ends[1:]).mean() / 2)

    def at(self, probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
        """The lengths at given probabilities.

        Args:
            probabilities: (N,) numbers from 0 to 1.

        Returns:
            (N,) lengths, rounded, at least 1.
        """
        steps = np.linspace(0, 1, len(self.quantiles))
        lengths = np.rint(np.interp(probabilities, steps, self.quantiles))
        return np.maximum(lengths, 1).astype(np.int64)


@dataclass(frozen=True)
class Shape:
    """How long the utterances of a data set are.

    Attributes:
        text: Tokens of the text as LLaMA2's tokenizer counts them, without special tokens and
            before the text is cut.
        audio: Audio frames.
        vision: Vision frames.
        source: Where the lengths come from: what is measured, what is reported, what is assumed.
    """

    text: Lengths
    audio: Lengths
    vision: Lengths
    source: str


def _tokens(measured: Sequence[int], average: float, wanted: float) -> Lengths:
    """Tokens that are distributed as the measured ones, stretched from their average to another."""
    return Lengths(tuple(max(1, round(tokens * wanted / average)) for tokens in measured))


def _lasting(seconds: float, rate: float, steps: int) -> Lengths:
    """Frames (``rate`` a second, ``steps`` kept) of utterances that last ``seconds`` on average."""
    stretch = rate * seconds / _MELD_MEAN_SECONDS
    frames = (round(stretch * lasted) for lasted in _MELD_SECONDS)
    return Lengths(tuple(min(max(1, count), steps) for count in frames))


_SIMS_SECONDS, _SIMS_CHARACTERS = 3.67, 15.0
_CHERMA_SECONDS = 543 / 50 / _MELD_SECONDS[95] * _MELD_MEAN_SECONDS

SHAPES: dict[str, Shape] = {
    "mosei": Shape(
        text=_tokens(_MOSI_TOKENS, _MOSI_MEAN_TOKENS, 24),
        audio=_lasting(7.28, 20, 500),
        vision=_lasting(7.28, 15, 375),
        source=_SOURCES["mosei"],
    ),
    "simsv2": Shape(
        text=_tokens(_MELD_TOKENS, _MELD_MEAN_TOKENS, 1 + _SIMS_CHARACTERS * _TOKENS_PER_CHARACTER),
        audio=_lasting(_SIMS_SECONDS, 100, 925),
        vision=_lasting(_SIMS_SECONDS, 25, 232),
        source=_SOURCES["simsv2"],
    ),
    "meld": Shape(
        text=Lengths(_MELD_TOKENS),
        audio=_lasting(_MELD_MEAN_SECONDS, 157 / 5, 157),
        vision=_lasting(_MELD_MEAN_SECONDS, 32 / 5, 32),
        source=_SOURCES["meld"],
    ),
    "cherma": Shape(
        text=_tokens(
            _MELD_TOKENS,
            _MELD_MEAN_TOKENS,
            1 + _CHERMA_SECONDS * _SIMS_CHARACTERS / _SIMS_SECONDS * _TOKENS_PER_CHARACTER,
        ),
        audio=_lasting(_CHERMA_SECONDS, 50, 543),
        vision=Lengths((16, 16)),
        source=_SOURCES["cherma"],
    ),
}
"""The lengths of the paper's data sets."""

LONGEST = {
    (row["dataset"], backbone): int(row[backbone])
    for row in paper_table("longest")
    for backbone in row
    if backbone != "dataset"
}
"""Tokens of the longest sequence by data set and backbone, the label not counted, four pseudo
tokens included. Tests count them again where the tokenizers are at hand."""
