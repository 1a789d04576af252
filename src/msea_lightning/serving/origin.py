"""Keeping web pages of others out: a browser sends what any page tells it to, also to loopback."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_PORTS = {"http": 80, "https": 443}


class SameOrigin:
    """Middleware that answers a server's own pages, and tools, which say of no page.

    Another page's request is told by its ``Origin``, or by its ``Sec-Fetch-Site`` where a browser
    sends no origin. A link that somebody follows to this server is no such request: the page that
    has it sees nothing of what comes.

    Args:
        app: What answers.
        hosts: Names under which the server may be addressed, ``*`` for any. A page that points its
            own name to this machine has this server's origin, but not its name.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = ("*",)) -> None:
        self._app = app
        self._hosts = {host.strip("[]").lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        answer = self._app if refusal is None else refusal
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        addressed = _address("http", host)
        if "*" not in self._hosts and (addressed is None or addressed[0] not in self._hosts):
            return _refused(
                400,
                f"This server is not called {host[:100]!r}: address it by "
                f"{', '.join(sorted(self._hosts))}.",
            )
        if origin is not None and not _is_at(origin, host):
            return _refused(
                403,
                f"A page of {origin[:100]!r} asks, and this server is {host[:100]!r}: only its own "
                "pages are answered. Send the request from a program, and have a proxy in front "
                "hand the Host header on.",
            )
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not _is_link(
            scope, headers
        ):
            return _refused(
                403,
                "A page of another server asks: only this server's own pages are answered. Send "
                "the request from a program.",
            )
        return None


def _is_at(origin: str, host: str) -> bool:
    """Whether an origin is the address that a request was sent to."""
    scheme, _, address = origin.partition("://")
    expected = _address(scheme, host)
    return scheme in _PORTS and expected is not None and _address(scheme, address) == expected


def _address(scheme: str, address: str) -> tuple[str, int] | None:
    """The name and port of an address; None where it is none."""
    try:
        parts = urlsplit(f"//{address}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if name is None or parts.netloc != address:
        return None
    return name, _PORTS.get(scheme, 0) if port is None else port


def _is_link(scope: Scope, headers: Headers) -> bool:
    """Whether somebody opens the server in a browser's window, by a link of another page."""
    return (
        scope.get("method") == "GET"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _refused(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status)
