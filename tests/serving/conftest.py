"""Plugins of several kinds in front of one language model, and utterances."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pytest

from msea_lightning import Plugin, Predictor, Utterance
from msea_lightning.backbone import FrozenBackbone
from tests.conftest import SMALL, composed
from tests.plugin.untrained import untrained

KINDS = {
    "sentiment": ["dataset.demo_task=msa", "adapter.pseudo_tokens=2"],
    "emotion": ["dataset.language=zh", "adapter.pseudo_tokens=5"],
    "gate": ["adapter=mag", "dataset.demo_task=msa"],
    "padded": ["text.pad_to=20", "text.attend_padding=true"],
    "calibrated": [
        *("dataset.demo_task=msa", "training.loss=answers", "prompt.calibrate=true"),
        *("readout=tokens", "prompt.order=text_first", "adapter.normalization=matched"),
    ],
}
"""Options of each plugin: both tasks and languages, two adapters, padding that is read, and
probabilities that are normalised over the legal answers."""

WORDS = ("well", "done", "oh", "never", ",", "好", "吗")


@pytest.fixture(scope="session")
def plugins(cache: Path, backbone: FrozenBackbone) -> dict[str, Plugin]:
    """One of each kind, for all tests: look, and change nothing."""
    found = {}
    for name, words in KINDS.items():
        config = copy.deepcopy(composed((*SMALL, *words)))
        config.dataset.cache = str(cache)
        found[name] = untrained(config, backbone)[0]
    return found


@pytest.fixture(scope="session")
def predictor(plugins: dict[str, Plugin], backbone: FrozenBackbone) -> Predictor:
    """All plugins in front of the whole language model."""
    found = Predictor(backbone)
    for name, plugin in plugins.items():
        found.add(plugin, name)
    return found


@pytest.fixture
def utterances() -> list[Utterance]:
    """Of several lengths and with every mix of absent modalities."""
    numbers, words = np.random.default_rng(3), random.Random(3)
    found = []
    for number in range(8):
        text = " ".join(words.choices(WORDS, k=1 + number))
        audio = numbers.normal(size=(1 + number, 12)) if number % 2 else None
        vision = numbers.normal(size=(9 - number, 10)) if number % 3 else None
        found.append(Utterance(f"u{number}", text, audio=audio, vision=vision))
    return found
