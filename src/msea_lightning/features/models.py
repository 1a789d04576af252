"""Encoders of transformers by folder or Hub id: loaded without running code of theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msea_lightning.features.contract import FeatureError

_WEIGHTS = (".safetensors", ".bin")


def load_encoder(loader: Callable[..., Any], path: str) -> Any:
    """What one of transformers' ``from_pretrained`` makes of a folder or a Hub id.

    Raises:
        FeatureError: naming the path and what is wrong with it.
    """
    folder = Path(path).expanduser()
    if _looks_local(path) and not folder.is_dir():
        raise FeatureError(
            f"path={path}: there is no such folder. Give a folder that transformers has saved, or "
            "a Hugging Face Hub id."
        )
    try:
        with _without_bars():
            return loader(str(folder) if folder.is_dir() else path)
    except (OSError, ValueError, KeyError) as error:
        raise FeatureError(
            f"path={path}: transformers cannot load it ({error}). Give a folder or a Hugging Face "
            "Hub id of a model that transformers knows; code that a model brings is never run."
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Silences the progress of loading, which lasts a moment and may be in many processes."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def fingerprint(path: str) -> str | None:
    """SHA-256 of the configuration and the weights in a folder; None of a Hub id."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    files = (file for file in folder.iterdir() if file.suffix in _WEIGHTS)
    for file in [folder / "config.json", folder / "preprocessor_config.json", *sorted(files)]:
        if file.is_file():
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _looks_local(path: str) -> bool:
    return path.startswith((".", "~")) or Path(path).is_absolute()
