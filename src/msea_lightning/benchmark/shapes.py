"""Generated data of the sizes of the paper's data sets, for measuring speed and memory.

The contents are noise. What decides how long a step takes and how much memory it needs is kept: the
number of utterances, how many features a frame has, how the numbers of tokens and frames are
distributed, and that an utterance of many words lasts long, so that a batch of texts of one length
holds frames of about one length too.

Where the lengths come from is said by :attr:`Shape.source`. Three distributions are measured (the
tokens and seconds of MELD's utterances, the tokens of MOSI's); the others are these, stretched to
another average and cut at the published number of steps.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr  # type: ignore[import-untyped]

from msea_lightning.config.errors import UserError
from msea_lightning.data.options import (
    SPLITS,
    DatasetConfig,
    LabelConfig,
    LabelKind,
    Language,
    Reader,
)
from msea_lightning.data.utterance import Utterance
from msea_lightning.paper import paper_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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

_CORRELATION = 0.778
"""Of normal variables with the rank correlation of tokens and seconds in MELD, which is 0.763."""

_ENOUGH = 16
"""Words of one token each that make texts varied enough."""

_TRIALS = 4
"""How often texts are counted; each time, those that are too long or too short are changed."""

_WORDS = (
    "the", "of", "and", "to", "in", "that", "it", "is", "was", "for", "on", "you", "with", "he",
    "be", "as", "at", "by", "this", "have", "from", "they", "she", "or", "we", "not", "but", "what",
    "all", "were", "when", "there", "can", "your", "which", "said", "if", "do", "will", "each",
    "about", "how", "up", "out", "them", "then", "many", "some", "so", "these", "would", "other",
    "into", "has", "more", "her", "two", "like", "him", "see", "time", "could", "no", "make",
    "than", "first", "been", "its", "who", "now", "people", "my", "made", "over", "did", "down",
    "only", "way", "find", "use", "may", "water", "long", "little", "very", "after", "words",
    "called", "just", "where", "most", "know", "get", "through", "back", "much", "before", "go",
    "good", "new", "write", "our", "me", "man", "too", "any", "day", "same", "right", "look",
    "think", "also", "around", "another", "came", "come", "work", "three", "must", "because",
    "does", "part", "even", "place", "well", "such", "here", "take", "why", "help", "put",
    "different", "away", "again", "off", "went", "old", "number", "great", "tell", "men", "say",
    "small", "every", "found", "still", "between", "name", "should", "home", "big", "give",
)  # fmt: skip

_CHARACTERS = tuple(
    "马我你他她在有这为来以个到说时要出会可也你生能子得着下去看想都很好没什么给从过还因前道家里心小多天年地"
    "事情爱关门水手头身白风花火山光雨新高长东西明话听写书车老先今日月声路"
)

_LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")


class ShapeError(UserError):
    """Options of a data set that no utterances can be generated for."""


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

    def sample(self, count: int, random: np.random.Generator) -> NDArray[np.int64]:
        """Lengths drawn independently.

        Args:
            count: How many.
            random: What draws them.

        Returns:
            (count,) lengths, at least 1.
        """
        return self.at(random.random(count))


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


def generate(
    shape: Shape,
    dataset: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    counts: Mapping[str, int],
    *,
    seed: int,
) -> dict[str, Iterator[Utterance]]:
    """Generates utterances that are as long as a data set's; what is in them is noise.

    Texts are common words drawn at random, as many tokens of the given tokenizer as the shape has
    of LLaMA2's, to within one. Utterances with many tokens have many frames, as in MELD, and the
    two sequences of an utterance last equally long.

    Args:
        shape: The lengths; frames are cut at the published number of steps.
        dataset: The data set's options, of which the name, the language, the labels and the widths
            are used; it is one of the paper's.
        tokenizer: What the texts are counted with.
        counts: Utterances by split.
        seed: The same seed gives the same utterances, each split by itself.

    Returns:
        For each split its utterances, made one at a time: ids ``<split>-<number>``, ``audio``
        (La, da) and ``vision`` (Lv, dv) standard normal float32, no group and no speaker.

    Raises:
        ShapeError: where the labels are neither a scale nor names.
    """
    sizes = _sizes(dataset)
    _check_labels(dataset.labels)
    writer = _Writer(tokenizer, dataset.language)
    generators = dict(zip(SPLITS, np.random.default_rng(seed).spawn(len(SPLITS)), strict=True))
    return {
        split: _utterances(split, count, shape, dataset.labels, sizes, writer, generators[split])
        for split, count in counts.items()
    }


def write_published(
    dataset: DatasetConfig,
    shape: Shape,
    tokenizer: PreTrainedTokenizerBase,
    counts: Mapping[str, int],
    folder: Path,
    *,
    seed: int,
) -> Path:
    """Writes what :func:`generate` gives in the layout in which the data set is published.

    Features are float32 and padded with zeros to the published number of steps. Of a file of MMSA's
    layout a split is in memory at a time, of one of MELD's layout an utterance.

    Args:
        dataset: The data set's options; ``reader`` says which layout, mmsa or dialogue.
        shape: The lengths.
        tokenizer: What the texts are counted with.
        counts: Utterances by split.
        folder: Where to write; made where it is missing.
        seed: See :func:`generate`.

    Returns:
        What ``dataset.path`` has to be: the file of MMSA's layout, the folder of MELD's.

    Raises:
        ShapeError: where the layout is another, or :func:`generate` raises it.
    """
    if dataset.reader not in (Reader.mmsa, Reader.dialogue):
        raise ShapeError(
            f"dataset.reader={dataset.reader.value}, but generated data are written for "
            f"{Reader.mmsa.value} and {Reader.dialogue.value} only. Leave dataset.reader as "
            f"dataset={dataset.name} has it."
        )
    sizes = _sizes(dataset)
    parts = generate(shape, dataset, tokenizer, counts, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    if dataset.reader is Reader.dialogue:
        for split, utterances in parts.items():
            items = (_dialogue_item(utterance, sizes) for utterance in utterances)
            _dump(_Streamed(list, items), folder / f"{dataset.name}_{split}.pkl")
        return folder
    path = folder / Path(dataset.hub_file or f"{dataset.name}.pkl").name
    contents = (
        (split, _mmsa_split(utterances, counts[split], sizes))
        for split, utterances in parts.items()
    )
    _dump(_Streamed(dict, contents), path)
    return path


@dataclass(frozen=True)
class _Sizes:
    """Features of a frame, and frames of a padded utterance in the published files, by modality."""

    dims: Mapping[str, int]
    steps: Mapping[str, int]


def _sizes(dataset: DatasetConfig) -> _Sizes:
    row = _published(dataset.name)
    return _Sizes(
        {
            "audio": dataset.audio_dim or int(row["audio_dim"]),
            "vision": dataset.vision_dim or int(row["vision_dim"]),
        },
        {"audio": int(row["audio_steps"]), "vision": int(row["vision_steps"])},
    )


def _published(name: str) -> dict[str, str]:
    (row,) = (row for row in paper_table("datasets") if row["dataset"] == name)
    return row


def _utterances(
    split: str,
    count: int,
    shape: Shape,
    labels: LabelConfig,
    sizes: _Sizes,
    writer: _Writer,
    random: np.random.Generator,
) -> Iterator[Utterance]:
    """A split's utterances; all that is small is drawn at once, the frames one at a time."""
    spoken, lasting = _probabilities(count, random)
    texts = writer.texts(shape.text.at(spoken), random)
    drawn = _labels(labels, count, random)
    frames = {"audio": shape.audio.at(lasting), "vision": shape.vision.at(lasting)}
    for index in range(count):
        audio, vision = (
            random.standard_normal(
                (min(lengths[index], sizes.steps[modality]), sizes.dims[modality]),
                dtype=np.float32,
            )
            for modality, lengths in frames.items()
        )
        yield Utterance(f"{split}-{index}", texts[index], drawn[index], audio, vision)


def _probabilities(
    count: int, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where texts and durations lie in their distributions: (count,) each, uniform, correlated."""
    words, rest = random.standard_normal((2, count))
    seconds = _CORRELATION * words + np.sqrt(1 - _CORRELATION**2) * rest
    return ndtr(words), ndtr(seconds)


def _check_labels(labels: LabelConfig) -> None:
    scale = labels.kind is LabelKind.scale and labels.low is not None and labels.high is not None
    if not (scale or (labels.kind is LabelKind.emotions and labels.names)):
        raise ShapeError(
            f"dataset.labels.kind={labels.kind.value}, but labels can be generated only for a "
            "scale with dataset.labels.low and dataset.labels.high, or for emotions with "
            "dataset.labels.names. Leave dataset.labels as the data set has them."
        )


def _labels(
    labels: LabelConfig, count: int, random: np.random.Generator
) -> list[float] | list[str]:
    """Labels, all equally likely: names, or multiples of 0.1 from the lowest to the highest."""
    if labels.kind is LabelKind.emotions:
        return [labels.names[index] for index in random.integers(len(labels.names), size=count)]
    low, high = (round(10 * bound) for bound in (labels.low or 0.0, labels.high or 0.0))
    return [tenths / 10 for tenths in random.integers(low, high + 1, count).tolist()]


class _Writer:
    """Writes texts of a wanted number of tokens.

    Words are taken that the tokenizer writes as one token each, wherever they stand: Chinese
    characters for a Chinese data set, where it knows enough of them, else English words. Where it
    has no such words (it knows bytes only), letters are, whatever they take.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, language: Language) -> None:
        self._tokenizer = tokenizer
        self._words, self._joint, self._per_word = self._choose(language)
        first = self._words[0]
        # Beyond its words, a text may have a token for its beginning, such as LLaMA's space, or
        # lack that of a space before its first word.
        self._beginning = int(self._count([first])[0]) - self._per_word

    def texts(self, tokens: NDArray[np.int64], random: np.random.Generator) -> list[str]:
        """Texts of words drawn at random.

        Args:
            tokens: (N,) tokens that the texts are to have.
            random: What draws the words.

        Returns:
            N texts, of at least one word.
        """
        sizes = np.rint((tokens - self._beginning) / self._per_word).astype(np.int64)
        sizes = np.maximum(sizes, 1)
        drawn = self._draw(int(sizes.sum()), random)
        ends = np.cumsum(sizes).tolist()
        chosen = [drawn[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True)]
        texts = [self._joint.join(words) for words in chosen]
        pending = np.arange(len(texts))
        # Neighbours may share a token, as frequent pairs of Chinese characters do.
        for _ in range(_TRIALS):
            missing = tokens[pending] - self._count([texts[index] for index in pending])
            more = np.rint(missing / self._per_word).astype(np.int64)
            pending, more = pending[more != 0], more[more != 0]
            for index, words in zip(pending.tolist(), more.tolist(), strict=True):
                if words > 0:
                    chosen[index] += self._draw(words, random)
                else:
                    chosen[index] = chosen[index][: max(1, len(chosen[index]) + words)]
                texts[index] = self._joint.join(chosen[index])
        return texts

    def _draw(self, count: int, random: np.random.Generator) -> list[str]:
        return [self._words[index] for index in random.integers(len(self._words), size=count)]

    def _choose(self, language: Language) -> tuple[Sequence[str], str, float]:
        """Words, what stands between two of them, and the tokens that a word more takes."""
        pools: list[tuple[Sequence[str], str]] = [(_WORDS, " ")]
        if language is Language.zh:
            pools.insert(0, (_CHARACTERS, ""))
        for words, joint in pools:
            costs = self._costs(words, joint)
            single = [word for word, cost in zip(words, costs, strict=True) if cost == 1]
            if len(single) >= _ENOUGH:
                return single, joint, 1.0
        return _LETTERS, " ", float(self._costs(_LETTERS, " ").mean())

    def _costs(self, words: Sequence[str], joint: str) -> NDArray[np.int64]:
        """(N,) tokens that each word adds between two others."""
        other = words[0]
        with_word = self._count([joint.join((other, word, other)) for word in words])
        return with_word - self._count([joint.join((other, other))])

    def _count(self, texts: list[str]) -> NDArray[np.int64]:
        if not texts:
            return np.zeros(0, dtype=np.int64)
        encoded = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return np.array([len(ids) for ids in encoded], dtype=np.int64)


def _mmsa_split(utterances: Iterator[Utterance], count: int, sizes: _Sizes) -> dict[str, Any]:
    """A split as MMSA's layout has it: (N, steps, d) features, N of everything else."""
    features = {
        modality: np.zeros((count, steps, sizes.dims[modality]), dtype=np.float32)
        for modality, steps in sizes.steps.items()
    }
    lengths: dict[str, list[int]] = {modality: [] for modality in features}
    texts, ids, labels = [], [], []
    for index, utterance in enumerate(utterances):
        texts.append(utterance.text)
        ids.append(utterance.id)
        labels.append(utterance.label)
        for modality, frames in _frames(utterance).items():
            features[modality][index, : len(frames)] = frames
            lengths[modality].append(len(frames))
    return {
        "raw_text": np.array(texts),
        **features,
        "id": ids,
        "audio_lengths": lengths["audio"],
        "vision_lengths": lengths["vision"],
        "regression_labels": np.array(labels, dtype=np.float32),
    }


def _dialogue_item(utterance: Utterance, sizes: _Sizes) -> dict[str, Any]:
    """An utterance as the layout of MELD and CHERMA has it, with (steps, d) features."""
    frames = _frames(utterance)
    padded = {
        modality: np.pad(values, ((0, sizes.steps[modality] - len(values)), (0, 0)))
        for modality, values in frames.items()
    }
    return {
        "label": utterance.label,
        "features": {
            "text": utterance.text,
            "audio": padded["audio"],
            "video": padded["vision"],
            "audio_len": len(frames["audio"]),
            "video_len": len(frames["vision"]),
        },
    }


def _frames(utterance: Utterance) -> dict[str, NDArray[np.float32]]:
    """The features of a generated utterance, which has both modalities."""
    assert utterance.audio is not None
    assert utterance.vision is not None
    return {"audio": utterance.audio, "vision": utterance.vision}


class _Streamed:
    """Becomes a list or a dictionary in a pickle; its items are made while it is written."""

    def __init__(self, kind: type[list[Any]] | type[dict[str, Any]], items: Iterator[Any]) -> None:
        self._kind = kind
        self._items = items

    def __reduce__(self) -> tuple[Any, ...]:
        if self._kind is list:
            return list, (), None, self._items
        return dict, (), None, None, self._items


def _dump(content: _Streamed, path: Path) -> None:
    with path.open("wb") as file:
        pickler = pickle.Pickler(file, protocol=4)
        # Else it keeps all that it has written, in case it comes again; CHERMA's padded frames
        # would take 40 GB.
        pickler.fast = True
        pickler.dump(content)
