"""Log-mel spectra of sound with librosa, the default of what is heard.

Each frame is ``log10(max(S, 1e-10))`` with S the power spectrum of a Hann window, gathered in
triangular mel bands of unit area (Slaney): a tone at full scale reaches 3 to 4, digital silence is
-10. With the defaults, windows of 2048 samples every 512 at 16 kHz (128 and 32 ms), frame i is
centred at i * 32 ms and sees half a window of zeros before the sound begins and after it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from msea_lightning.features.contract import AudioExtractor, Frames
from msea_lightning.features.packages import load_package

_TOGETHER = 256
"""Frames of one transform: always the same ones, however the stream is cut into blocks."""

_FLOOR = 1e-10


class LogMel(AudioExtractor):
    """(L, mels) log-mel spectra, L = 1 + samples // hop.

    Args:
        mels: Mel bands between 0 Hz and half the rate.
        rate: Samples a second.
        window: Samples of a window.
        hop: Samples from one frame to the next.
    """

    def __init__(
        self, *, mels: int = 64, rate: int = 16000, window: int = 2048, hop: int = 512
    ) -> None:
        self.rate = rate
        self._mels, self._window, self._hop = mels, window, hop

    @property
    def columns(self) -> Sequence[str]:
        """``mel0`` to ``mel63``, from low to high."""
        return [f"mel{band}" for band in range(self._mels)]

    def extract(self, blocks: Iterable[NDArray[np.float32]]) -> Frames:
        """(L, mels) frames; none of sound without a sample."""
        parts = [self._spectra(part) for part in self._parts(blocks)]
        return np.concatenate(parts) if parts else np.zeros((0, self._mels), np.float32)

    def _parts(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """The samples of 256 frames each, fewer in the last part; neighbours overlap."""
        step = _TOGETHER * self._hop
        size = step - self._hop + self._window
        margin = np.zeros(self._window // 2, np.float32)
        waiting, samples, taken = [margin], 0, 0
        for block in blocks:
            waiting.append(block)
            samples += len(block)
            if len(margin) + samples - taken >= size:
                joined = np.concatenate(waiting)
                while len(joined) >= size:
                    yield joined[:size]
                    joined = joined[step:]
                    taken += step
                waiting = [joined]
        if samples:
            frames = 1 + samples // self._hop - taken // self._hop
            joined = np.concatenate([*waiting, margin, np.zeros(self._window, np.float32)])
            if frames > 0:
                yield joined[: (frames - 1) * self._hop + self._window]

    def _spectra(self, samples: NDArray[np.float32]) -> Frames:
        window, hop = self._window, self._hop
        # Not kept, because an extractor stays picklable.
        feature = load_package("librosa.feature", extra="media")
        power = feature.melspectrogram(
            y=samples, sr=self.rate, n_mels=self._mels, n_fft=window, hop_length=hop, center=False
        )
        logs: Frames = np.log10(np.maximum(power, _FLOOR)).T.astype(np.float32)
        return logs
