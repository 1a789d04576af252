"""Curves of what was heard and seen: which columns they show, and over which seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from msea_lightning.features import media
from msea_lightning.serving.app.curves import face_missing, panel, seconds
from tests.features.clips import av, ramp, tone, write_clip

FACE = ("emotion_angry", "emotion_happy", "emotion_sad", "yaw", "face_found")


def face(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_a_face_shows_its_emotions_but_where_it_was_not_found() -> None:
    frames = face((0.1, 0.9, 0.01, 2, 1), (0, 0, 0, 0, 0), (0.7, 0.3, 0.01, 2, 1))
    found = panel("vision", frames, FACE)
    assert list(found.curves) == ["happy", "angry"]  # sad is never worth a line
    np.testing.assert_allclose(found.curves["happy"], [0.9, np.nan, 0.3], rtol=1e-6)
    assert (found.low, found.high) == (0, 1)
    assert not face_missing(frames, FACE)
    assert face_missing(frames[1:2], FACE)
    assert not face_missing(frames[1:2], ("a", "b", "c", "d", "e"))


def test_log_mel_shows_its_mean_power_in_decibels_and_silence_at_the_bottom() -> None:
    frames = np.array([[0, 0], [2, -10], [-10, -10]], np.float32)
    found = panel("audio", frames, ("mel0", "mel1"))
    loudest = 10 * np.log10(50)
    np.testing.assert_allclose(found.curves["loudness"], [0, loudest, -100], atol=1e-4)
    assert (found.low, found.high) == pytest.approx((loudest - 60, loudest))


@pytest.mark.parametrize(
    ("columns", "title", "curve"),
    [
        (("Loudness_sma3", "F0"), "Heard: loudness as perceived", "loudness"),
        (("AU01_r", "AU12_r"), "movements of the face", "lip corners up (AU12)"),
        (("state0", "state1"), "distance from the clip's mean", "distance"),
    ],
)
def test_other_extractors_have_a_curve_too(
    columns: tuple[str, ...], title: str, curve: str
) -> None:
    frames = np.array([[0, 1], [1, 0], [2, 5]], np.float32)
    found = panel("audio", frames, columns)
    assert title in found.title
    assert list(found.curves) == [curve]
    assert found.low < found.high
    assert np.isfinite(found.curves[curve]).all()


@pytest.mark.parametrize("frames", [np.zeros((1, 2)), np.full((5, 2), 3.0)])
def test_features_that_do_not_change_have_a_flat_curve(frames: np.ndarray) -> None:
    found = panel("vision", frames.astype(np.float32), ("a", "b"))
    assert not found.curves["distance"].any()
    assert found.low < found.high


def test_long_clips_have_few_points() -> None:
    found = panel("vision", np.tile(face((0.2, 0.8, 0, 0, 1)), (18000, 1)), FACE)
    assert {len(values) for values in found.curves.values()} == {300}
    np.testing.assert_allclose(found.curves["happy"], 0.8, rtol=1e-6)


def test_a_clip_lasts_as_long_as_its_header_says(tmp_path: Path) -> None:
    assert seconds(write_clip(tmp_path / "a.mp4", tone(1.5), ramp(15))) == pytest.approx(1.5, 0.1)


@pytest.mark.parametrize("sound", [tone(1.5), None])
def test_a_recording_without_a_duration_lasts_as_long_as_it_is(
    tmp_path: Path, sound: NDArray[np.float32] | None
) -> None:
    whole, live = write_clip(tmp_path / "a.mp4", sound, ramp(15)), tmp_path / "live.webm"
    # Written without going back, as a browser records it.
    with (
        av.open(str(whole)) as given,
        av.open(str(live), "w", format="matroska", options={"live": "1"}) as recording,
    ):
        streams = {s.index: recording.add_stream_from_template(s) for s in given.streams}
        for packet in given.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                recording.mux(packet)
    assert media.probe(live).duration is None
    assert seconds(live) == pytest.approx(1.5, abs=0.15)
