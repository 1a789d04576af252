"""Decoding of clips with PyAV: sound as blocks of samples, pictures at fixed times.

Streams are decoded as they are read, so that memory does not grow with the length of a clip. Times
are seconds from the start of the clip. A clip cannot make the decoder open anything but itself:
playlists and network addresses in it are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msea_lightning.features.contract import MediaError, Picture
from msea_lightning.features.packages import load_package

_EARLIER = 1.0
"""Seconds to decode before the start of a part: codecs build on what came before."""

_TOLERANCE = 1e-6
"""Seconds by which times that are the same may differ after rounding."""

_IMAGES = ("image2", "_pipe", "tty")
"""Formats of FFmpeg, or their endings, of single pictures and of text files."""


@dataclass(frozen=True)
class MediaInfo:
    """What a clip holds.

    Attributes:
        duration: Seconds; None where the file does not say.
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
    with _opened(Path(path)) as container:
        return MediaInfo(
            duration=container.duration / _av().time_base if container.duration else None,
            sound=_sound(container) is not None,
            pictures=_pictures(container) is not None,
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
    with _opened(path) as container:
        stream = _sound(container)
        if stream is None:
            raise MediaError(f"{path} holds no sound. Choose audio=none, or another file.")
        decoding = _Decoding(path, container, stream, start, end)
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
    with _opened(path) as container:
        stream = _pictures(container)
        if stream is None:
            raise MediaError(f"{path} holds no pictures. Choose vision=none, or another file.")
        decoding = _Decoding(path, container, stream, start, end)
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


class _Decoding:
    """The frames of one stream with their times, from a little before ``start`` on.

    Attributes:
        begins: Time of the first frame.
        reached: Time at which the last frame so far ends.
    """

    def __init__(
        self, path: Path, container: Any, stream: Any, start: float | None, end: float | None
    ) -> None:
        self.begins = self.reached = 0.0
        self._path, self._container, self._stream = path, container, stream
        self._start, self._end = start, end
        self._offset = (container.start_time or 0) / _av().time_base

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        stream = self._stream
        if self._start is not None and self._start > _EARLIER and stream.time_base:
            wanted = self._start - _EARLIER + self._offset
            with _explained(self._path):
                self._container.seek(int(wanted / stream.time_base), stream=stream)
        first = True
        for frame in self._decoded():
            begins = self.reached if frame.time is None else frame.time - self._offset
            if first:
                self.begins, first = begins, False
            self.reached = begins + self._length(frame)
            yield frame, begins
        self._check_end(empty=first)

    def _decoded(self) -> Iterator[Any]:
        with _explained(self._path):
            yield from self._container.decode(self._stream)

    def _length(self, frame: Any) -> float:
        """Seconds that a frame lasts."""
        if self._stream.type == "audio":
            return float(frame.samples / frame.sample_rate)
        if frame.duration and frame.time_base:
            return float(frame.duration * frame.time_base)
        rate = self._stream.average_rate
        return float(1 / rate) if rate else 0.0

    def _check_end(self, *, empty: bool) -> None:
        """Refuses a stream that is shorter than its header says."""
        stream = self._stream
        what = "sound" if stream.type == "audio" else "pictures"
        if not stream.duration or not stream.time_base:
            return
        says = float(((stream.start_time or 0) + stream.duration) * stream.time_base) - self._offset
        wanted = says if self._end is None else min(says, self._end)
        if empty and (self._start or 0.0) < says - _EARLIER:
            raise MediaError(f"{self._path}: none of its {what} can be decoded. Replace the file.")
        if not empty and wanted - self.reached > max(_EARLIER, 0.1 * says):
            raise MediaError(
                f"{self._path} breaks off: its {what} ends at {self.reached:.1f} s, its header "
                f"says {says:.1f} s. Replace the file."
            )


def _resampled(decoding: _Decoding, rate: int) -> Iterator[NDArray[np.float32]]:
    """Blocks of mono samples at a rate; what is decoded may change its format on the way."""
    av = _av()
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


def _av() -> Any:
    return load_package("av", extra="media")


def _sound(container: Any) -> Any:
    """The main stream of sound; None where there is none."""
    return container.streams.best("audio")


def _pictures(container: Any) -> Any:
    """The main stream of moving pictures; None where there is none."""
    av = _av()
    best = container.streams.best("video")
    if best is None or best.disposition & av.stream.Disposition.attached_pic:
        return None
    return best


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The clip as a container of PyAV that holds sound or moving pictures."""
    av = _av()
    with _explained(path), path.open("rb") as file:
        if not file.read(1):
            raise MediaError(f"{path} is empty (0 bytes). Replace the file.")
        file.seek(0)
        # Of a stream that is at hand FFmpeg opens nothing else, where no protocol is allowed.
        with av.open(file, options={"protocol_whitelist": "none"}) as container:
            single = container.format.name.endswith(_IMAGES)
            if single or (_sound(container) is None and _pictures(container) is None):
                raise MediaError(
                    f"{path} holds neither sound nor moving pictures (format "
                    f"{container.format.name}). Replace the file."
                )
            yield container


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a clip is read into a :class:`MediaError`."""
    av = _av()
    try:
        yield
    except av.FFmpegError as error:
        raise MediaError(
            f"{path} cannot be decoded ({error.strerror}). Replace the file, or convert it."
        ) from error
    except OSError as error:
        raise MediaError(
            f"{path} cannot be read ({error.strerror}). Check the file and its permissions."
        ) from error
