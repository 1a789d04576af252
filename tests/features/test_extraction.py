from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msea_lightning.features.contract import ExtractorFacts, FeatureError, MediaError
from msea_lightning.features.extraction import Extraction, check_facts, to_json
from msea_lightning.features.log_mel import LogMel
from msea_lightning.features.media import audio_blocks
from msea_lightning.features.options import (
    AudioEncoderOptions,
    FaceOptions,
    LogMelOptions,
    OpenFaceOptions,
)
from tests.features.clips import ramp, tone, write_clip
from tests.features.test_audio_encoder import hubert

SOUND = Extraction(audio=LogMelOptions(mels=20))


def through_json(facts: dict[str, ExtractorFacts]) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(json.dumps(to_json(facts)))
    return found


def test_a_clip_has_the_features_of_what_is_in_it(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", tone(2), ramp(20))
    features = SOUND.extract(path)
    assert features.keys() == {"audio"}
    assert np.array_equal(features["audio"], LogMel(mels=20).extract(audio_blocks(path, 16000)))
    part = LogMel(mels=20).extract(audio_blocks(path, 16000, 0.5, 1.0))
    assert np.array_equal(SOUND.extract(path, 0.5, 1.0)["audio"], part)
    assert SOUND.extract(write_clip(tmp_path / "mute.mp4", None, ramp(5))) == {}
    assert Extraction().extract(path) == {}


def test_a_part_behind_the_end_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.wav", tone(2))
    with pytest.raises(MediaError, match=r"clip\.wav holds too little from 5 s to its end"):
        SOUND.extract(path, 5.0)


@pytest.mark.usefixtures("face_networks")
def test_a_face_in_a_clip_is_found_and_happy(photograph: Image.Image, tmp_path: Path) -> None:
    """She moves over the frame."""
    frames = []
    for index in range(10):
        frame = Image.new("RGB", (640, 512), (110, 110, 110))
        frame.paste(photograph, (12 * index, 0))
        frames.append(np.array(frame))
    extraction = Extraction(LogMelOptions(), FaceOptions(fps=5.0))
    assert extraction.vision is not None
    happy, found = (
        list(extraction.vision.columns).index(name) for name in ("emotion_happy", "face_found")
    )
    for kind in ("mp4", "webm"):
        path = write_clip(tmp_path / f"clip.{kind}", tone(1), frames)
        features = extraction.extract(path)
        assert features.keys() == {"audio", "vision"}
        assert features["vision"].shape == (5, 34)
        assert features["vision"][:, found].tolist() == [1] * 5
        assert features["vision"][:, happy].min() > 0.8


def test_features_beside_a_clip_are_read_where_there_are_no_pictures(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.wav", tone(1))
    extraction = Extraction(vision=OpenFaceOptions(fps=5.0))
    with pytest.raises(MediaError, match=r"there is no clip\.csv beside it"):
        extraction.extract(path)
    assert extraction.vision is not None
    header = ["frame", "face_id", "timestamp", "confidence", "success", *extraction.vision.columns]
    rows = [[index, 0, index / 5, 1, 1, *[index] * 35] for index in range(5)]
    lines = [", ".join(map(str, row)) for row in (header, *rows)]
    (tmp_path / "clip.csv").write_text("\n".join(lines))
    assert extraction.extract(path)["vision"][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_extractors_are_built_again_from_what_was_recorded(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.wav", tone(1))
    facts = SOUND.facts()
    assert facts == {
        "audio": ExtractorFacts(
            "log_mel", 1, {"mels": 20, "rate": 16000, "window": 2048, "hop": 512}, 20
        )
    }
    again = Extraction.from_facts(through_json(facts))
    assert again.facts() == facts
    assert np.array_equal(again.extract(path)["audio"], SOUND.extract(path)["audio"])
    assert Extraction.from_facts({}).facts() == {}


def test_a_local_model_is_recorded_by_its_hash_and_not_by_its_place(tmp_path: Path) -> None:
    here = hubert(tmp_path / "here")
    options = AudioEncoderOptions(path=here, device="cpu")
    facts = through_json(Extraction(options).facts())
    assert str(tmp_path) not in json.dumps(facts)
    assert "device" not in json.dumps(facts)
    with pytest.raises(FeatureError, match=r"path=here, a local copy: give audio\.path="):
        Extraction.from_facts(facts)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = Extraction.from_facts(facts, {"audio": {"path": str(tmp_path / "there")}})
    check_facts(facts, moved.facts())
    with pytest.raises(FeatureError, match=r"hash of path=\w+.* are expected"):
        Extraction.from_facts(facts, {"audio": {"path": hubert(tmp_path / "other")}})


def test_another_version_and_unknown_extractors_are_refused() -> None:
    (recorded,) = SOUND.facts().values()
    with pytest.raises(FeatureError, match=r"log_mel, version 7; here it has version 1"):
        Extraction.from_facts({"audio": replace(recorded, version=7)})
    with pytest.raises(FeatureError, match=r"there is no audio extractor later"):
        Extraction.from_facts({"audio": replace(recorded, name="later")})
    with pytest.raises(FeatureError, match=r"log_mel with colour=red cannot be built"):
        Extraction.from_facts({"audio": replace(recorded, settings={"colour": "red"})})
    with pytest.raises(FeatureError, match="the feature smell is of the extractor log_mel"):
        Extraction.from_facts({"smell": recorded})
    with pytest.raises(FeatureError, match="is damaged"):
        Extraction.from_facts({"audio": {"name": "log_mel"}})


def test_features_of_another_extractor_are_refused_by_name() -> None:
    facts = SOUND.facts()
    other = Extraction(LogMelOptions(mels=30)).facts()
    check_facts(facts, facts)
    check_facts(facts, {})  # of unknown origin
    check_facts({}, other)
    with pytest.raises(FeatureError, match=r"are of log_mel.*mels=30.*those of log_mel.*mels=20"):
        check_facts(facts, through_json(other))
