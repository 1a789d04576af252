from __future__ import annotations

import pickle

import numpy as np
import pytest

from msea_lightning.features.contract import Frames
from msea_lightning.features.log_mel import LogMel
from tests.features.clips import tone

librosa = pytest.importorskip("librosa", reason="librosa (extra media) is not installed")


def cut(samples: Frames, size: int) -> list[Frames]:
    return [samples[begin : begin + size] for begin in range(0, len(samples), size)]


# 256 frames are transformed together: the last ones are where those of a part end.
@pytest.mark.filterwarnings("ignore:n_fft=2048 is too large")
@pytest.mark.parametrize("count", [1, 511, 512, 16000, 131072, 132096, 132608, 300001])
def test_frames_are_librosas_however_the_stream_is_cut(count: int) -> None:
    samples = np.random.default_rng(0).standard_normal(count).astype(np.float32) / 10
    power = librosa.feature.melspectrogram(y=samples, sr=16000, n_mels=64)
    expected = np.log10(np.maximum(power, 1e-10)).T
    frames = LogMel().extract([samples])
    assert frames.shape == (1 + count // 512, 64)
    assert frames.dtype == np.float32
    assert frames == pytest.approx(expected, abs=1e-6)
    for size in (1000, 77777):
        assert np.array_equal(LogMel().extract(cut(samples, size)), frames)


def test_the_scale_is_as_documented() -> None:
    extractor = LogMel()
    assert extractor.extract([np.zeros(16000, np.float32)]) == pytest.approx(-10)
    assert 3 < extractor.extract([2 * tone(1, hertz=1000)]).max() < 4
    assert extractor.extract([]).shape == (0, 64)


def test_options_change_frames_and_columns() -> None:
    extractor = LogMel(mels=20, rate=8000, window=400, hop=200)
    assert extractor.rate == 8000
    assert extractor.columns == [f"mel{band}" for band in range(20)]
    frames = extractor.extract([tone(1, rate=8000)])
    assert frames.shape == (41, 20)
    assert np.array_equal(pickle.loads(pickle.dumps(extractor)).extract([tone(1, 8000)]), frames)
