"""``python -m msea_lightning.prepare``: published files to a store, and what is in it.

Training prepares on first use; this command does it before, and shows what the files hold beside
what was published.
"""

from __future__ import annotations

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import PrepareConfig


def job(config: PrepareConfig) -> None:
    """Prepares the data set and prints a summary of it."""
    from rich.console import Console

    from msea_lightning.data.prepare import prepare_store
    from msea_lightning.data.show import show

    show(prepare_store(config.dataset), config.dataset, Console())


def main() -> None:
    """Runs the command line."""
    launch(job, config_name="prepare", root=PrepareConfig)


if __name__ == "__main__":
    main()
