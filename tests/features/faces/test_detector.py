from __future__ import annotations

import numpy as np
import pytest

from msea_lightning.features.faces.detector import (
    FULL_RANGE,
    SHORT_RANGE,
    Faces,
    Layout,
    anchors,
    area,
    decode,
    join,
    overlap,
)


@pytest.mark.parametrize(("layout", "count"), [(SHORT_RANGE, 896), (FULL_RANGE, 2304)])
def test_there_are_as_many_anchors_as_the_networks_have_outputs(layout: Layout, count: int) -> None:
    centres = anchors(layout.grids)
    assert centres.shape == (count, 2)
    assert centres.min() > 0
    assert centres.max() < 1


def test_anchors_go_along_rows_and_repeat_within_a_cell() -> None:
    centres = anchors(((2, 2), (1, 1)))
    first = [(0.25, 0.25), (0.25, 0.25), (0.75, 0.25), (0.75, 0.25)]
    second = [(0.25, 0.75), (0.25, 0.75), (0.75, 0.75), (0.75, 0.75)]
    assert centres.tolist() == [list(point) for point in (*first, *second, (0.5, 0.5))]


def test_outputs_are_pixels_from_the_anchor() -> None:
    outputs = np.zeros((2, 16), np.float32)
    outputs[1, :4] = 10, -20, 40, 60  # centre, width and height
    outputs[1, 4:6] = -5, 5  # the right eye
    faces = decode(outputs, np.array([-0.01, 2.0]), np.array([[0.1, 0.1], [0.5, 0.5]]), 100)
    assert faces.boxes == pytest.approx(np.array([[0.4, 0.0, 0.8, 0.6]]))
    assert faces.points[0, 0] == pytest.approx([0.45, 0.55])
    assert faces.points[0, 1] == pytest.approx([0.5, 0.5])
    assert faces.scores == pytest.approx([1 / (1 + np.exp(-2))])


def test_overlap_is_intersection_over_union() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [5, 5, 6, 6], [1, 1, 1, 1]], float)
    assert overlap(boxes[0], boxes) == pytest.approx([1, 1 / 3, 0, 0, 0])
    assert overlap(boxes[4], boxes[4:]) == pytest.approx([0])
    assert area(boxes) == pytest.approx([4, 4, 4, 1, 0])


def faces_at(boxes: list[list[float]], scores: list[float]) -> Faces:
    corners = np.array(boxes, float).reshape(-1, 4)
    points = np.repeat(corners[:, None, :2], 6, axis=1)
    return Faces(corners, points, np.array(scores))


def test_boxes_of_one_face_become_their_weighted_mean() -> None:
    boxes = [[10.0, 10, 11, 11], [0, 0, 10, 10], [2, 0, 12, 10]]
    joined = join(faces_at(boxes, [0.6, 0.9, 0.6]))
    assert joined.boxes == pytest.approx(np.array([[0.8, 0, 10.8, 10], [10, 10, 11, 11]]))
    assert joined.points[0] == pytest.approx(np.repeat([[0.8, 0]], 6, axis=0))
    assert joined.scores == pytest.approx([0.9, 0.6])


def test_nothing_and_an_empty_box_are_joined_too() -> None:
    assert join(faces_at([], [])).boxes.shape == (0, 4)
    assert join(faces_at([], [])).points.shape == (0, 6, 2)
    assert join(faces_at([[1, 1, 1, 1]], [0.7])).scores == pytest.approx([0.7])
