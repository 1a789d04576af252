"""Subtitle files (SRT, WebVTT) as cues: what is said, and when."""

from __future__ import annotations

import codecs
import html
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from msea_lightning.features.contract import MediaError
from msea_lightning.features.packages import load_package

SUFFIXES = (".srt", ".vtt")

_TAG = re.compile(r"</?[a-zA-Z0-9][^<>]*>|\{\\[^{}]*\}")
"""Tags of HTML and WebVTT, and codes of SubStation Alpha, such as ``{\\an8}``."""


class Cue(NamedTuple):
    """One cue that says something.

    Attributes:
        number: Its position in the file, from 1 on; cues without words count.
        start: Seconds.
        end: Seconds.
        text: Its words, in one line and without tags.
    """

    number: int
    start: float
    end: float
    text: str


def read_subtitles(path: Path) -> list[Cue]:
    """The cues of a subtitle file in the order of the file; those without words are left out.

    Cues may overlap. The file is UTF-8, or UTF-16 with a byte order mark.

    Raises:
        MediaError: naming the file and what is wrong in it.
    """
    content = _decoded(path).replace("\r\n", "\n").replace("\r", "\n")
    parse = _webvtt if path.suffix.lower() == ".vtt" else _srt
    found = []
    for number, (start, end, text) in enumerate(parse(path, content), start=1):
        words = " ".join(html.unescape(_TAG.sub("", text)).split())
        if words and not 0 <= start < end:
            raise MediaError(
                f"{path}: cue {number} begins at {start:g} s and ends at {end:g} s. Correct its "
                "times."
            )
        if words:
            found.append(Cue(number, start, end, words))
    return found


def words_between(cues: Iterable[Cue], start: float | None, end: float | None) -> str:
    """The words of all cues whose middle lies in a part of a clip."""
    low, high = start or 0.0, float("inf") if end is None else end
    return " ".join(cue.text for cue in cues if low <= (cue.start + cue.end) / 2 < high)


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise MediaError(
            f"{path} is not UTF-8 (byte {error.start + 1}). Save it as UTF-8."
        ) from error
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror}).") from error


def _srt(path: Path, content: str) -> Iterator[tuple[float, float, str]]:
    srt = load_package("srt", extra="media")
    try:
        for cue in srt.parse(content):
            yield cue.start.total_seconds(), cue.end.total_seconds(), cue.content
    except (srt.SRTParseError, srt.TimestampParseError) as error:
        raise MediaError(f"{path} is no SRT file ({error}). Correct or remove it.") from error


def _webvtt(path: Path, content: str) -> Iterator[tuple[float, float, str]]:
    webvtt = load_package("webvtt", extra="media")
    errors = load_package("webvtt.errors", extra="media")
    try:
        cues = webvtt.from_string(content)
    except errors.MalformedFileError as error:
        raise MediaError(
            f"{path} is no WebVTT file ({error}). Its first line is WEBVTT. Correct or remove it."
        ) from error
    written = content.count("-->")
    if len(cues) != written:
        raise MediaError(
            f"{path}: {written} lines have times (-->), but only {len(cues)} can be read. Times "
            "are written 00:01.000 --> 00:02.000, hours first where there are any."
        )
    for cue in cues:
        yield _seconds(cue.start), _seconds(cue.end), cue.raw_text


def _seconds(timestamp: str) -> float:
    """The seconds of hh:mm:ss.ttt."""
    hours, minutes, seconds = timestamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
