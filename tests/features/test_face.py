from __future__ import annotations

import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msea_lightning.features.contract import Frames, Picture
from msea_lightning.features.extraction import Extraction, to_json
from msea_lightning.features.face import COLUMNS, FaceExtractor
from msea_lightning.features.faces.geometry import MEASURES
from msea_lightning.features.options import FaceOptions

pytestmark = pytest.mark.usefixtures("face_networks")

HAPPY, ROLL, FOUND = (COLUMNS.index(name) for name in ("emotion_happy", "roll", "face_found"))
SHAPE = [COLUMNS.index(name) for name in MEASURES]


@pytest.fixture(scope="module")
def extractor() -> FaceExtractor:
    return FaceExtractor()


def frames_of(extractor: FaceExtractor, *images: Image.Image) -> Frames:
    pictures = (Picture(index / 10, np.array(image)) for index, image in enumerate(images))
    return extractor.extract(pictures)


def pasted(*faces: tuple[Image.Image, int, int, int]) -> Image.Image:
    """A grey picture of 960 by 540 with faces: photograph, left, top and height in pixels."""
    picture = Image.new("RGB", (960, 540), (110, 110, 110))
    for photograph, left, top, height in faces:
        head = photograph.crop((100, 0, 360, 260)).resize((height, height))
        picture.paste(head, (left, top))
    return picture


def test_a_smiling_face_is_found_and_happy(
    extractor: FaceExtractor, photograph: Image.Image
) -> None:
    frames = frames_of(extractor, photograph)
    assert frames.dtype == np.float32
    assert frames.shape == (1, len(extractor.columns)) == (1, 34)
    assert frames[0, FOUND] == 1
    assert frames[0, :7].sum() == pytest.approx(1, abs=1e-5)
    assert frames[0, HAPPY] > 0.9
    assert np.abs(frames[0, 7:10]).max() < 0.3  # she looks into the camera


@pytest.mark.parametrize("degrees", [-20, 20])  # counterclockwise
def test_a_tilted_face_differs_in_its_roll_alone(
    extractor: FaceExtractor, photograph: Image.Image, degrees: int
) -> None:
    upright, tilted = frames_of(extractor, photograph, photograph.rotate(degrees))
    assert tilted[FOUND] == 1
    assert tilted[HAPPY] > 0.9
    assert upright[ROLL] - tilted[ROLL] == pytest.approx(math.radians(degrees), abs=0.05)
    # measured: 0.08 at most, for the angle between open lips
    assert np.abs(upright - tilted)[SHAPE].max() < 0.12


def test_a_face_that_moves_over_the_picture_is_found_everywhere(
    extractor: FaceExtractor, photograph: Image.Image
) -> None:
    path = [(60 * step, 20 * (step % 4), 200 + 20 * step) for step in range(11)]
    frames = frames_of(extractor, *(pasted((photograph, *place)) for place in path))
    assert frames[:, FOUND].all()
    assert frames[:, HAPPY].min() > 0.9
    assert np.abs(frames[:, SHAPE] - frames[:, SHAPE].mean(axis=0)).max() < 0.12


def test_a_face_that_fills_the_picture_is_found(
    extractor: FaceExtractor, photograph: Image.Image
) -> None:
    close = photograph.crop((180, 80, 270, 170)).resize((720, 720))
    assert frames_of(extractor, close)[0, FOUND] == 1


def test_no_face_is_all_zeros(extractor: FaceExtractor, photograph: Image.Image) -> None:
    black = Image.new("RGB", (320, 240))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8))
    frames = frames_of(extractor, black, photograph, noise)
    assert frames[:, FOUND].tolist() == [0, 1, 0]
    assert not frames[[0, 2]].any()


def test_of_two_faces_the_larger_is_taken_and_then_followed(
    extractor: FaceExtractor, photograph: Image.Image
) -> None:
    tilted = photograph.rotate(-20)
    larger_left = pasted((photograph, 40, 60, 420), (tilted, 600, 120, 280))
    smaller_left = pasted((photograph, 110, 130, 280), (tilted, 500, 60, 420))
    assert frames_of(extractor, smaller_left)[0, ROLL] > 0.3  # the tilted one, at the right
    followed = frames_of(extractor, larger_left, smaller_left)
    assert followed[:, FOUND].all()
    assert np.abs(followed[:, ROLL]).max() < 0.15


def test_a_clip_without_pictures_has_no_frames(extractor: FaceExtractor) -> None:
    assert extractor.extract(iter([])).shape == (0, 34)


def test_threads_that_share_an_extractor_get_what_one_gets(
    extractor: FaceExtractor, photograph: Image.Image
) -> None:
    pictures = [pasted((photograph, 40 * index, 10, 300)) for index in range(8)]
    expected = [frames_of(extractor, picture) for picture in pictures]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda picture: frames_of(extractor, picture), pictures * 4))
    for frames, alone in zip(found, expected * 4, strict=True):
        assert np.array_equal(frames, alone)


def test_an_extractor_in_use_is_sent_to_other_processes(
    extractor: FaceExtractor, photograph: Image.Image
) -> None:
    here = frames_of(extractor, photograph)
    there = frames_of(pickle.loads(pickle.dumps(extractor)), photograph)
    assert np.array_equal(here, there)


def test_the_face_in_a_clip_is_found_and_happy(tmp_path: Path, photograph: Image.Image) -> None:
    from tests.features.clips import write_clip

    images = [pasted((photograph, 50 * step, 100, 300)) for step in range(10)]
    clip = write_clip(tmp_path / "clip.mp4", pictures=[np.array(image) for image in images])
    extraction = Extraction(vision=FaceOptions(fps=5))
    frames = extraction.extract(clip)["vision"]
    assert frames.shape == (5, 34)
    assert frames[:, FOUND].all()
    assert frames[:, HAPPY].min() > 0.9
    recorded = json.loads(json.dumps(to_json(extraction.facts())))
    again = Extraction.from_facts(recorded)
    assert np.array_equal(again.extract(clip)["vision"], frames)
