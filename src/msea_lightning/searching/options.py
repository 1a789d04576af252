"""Options of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msea_lightning.config.options import option


@dataclass
class SearchOptions:
    """What is searched, and for how long."""

    trials: int = option(20, "trials in all, those of earlier calls included", low=1)
    parallel: int = option(1, "trials that are chosen, and run, at a time", low=1)
    seed: int = option(0, "seed of what is tried, not of the runs", low=0, high=2**32 - 1)
    space: dict[str, Any] = option(
        {},
        "what is tried: search.space.OPTION=LOW..HIGH (a number between; LOW..HIGH:log: evenly on "
        "a logarithmic scale), [A,B,C] (one of these), null (leaves out what is tried by default)",
    )
