"""Generated data of the sizes of the paper's data sets, for measuring speed and memory.

The contents are noise. What decides how long a step takes and how much memory it needs is kept: the
number of utterances, how many features a frame has, how the numbers of tokens and frames are
distributed, and that an utterance of many words lasts long, so that a batch of texts of one length
holds frames of about one length too.

The distributions of the lengths are those of :mod:`msea_lightning.paper.lengths`.
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
from msea_lightning.paper.lengths import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        features = {
            modality: random.standard_normal(
                (min(lengths[index], sizes.steps[modality]), sizes.dims[modality]),
                dtype=np.float32,
            )
            for modality, lengths in frames.items()
        }
        yield Utterance(f"{split}-{index}", texts[index], {"M": drawn[index]}, features)


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
        for modality, frames in utterance.features.items():
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
    frames = utterance.features
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
