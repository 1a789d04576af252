"""``python -m msea_lightning.train``: trains and tests a model; ``--help`` lists the options.

With ``-m`` it runs all combinations of a sweep, see :mod:`msea_lightning.sweep`.
"""

from __future__ import annotations

from collections.abc import Sequence

from msea_lightning.commands.command_line import launch
from msea_lightning.commands.jobs import Job, Start
from msea_lightning.config.roots import TrainConfig


def run(config: TrainConfig) -> None:
    """Trains as the options say, or tries that out, or says how large it would be."""
    if config.size_only:
        from msea_lightning.training.size import measure_size

        measure_size(config)
        return
    if config.trainer.fast_dev_run:
        from msea_lightning.training.trial import try_out

        try_out(config)
        return
    from msea_lightning.training.fit import fit

    fit(config)


def sweep(jobs: Sequence[Job[TrainConfig]], start: Start[TrainConfig]) -> int:
    """Trains all runs of a sweep and reports them; see :mod:`msea_lightning.sweep.run`."""
    from msea_lightning.sweep.run import run_sweep

    return run_sweep(jobs, start)


def main() -> None:
    """The command line."""
    from msea_lightning.sweep.processes import end_with_supervisor

    end_with_supervisor()
    launch(run, config_name="train", root=TrainConfig, sweep=sweep)


if __name__ == "__main__":
    main()
