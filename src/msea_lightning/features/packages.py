"""Packages that come with an extra of the project, imported where they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from msea_lightning.features.contract import FeatureError


def load_package(module: str, *, extra: str, note: str = "") -> Any:
    """Imports a module of an optional package; ``note`` is what to know before installing it.

    Raises:
        FeatureError: naming the extra that installs the package, or what went wrong in it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise FeatureError(
            f"the package {module.partition('.')[0]} is missing or broken ({error}). Install it: "
            f"pip install 'msea_lightning[{extra}]'. {note}".rstrip()
        ) from error
