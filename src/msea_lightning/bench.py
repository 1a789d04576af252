"""``python -m msea_lightning.bench``: speed and memory of variants, side by side."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import BenchConfig


def bench(config: BenchConfig) -> None:
    """Measures, prints tables, and writes all numbers to a file if asked to."""
    from rich.console import Console

    from msea_lightning.benchmark.results import show
    from msea_lightning.benchmark.run import benchmark
    from msea_lightning.runs.files import json_target, write_json

    target = json_target("bench.json", config.bench.json, replaces=False)
    results = benchmark(config)
    console = Console()
    show(results, console)
    if target is not None:
        write_json(target, results.as_json())
        console.print(f"numbers: {target}", soft_wrap=True, highlight=False)


def with_dataset(words: Sequence[str]) -> list[str]:
    """A command line in which ``bench.shape=meld`` chooses the data set, prompt and recipe."""
    option, group = "bench.shape=", "dataset="
    return [
        group + word.removeprefix(option) if word.startswith(option) else word for word in words
    ]


def main() -> None:
    """The command line."""
    # A terminated benchmark ends its processes and removes its data, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Before anything is imported that might look something up on the Hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    launch(bench, config_name="bench", root=BenchConfig, arguments=with_dataset(sys.argv[1:]))


if __name__ == "__main__":
    main()
