"""The recogniser in front of a module that stands in for faster-whisper."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from msea_lightning.features.contract import FeatureError
from msea_lightning.features.speech_recognition import RATE, SpeechRecognizer

MINUTE = 60 * RATE


class FakeWhisper:
    """Hears the length of what it is given, in two segments."""

    heard: list[NDArray[np.float32]]

    def __init__(self, name: str) -> None:
        if name == "nothing":
            raise ValueError("Invalid model size 'nothing'")
        self.heard = []

    def transcribe(self, audio: NDArray[np.float32], language: str | None) -> tuple[Any, Any]:
        self.heard.append(audio)
        texts = f" {len(audio)} samples", f" in {language} "
        return (SimpleNamespace(text=text) for text in texts), SimpleNamespace(language="en")


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[FakeWhisper]:
    """The models that are loaded."""
    loaded: list[FakeWhisper] = []

    def load(name: str) -> FakeWhisper:
        loaded.append(FakeWhisper(name))
        return loaded[-1]

    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=load))
    return loaded


def test_segments_become_one_text_and_the_model_is_loaded_once(models: list[FakeWhisper]) -> None:
    recognizer = SpeechRecognizer("small", "de")
    assert not models
    assert recognizer([np.zeros(10, np.float32)] * 3) == "30 samples in de"
    assert recognizer([]) == ""
    assert recognizer([np.zeros(5, np.float32)]) == "5 samples in de"
    assert len(models) == 1


def test_long_sound_is_cut_where_it_is_quiet(models: list[FakeWhisper]) -> None:
    samples = np.random.default_rng(0).standard_normal(8 * MINUTE).astype(np.float32)
    quiet = 5 * MINUTE - 4 * RATE
    samples[quiet : quiet + RATE // 5] = 0
    SpeechRecognizer("small")(np.split(samples, 48))
    first, second = models[0].heard
    assert quiet <= len(first) <= quiet + RATE // 5
    assert np.array_equal(np.concatenate([first, second]), samples)


@pytest.mark.usefixtures("models")
def test_a_model_that_cannot_be_loaded_is_named() -> None:
    with pytest.raises(FeatureError, match="transcribe=nothing: faster-whisper cannot load it"):
        SpeechRecognizer("nothing")([np.zeros(10, np.float32)])


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(FeatureError, match=r"faster_whisper.*msea_lightning\[faster-whisper\]"):
        SpeechRecognizer("small")([np.zeros(10, np.float32)])
