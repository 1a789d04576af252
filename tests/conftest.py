"""Fixtures for all tests."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from msea_lightning.backbone import FrozenBackbone, load_backbone
from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import TrainConfig
from msea_lightning.runs.folder import RunFolder
from msea_lightning.training.fit import fit

SMALL = (
    "method=published",
    "dataset.demo_utterances=90",
    "training.schedule_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.progress_bar=false",
)
"""Options of a small, short run on the demo corpus."""

# Machines differ in speed; and other examples are drawn the next time.
settings.register_profile("msea_lightning", deadline=None, max_examples=30)
settings.load_profile("msea_lightning")

_LONGEST = ("tests/training/test_resuming.py", "tests/commands/test_commands.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest tests first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(_LONGEST))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the checkout; skips the test where there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder shared/ beside the checkout")
    return folder


@pytest.fixture(scope="session")
def backbone() -> FrozenBackbone:
    """The language model that ships with the project."""
    return load_backbone(None)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of prepared stores, shared by all tests."""
    return tmp_path_factory.mktemp("cache")


@functools.cache
def composed(words: tuple[str, ...]) -> TrainConfig:
    """Composing takes a third of a second; most tests want the same few configurations."""
    return compose("train", TrainConfig, words)


@pytest.fixture
def options(cache: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Composes the options of a small, short run on the demo corpus, with overrides."""

    def make(*overrides: str) -> TrainConfig:
        given = dict(word.split("=", 1) for word in (*SMALL, *overrides))
        runs = given.pop("runs", str(tmp_path / "runs"))
        own_cache = given.pop("dataset.cache", str(cache))
        config = copy.deepcopy(composed(tuple(f"{key}={value}" for key, value in given.items())))
        config.runs, config.dataset.cache = runs, own_cache
        return config

    return make


@pytest.fixture(scope="session")
def finished_run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A short run on the demo corpus that all tests share: look, and change nothing."""
    config = copy.deepcopy(composed(SMALL))
    config.runs, config.dataset.cache = str(tmp_path_factory.mktemp("shared")), str(cache)
    return fit(config)
