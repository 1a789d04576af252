"""``python -m msea_lightning.train``: trains and tests an adapter; ``--help`` lists the options.

With ``-m`` it runs all cells of a sweep, see :mod:`msea_lightning.sweep`.
"""

from __future__ import annotations

from collections.abc import Sequence

from msea_lightning.cli import launch
from msea_lightning.config import TrainConfig
from msea_lightning.jobs import Job, Start


def run(config: TrainConfig) -> None:
    """Trains as the options say, or with ``size_only`` says how large that would be.

    Args:
        config: All options of the run.
    """
    if config.size_only:
        from msea_lightning.sizes import measure_size

        measure_size(config)
        return
    from msea_lightning.fit import fit

    fit(config)


def sweep(jobs: Sequence[Job[TrainConfig]], start: Start[TrainConfig]) -> int:
    """Runs all cells of a sweep and reports them; see :func:`msea_lightning.sweep.run_sweep`.

    Args:
        jobs: The cells.
        start: Hands cells to Hydra's launcher.
    """
    from msea_lightning.sweep import run_sweep

    return run_sweep(jobs, start)


def main() -> None:
    """The command line."""
    from msea_lightning.supervision import end_with_supervisor

    end_with_supervisor()
    launch(run, config_name="train", root=TrainConfig, sweep=sweep)


if __name__ == "__main__":
    main()
