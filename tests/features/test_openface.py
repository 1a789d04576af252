from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from msea_lightning.config.errors import ConfigError
from msea_lightning.features.contract import FeatureError, MediaError
from msea_lightning.features.extraction import Extraction, to_json
from msea_lightning.features.openface import SELECTIONS, OpenFace
from msea_lightning.features.options import OpenFaceOptions

FIXED = ("frame", "face_id", "timestamp", "confidence", "success")
ALL = SELECTIONS["all"]


def write(
    clip: Path,
    times: list[float],
    *,
    faces: list[int] | None = None,
    success: list[int] | None = None,
) -> None:
    """A CSV file as OpenFace writes it: every column of frame i holds i + its place / 1000."""
    lines = [", ".join((*FIXED, *ALL))]
    for index, time in enumerate(times):
        face, good = (faces or [0] * len(times))[index], (success or [1] * len(times))[index]
        values = (f"{index + place / 1000:.3f}" for place in range(len(ALL)))
        lines.append(", ".join((f"{index + 1}, {face}, {time:.3f}, 0.98, {good}", *values)))
    clip.with_suffix(".csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("selection", "count"),
    [("action_units", 35), ("simsv2", 177), ("all", 709)],
)
def test_selections_are_as_wide_as_the_published_features(selection: str, count: int) -> None:
    names = SELECTIONS[selection]
    assert len(set(names)) == len(names) == count
    places = [ALL.index(name) for name in names]
    assert places == sorted(places)  # in the order of the file


def test_columns_are_taken_by_name(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write(clip, [0.0, 0.04, 0.08])
    extractor = OpenFace(columns="simsv2", fps=25)
    frames = extractor.read(clip)
    assert frames.dtype == np.float32
    places = np.array([ALL.index(name) for name in extractor.columns]) / 1000
    assert frames == pytest.approx(np.arange(3)[:, None] + places, abs=1e-5)


def test_frames_are_the_rows_shown_at_their_times(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write(clip, [index / 30 for index in range(30)])  # a second at 30 frames a second
    slow = OpenFace(columns="all", fps=10).read(clip)[:, 0]
    assert slow.tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
    fast = OpenFace(columns="all", fps=60).read(clip)[:, 0]
    assert fast.tolist() == [index // 2 for index in range(60)]


def test_a_part_of_a_clip_is_read(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write(clip, [index / 10 for index in range(20)])
    extractor = OpenFace(columns="all", fps=10)
    assert extractor.read(clip, 0.5, 0.8)[:, 0].tolist() == [5, 6, 7]
    assert extractor.read(clip, 1.7, None)[:, 0].tolist() == [17, 18, 19]
    assert extractor.read(clip, 5.0, 6.0).shape == (0, 709)


def test_of_several_faces_the_most_successful_is_taken(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write(clip, [0, 0, 0.1, 0.1], faces=[0, 1, 0, 1], success=[1, 1, 0, 1])
    assert OpenFace(columns="all", fps=10).read(clip)[:, 0].tolist() == [1, 3]


def test_one_row_is_one_frame(tmp_path: Path) -> None:
    write(tmp_path / "clip.mp4", [0.0])
    assert OpenFace(fps=25).read(tmp_path / "clip.mp4").shape == (1, 35)


def broken(name: str, clip: Path) -> None:
    file = clip.with_suffix(".csv")
    write(clip, [0.0, 0.0] if name == "times" else [0.0, 0.1])
    text = file.read_text(encoding="utf-8")
    if name == "columns":
        text = text.replace("AU01_r", "AU01")
    if name == "rows":
        text = text.splitlines()[0] + "\n"
    if name == "finite":
        text = text.replace("1.708", "nan")
    if name == "number":
        text = text.replace("1.708", "-nan(ind)")
    file.write_text("" if name == "empty" else text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("columns", r"clip\.csv lacks 1 of 37 columns, such as AU01_r\. Run OpenFace with"),
        ("rows", r"clip\.csv has no rows"),
        ("empty", r"clip\.csv lacks 37 of 37 columns"),
        ("finite", r"clip\.csv holds values that are not finite"),
        ("number", r"clip\.csv cannot be read \(could not convert string ' -nan\(ind\)'"),
        ("times", r"its times \(timestamp\) do not increase\. .* not on pictures of it"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    broken(name, tmp_path / "clip.mp4")
    with pytest.raises(MediaError, match=message):
        OpenFace().read(tmp_path / "clip.mp4")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"there is no clip\.csv beside it\. Run OpenFace's"):
        OpenFace().read(tmp_path / "clip.mp4")


def test_pictures_are_refused() -> None:
    with pytest.raises(FeatureError, match="Choose vision=face"):
        OpenFace().extract([])


def test_an_unknown_selection_is_refused() -> None:
    with pytest.raises(ConfigError, match="columns=mosei: there are action_units, simsv2, all"):
        OpenFace(columns="mosei")


def test_the_file_of_a_clip_is_its_vision(tmp_path: Path) -> None:
    from tests.features.clips import ramp, write_clip

    clip = write_clip(tmp_path / "clip.mp4", pictures=ramp(10))
    write(clip, [index / 10 for index in range(10)])
    extraction = Extraction(vision=OpenFaceOptions(columns="simsv2", fps=10))
    recorded = json.loads(json.dumps(to_json(extraction.facts())))
    assert recorded["vision"]["dim"] == 177
    frames = Extraction.from_facts(recorded).extract(clip, 0.2, 0.6)["vision"]
    assert np.floor(frames[:, 0]).tolist() == [2, 3, 4, 5]
