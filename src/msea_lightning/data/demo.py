"""The built-in demo corpus: made-up dialogues in which only all modalities together tell the label.

Three things are drawn for every utterance: what is said (praise or trouble), how it is said (voice)
and what the face does. None of them settles the label, and no two of them do:

=========  ============  =================  ================
what       voice         face open          face closed
=========  ============  =================  ================
praise     lively        joy                anger (sarcasm)
praise     flat          neutral            disgust (sarcasm)
trouble    lively        fear               anger
trouble    flat          surprise           sadness
=========  ============  =================  ================

In the sentiment variant the words have a strength, a drawling voice turns it round (sarcasm), and
the face adds to it or takes from it. Voice and face are sequences: pitch moves or stays, the face
makes its expression somewhere in the middle and relaxes again, every speaker has habits of their
own, and there is noise on everything. Everything is drawn from one seeded NumPy generator.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np
import yaml
from numpy.typing import NDArray

from msea_lightning.data.options import SPLITS, DemoTask
from msea_lightning.data.utterance import MAIN_LABEL, Label, Utterance

AUDIO_DIM = 12
"""Energy, pitch, change of pitch, voicing, jitter, shimmer, four bands, tempo, background."""

VISION_DIM = 10
"""Brows up, brows down, eyes wide, lip corners, lips pressed, jaw, head (3), blinking."""

SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}
"""Splits of the corpus; dialogues and their speakers stay within one."""

ABSENT = 0.02
"""Share of utterances without audio, and of those without vision; none lacks both."""

_LISTS = yaml.safe_load((resources.files(__package__) / "demo.yaml").read_text(encoding="utf-8"))

EMOTIONS: dict[str, float] = {name: about["share"] for name, about in _LISTS["emotions"].items()}
"""The emotions of the ERC variant and how often each occurs."""


@dataclass(frozen=True)
class _Speaker:
    """A speaker's habits."""

    name: str
    voice: NDArray[np.float64]  # (AUDIO_DIM,) offset of every audio feature
    face: NDArray[np.float64]  # (VISION_DIM,) offset of every vision feature
    range: float  # how far pitch and face move


def demo_utterances(task: DemoTask, *, utterances: int, seed: int) -> dict[str, list[Utterance]]:
    """Generates the corpus.

    Args:
        task: ERC labels every utterance with one of :data:`EMOTIONS`, MSA with an intensity in
            [-3, 3] in steps of 0.1.
        utterances: Number of utterances, all splits together.
        seed: Of all that is drawn.

    Returns:
        Split to its utterances, dialogue by dialogue; ``audio`` (La, 12) with La from 18 to 40
        and ``vision`` (Lv, 10) with Lv from 12 to 28 float32 frames. No text occurs twice.
    """
    rng = np.random.default_rng([seed, list(DemoTask).index(task)])
    seen: set[str] = set()
    dialogues = _dialogues(rng)
    counts = {split: round(SHARES[split] * utterances) for split in SPLITS[1:]}
    counts = {"train": utterances - sum(counts.values()), **counts}
    corpus: dict[str, list[Utterance]] = {split: [] for split in counts}
    for split, part in corpus.items():
        while len(part) < counts[split]:
            group, speakers, length = next(dialogues)
            for turn in range(min(length, counts[split] - len(part))):
                speaker = speakers[int(rng.integers(len(speakers)))]
                part.append(_utterance(rng, task, group, turn, speaker, seen))
    return corpus


def _dialogues(rng: np.random.Generator) -> Iterator[tuple[str, list[_Speaker], int]]:
    """Endless dialogues: name, speakers, number of utterances."""
    for number in itertools.count():
        group = f"dialogue{number:04d}"
        speakers = [
            _Speaker(
                f"{group}-{letter}",
                rng.normal(0, 0.5, AUDIO_DIM),
                rng.normal(0, 0.35, VISION_DIM),
                float(rng.uniform(0.75, 1.25)),
            )
            for letter in "abc"[: int(rng.integers(2, 4))]
        ]
        yield group, speakers, int(rng.integers(5, 11))


def _utterance(
    rng: np.random.Generator,
    task: DemoTask,
    group: str,
    turn: int,
    speaker: _Speaker,
    seen: set[str],
) -> Utterance:
    label: Label
    if task is DemoTask.erc:
        names = list(EMOTIONS)
        label = names[int(rng.choice(len(names), p=list(EMOTIONS.values())))]
        signs = _LISTS["emotions"][label]["signs"]
        praise, lively, is_open = signs[int(rng.integers(len(signs)))]
        level = int(rng.integers(1, 4)) * (1 if praise else -1)
        voice = float(rng.uniform(0.8, 1.2)) * (1 if lively else -1)
        face = float(rng.uniform(0.8, 1.2)) * (1 if is_open else -1)
    else:
        level = int(rng.integers(1, 4)) * (1 if rng.random() < 0.55 else -1)
        sincere = rng.random() < 0.6
        voice = float(rng.uniform(0.8, 1.2)) * (1 if sincere else -1)
        face = float(rng.uniform(-1.2, 1.2))
        turned = 0.65 * level * (voice if sincere else 0.9 * voice)
        label = round(float(np.clip(turned + face, -3, 3)), 1) + 0.0
    while (text := _text(rng, level)) in seen:
        pass
    seen.add(text)
    absent = rng.random()
    features = {"audio": _audio(rng, speaker, voice), "vision": _vision(rng, speaker, face)}
    if absent < ABSENT:
        del features["audio"]
    elif absent > 1 - ABSENT:
        del features["vision"]
    labels = {MAIN_LABEL: label}
    return Utterance(f"{group}-{turn:02d}", text, labels, features, group, speaker.name)


def _text(rng: np.random.Generator, level: int) -> str:
    """A sentence of praise (level 1 to 3) or trouble (-1 to -3)."""

    def one_of(options: list[str]) -> str:
        return options[int(rng.integers(len(options)))]

    frame = one_of(_LISTS["frames"])
    words = {key: one_of(_LISTS[f"{key}s"][level]) for key in ("adjective", "noun")}
    opener, subject, closer = (one_of(_LISTS[key]) for key in ("openers", "subjects", "closers"))
    return f"{opener} {subject} {frame.format(**words)}{closer}."


def _audio(rng: np.random.Generator, speaker: _Speaker, voice: float) -> NDArray[np.float32]:
    """A lively voice (above 0) or a flat, drawling one (below), (La, 12).

    A lively voice swings in pitch around a rising line with bursts of energy; a flat one sinks
    slowly, without bursts. Where the pitch starts says nothing, it is the speaker's.
    """
    length = int(rng.integers(18, 41))
    time = np.linspace(0, 1, length)
    frames = _noise(rng, length, AUDIO_DIM, 0.5) + speaker.voice
    swings = np.sin(2 * np.pi * (rng.uniform(1.5, 3.5) * time + rng.uniform()))
    bursts = np.maximum(0, np.sin(2 * np.pi * (rng.uniform(2, 4) * time + rng.uniform())))
    drive = max(voice, 0.0) * speaker.range
    sag = max(-voice, 0.0) * speaker.range
    pitch = drive * (0.9 * time + 0.8 * swings) - sag * 1.1 * time
    frames[:, 0] += drive * (0.4 + 1.0 * bursts) - sag * 0.3
    frames[:, 1] += pitch
    frames[1:, 2] += 4 * np.diff(pitch)
    frames[:, 3] += 0.3 * sag
    frames[:, 4] += 0.5 * sag * time - 0.2 * drive
    frames[:, 6] += 0.4 * drive * bursts
    frames[:, 8] -= 0.4 * drive * time
    frames[:, 10] += 0.3 * drive - 0.5 * sag
    scale = np.array([1, 40, 1, 0.1, 0.02, 0.05, 1, 1, 1, 1, 3, 0.5])
    return _rounded(frames * scale + np.array([0, 180, 0, 0.7, 0.05, 0.1, 0, 0, 0, 0, 12, 0]))


def _vision(rng: np.random.Generator, speaker: _Speaker, face: float) -> NDArray[np.float32]:
    """An open face (above 0: brows and lip corners up) or a closed one (below), (Lv, 10).

    The expression comes and goes in the course of the utterance; blinks and turns of the head
    come at any time.
    """
    length = int(rng.integers(12, 29))
    time = np.linspace(0, 1, length)
    frames = _noise(rng, length, VISION_DIM, 0.35) + speaker.face
    middle, width = rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.45)
    bump = 0.5 + 0.5 * np.cos(np.pi * np.clip((time - middle) / width, -1, 1))
    expression = face * speaker.range * bump
    frames[:, 0] += 1.2 * np.maximum(expression, 0)
    frames[:, 1] += 1.3 * np.maximum(-expression, 0)
    frames[:, 2] += 0.7 * expression
    frames[:, 3] += 1.1 * expression
    frames[:, 4] += 0.9 * np.maximum(-expression, 0)
    frames[:, 5] += 0.5 * np.maximum(expression, 0)
    frames[:, 6] += 0.8 * np.sin(2 * np.pi * (rng.uniform(0.3, 1) * time + rng.uniform()))
    frames[:, 9] += 2.0 * (rng.random(length) < 0.08)
    scale = np.array([1, 1, 0.5, 2, 1, 0.5, 10, 10, 10, 0.3])
    return _rounded(frames * scale)


def _noise(
    rng: np.random.Generator, length: int, features: int, deviation: float
) -> NDArray[np.float64]:
    """(L, features) half the noise of the frame before, plus fresh noise."""
    noise = rng.normal(0, deviation, (length, features))
    for step in range(1, length):
        noise[step] = 0.5 * noise[step - 1] + 0.866 * noise[step]
    return noise


def _rounded(frames: NDArray[np.float64]) -> NDArray[np.float32]:
    """Four decimals, so that the last bit of a platform's sine does not show."""
    return np.round(frames, 4).astype(np.float32)
