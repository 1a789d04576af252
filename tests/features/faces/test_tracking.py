from __future__ import annotations

import numpy as np
import pytest

from msea_lightning.features.faces.tracking import choose

SMALL, LARGE = [0.0, 0, 10, 10], [50.0, 50, 80, 80]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (None, LARGE),  # the largest at first
        ([2.0, 2, 12, 12], SMALL),  # then the one before, though it is smaller
        ([200.0, 200, 220, 220], LARGE),  # it is gone
        ([9.0, 9, 70, 70], LARGE),  # both overlap with it
    ],
)
def test_which_face_is_followed(before: list[float] | None, expected: list[float]) -> None:
    boxes = np.array([SMALL, LARGE])
    index = choose(boxes, None if before is None else np.array(before))
    assert boxes[index].tolist() == expected
