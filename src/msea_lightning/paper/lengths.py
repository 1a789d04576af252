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

_MELD_TOKENS = (
    1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 7, 7,
    7, 7, 7, 8, 8, 8, 8, 8, 8, 9, 9, 9, 9, 9, 10, 10, 10, 10, 10, 11, 11, 11, 11, 12, 12, 12, 12,
    13, 13, 13, 13, 14, 14, 14, 15, 15, 15, 16, 16, 16, 17, 17, 17, 18, 18, 19, 19, 19, 20, 20, 21,
    21, 22, 22, 23, 24, 24, 25, 26, 26, 27, 28, 29, 30, 32, 33, 35, 39, 97,
)  # fmt: skip
"""Percentiles of the tokens of MELD's training texts, LLaMA2's tokenizer; their mean is 12.66."""

_MELD_SECONDS = (
    0.01, 0.20, 0.38, 0.51, 0.60, 0.67, 0.76, 0.84, 0.92, 0.99, 1.01, 1.04, 1.08, 1.12, 1.17, 1.19,
    1.25, 1.27, 1.31, 1.34, 1.38, 1.42, 1.46, 1.50, 1.52, 1.55, 1.58, 1.63, 1.67, 1.71, 1.73, 1.75,
    1.79, 1.83, 1.88, 1.92, 1.95, 1.97, 2.00, 2.04, 2.08, 2.13, 2.13, 2.17, 2.21, 2.25, 2.29, 2.33,
    2.38, 2.42, 2.46, 2.50, 2.54, 2.58, 2.63, 2.67, 2.71, 2.75, 2.80, 2.88, 2.92, 2.96, 3.00, 3.05,
    3.13, 3.17, 3.25, 3.29, 3.38, 3.46, 3.50, 3.59, 3.67, 3.75, 3.84, 3.92, 4.00, 4.09, 4.21, 4.34,
    4.46, 4.59, 4.71, 4.92, 5.09, 5.25, 5.46, 5.67, 5.84, 6.05, 6.34, 6.59, 6.88, 7.21, 7.55, 7.92,
    8.47, 9.13, 10.09, 11.76, 41.04,
)  # fmt: skip
"""Percentiles of the seconds that MELD's training utterances last; their mean is 3.138."""

_MOSI_TOKENS = (
    2, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 8, 8, 8, 8, 8, 8, 8,
    9, 9, 9, 9, 9, 9, 9, 10, 10, 10, 10, 10, 10, 10, 11, 11, 11, 11, 11, 11, 12, 12, 12, 12, 13, 13,
    13, 13, 14, 14, 14, 14, 15, 15, 15, 16, 16, 16, 16, 17, 17, 18, 18, 18, 19, 19, 19, 20, 21, 21,
    22, 22, 23, 23, 24, 24, 25, 26, 26, 27, 29, 30, 31, 33, 36, 39, 42, 52, 133,
)  # fmt: skip
"""Percentiles of the tokens of MOSI's texts in lower case, LLaMA2's tokenizer; mean 14.45."""

_MELD_MEAN_TOKENS = 12.66
_MELD_MEAN_SECONDS = 3.138
_MOSI_MEAN_TOKENS = 14.45

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
    """Frames of utterances that last as MELD's do, stretched to another average.

    Args:
        seconds: How long they last on average.
        rate: Frames per second.
        steps: Frames that are kept.
    """
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
        source=(
            "text: the tokens of MOSI's texts, measured, stretched to 24 on average, which is "
            "assumed for the 19 words that are reported; frames: 20 and 15 a second (Tsai et al. "
            "2019) of the reported 7.28 s on average, distributed as the measured seconds of "
            "MELD's utterances. The reported averages are those of the data set's paper (Zadeh et "
            "al. 2018) and not verified."
        ),
    ),
    "simsv2": Shape(
        text=_tokens(_MELD_TOKENS, _MELD_MEAN_TOKENS, 1 + _SIMS_CHARACTERS * _TOKENS_PER_CHARACTER),
        audio=_lasting(_SIMS_SECONDS, 100, 925),
        vision=_lasting(_SIMS_SECONDS, 25, 232),
        source=(
            "assumed: 3.67 s and 15 characters on average, as reported for its predecessor SIMS "
            "(Yu et al. 2020; not verified), 1.743 tokens a character as in the paper's "
            "Chinese prompts, measured, 100 and 25 frames a second, which make the published "
            "steps 9.25 s of either modality; all distributed as MELD's, measured."
        ),
    ),
    "meld": Shape(
        text=Lengths(_MELD_TOKENS),
        audio=_lasting(_MELD_MEAN_SECONDS, 157 / 5, 157),
        vision=_lasting(_MELD_MEAN_SECONDS, 32 / 5, 32),
        source=(
            "text: measured on MELD's training texts with LLaMA2's tokenizer; frames: the seconds "
            "of MELD's training utterances, measured, of which the first 5 are assumed to be the "
            "published steps (16 kHz with 512 samples a frame make 157 frames)."
        ),
    ),
    "cherma": Shape(
        text=_tokens(
            _MELD_TOKENS,
            _MELD_MEAN_TOKENS,
            1 + _CHERMA_SECONDS * _SIMS_CHARACTERS / _SIMS_SECONDS * _TOKENS_PER_CHARACTER,
        ),
        audio=_lasting(_CHERMA_SECONDS, 50, 543),
        vision=Lengths((16, 16)),
        source=(
            "assumed: 50 audio frames a second, as wav2vec has, and 4.3 s on average, distributed "
            "as MELD's, measured, so that the published steps cut one utterance in twenty; as many "
            "characters a second as in SIMS and 1.743 tokens a character; 16 vision frames in "
            "every utterance."
        ),
    ),
}
"""The lengths of the paper's data sets."""

LONGEST = {
    ("mosei", "llama2"): 100,
    ("mosei", "qwen"): 95,
    ("mosei", "chatglm3"): 105,
    ("simsv2", "llama2"): 125,
    ("simsv2", "qwen"): 99,
    ("simsv2", "chatglm3"): 103,
    ("meld", "llama2"): 140,
    ("meld", "qwen"): 127,
    ("meld", "chatglm3"): 140,
    ("cherma", "llama2"): 196,
    ("cherma", "qwen"): 156,
    ("cherma", "chatglm3"): 153,
}
"""Tokens of the longest sequence by data set and backbone, the label not counted, as the published
tokenizer writes the paper's prompt; four of them are pseudo tokens. Tests count them again where
the tokenizers are at hand."""
