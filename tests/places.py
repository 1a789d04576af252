"""Where things lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The top of the checkout."""

PACKAGE = ROOT / "src" / "msea_lightning"

VECTORS = ROOT / "tests" / "vectors"
"""Numbers recorded from the original implementation."""
