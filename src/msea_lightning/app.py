"""``python -m msea_lightning.app``: a local page on which trained plugins are tried."""

from __future__ import annotations

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import AppConfig


def job(config: AppConfig) -> None:
    """Serves the page until it is interrupted."""
    from msea_lightning.features.packages import load_package

    load_package("fastapi", extra="app")
    load_package("uvicorn", extra="app")
    from msea_lightning.serving.app.server import serve

    serve(config)


def main() -> None:
    """Runs the command line."""
    launch(job, config_name="app", root=AppConfig)


if __name__ == "__main__":
    main()
