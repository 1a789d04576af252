from __future__ import annotations

import re

import numpy as np
import pytest

from msea_lightning.features.contract import FeatureError
from msea_lightning.features.faces.networks import Network
from tests.places import ROOT

INPUT = np.zeros((1, 2), np.float32)


def test_a_package_that_is_not_installed_is_named_with_its_remedy() -> None:
    message = r"no-such-package, whose no/such\.tflite .* is not installed\. `make media` installs"
    with pytest.raises(FeatureError, match=message):
        Network("no-such-package", "no/such.tflite", "")(INPUT)


@pytest.mark.parametrize(
    ("file", "which"), [("no/such.tflite", "no"), ("numpy/__init__.py", "another")]
)
def test_a_package_with_another_file_or_none_is_named_with_its_version(
    file: str, which: str
) -> None:
    message = re.escape(f"version {np.__version__} of numpy has {which} {file}")
    with pytest.raises(FeatureError, match=message):
        Network("numpy", file, "0" * 64)(INPUT)


def test_the_remedy_names_the_versions_that_make_media_installs() -> None:
    lines = (ROOT / "scripts" / "media.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split()[0] for line in lines if not line.startswith("#")]
    assert len(pinned) == 2
    with pytest.raises(FeatureError, match=re.escape(f"--no-deps {' '.join(pinned)}")):
        Network("no-such-package", "no/such.tflite", "")(INPUT)
