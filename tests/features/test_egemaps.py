from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from msea_lightning.features import packages
from msea_lightning.features.contract import FeatureError
from msea_lightning.features.egemaps import EGeMAPS
from msea_lightning.features.media import audio_blocks

opensmile = pytest.importorskip("opensmile", reason="the extra opensmile is not installed")


def voice(seconds: float) -> NDArray[np.float32]:
    """Something with a pitch that rises and falls, and some noise."""
    time = np.arange(round(seconds * 16000)) / 16000
    phase = np.cumsum(120 + 30 * np.sin(np.pi * time)) / 16000
    loudness = 0.15 + 0.1 * np.sin(8 * time)
    noise = np.random.default_rng(0).standard_normal(len(time)) / 100
    return (loudness * np.sign(np.sin(2 * np.pi * phase)) + noise).astype(np.float32)


def test_frames_are_those_of_the_package_however_the_stream_is_cut() -> None:
    """12 seconds are more than the ring buffer holds."""
    samples = voice(12)
    whole = opensmile.Smile(
        opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors
    )
    expected = whole.process_signal(samples, 16000)
    extractor = EGeMAPS()
    assert list(extractor.columns) == list(expected.columns)
    assert len(extractor.columns) == 25
    for size in (1024, len(samples)):
        blocks = (samples[begin : begin + size] for begin in range(0, len(samples), size))
        assert np.array_equal(extractor.extract(blocks), expected.to_numpy())


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not installed")
def test_speech_has_a_pitch_and_its_pauses_have_none(tmp_path: Path) -> None:
    file = tmp_path / "speech.wav"
    subprocess.run(["espeak-ng", "-w", str(file), "Well done. I am so happy."], check=True)
    extractor = EGeMAPS()
    frames = extractor.extract(audio_blocks(file, extractor.rate))
    pitch = frames[:, list(extractor.columns).index("F0semitoneFrom27.5Hz_sma3nz")]
    assert 0.2 < (pitch > 0).mean() < 0.95


def test_too_little_sound_gives_no_frame() -> None:
    assert EGeMAPS().extract([voice(0.03)]).shape == (0, 25)
    assert EGeMAPS().extract([]).shape == (0, 25)


def test_a_stream_that_fails_leaves_no_thread() -> None:
    def failing() -> Iterator[NDArray[np.float32]]:
        yield voice(1)
        raise RuntimeError("the disk is gone")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        EGeMAPS().extract(failing())
    assert threading.active_count() == before


def test_the_missing_package_is_named_with_its_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ImportError(f"No module named '{module}'")

    monkeypatch.setattr(packages, "import_module", missing)
    with pytest.raises(FeatureError, match=r"msea_lightning\[opensmile\].* research, education"):
        EGeMAPS().extract([voice(1)])
