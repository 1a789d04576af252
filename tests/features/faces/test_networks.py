from __future__ import annotations

import re

import pytest

from msea_lightning.features.contract import FeatureError
from msea_lightning.features.faces.networks import Network
from tests.places import ROOT


def test_a_package_that_is_not_installed_is_named_with_its_remedy() -> None:
    network = Network("no-such-package", "no/such.tflite")
    message = r"no-such-package, whose no/such\.tflite .* is not installed\. `make media` installs"
    with pytest.raises(FeatureError, match=message):
        network.fingerprint()


def test_a_package_without_the_file_is_named_with_its_version() -> None:
    with pytest.raises(
        FeatureError, match=rf"version {np_version()} of numpy has no no/such\.tflite"
    ):
        Network("numpy", "no/such.tflite").path()


def np_version() -> str:
    import numpy as np

    return re.escape(np.__version__)


def test_the_remedy_names_the_versions_that_make_media_installs() -> None:
    lines = (ROOT / "scripts" / "media.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split()[0] for line in lines if not line.startswith("#")]
    assert len(pinned) == 2
    with pytest.raises(FeatureError, match=re.escape(f"--no-deps {' '.join(pinned)}")):
        Network("no-such-package", "no/such.tflite").path()
