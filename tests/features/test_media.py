from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from msea_lightning.features.contract import MediaError
from msea_lightning.features.decoding import held_seconds
from msea_lightning.features.media import audio_blocks, pictures, probe
from tests.features.clips import av, gray, ramp, tone, write_clip

LEVEL = 3
"""By how much a shade of gray may differ after encoding."""


def heard(path: Path, rate: int = 16000, *part: float | None) -> NDArray[np.float32]:
    return np.concatenate([np.zeros(0, np.float32), *audio_blocks(path, rate, *part)])


def seen(path: Path, fps: float, *part: float | None) -> list[tuple[float, int]]:
    """The time of each picture, and its mean shade."""
    return [(round(time, 3), round(rgb.mean())) for time, rgb in pictures(path, fps, *part)]


@pytest.mark.parametrize("kind", ["mp4", "webm", "mov"])
def test_sound_and_pictures_of_any_container(kind: str, tmp_path: Path) -> None:
    path = write_clip(tmp_path / f"clip.{kind}", tone(3), ramp(30))
    found = probe(path)
    assert (found.sound, found.pictures) == (True, True)
    assert found.duration == pytest.approx(3, abs=0.1)
    sound = heard(path)
    assert sound.dtype == np.float32
    assert len(sound) == pytest.approx(48000, abs=1024)
    assert sound[4000:44000].std() == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
    shown = seen(path, 10)
    assert [time for time, _ in shown] == pytest.approx([index / 10 for index in range(30)])
    shades = [shade for _, shade in shown]
    assert shades[:25] == pytest.approx([20 + 8 * index for index in range(25)], abs=LEVEL)


def test_sound_is_resampled_and_cut_to_the_sample(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.wav", tone(3))
    whole = heard(path)
    assert whole == pytest.approx(tone(3), abs=1e-4)
    assert len(heard(path, 8000)) == 24000
    for part in ((1.25, 2.0), (2.0, None), (None, 0.5), (0.0, 9.0)):
        start, end = (round((time or 0) * 16000) for time in part)
        assert np.array_equal(heard(path, 16000, *part), whole[start : end or None])
    assert not len(heard(path, 16000, 3.5, 4.0))


def test_a_part_of_compressed_sound_is_that_of_the_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(64000).astype(np.float32)
    smooth = np.convolve(noise, np.ones(16) / 64, "same").astype(np.float32)
    path = write_clip(tmp_path / "clip.mp4", smooth)
    whole = heard(path)
    assert heard(path, 16000, 2.5, 3.0) == pytest.approx(whole[40000:48000], abs=1e-5)


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.wav", np.stack([tone(1), np.zeros(16000, np.float32)]))
    assert heard(path) == pytest.approx(tone(1) / 2, abs=1e-4)
    path = write_clip(tmp_path / "alike.wav", np.stack([tone(1), tone(1)]))
    assert heard(path) == pytest.approx(tone(1), abs=1e-4)


def test_the_frame_that_is_shown_at_a_time_whatever_the_frame_rate(tmp_path: Path) -> None:
    levels, times = [50, 100, 150, 200], [0.0, 0.5, 0.6, 2.0]
    path = write_clip(tmp_path / "clip.mp4", None, map(gray, levels), times=times)
    assert probe(path).sound is False
    expected = [50, 50, 50, 150, 150, 150, 150, 150, 150, 150]
    shown = seen(path, 5)
    assert [shade for _, shade in shown[:10]] == pytest.approx(expected, abs=LEVEL)
    assert shown[10] == (2.0, pytest.approx(200, abs=LEVEL))
    part = seen(path, 5, 0.45, 0.9)
    assert [time for time, _ in part] == [0.45, 0.65, 0.85]
    assert [shade for _, shade in part] == pytest.approx([50, 150, 150], abs=LEVEL)


def test_pictures_at_uneven_times_are_those_of_an_ordinary_clip(tmp_path: Path) -> None:
    levels, times = [40, 90, 140, 190, 240], [0.0, 0.1, 0.4, 0.5, 0.9]
    uneven = write_clip(tmp_path / "uneven.mkv", None, map(gray, levels), times=times)
    repeated = [levels[sum(time <= index / 10 for time in times) - 1] for index in range(10)]
    even = write_clip(tmp_path / "even.mkv", None, map(gray, repeated))
    ordinary = seen(even, 10)
    assert [time for time, _ in seen(uneven, 10)] == [time for time, _ in ordinary]
    shades = [shade for _, shade in ordinary]
    assert [shade for _, shade in seen(uneven, 10)] == pytest.approx(shades, abs=LEVEL)


def test_a_turned_clip_shows_what_an_ordinary_one_shows(tmp_path: Path) -> None:
    image = gray(20, (32, 48))
    image[4:12, 8:32] = 230  # not symmetric
    upright = write_clip(tmp_path / "upright.mp4", None, [image] * 3)
    lying = np.ascontiguousarray(np.rot90(image, -1))
    turned = write_clip(tmp_path / "turned.mp4", None, [lying] * 3, rotation=90)
    for one, other in zip(pictures(upright, 10), pictures(turned, 10), strict=True):
        assert other.rgb.astype(int) == pytest.approx(one.rgb.astype(int), abs=4 * LEVEL)


@pytest.mark.parametrize(("rotation", "side"), [(0, "top"), (90, "left"), (-90, "right")])
def test_pictures_are_upright(rotation: int, side: str, tmp_path: Path) -> None:
    image = gray(0)
    image[:8] = 255  # a bar at the top
    path = write_clip(tmp_path / "clip.mp4", None, [image] * 5, rotation=rotation)
    rgb = next(pictures(path, 5)).rgb
    assert rgb.shape == ((32, 48, 3) if rotation == 0 else (48, 32, 3))
    edges = {"top": rgb[:4], "bottom": rgb[-4:], "left": rgb[:, :4], "right": rgb[:, -4:]}
    assert max(edges, key=lambda name: edges[name].mean()) == side
    assert edges[side].mean() > 240


def test_a_phones_portrait_is_turned_clockwise(tmp_path: Path) -> None:
    """The matrix in the file is the one that phones write."""
    path = write_clip(tmp_path / "clip.mp4", None, [gray(0)] * 3, rotation=-90)
    content = path.read_bytes()
    begin = content.index(b"tkhd") + 44
    matrix = np.frombuffer(content[begin : begin + 16], ">i4") / 65536
    assert matrix.tolist() == [0, 1, 0, -1]


def test_what_a_clip_lacks_is_an_error_only_where_it_is_asked_for(tmp_path: Path) -> None:
    mute = write_clip(tmp_path / "mute.mp4", None, ramp(5))
    with pytest.raises(MediaError, match=r"mute\.mp4 holds no sound"):
        next(audio_blocks(mute, 16000))
    blind = write_clip(tmp_path / "blind.wav", tone(0.1))
    with pytest.raises(MediaError, match=r"blind\.wav holds no pictures"):
        next(pictures(blind, 5))


def test_broken_files_say_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = write_clip(tmp_path / "whole.mp4", tone(3), ramp(30)).read_bytes()
    broken = {
        "empty.mp4": (b"", r"is empty \(0 bytes\)"),
        "noise.mp4": (b"noise" * 999, r"cannot be decoded \(Invalid data"),
        "half.mp4": (whole[: len(whole) // 2], "cannot be decoded"),
        "text.txt": (b"words\n" * 99, "holds neither sound nor moving pictures"),
    }
    for name, (content, reason) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=rf"{name} {reason}"):
            probe(tmp_path / name)
    with pytest.raises(MediaError, match=r"gone\.mp4 cannot be read \(No such file"):
        probe(tmp_path / "gone.mp4")
    assert capfd.readouterr() == ("", "")


def test_a_clip_makes_the_decoder_open_no_other_file(tmp_path: Path) -> None:
    """FFmpeg opens what playlists name, whatever they are called."""
    secret = write_clip(tmp_path / "secret.mp4", tone(1), ramp(10))
    lists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "b.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
        with av.open(str(tmp_path / name)) as container:
            assert container.streams.audio
        with pytest.raises(MediaError, match=rf"{name} cannot be decoded"):
            probe(tmp_path / name)


def test_sound_that_breaks_off_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mov", tone(8))
    content = path.read_bytes()
    # The index is at the end of the file; here it comes first, and then the data end.
    begin = content.index(b"moov") - 4
    sample_data = content.index(b"mdat") - 4
    kept = bytearray(content)
    kept[sample_data + 3000 : begin] = bytes(begin - sample_data - 3000)
    path.write_bytes(kept)
    with pytest.raises(MediaError, match=r"clip\.mov (breaks off|cannot be decoded)"):
        heard(path)


@pytest.mark.parametrize("share", [0.5, 0.75])
@pytest.mark.parametrize("name", ["wav", "mp3", "mkv", "webm", "film.mkv", "film.webm"])
def test_a_file_of_which_the_end_is_missing_is_refused(
    name: str, share: float, tmp_path: Path
) -> None:
    path = tmp_path / f"clip.{name}"
    whole = write_clip(path, tone(3), ramp(30) if "film" in name else None).read_bytes()
    assert len(heard(path)) == pytest.approx(48000, abs=400)
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(MediaError, match=r"breaks off at [12]\.\d s; its header says 3\.0 s"):
        heard(path)
    assert held_seconds(path) == pytest.approx(3 * share, abs=0.6)
    assert len(heard(path, 16000, 0.2, 0.5)) == 4800  # this part is there


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm", "ts"])
@pytest.mark.parametrize(("sound", "shown"), [(1, 3), (3, 1)])
def test_sound_and_pictures_may_be_of_different_length(
    kind: str, sound: int, shown: int, tmp_path: Path
) -> None:
    path = write_clip(tmp_path / f"clip.{kind}", tone(sound), ramp(10 * shown))
    assert len(heard(path)) == pytest.approx(16000 * sound, abs=1600)
    assert len(seen(path, 10)) == pytest.approx(10 * shown, abs=1)
    assert len(heard(path, 16000, 2.0, 2.5)) == (8000 if sound == 3 else 0)
    assert len(seen(path, 10, 2.0, 2.5)) == (5 if shown == 3 else 0)


def test_a_recorder_that_does_not_know_when_it_will_end_is_no_broken_file(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.wav", tone(1))
    content = bytearray(path.read_bytes())
    content[4:8] = b"\xff" * 4
    path.write_bytes(content)
    assert len(heard(path)) == 16000


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    def blocks(seconds: int) -> Iterator[NDArray[np.float32]]:
        return (tone(1, rate=8000) for _ in range(seconds))

    def peak(seconds: int) -> int:
        path = write_clip(tmp_path / f"{seconds}.wav", blocks(seconds), rate=8000)
        tracemalloc.start()
        try:
            assert sum(map(len, audio_blocks(path, 16000))) == 16000 * seconds
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(5)
    assert peak(600) < 2 * peak(30)
