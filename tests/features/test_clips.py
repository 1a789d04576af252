from __future__ import annotations

import logging
from pathlib import Path

import pytest

from msea_lightning.features.clips import Clip, Part, find_clips, utterances
from msea_lightning.features.contract import FeatureError, MediaError
from tests.features.clips import tone, write_clip

SRT = "1\n00:00:00,000 --> 00:00:01,000\nHello\n\n2\n00:00:01,000 --> 00:00:02,000\n\n\n"
SRT += "3\n00:00:01,500 --> 00:00:03,000\nthere\n"


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    """A clip that is never decoded."""
    (tmp_path / "film.mp4").write_bytes(b"film")
    return Clip(tmp_path / "film.mp4", "film.mp4", "film")


def test_clips_are_what_is_called_or_decoded_as_such(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_clip(tmp_path / "b" / "deep" / "sound.wav", tone(0.1))
    write_clip(tmp_path / "sound.wav", tone(0.1)).rename(tmp_path / "a.recording")
    (tmp_path / "broken.mkv").write_bytes(b"")
    write_clip(tmp_path / "broadcast.ts", tone(0.5))
    for other in ("broken.srt", "notes.md", "picture.png", "code.ts", "words.txt", ".hidden.mp4"):
        (tmp_path / other).write_text("words\n" * 99)
    found = find_clips(tmp_path)
    files = ["a.recording", "b/deep/sound.wav", "broadcast.ts", "broken.mkv"]
    assert [clip.file for clip in found] == files
    assert [clip.id for clip in found] == ["a", "b/deep/sound", "broadcast", "broken"]
    # The subtitles are those of a clip.
    assert "4 files (.ts, .md, .png, .txt)" in caplog.text
    (single,) = find_clips(tmp_path / "a.recording")
    assert (single.path, single.id) == (tmp_path / "a.recording", "a")


def test_folders_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"input=.*nothing: there is no such folder"):
        find_clips(tmp_path / "nothing")
    with pytest.raises(FeatureError, match=r"holds no file\. Give the folder of the clips"):
        find_clips(tmp_path)
    (tmp_path / "notes.md").write_text("words")
    with pytest.raises(FeatureError, match=r"holds 1 file \(\.md\), none with sound or video"):
        find_clips(tmp_path)
    with pytest.raises(
        FeatureError, match=r"notes\.md is no file with sound or video\. Give a clip"
    ):
        find_clips(tmp_path / "notes.md")
    for name in ("a.mp4", "a.wav"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FeatureError, match=r"have the same id: a\.mp4 and a\.wav"):
        find_clips(tmp_path)


def test_ids_have_no_blanks_at_their_ends(tmp_path: Path) -> None:
    (tmp_path / " a .wav").write_bytes(b"")
    assert [(clip.file, clip.id) for clip in find_clips(tmp_path)] == [(" a .wav", "a")]
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(FeatureError, match=r"have the same id:  a \.wav and a\.wav"):
        find_clips(tmp_path)
    (tmp_path / "a.wav").rename(tmp_path / " .wav")
    with pytest.raises(FeatureError, match=r"the clip ' \.wav' has no name"):
        find_clips(tmp_path)


def test_a_clip_is_one_utterance_or_the_cues_beside_it(clip: Clip) -> None:
    assert utterances(clip, ()) == [Part("film")]
    clip.path.with_suffix(".txt").write_bytes(b"\xef\xbb\xbf Hello\r\n there ")
    assert utterances(clip, ()) == [Part("film", text="Hello there")]
    clip.path.with_suffix(".txt").unlink()
    clip.path.with_suffix(".srt").write_text(SRT)
    group = {"group": "film"}
    assert utterances(clip, ()) == [
        Part("film#1", 0.0, 1.0, "Hello", group),
        Part("film#3", 1.5, 3.0, "there", group),
    ]


def test_rows_of_labels_get_the_times_and_words_that_they_lack(clip: Clip) -> None:
    clip.path.with_suffix(".srt").write_text(SRT)
    rows = [Part("film"), Part("film#3"), Part("x", 0.0, 1.2), Part("y", 0.0, 1.2, "own")]
    assert utterances(clip, rows) == [
        Part("film", text="Hello there"),
        Part("film#3", 1.5, 3.0, "there"),
        Part("x", 0.0, 1.2, "Hello"),
        Part("y", 0.0, 1.2, "own"),
    ]
    with pytest.raises(MediaError, match=r"film\.mp4: the labels name its cue 2"):
        utterances(clip, [Part("film#2")])


def test_transcripts_that_cannot_be_meant_are_refused(clip: Clip) -> None:
    clip.path.with_suffix(".srt").write_text(SRT)
    clip.path.with_suffix(".txt").write_bytes(b"\xff")
    with pytest.raises(MediaError, match=r"two transcripts, film\.srt and film\.txt"):
        utterances(clip, ())
    clip.path.with_suffix(".srt").unlink()
    with pytest.raises(MediaError, match=r"film\.txt is not UTF-8 \(byte 1\)"):
        utterances(clip, ())
    clip.path.with_suffix(".txt").unlink()
    clip.path.with_suffix(".vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\n\n")
    with pytest.raises(MediaError, match="no cue of its subtitles has words"):
        utterances(clip, ())
