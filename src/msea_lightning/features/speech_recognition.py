"""What is said in a clip, by faster-whisper (extra ``faster-whisper``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msea_lightning.features.contract import FeatureError
from msea_lightning.features.packages import load_package

RATE = 16000
"""Samples a second that Whisper hears."""

_LONGEST = 300 * RATE
"""Samples that are recognised at a time, so that memory does not grow with the clip."""

_SEARCHED = 10 * RATE
"""Samples at the end of such a piece where the quietest moment is looked for, to cut there."""

_MOMENT = RATE // 10


class SpeechRecognizer:
    """Whisper, loaded when it is first asked.

    Args:
        model: Folder of a converted model, or a name that faster-whisper knows.
        language: Code of the language, such as ``en``; recognised where not given.
    """

    def __init__(self, model: str, language: str | None = None) -> None:
        self._name, self._language = model, language
        self._model: Any = None

    def __call__(self, blocks: Iterable[NDArray[np.float32]]) -> str:
        """The words in blocks of (n,) samples at 16 kHz; empty where nothing is said.

        Raises:
            FeatureError: where the package or the model is missing.
        """
        found = []
        for piece in _pieces(blocks):
            segments, _ = self._loaded().transcribe(piece, language=self._language)
            found += [segment.text.strip() for segment in segments]
        return " ".join(text for text in found if text)

    def _loaded(self) -> Any:
        if self._model is None:
            package = load_package("faster_whisper", extra="faster-whisper")
            try:
                self._model = package.WhisperModel(self._name)
            except (OSError, ValueError, RuntimeError) as error:
                raise FeatureError(
                    f"transcribe={self._name}: faster-whisper cannot load it ({error}). Give the "
                    "folder of a converted model, or a name such as small."
                ) from error
        return self._model


def _pieces(blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """The samples in pieces of at most five minutes, cut where it is quiet."""
    waiting: list[NDArray[np.float32]] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= _LONGEST:
            joined = np.concatenate(waiting)
            cut = _quietest(joined[:_LONGEST])
            yield joined[:cut]
            waiting = [joined[cut:]]
    if any(map(len, waiting)):
        yield np.concatenate(waiting)


def _quietest(samples: NDArray[np.float32]) -> int:
    """The middle of the quietest tenth of a second in the last ten seconds."""
    start = len(samples) - _SEARCHED
    power = (samples[start:].reshape(-1, _MOMENT) ** 2).mean(axis=1)
    return start + int(power.argmin()) * _MOMENT + _MOMENT // 2
