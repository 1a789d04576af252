"""``python -m msea_lightning.train``: trains and tests an adapter; ``--help`` lists the options."""

from __future__ import annotations

from msea_lightning.cli import launch
from msea_lightning.config import TrainConfig


def run(config: TrainConfig) -> None:
    """Trains as the options say.

    Args:
        config: All options of the run.
    """
    from msea_lightning.fit import fit

    fit(config)


def main() -> None:
    """The command line."""
    launch(run, config_name="train", root=TrainConfig)


if __name__ == "__main__":
    main()
