"""The HTTP interface: ``/predict``, ``/plugins``, ``/health``, ``/metrics`` (docs/serve.md)."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from msea_lightning.config.errors import UserError
from msea_lightning.data.utterance import DataError, Utterance
from msea_lightning.features.contract import FeatureError, MediaError
from msea_lightning.inference.outputs import answer_values
from msea_lightning.plugin import Answer, Plugin
from msea_lightning.plugin.facts import backbone_title
from msea_lightning.serving.bodies import (
    BodyError,
    SlowBodyError,
    TooLargeError,
    check_texts,
    limited,
    read_form,
    read_json,
)
from msea_lightning.serving.counting import HUNG_UP, CountedAnswers
from msea_lightning.serving.errors import EngineError, UnavailableError
from msea_lightning.serving.origin import SameOrigin
from msea_lightning.serving.service import Service

_log = logging.getLogger(__name__)


class UnknownPluginError(UserError):
    """A plugin that the server does not have."""


class UnknownTypeError(UserError):
    """A body that is neither JSON nor a form."""


_STATUS: Sequence[tuple[type[UserError], int]] = (
    (SlowBodyError, 408),
    (TooLargeError, 413),
    (UnknownTypeError, 415),
    (UnknownPluginError, 404),
    (UnavailableError, 503),
    (EngineError, 502),
    (FeatureError, 500),  # the server lacks a package, or has another version of it
    (UserError, 400),
)
"""The HTTP status of an error: that of the first class that it is of."""


def create_app(
    service: Service, *, max_bytes: int, timeout: float, hosts: Sequence[str] = ("*",)
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        service: What answers.
        max_bytes: Most bytes that are read of a request.
        timeout: Seconds that a request may take, its reading included.
        hosts: Names under which the server may be addressed.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.add_middleware(SameOrigin, hosts=hosts)
    app.add_middleware(CountedAnswers, path="/predict", requests=service.metrics.requests)

    @app.exception_handler(UserError)
    async def refuse(_: Request, error: UserError) -> JSONResponse:
        return _refusal(error)

    @app.exception_handler(HTTPException)
    async def refuse_by_status(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.exception_handler(ClientDisconnect)
    async def give_up(request: Request, _: ClientDisconnect) -> Response:
        _log.debug("%s: the caller hung up before its request had come whole.", request.url.path)
        return Response(status_code=HUNG_UP)

    @app.exception_handler(Exception)  # Uvicorn logs it
    async def apologise(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "This is a mistake of the server: its log says more."}, 500)

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        """Answers about utterances (JSON), or about one clip (a form with a file)."""
        try:
            with service.place():
                work = _answers(service, limited(request, max_bytes))
                answers = await asyncio.wait_for(work, timeout)
        except asyncio.TimeoutError as error:
            if getattr(request.state, "is_read", False):
                raise UnavailableError(f"There was no answer within {timeout:g} s.") from error
            raise SlowBodyError(
                f"The request had not come whole after {timeout:g} s: send less at a time, or "
                "start the server with a higher timeout."
            ) from error
        return JSONResponse({"answers": [_written(answer) for answer in answers]})

    @app.get("/plugins")
    async def plugins() -> JSONResponse:
        """What each plugin reads and answers, by name."""
        predictor = service.engine.predictor
        return JSONResponse(
            {
                name: _described(plugin, predictor.models[name].space.answers)
                for name, plugin in predictor.plugins.items()
            }
        )

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether answers can be expected."""
        engine = service.engine
        content = {"engine": engine.title, "plugins": list(engine.predictor.plugins)}
        try:
            await engine.check_health()
        except UserError as error:
            return JSONResponse({"status": "unavailable", "error": str(error), **content}, 503)
        return JSONResponse({"status": "ok", **content})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.written(), media_type=CONTENT_TYPE_LATEST)

    return app


async def _answers(service: Service, request: Request) -> list[Answer]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = await asyncio.to_thread(read_json, await request.body())
        name = _named(service, body.plugin, request)
        utterances = await asyncio.to_thread(lambda: [one.utterance() for one in body.utterances])
        check_texts(utterances)
        return await service.answer(utterances, name, body.decode)
    if kind == "multipart/form-data":
        return await _clip_answers(service, request)
    raise UnknownTypeError("Send utterances as application/json, or a clip as multipart/form-data.")


async def _clip_answers(service: Service, request: Request) -> list[Answer]:
    async with request.form(max_files=1) as form:
        fields, media = read_form(form)
        name = _named(service, fields.plugin, request)
        with TemporaryDirectory(prefix="msea_lightning-") as folder:
            path = Path(folder) / "clip"
            with path.open("wb") as file:
                await asyncio.to_thread(shutil.copyfileobj, media.file, file)
            try:
                utterance = Utterance.from_media(
                    path, fields.text, id=fields.id, start=fields.start, end=fields.end
                )
                check_texts([utterance])
                return await service.answer([utterance], name, fields.decode)
            except (DataError, MediaError) as error:
                raise BodyError(str(error).replace(str(path), "the clip")) from error


def _named(service: Service, name: str | None, request: Request) -> str:
    """The plugin that a request asks, which counters know it by."""
    names = list(service.engine.predictor.plugins)
    if name is None and len(names) == 1:
        name = names[0]
    if name is None:
        raise BodyError(f"plugin is missing: this server has {', '.join(names)}.")
    if name not in names:
        raise UnknownPluginError(
            f"There is no plugin {name!r}: this server has {', '.join(names)}."
        )
    request.state.plugin = name
    return name


def _refusal(error: UserError) -> JSONResponse:
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    if status >= 500:
        _log.warning("%s", error)
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": str(error)}, status, headers)


def _written(answer: Answer) -> dict[str, Any]:
    """An answer as ``predict`` writes it, and which plugin gave it."""
    values = {"id": answer.id, "plugin": answer.plugin, **answer_values(answer)}
    return {name: value for name, value in values.items() if value is not None}


def _described(plugin: Plugin, answers: Sequence[str]) -> dict[str, Any]:
    facts = plugin.facts
    return {
        "dataset": facts.dataset,
        "labels": facts.labels.kind.value,
        "emotions": list(facts.labels.names),
        "answers": list(answers),
        "decode": facts.decode.value,
        "audio_dim": facts.audio_dim,
        "vision_dim": facts.vision_dim,
        "extractors": {name: found.get("name") for name, found in facts.features.items()},
        "language_model": backbone_title(facts.backbone),
    }
