"""``python -m msea_lightning.evaluate run=<folder>``: evaluates a finished run again."""

from __future__ import annotations

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import EvaluateConfig


def run(config: EvaluateConfig) -> None:
    """Evaluates as the options say."""
    from msea_lightning.training.evaluation import evaluate

    evaluate(config)


def main() -> None:
    """The command line."""
    launch(run, config_name="evaluate", root=EvaluateConfig)


if __name__ == "__main__":
    main()
