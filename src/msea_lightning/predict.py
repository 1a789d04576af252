"""``python -m msea_lightning.predict``: a trained plugin's answers about files."""

from __future__ import annotations

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import PredictConfig


def job(config: PredictConfig) -> None:
    """Writes an answer for every utterance of the input."""
    from msea_lightning.inference.predict import predict

    predict(config)


def main() -> None:
    """Runs the command line."""
    launch(job, config_name="predict", root=PredictConfig)


if __name__ == "__main__":
    main()
