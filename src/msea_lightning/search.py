"""``python -m msea_lightning.search``: good options, by the validation part alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import SearchConfig


def job(config: SearchConfig, words: Sequence[str]) -> None:
    """Makes the trials that are missing; see :mod:`msea_lightning.searching.run`."""
    from msea_lightning.features.packages import load_package

    load_package("optuna", extra="search")
    from msea_lightning.searching.run import search

    search(config, words)


def main() -> None:
    """The command line."""
    run = partial(job, words=sys.argv[1:])
    launch(run, config_name="search", root=SearchConfig, launches=True)


if __name__ == "__main__":
    main()
