"""``python -m msea_lightning.serve``: trained plugins over HTTP (docs/serve.md)."""

from __future__ import annotations

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import ServeConfig


def job(config: ServeConfig) -> None:
    """Serves until the process is told to end."""
    from msea_lightning.features.packages import load_package

    load_package("fastapi", extra="serve")
    load_package("uvicorn", extra="serve")
    load_package("prometheus_client", extra="serve")
    load_package("python_multipart", extra="serve")
    load_package("httpx", extra="serve")
    from msea_lightning.serving.run import serve

    serve(config)


def main() -> None:
    """The command line."""
    launch(job, config_name="serve", root=ServeConfig)


if __name__ == "__main__":
    main()
