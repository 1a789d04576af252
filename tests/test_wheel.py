"""The built wheel holds all that a run needs, ``conf/`` among it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.places import ROOT

DATA = (".yaml", ".csv", ".json", ".safetensors", ".typed", ".py")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a wheel built from the project as it stands."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in DATA and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_package_and_conf(unpacked: Path) -> None:
    shipped = files_below(unpacked / "msea_lightning")
    expected = files_below(ROOT / "src" / "msea_lightning")
    expected |= {f"conf/{name}": text for name, text in files_below(ROOT / "conf").items()}
    assert "conf/train.yaml" in expected
    assert shipped == expected
    assert {path.name.partition("-")[0] for path in unpacked.iterdir()} == {"msea_lightning"}


def test_the_wheel_finds_its_own_conf(unpacked: Path, tmp_path: Path) -> None:
    script = (
        "from msea_lightning.commands.command_line import compose, conf_folder\n"
        "from msea_lightning.config.roots import TrainConfig\n"
        "config = compose('train', TrainConfig, ['dataset=meld', 'backbone=llama2'])\n"
        "print(conf_folder(), config.recipe, sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [str(unpacked / "msea_lightning" / "conf"), "meld_llama2"]
