"""Questions of the page: what comes back of texts and clips, and what is wrong with some."""

from __future__ import annotations

from pathlib import Path

import pytest

from msea_lightning import Predictor, Utterance
from msea_lightning.serving.app.asking import LONGEST_TEXT, QuestionError, ask, knows_clips
from tests.features.clips import ramp, tone, write_clip


def test_a_text_gets_the_answer_of_the_predictor(predictor: Predictor) -> None:
    [expected] = predictor.predict([Utterance(text="well done")], plugin="emotion")
    found = ask(predictor, "emotion", "well done", None)
    assert found.answer == expected
    assert not found.without
    assert not found.panels


def test_a_clip_with_a_text_tells_what_each_contributed(
    predictor: Predictor, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", tone(1.0), ramp(10))
    found = ask(predictor, "emotion", "well done", clip)
    [expected] = predictor.predict([Utterance.from_media(clip, "well done")], plugin="emotion")
    assert found.answer.label == expected.label
    # Other utterances are in the batch.
    assert found.answer.distribution == pytest.approx(expected.distribution, abs=1e-6)
    assert list(found.without) == ["text", "audio"]
    assert [panel.title for panel in found.panels] == ["Heard: loudness, dB"]
    assert found.seconds == pytest.approx(1.0, abs=0.2)
    assert not found.notes


def test_a_clip_without_sound_is_answered_by_its_text_alone(
    predictor: Predictor, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", None, ramp(10))
    found = ask(predictor, "emotion", "well done", clip)
    assert found.notes == ["The clip has no sound: the answer does without."]
    assert not found.panels
    with pytest.raises(QuestionError, match=r"^utterance 'clip\.mp4' has neither"):
        ask(predictor, "emotion", " ", clip)


def test_a_file_that_is_no_clip_is_named_without_its_folder(
    predictor: Predictor, tmp_path: Path
) -> None:
    clip = tmp_path / "broken.mp4"
    clip.write_bytes(b"no clip at all")
    with pytest.raises(QuestionError, match=r"broken\.mp4 cannot be decoded") as caught:
        ask(predictor, "emotion", "", clip)
    assert str(tmp_path) not in str(caught.value)


def test_nothing_and_too_much_are_refused(predictor: Predictor) -> None:
    with pytest.raises(QuestionError, match="nothing to answer yet"):
        ask(predictor, "emotion", " \n", None)
    with pytest.raises(QuestionError, match=r"5,001 characters, at most 5,000"):
        ask(predictor, "emotion", "a" * (LONGEST_TEXT + 1), None)


def test_a_plugin_of_unknown_features_takes_no_clip(predictor: Predictor, tmp_path: Path) -> None:
    assert knows_clips(predictor, "emotion")
    assert not knows_clips(predictor, "sentiment")
    clip = write_clip(tmp_path / "clip.wav", tone(0.5))
    with pytest.raises(QuestionError, match="does not say what its features"):
        ask(predictor, "sentiment", "", clip)
