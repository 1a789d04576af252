"""``python -m msea_lightning.extract``: a folder of clips becomes a table to train on or predict.

The exit code is 1 where something is wrong with a clip; the others are in the table all the same.
"""

from __future__ import annotations

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import ExtractConfig


def job(config: ExtractConfig) -> None:
    """Extracts features and transcripts."""
    from msea_lightning.features.run import extract_table

    extract_table(config)


def main() -> None:
    """Runs the command line."""
    launch(job, config_name="extract", root=ExtractConfig)


if __name__ == "__main__":
    main()
