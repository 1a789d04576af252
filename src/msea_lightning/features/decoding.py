"""Clips as PyAV opens them, and the frames of one of their streams with their times."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msea_lightning.features.contract import MediaError
from msea_lightning.features.packages import load_package

_EARLIER = 1.0
"""Seconds to decode before the start of a part: codecs build on what came before."""

_MOV = "mov,mp4,m4a,3gp,3g2,mj2"
"""The format that states the length of each stream."""

_STATED = (_MOV, "matroska,webm", "wav", "flac", "aiff", "au", "flv")
"""Formats whose header states the length; of others it is estimated, often from the bit rate."""

_UNSOUGHT = ("mpegts", "mpeg")
"""Formats without an index: a jump may lead to where the next pictures cannot be decoded."""

_FROM_ZERO = ("matroska,webm", "flv")
"""Formats that count their length from zero, not from the first frame."""

_UNKNOWN_SIZE = 0x7FFF0000
"""RIFF sizes from here on are written by recorders that do not know when they will end."""

_SLACK = 0.2
"""Seconds that a whole clip may lack: encoders count what players skip at its ends."""

_IMAGES = ("image2", "_pipe", "tty")
"""Formats of FFmpeg, or their endings, of single pictures and of text files."""


def pyav() -> Any:
    """The package; FeatureError where it is missing."""
    return load_package("av", extra="media")


def sound_of(container: Any) -> Any:
    """The main stream of sound; None where there is none."""
    return container.streams.best("audio")


def pictures_of(container: Any) -> Any:
    """The main stream of moving pictures; None where there is none."""
    av = pyav()
    best = container.streams.best("video")
    if best is None or best.disposition & av.stream.Disposition.attached_pic:
        return None
    return best


@contextmanager
def open_clip(path: Path) -> Iterator[Any]:
    """The clip as a container of PyAV that holds sound or moving pictures."""
    av = pyav()
    with _explained(path), path.open("rb") as file:
        if not file.read(1):
            raise MediaError(f"{path} is empty (0 bytes). Replace the file.")
        file.seek(0)
        # Of a stream that is at hand FFmpeg opens nothing else, where no protocol is allowed.
        with av.open(file, options={"protocol_whitelist": "none"}) as container:
            single = container.format.name.endswith(_IMAGES)
            if single or (sound_of(container) is None and pictures_of(container) is None):
                raise MediaError(
                    f"{path} holds neither sound nor moving pictures (format "
                    f"{container.format.name}). Replace the file."
                )
            yield container


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a clip is read into a :class:`MediaError`."""
    av = pyav()
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


def held_seconds(path: Path) -> float:
    """Seconds that a clip really holds, whatever its header says; nothing is decoded.

    Raises:
        MediaError: where it cannot be opened or read.
    """
    held = 0.0
    with open_clip(path) as container, _explained(path):
        for packet in container.demux():
            time = packet.dts if packet.pts is None else packet.pts
            if time is not None and packet.time_base:
                ends = (time + (packet.duration or 0)) * packet.time_base
                held = max(held, float(ends) - _start_of(container))
    return held


class Decoding:
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
        self._offset = _start_of(container)
        self._longest = 0.0

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        stream = self._stream
        seeks = self._container.format.name not in _UNSOUGHT and stream.time_base
        if seeks and self._start is not None and self._start > _EARLIER:
            wanted = self._start - _EARLIER + self._offset
            with _explained(self._path):
                self._container.seek(int(wanted / stream.time_base), stream=stream)
        first = True
        for frame in self._decoded():
            begins = self.reached if frame.time is None else frame.time - self._offset
            if first:
                self.begins = self.reached = begins
                first = False
            ends = begins + self._length(frame)
            self._longest = max(self._longest, ends - self.reached)
            self.reached = ends
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
        """Refuses a clip that is shorter than its header says."""
        says, reached = self._stated_end(), self.reached
        if says is None:
            return
        if empty:
            reached = max(reached, self._start or 0.0)
        least = (says if self._end is None else min(says, self._end)) - self._slack(says)
        if reached >= least:
            return
        if not self._by_stream():
            # Sound may well be shorter than pictures, and the other way round.
            reached = max(reached, held_seconds(self._path))
            if reached >= least:
                return
        if empty:
            what = "sound" if self._stream.type == "audio" else "pictures"
            raise MediaError(f"{self._path}: none of its {what} can be decoded. Replace the file.")
        raise MediaError(
            f"{self._path} breaks off at {reached:.1f} s; its header says {says:.1f} s. Replace "
            "the file."
        )

    def _stated_end(self) -> float | None:
        """When the stream or the clip should end; None where the file does not say."""
        stream = self._stream
        if self._by_stream():
            ends = (stream.start_time or 0) + stream.duration
            return float(ends * stream.time_base) - self._offset
        length = _stated_length(self._path, self._container)
        if length is None or self._container.format.name not in _FROM_ZERO:
            return length
        return length - max(self._offset, 0.0)

    def _by_stream(self) -> bool:
        known = self._stream.duration and self._stream.time_base
        return bool(known) and self._container.format.name == _MOV

    def _slack(self, says: float) -> float:
        """Seconds by which the end may be missed."""
        name = self._container.format.name
        # Where an encoder notes its delay in an MP3 file, it notes the length too.
        if name in _STATED or (name == "mp3" and self._container.start_time):
            return max(_SLACK, 0.01 * says, self._longest)
        return max(1.0, 0.1 * says)


def _stated_length(path: Path, container: Any) -> float | None:
    """Seconds that the header of a clip says it is long; None where it does not say."""
    if not container.duration:
        return None
    # Of RIFF files FFmpeg gives the length of what is left.
    return float(container.duration / pyav().time_base * _riff_share(path))


def _start_of(container: Any) -> float:
    return float((container.start_time or 0) / pyav().time_base)


def _riff_share(path: Path) -> float:
    """How many times as long a RIFF file says it is (WAV, AVI); 1 for whole and other files."""
    with path.open("rb") as file:
        head = file.read(8)
        there = file.seek(0, os.SEEK_END)
    if head[:4] != b"RIFF":
        return 1.0
    said = int.from_bytes(head[4:], "little") + len(head)
    return max(1.0, said / there) if said < _UNKNOWN_SIZE else 1.0
