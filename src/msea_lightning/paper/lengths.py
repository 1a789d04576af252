"""Lengths of the utterances in the paper's data sets: tokens of text, frames of audio and vision.

:attr:`Shape.source` says where the lengths come from. Three distributions are measured (the
tokens and seconds of MELD's utterances, the tokens of MOSI's); the others are these, stretched to
another average and cut at the published number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msea_lightning.paper import paper_table

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

_MEASURED = {
    "meld": (_MELD_TOKENS, _MELD_MEAN_TOKENS),
    "mosi": (_MOSI_TOKENS, _MOSI_MEAN_TOKENS),
}


@dataclass(frozen=True)
class Lengths:
    """A distribution: its quantiles at evenly spaced probabilities, with lines between them."""

    quantiles: tuple[int, ...]

    @property
    def mean(self) -> float:
        """The mean of the distribution, lengths taken as real numbers."""
        ends = np.asarray(self.quantiles, dtype=np.float64)
        return float((ends[:-1] + ends[1:]).mean() / 2)

    def at(self, probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
        """The lengths, rounded and at least 1, at (N,) given probabilities."""
        steps = np.linspace(0, 1, len(self.quantiles))
        lengths = np.rint(np.interp(probabilities, steps, self.quantiles))
        return np.maximum(lengths, 1).astype(np.int64)


@dataclass(frozen=True)
class Shape:
    """How long the utterances of a data set are, in tokens and frames, and how that is known.

    Tokens are as LLaMA2's tokenizer counts them, without special tokens, before the text is cut.
    """

    text: Lengths
    audio: Lengths
    vision: Lengths
    source: str


def _shape(row: Mapping[str, str]) -> Shape:
    """The lengths that a row of ``lengths.csv`` describes."""
    quantiles, mean = _MEASURED[row["measured"]]
    wanted = float(row["tokens"] or 1 + float(row["characters"] or 0) * _TOKENS_PER_CHARACTER)
    text = Lengths(tuple(max(1, round(tokens * wanted / mean)) for tokens in quantiles))
    audio, vision = (_frames(row, modality) for modality in ("audio", "vision"))
    return Shape(text, audio, vision, row["source"])


def _frames(row: Mapping[str, str], modality: str) -> Lengths:
    rate, steps = row[f"{modality}_rate"], int(row[f"{modality}_steps"])
    if not rate:
        return Lengths((steps, steps))
    stretch = float(rate) * float(row["seconds"]) / _MELD_MEAN_SECONDS
    frames = (round(stretch * lasted) for lasted in _MELD_SECONDS)
    return Lengths(tuple(min(max(1, count), steps) for count in frames))


SHAPES = {row["dataset"]: _shape(row) for row in paper_table("lengths")}
"""The lengths of the paper's data sets."""

LONGEST = {
    (row["dataset"], backbone): int(row[backbone])
    for row in paper_table("longest")
    for backbone in row
    if backbone != "dataset"
}
"""Tokens of the longest sequence by data set and backbone, the label not counted, four pseudo
tokens included. Tests count them again where the tokenizers are at hand."""
