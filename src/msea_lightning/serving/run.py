"""Starting a server: plugins, language model, engine, HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

import uvicorn

from msea_lightning.config.roots import ServeConfig
from msea_lightning.plugin import Predictor
from msea_lightning.serving.address import is_loopback, listen, names, web_address
from msea_lightning.serving.completions import Completions
from msea_lightning.serving.engines import Engine, LocalEngine
from msea_lightning.serving.errors import UnavailableError
from msea_lightning.serving.front import create_app
from msea_lightning.serving.metrics import Metrics
from msea_lightning.serving.plugins import load_together, open_plugins
from msea_lightning.serving.service import Service
from msea_lightning.serving.vllm import VLLMEngine

_GRACE = 30
"""Seconds that requests have to end after the server was told to."""

_log = logging.getLogger(__name__)


def serve(config: ServeConfig) -> None:
    """Serves plugins until the process is told to end; requests that came before are answered.

    Raises:
        ServeError: if the address is taken or not this machine's.
        EngineError: if the engine serves another language model.
        UserError: if a plugin or language model cannot be loaded.
    """
    with listen(config.host, config.port) as listener:  # first: loading takes its time
        predictor = load_together(
            open_plugins(config.plugin, config.plugins),
            config.language_model,
            embeddings_only=config.engine != "local",
        )
        asyncio.run(_serve(config, predictor, listener))


def build_engine(config: ServeConfig, predictor: Predictor, metrics: Metrics) -> Engine:
    """What the configuration asks for: this process, or a vLLM server."""
    observe = metrics.batches.observe
    if config.engine == "local":
        return LocalEngine(predictor, max_batch=config.max_batch, observe=observe)
    completions = Completions(
        config.engine,
        key=os.environ.get("VLLM_API_KEY"),
        concurrency=config.concurrency,
        timeout=config.timeout,
        observe=metrics.engine_seconds.observe,
    )
    return VLLMEngine(predictor, completions, max_batch=config.max_batch, observe=observe)


async def _serve(config: ServeConfig, predictor: Predictor, listener: socket.socket) -> None:
    metrics = Metrics()
    engine = build_engine(config, predictor, metrics)
    try:
        await engine.start()
    except UnavailableError as error:
        _log.warning("%s Until then this server answers 503.", error)
    app = create_app(
        Service(engine, metrics, max_waiting=config.max_waiting),
        max_bytes=int(config.max_upload * 1e6),
        timeout=config.timeout,
        hosts=names(config.host),
    )
    settings = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    _log.info("%s at %s, %s", ", ".join(predictor.plugins), web_address(listener), engine.title)
    if not is_loopback(config.host):
        _log.warning(
            "host=%s: whoever reaches this machine can ask; there is no login. Put a proxy that "
            "has one in front (docs/serve.md), or leave host out.",
            config.host,
        )
    await uvicorn.Server(settings).serve(sockets=[listener])
