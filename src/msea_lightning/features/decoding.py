"""Clips as PyAV opens them, and the frames of one of their streams with their times."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msea_lightning.features.contract import MediaError
from msea_lightning.features.packages import load_package

_EARLIER = 1.0
"""Seconds to decode before the start of a part: codecs build on what came before."""

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
        self._offset = (container.start_time or 0) / pyav().time_base

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
