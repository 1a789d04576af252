"""Clips made for tests: tones and pictures whose content says at which time they are seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

av: Any = pytest.importorskip("av", reason="PyAV (extra media) is not installed")

SOUND = {
    **{"mp4": "aac", "mov": "aac", "ts": "aac", "webm": "libopus", "ogg": "libopus"},
    **{"wav": "pcm_s16le", "mkv": "flac", "mp3": "libmp3lame"},
}
PICTURES = {"mp4": "libx264", "mov": "libx264", "ts": "libx264", "mkv": "libx264", "webm": "libvpx"}
TICK = Fraction(1, 1000)
"""The time base of frames at given times."""


def tone(seconds: float, rate: int = 16000, hertz: float = 440.0) -> NDArray[np.float32]:
    """(n,) a sine of amplitude 0.5."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def gray(level: int, size: tuple[int, int] = (32, 48)) -> NDArray[np.uint8]:
    """(height, width, 3) one shade of gray."""
    return np.full((*size, 3), level, np.uint8)


def ramp(count: int) -> list[NDArray[np.uint8]]:
    """Pictures that get lighter, 8 levels each."""
    return [gray(20 + 8 * (index % 25)) for index in range(count)]


def write_clip(
    path: Path,
    sound: NDArray[np.float32] | Iterable[NDArray[np.float32]] | None = None,
    pictures: Iterable[NDArray[np.uint8]] | None = None,
    *,
    rate: int = 16000,
    fps: int = 10,
    times: Sequence[float] | None = None,
    rotation: int = 0,
) -> Path:
    """Writes a clip; its container and codecs are those of its suffix.

    Args:
        path: The file.
        sound: (n,) or (channels, n) samples, or blocks of them.
        pictures: (height, width, 3) each.
        rate: Samples a second.
        fps: Pictures a second.
        times: Seconds at which each picture begins, for a varying frame rate.
        rotation: Degrees, counterclockwise, by which a player has to turn the pictures.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:]
    blocks = [sound] if isinstance(sound, np.ndarray) else sound
    with av.open(str(path), "w") as container:
        heard = seen = None
        if blocks is not None:
            blocks = iter(blocks)
            first = np.atleast_2d(next(blocks))
            layout = "stereo" if len(first) == 2 else "mono"
            heard = container.add_stream(
                SOUND[kind], rate=48000 if SOUND[kind] == "libopus" else rate
            )
            heard.layout = layout
        if pictures is not None:
            images = list(pictures)
            seen = container.add_stream(PICTURES[kind], rate=fps)
            seen.height, seen.width = images[0].shape[:2]
            seen.pix_fmt = "yuv420p"
            if times is not None:
                seen.time_base = seen.codec_context.time_base = TICK
            if rotation:
                seen.set_display_rotation(rotation)
        if heard is not None:
            assert blocks is not None
            for frame in _sound_frames(first, blocks, layout, rate):
                container.mux(heard.encode(frame))
            container.mux(heard.encode(None))
        if seen is not None:
            for index, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = index if times is None else round(times[index] / TICK)
                frame.time_base = Fraction(1, fps) if times is None else TICK
                container.mux(seen.encode(frame))
            container.mux(seen.encode(None))
    return path


def _sound_frames(
    first: NDArray[np.float32], rest: Iterator[NDArray[np.float32]], layout: str, rate: int
) -> Iterator[Any]:
    position = 0
    for block in (first, *rest):
        frame = av.AudioFrame.from_ndarray(
            np.atleast_2d(block).astype(np.float32), format="fltp", layout=layout
        )
        frame.sample_rate, frame.pts, frame.time_base = rate, position, Fraction(1, rate)
        position += frame.samples
        yield frame
