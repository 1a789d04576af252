"""The demo corpus: deterministic, trimodal, and without a short cut to the label."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from msea_lightning.data.demo import AUDIO_DIM, EMOTIONS, VISION_DIM, demo_utterances
from msea_lightning.data.options import DemoTask
from msea_lightning.data.utterance import Utterance

Corpus = dict[str, list[Utterance]]


@pytest.fixture(scope="module", params=list(DemoTask), ids=lambda task: task.value)
def corpus(request: pytest.FixtureRequest) -> Corpus:
    return demo_utterances(request.param, utterances=600, seed=3)


def everything(corpus: Corpus) -> list[Utterance]:
    return [utterance for part in corpus.values() for utterance in part]


def test_has_the_parts_and_the_size_asked_for(corpus: Corpus) -> None:
    assert {split: len(part) for split, part in corpus.items()} == {
        "train": 420,
        "valid": 90,
        "test": 90,
    }


@pytest.mark.parametrize("utterances", [60, 61, 77, 203])
def test_any_size_is_exact(utterances: int) -> None:
    corpus = demo_utterances(DemoTask.erc, utterances=utterances, seed=0)
    assert len(everything(corpus)) == utterances
    assert all(corpus[split] for split in ("train", "valid", "test"))


def test_ids_and_texts_are_unique(corpus: Corpus) -> None:
    utterances = everything(corpus)
    assert len({utterance.id for utterance in utterances}) == len(utterances)
    assert len({utterance.text for utterance in utterances}) == len(utterances)


def test_dialogues_and_speakers_stay_within_one_part(corpus: Corpus) -> None:
    for name in ("group", "speaker"):
        parts = [{getattr(u, name) for u in part} for part in corpus.values()]
        assert all(None not in part for part in parts)
        assert sum(map(len, parts)) == len(set().union(*parts))


def test_features_vary_in_length_and_some_are_absent(corpus: Corpus) -> None:
    utterances = everything(corpus)
    for name, features in (("audio", AUDIO_DIM), ("vision", VISION_DIM)):
        present = [frames for u in utterances if (frames := u.features.get(name)) is not None]
        assert 0.9 < len(present) / len(utterances) < 1
        assert len({len(frames) for frames in present}) > 5
        for frames in present:
            assert frames.dtype == np.float32
            assert frames.shape[1] == features
            assert np.isfinite(frames).all()
    assert all("audio" in u.features or "vision" in u.features for u in utterances)


def test_labels() -> None:
    erc = everything(demo_utterances(DemoTask.erc, utterances=600, seed=3))
    counts = Counter(u.label for u in erc)
    assert set(counts) == set(EMOTIONS)
    assert max(counts.values()) < 0.25 * len(erc)
    msa = np.array(
        [u.label for u in everything(demo_utterances(DemoTask.msa, utterances=600, seed=3))]
    )
    assert msa.min() >= -3
    assert msa.max() <= 3
    assert len(set(msa)) > 40
    assert np.array_equal(msa, np.round(msa, 1))
    assert not np.signbit(msa[msa == 0]).any()
    assert 0.3 < (msa > 0).mean() < 0.7


def test_same_seed_same_corpus_other_seed_another(corpus: Corpus) -> None:
    task = DemoTask.erc if isinstance(corpus["train"][0].label, str) else DemoTask.msa
    again = demo_utterances(task, utterances=600, seed=3)
    for one, two in zip(everything(corpus), everything(again), strict=True):
        assert (one.id, one.text, one.label, one.speaker) == (
            two.id,
            two.text,
            two.label,
            two.speaker,
        )
        for name in ("audio", "vision"):
            np.testing.assert_array_equal(one.features.get(name), two.features.get(name))
    other = everything(demo_utterances(task, utterances=600, seed=4))
    assert {u.text for u in other} != {u.text for u in everything(corpus)}


def test_no_modality_alone_tells_the_emotion() -> None:
    """Nearest neighbours of summary statistics: clearly better than chance, far from all."""
    corpus = demo_utterances(DemoTask.erc, utterances=1200, seed=0)

    def summaries(part: list[Utterance], name: str) -> np.ndarray:
        width = AUDIO_DIM if name == "audio" else VISION_DIM
        rows = []
        for utterance in part:
            frames = utterance.features.get(name, np.zeros((1, width), np.float32))
            rows.append(np.concatenate([frames.mean(0), frames.std(0)]))
        return np.array(rows)

    for name in ("audio", "vision"):
        train, test = summaries(corpus["train"], name), summaries(corpus["test"], name)
        scale = train.std(0)
        distances = (((test / scale)[:, None] - (train / scale)[None]) ** 2).sum(-1)
        hits = []
        for utterance, order in zip(corpus["test"], distances.argsort(1), strict=True):
            votes = Counter(corpus["train"][place].label for place in order[:15])
            hits.append(votes.most_common(1)[0][0] == utterance.label)
        assert 0.15 < np.mean(hits) < 0.5
