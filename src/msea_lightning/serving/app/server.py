"""Serving the page: on this machine alone unless told otherwise, with nothing from elsewhere."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.middleware.base import RequestResponseEndpoint

from msea_lightning.config.roots import AppConfig
from msea_lightning.features.packages import load_package
from msea_lightning.plugin import Predictor
from msea_lightning.serving.address import is_loopback, listen, names, web_address
from msea_lightning.serving.origin import SameOrigin
from msea_lightning.serving.plugins import load_plugins, open_plugins

_log = logging.getLogger(__name__)

_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "connect-src 'self' data: blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""A browser with this page opens no connection but to the app."""

_GRACE = 3
"""Seconds that an answer has to end when the app ends; open pages stay connected for ever."""

_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(config: AppConfig) -> None:
    """Loads the plugins and serves the page until it is interrupted.

    Raises:
        ServeError: if the address is taken or not this machine's.
        UserError: if a plugin or its language model cannot be loaded, or Gradio is not installed.
    """
    with listen(config.host, config.port) as listener, _uploads():
        load_package("gradio", extra="app")  # before a language model is loaded in vain
        predictors = load_plugins(
            open_plugins(config.plugin, config.plugins), config.language_model
        )
        app = build_app(predictors, host=config.host, max_upload=config.max_upload)
        address = web_address(listener)
        _log.info("the app is at %s (Ctrl+C ends it)", address)
        if not is_loopback(config.host):
            _log.warning(
                "host=%s: everybody who reaches this machine can use the app and see what others "
                "upload; there is no login and no encryption",
                config.host,
            )
        if config.open_browser:
            webbrowser.open(address)
        settings = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        with _ended_by_termination():
            uvicorn.Server(settings).run(sockets=[listener])


def build_app(predictors: Mapping[str, Predictor], *, host: str, max_upload: float) -> FastAPI:
    """The page as an ASGI application.

    Args:
        predictors: Name of each plugin to the predictor that it is attached to.
        host: Address that it will be served on. On loopback, requests for any other name are
            refused, which keeps web pages out that point their own name to this machine.
        max_upload: Megabytes that a clip may have.
    """
    gr = load_package("gradio", extra="app")
    from msea_lightning.serving.app.page import build

    app = FastAPI(openapi_url=None)
    app.add_middleware(SameOrigin, hosts=names(host))

    @app.middleware("http")
    async def add_headers(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers.update(_HEADERS)
        return response

    fonts = ["system-ui", "sans-serif"]
    gr.mount_gradio_app(
        app,
        build(predictors, max_upload=max_upload),
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        max_file_size=int(max_upload * 1e6),
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        show_error=False,
        theme=gr.themes.Default(
            primary_hue="blue", font=fonts, font_mono=["ui-monospace", "monospace"]
        ),
        css=resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8"),
    )
    return app


@contextmanager
def _uploads() -> Iterator[None]:
    """Gradio, set to keep to itself, with a folder for uploads that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="msea_lightning-app-") as folder:
        # Gradio reads these when it is imported.
        os.environ.update(
            GRADIO_TEMP_DIR=folder,
            GRADIO_ANALYTICS_ENABLED="False",
            GRADIO_SHARE="False",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        yield


@contextmanager
def _ended_by_termination() -> Iterator[None]:
    """Lets SIGTERM end the process in order, so that uploads are removed then, too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
