"""Decoding of clips with PyAV: sound as blocks of samples, pictures at fixed times.

Streams are decoded as they are read, so that memory does not grow with the length of a clip. Times
are seconds from the start of the clip. A clip cannot make the decoder open anything but itself:
playlists and network addresses in it are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msea_lightning.features.contract import MediaError, Picture
from msea_lightning.features.decoding import Decoding, open_clip, pictures_of, pyav, sound_of

_TOLERANCE = 1e-6
"""Seconds by which times that are the same may differ after rounding."""


@dataclass(frozen=True)
class MediaInfo:
    """What a clip holds.

    Attributes:
        duration: Seconds that the file says it is long; None where it does not.
        sound: Whether there is a stream of sound.
        pictures: Whether there is a stream of moving pictures, which the cover of a song is not.
    """

    duration: float | None
    sound: bool
    pictures: bool


def probe(path: Path | str) -> MediaInfo:
    """What a clip holds, from its headers.

    Raises:
        MediaError: where it cannot be opened, or holds neither sound nor moving pictures.
    """
    with open_clip(Path(path)) as container:
        return MediaInfo(
            duration=container.duration / pyav().time_base if container.duration else None,
            sound=sound_of(container) is not None,
            pictures=pictures_of(container) is not None,
        )


def audio_blocks(
    path: Path | str, rate: int, start: float | None = None, end: float | None = None
) -> Iterator[NDArray[np.float32]]:
    """The sound of a clip, or of its part from ``start`` to ``end`` (seconds), as it is decoded.

    Args:
        path: The clip.
        rate: Samples a second to resample to.
        start: Where the part begins; the beginning of the sound where not given.
        end: Where it ends; the end of the sound where not given.

    Yields:
        Blocks of (n,) samples, the mean of all channels; nominally between -1 and 1.

    Raises:
        MediaError: where there is no sound, where it cannot be decoded, or where it breaks off.
    """
    path = Path(path)
    with open_clip(path) as container:
        stream = sound_of(container)
        if stream is None:
            raise MediaError(f"{path} holds no sound. Choose audio=none, or another file.")
        decoding = Decoding(path, container, stream, start, end)
        resampled = _resampled(decoding, rate)
        first = next(resampled, None)
        if first is None:
            return
        # Samples are counted from the first one, whose time is known.
        begins = decoding.begins if start is None else max(start, decoding.begins)
        skip = round((begins - decoding.begins) * rate)
        left = None if end is None else max(0, round((end - begins) * rate))
        for block in itertools.chain([first], resampled):
            kept = block[skip:]
            skip = max(0, skip - len(block))
            if left is not None:
                kept = kept[:left]
                left -= len(kept)
            if len(kept):
                yield kept
            if left == 0:
                return


def pictures(
    path: Path | str, fps: float, start: float | None = None, end: float | None = None
) -> Iterator[Picture]:
    """The pictures of a clip, or of its part from ``start`` to ``end`` (seconds), at fixed times.

    The times are ``start + k / fps`` as long as they lie before the end. Each gives the frame that
    is shown then, also where the frames of the clip come at varying intervals; before the first
    frame, the first one.

    Args:
        path: The clip.
        fps: Pictures a second.
        start: Where the part begins; 0 where not given.
        end: Where it ends; the end of the last frame where not given.

    Yields:
        Pictures in the order of time, upright and with square pixels.

    Raises:
        MediaError: where there are no pictures, where they cannot be decoded, or break off.
    """
    path = Path(path)
    with open_clip(path) as container:
        stream = pictures_of(container)
        if stream is None:
            raise MediaError(f"{path} holds no pictures. Choose vision=none, or another file.")
        decoding = Decoding(path, container, stream, start, end)
        pixel = float(stream.sample_aspect_ratio or 1)
        shown: _Shown | None = None
        count = 0

        def times(before: float) -> Iterator[float]:
            """The next times that lie before a time and before the end."""
            nonlocal count
            last = before if end is None else min(before, end)
            while (time := (start or 0.0) + count / fps) < last - _TOLERANCE:
                count += 1
                yield time

        for frame, begins in decoding:
            if shown is not None:
                for time in times(begins):
                    yield Picture(time, shown.rgb)
            shown = _Shown(frame, pixel)
            if end is not None and begins >= end:
                break
        if shown is not None:
            for time in times(decoding.reached):
                yield Picture(time, shown.rgb)


class _Shown:
    """A decoded frame, converted once, if it is shown at all."""

    def __init__(self, frame: Any, pixel: float) -> None:
        self._frame = frame
        self._pixel = pixel  # its width in multiples of its height
        self._rgb: NDArray[np.uint8] | None = None

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """(height, width, 3) upright."""
        if self._rgb is None:
            width = max(round(self._frame.width * self._pixel), 1)
            flat = self._frame.reformat(width=width, format="rgb24").to_ndarray()
            turned = np.rot90(flat, round(self._frame.rotation / 90))
            self._rgb = np.ascontiguousarray(turned)
        return self._rgb


def _resampled(decoding: Decoding, rate: int) -> Iterator[NDArray[np.float32]]:
    """Blocks of mono samples at a rate; what is decoded may change its format on the way."""
    av = pyav()
    resampler, kind = None, None
    for frame, _ in decoding:
        found = (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or found != kind:
            yield from _flushed(resampler)
            # FFmpeg's own mix to mono exceeds 1 where two channels are alike.
            resampler, kind = (
                av.AudioResampler(format="fltp", layout=frame.layout, rate=rate),
                found,
            )
        yield from map(_mono, resampler.resample(frame))
    yield from _flushed(resampler)


def _flushed(resampler: Any) -> Iterator[NDArray[np.float32]]:
    yield from map(_mono, [] if resampler is None else resampler.resample(None))


def _mono(frame: Any) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = frame.to_ndarray().mean(axis=0, dtype=np.float32)
    return mean
