"""``python -m msea_lightning.serve``: trained plugins over HTTP (docs/serve.md)."""

from __future__ import annotations

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import ServeConfig

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "httpx")


def job(config: ServeConfig) -> None:
    """Serves until the process is told to end."""
    from msea_lightning.features.packages import load_package

    for package in _PACKAGES:
        load_package(package, extra="serve")
    from msea_lightning.serving.run import serve

    serve(config)


def main() -> None:
    """The command line."""
    launch(job, config_name="serve", root=ServeConfig)


if __name__ == "__main__":
    main()
