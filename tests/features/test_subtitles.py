from __future__ import annotations

from pathlib import Path

import pytest

from msea_lightning.features.contract import MediaError
from msea_lightning.features.subtitles import Cue, read_subtitles, words_between

pytest.importorskip("srt", reason="srt (extra media) is not installed")
pytest.importorskip("webvtt", reason="webvtt-py (extra media) is not installed")

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Hello</i> {\\an8}there,
<font color="#ff0000">you</font> &amp; me

2
00:00:02,000 --> 00:00:03,000


3
00:00:02,000 --> 00:00:05,000 X1:40 X2:600
- Hi
- 2 < 3 and 5 > 4

4
01:00:06,000 --> 01:00:07,000
An hour later"""

VTT = """WEBVTT - a title

NOTE what is said here
is no cue

STYLE
::cue {color: red}

00:01.000 --> 00:02.500 align:start position:0%
<v Roger Bingham>We are in <c.yellow>New York</c> &amp; here &lt;3

intro
01:00:02.000 --> 01:00:03.000
<00:00:02.5>two <b>lines</b>
of it
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_cues_are_what_is_said_and_when(newline: str, encoding: str, tmp_path: Path) -> None:
    for name, content in {"clip.srt": SRT, "clip.vtt": VTT}.items():
        (tmp_path / name).write_bytes(content.replace("\n", newline).encode(encoding))
    assert read_subtitles(tmp_path / "clip.srt") == [
        Cue(1, 1.0, 2.5, "Hello there, you & me"),
        Cue(3, 2.0, 5.0, "- Hi - 2 < 3 and 5 > 4"),
        Cue(4, 3606.0, 3607.0, "An hour later"),
    ]
    assert read_subtitles(tmp_path / "clip.vtt") == [
        Cue(1, 1.0, 2.5, "We are in New York & here <3"),
        Cue(2, 3602.0, 3603.0, "two lines of it"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("clip.srt", b"just words\n", "is no SRT file"),
        ("clip.srt", b"1\n00:00:02,000 --> 00:00:01,000\nx\n", "cue 1 begins at 2 s and ends at 1"),
        ("clip.srt", b"1\n00:00:01,000 --> 00:00:02,000\nna\xefve\n", r"not UTF-8 \(byte 35\)"),
        ("clip.vtt", b"00:01.000 --> 00:02.000\nx\n", "is no WebVTT file.*first line is WEBVTT"),
        ("clip.vtt", b"WEBVTT\n\n1.0 --> 2.0\nx\n", r"1 lines have times \(-->\), but only 0"),
    ],
)
def test_broken_files_say_what_is_wrong(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MediaError, match=f"{name}.*{reason}"):
        read_subtitles(tmp_path / name)


def test_words_of_a_part_are_those_of_the_cues_in_its_middle() -> None:
    cues = [Cue(1, 0, 2, "one"), Cue(2, 2, 4, "two"), Cue(3, 3, 9, "three")]
    assert words_between(cues, None, None) == "one two three"
    assert words_between(cues, 1.5, 5.0) == "two"
    assert words_between(cues, 10, None) == ""
