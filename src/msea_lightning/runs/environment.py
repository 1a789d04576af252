"""What a run ran with: versions, commit, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement


def environment() -> dict[str, Any]:
    """Versions, commit and hardware of this run, as ``env.json`` has them."""
    # Here, because whoever only reads run folders has no need of it.
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in ("msea_lightning", *_required())},
        "commit": _commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "cpu": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _required() -> list[str]:
    """What the project requires here; nothing where it runs without being installed."""
    try:
        texts = metadata.requires("msea_lightning") or []
    except metadata.PackageNotFoundError:
        return []
    required = [Requirement(text) for text in texts]
    return [one.name for one in required if one.marker is None or one.marker.evaluate()]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that runs; None where the project is installed from a wheel."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
