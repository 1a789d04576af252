"""Counting requests by what was answered to them, whoever answered."""

from __future__ import annotations

from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HUNG_UP = 499
"""The status under which a request is counted whose caller is gone; nobody receives it."""


class CountedAnswers:
    """Middleware that counts all answers at a path, also refusals and those to an error.

    Args:
        app: What answers; it says in the request's state which ``plugin`` was asked.
        path: The path.
        requests: By plugin (empty where none was found) and status.
    """

    def __init__(self, app: ASGIApp, path: str, requests: Counter) -> None:
        self._app = app
        self._path = path
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Has a request answered, and counts it."""
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        status = 500  # of an error that comes through to here

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._requests.labels(state.get("plugin", ""), str(status)).inc()
