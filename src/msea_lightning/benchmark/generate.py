"""Generated data with the sizes of the paper's data sets, for measuring speed and memory.

The contents are noise. Kept is what decides how long a step takes and how much memory it needs:
numbers, lengths (:mod:`msea_lightning.paper.lengths`), and that long texts have long recordings.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr  # type: ignore[import-untyped]

from msea_lightning.benchmark import BenchError
from msea_lightning.data.options import (
    SPLITS,
    DatasetConfig,
    LabelConfig,
    LabelKind,
    Language,
    Reader,
)
from msea_lightning.data.store import Store, StoreSplit
from msea_lightning.data.utterance import MAIN_LABEL, Label, Utterance
from msea_lightning.paper.lengths import SHAPES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CORRELATION = 0.778
"""Of normal variables with the rank correlation of tokens and seconds in MELD, which is 0.763."""

_ENGLISH, _CHINESE = ("[a-z]{2,}", " "), ("[\u4e00-\u9fff]", "")
"""What a word is, and what stands between two of them."""

_CANDIDATES, _ENOUGH = 20_000, 16
"""Tokens of the vocabulary that are tried as words; words that make texts varied enough."""

_CORRECTIONS = 8
"""How often texts are counted and made longer or shorter."""


def generate(
    dataset: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    counts: Mapping[str, int],
    *,
    seed: int,
) -> dict[str, Iterator[Utterance]]:
    """Utterances with the lengths of a data set of the paper, of each split one at a time.

    Texts are words drawn at random, with as many tokens of the given tokenizer as the data set's
    texts have of LLaMA2's, to within one. ``audio`` (La, da) and ``vision`` (Lv, dv) last equally
    long and are standard normal float32. A seed gives the same utterances, each split by itself.
    """
    words, joint = _words(tokenizer, dataset.language)
    generators = dict(zip(SPLITS, np.random.default_rng(seed).spawn(len(SPLITS)), strict=True))
    shape = SHAPES[dataset.name]

    def utterances(split: str, count: int) -> Iterator[Utterance]:
        """All that is small is drawn at once, the frames one at a time."""
        random = generators[split]
        covariance = [[1, CORRELATION], [CORRELATION, 1]]
        of_text, of_frames = ndtr(random.multivariate_normal([0, 0], covariance, count)).T
        texts = _texts(shape.text.at(of_text), tokenizer, words, joint, random)
        labels = _labels(dataset.labels, count, random)
        frames = {
            "audio": (shape.audio.at(of_frames), dataset.audio_dim or 1),
            "vision": (shape.vision.at(of_frames), dataset.vision_dim or 1),
        }
        return (
            Utterance(
                f"{split}-{index}",
                texts[index],
                {MAIN_LABEL: labels[index]},
                {
                    name: random.standard_normal((lengths[index], dim), dtype=np.float32)
                    for name, (lengths, dim) in frames.items()
                },
            )
            for index in range(count)
        )

    return {split: utterances(split, count) for split, count in counts.items()}


def _labels(labels: LabelConfig, count: int, random: np.random.Generator) -> list[Label]:
    """Labels, all equally likely: names, or multiples of 0.1 from the lowest to the highest."""
    if labels.kind is LabelKind.emotions and labels.names:
        return [str(name) for name in random.choice(labels.names, count)]
    if labels.kind is LabelKind.scale and labels.low is not None and labels.high is not None:
        low, high = round(10 * labels.low), round(10 * labels.high)
        return [tenths / 10 for tenths in random.integers(low, high + 1, count).tolist()]
    raise BenchError(
        f"dataset.labels.kind={labels.kind.value}, but labels can be generated only for a scale "
        "with dataset.labels.low and dataset.labels.high, or for emotions with "
        "dataset.labels.names. Leave dataset.labels as the data set has them."
    )


def _words(tokenizer: PreTrainedTokenizerBase, language: Language) -> tuple[list[str], str]:
    """Words of one token each, of Chinese if there are enough, and what stands between them."""
    ids = sorted(tokenizer.get_vocab().values())
    tried = ids[:: -(-len(ids) // _CANDIDATES)]
    vocabulary = {str(tokenizer.decode([token])).strip() for token in tried}
    for pattern, joint in [_CHINESE, _ENGLISH] if language is Language.zh else [_ENGLISH]:
        words = sorted(word for word in vocabulary if re.fullmatch(pattern, word))
        if words:
            other = words[0]
            between = [joint.join((other, word, other)) for word in words]
            added = _count(tokenizer, between) - _count(tokenizer, [joint.join((other, other))])
            words = [word for word, tokens in zip(words, added, strict=True) if tokens == 1]
        if len(words) >= _ENOUGH:
            return words, joint
    raise BenchError(
        f"The tokenizer has fewer than {_ENOUGH} words of one token each, so that no texts of a "
        "given length can be written. Give another one with backbone.tokenizer."
    )


def _texts(
    tokens: NDArray[np.int64],
    tokenizer: PreTrainedTokenizerBase,
    words: list[str],
    joint: str,
    random: np.random.Generator,
) -> list[str]:
    """N texts of random words, at least one each, with (N,) tokens."""

    def draw(count: int) -> list[str]:
        return [words[index] for index in random.integers(len(words), size=count)]

    texts = [draw(count) for count in np.maximum(tokens, 1).tolist()]
    # A text may have a token for its beginning, and neighbours may merge into one token, as
    # frequent pairs of Chinese characters do.
    for _ in range(_CORRECTIONS):
        missing = tokens - _count(tokenizer, [joint.join(text) for text in texts])
        for index in np.flatnonzero(missing).tolist():
            more, text = int(missing[index]), texts[index]
            # A single word of too many tokens gives way to another.
            shorter = text[: max(0, len(text) + more)] or draw(1)
            texts[index] = text + draw(more) if more > 0 else shorter
    return [joint.join(text) for text in texts]


def _count(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> NDArray[np.int64]:
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return np.array([len(ids) for ids in encoded], dtype=np.int64)


def write_published(store: Store, dataset: DatasetConfig, folder: Path) -> Path:
    """Writes generated data into a folder as the data set is published; returns ``dataset.path``.

    Features are float32 and padded with zeros to the longest there is in the data set.
    """
    shape = SHAPES[dataset.name]
    steps = {"audio": shape.audio.quantiles[-1], "vision": shape.vision.quantiles[-1]}
    if dataset.reader is Reader.mmsa:
        path = folder / Path(dataset.hub_file or f"{dataset.name}.pkl").name
        _dump({split: _mmsa_split(part, steps) for split, part in store.splits.items()}, path)
        return path
    if dataset.reader is not Reader.dialogue:
        raise BenchError(
            f"dataset.reader={dataset.reader.value}, but generated data are written for "
            f"{Reader.mmsa.value} and {Reader.dialogue.value} only. Leave dataset.reader as "
            f"dataset={dataset.name} has it."
        )
    for split, part in store.splits.items():
        items = [_dialogue_item(utterance, steps) for utterance in part]
        _dump(items, folder / f"{dataset.name}_{split}.pkl")
    return folder


def _dump(content: Any, path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=4)


def _mmsa_split(part: StoreSplit, steps: Mapping[str, int]) -> dict[str, Any]:
    """A split in MMSA's layout: (N, steps, d) features, N of everything else."""
    content: dict[str, Any] = {
        "raw_text": np.array(part.texts),
        "id": list(part.ids),
        "regression_labels": np.array(part.targets, dtype=np.float32),
    }
    for name, dim in part.dims.items():
        content[name] = np.zeros((len(part), steps[name], dim), dtype=np.float32)
        content[f"{name}_lengths"] = part.lengths[name].tolist()
    for index, utterance in enumerate(part):
        for name, frames in utterance.features.items():
            content[name][index, : len(frames)] = frames
    return content


def _dialogue_item(utterance: Utterance, steps: Mapping[str, int]) -> dict[str, Any]:
    """An utterance in the layout of MELD and CHERMA, with (steps, d) features."""
    features: dict[str, Any] = {"text": utterance.text}
    for name, key in (("audio", "audio"), ("vision", "video")):
        frames = utterance.features[name]
        features[key] = np.pad(frames, ((0, steps[name] - len(frames)), (0, 0)))
        features[f"{key}_len"] = len(frames)
    return {"label": utterance.label, "features": features}
