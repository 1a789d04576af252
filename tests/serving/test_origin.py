"""Which requests of a browser are answered: those of the server's own pages."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient, WebSocketDenialResponse

from msea_lightning.serving.origin import SameOrigin

LOCAL = ("localhost", "127.0.0.1", "[::1]")
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def client(host: str = "127.0.0.1:8000", hosts: tuple[str, ...] = LOCAL) -> TestClient:
    app = SameOrigin(PlainTextResponse("answer"), hosts)
    return TestClient(app, base_url=f"http://{host}")


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("127.0.0.1:8000", {}),
        ("LOCALHOST:8000", {}),
        ("[::1]:8000", {"origin": "http://[::1]:8000"}),
        ("localhost", {"origin": "http://localhost:80"}),
        ("127.0.0.1:8000", {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}),
        ("127.0.0.1:8000", {"sec-fetch-site": "none"}),
    ],
)
def test_own_pages_and_tools_are_answered(host: str, headers: dict[str, str]) -> None:
    for method in ("GET", "POST"):
        response = client(host).request(method, "/predict", headers=headers)
        assert (response.status_code, response.text) == (200, "answer")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://127.0.0.1"},
        {"origin": "null"},
        {"origin": "file://127.0.0.1:8000"},
        {"origin": "http://127.0.0.1:port"},
        {"origin": "http://[::1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {**LINK, "sec-fetch-dest": "iframe"},
    ],
)
def test_other_pages_are_refused(headers: dict[str, str]) -> None:
    for method in ("GET", "POST"):
        response = client().request(method, "/predict", headers=headers)
        assert response.status_code == 403
        assert "own pages are answered" in response.json()["error"]


def test_a_link_is_followed_and_a_form_is_not() -> None:
    assert client().get("/", headers=LINK).status_code == 200
    assert client().post("/", headers=LINK).status_code == 403


def test_a_proxy_that_hands_the_host_on_may_have_tls() -> None:
    public = client("mood.example", ("*",))
    assert public.post("/", headers={"origin": "https://mood.example"}).status_code == 200
    assert public.post("/", headers={"origin": "https://mood.example:443"}).status_code == 200
    assert public.post("/", headers={"origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "", "localhost:x"])
def test_another_name_is_refused(host: str) -> None:
    response = client().get("/", headers={"host": host})
    assert response.status_code == 400
    assert f"not called {host!r}: address it by 127.0.0.1, " in response.json()["error"]


def test_websockets_of_other_pages_are_refused() -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as caught,
        client().websocket_connect(
            "ws://127.0.0.1:8000/", headers={"origin": "http://evil.example"}
        ),
    ):
        pass
    assert caught.value.status_code == 403


def test_starting_and_ending_pass() -> None:
    seen = []

    async def app(scope: MutableMapping[str, Any], *_: Any) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    asyncio.run(SameOrigin(app)({"type": "lifespan"}, nothing, nothing))
    assert seen == ["lifespan"]
