"""The HTTP interface: what it answers, what it refuses, and what it keeps of callers."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from msea_lightning import Answer, Predictor, Utterance
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.features.contract import MediaError
from msea_lightning.serving.completions import Completions
from msea_lightning.serving.engines import Asked, Engine, LocalEngine
from msea_lightning.serving.front import create_app
from msea_lightning.serving.metrics import Metrics
from msea_lightning.serving.service import Service
from msea_lightning.serving.vllm import VLLMEngine
from tests.serving.fake_vllm import FakeVLLM

MOST = 20_000


def client_of(engine: Engine, **options: Any) -> TestClient:
    return TestClient(app_of(engine, **options))


def app_of(engine: Engine, **options: Any) -> FastAPI:
    service = Service(engine, Metrics(), max_waiting=options.pop("max_waiting", 8))
    settings = {"max_bytes": MOST, "timeout": 30.0, "hosts": ["testserver"], **options}
    return create_app(service, **settings)


@pytest.fixture
def client(predictor: Predictor) -> Iterator[TestClient]:
    with client_of(LocalEngine(predictor, max_batch=4)) as found:
        yield found


def npy(array: Any) -> dict[str, str]:
    file = io.BytesIO()
    np.save(file, array)
    return {"npy": base64.b64encode(file.getvalue()).decode()}


def with_header(header: str) -> dict[str, str]:
    """A ``.npy`` file with a header that nobody's library writes."""
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    return {"npy": base64.b64encode(content).decode()}


def as_json(utterance: Utterance, *, lists: bool = True) -> dict[str, Any]:
    features = {
        name: frames.tolist() if lists else npy(frames)
        for name, frames in utterance.features.items()
    }
    return {"id": utterance.id, "text": utterance.text, **features}


def probabilities(answers: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    return [answer["distribution"] for answer in answers]


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "npy"])
def test_answers_are_those_of_the_predictor(
    client: TestClient, predictor: Predictor, utterances: list[Utterance], lists: bool
) -> None:
    body = {
        "plugin": "sentiment",
        "decode": "median",
        "utterances": [as_json(utterance, lists=lists) for utterance in utterances[:4]],
    }
    response = client.post("/predict", json=body)
    assert response.status_code == 200
    expected = predictor.predict(utterances[:4], plugin="sentiment", decode="median")
    for found, answer in zip(response.json()["answers"], expected, strict=True):
        assert (found["id"], found["plugin"]) == (answer.id, "sentiment")
        assert (found["prediction"], found["median"]) == (answer.label, answer.median)
        assert found["mean"] == pytest.approx(answer.mean, abs=1e-5)
        assert (found["low"], found["high"]) == answer.interval
        assert list(found["distribution"]) == list(map(str, answer.distribution))
        assert list(found["distribution"].values()) == pytest.approx(
            list(answer.distribution.values()), abs=1e-6
        )


def test_emotions_have_no_mean(client: TestClient) -> None:
    body = {"plugin": "emotion", "utterances": [{"text": "oh"}]}
    [answer] = client.post("/predict", json=body).json()["answers"]
    assert set(answer) == {"id", "plugin", "prediction", "probability", "distribution"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"utterances": [{"text": "a"}]}, 400, "plugin is missing: this server has sentiment"),
        ({"plugin": "x", "utterances": [{"text": "a"}]}, 404, "There is no plugin 'x'"),
        ({"plugin": "gate", "utterances": []}, 400, "utterances is empty."),
        ({"plugin": "gate"}, 400, "utterances is missing."),
        (
            {"plugin": "gate", "utterances": [{"txt": "a"}]},
            400,
            "utterances[0].txt is no key that is known here.",
        ),
        (
            {"plugin": "gate", "decode": "best", "utterances": [{"text": "a"}]},
            400,
            "decode is none of 'greedy', 'median' or 'mean'.",
        ),
        (
            {"plugin": "emotion", "decode": "mean", "utterances": [{"text": "a"}]},
            400,
            "decode=mean needs intensities",
        ),
        ({"plugin": "gate", "utterances": [{"text": " "}]}, 400, "neither a text nor features"),
        (
            {"plugin": "gate", "utterances": [{"text": "a", "audio": [[1.0], [1.0, 2.0]]}]},
            400,
            "audio is no array of numbers",
        ),
        (
            {"plugin": "gate", "utterances": [{"text": "a", "audio": [[1.0, 2.0]]}]},
            400,
            "2 audio features per frame, but the plugin was trained on 12",
        ),
        (
            {"plugin": "gate", "utterances": [{"audio": npy(np.full((1, 12), np.nan))}]},
            400,
            "frame 0 of audio has nan",
        ),
        (
            {"plugin": "gate", "utterances": [{"id": "u", "audio": {"npy": "!"}}]},
            400,
            "utterance 'u': audio.npy is no base64 (",
        ),
        (
            {"plugin": "gate", "utterances": [{"audio": npy(np.array(["a"]))}]},
            400,
            "utterance '': audio.npy holds no numbers: its type is <U1.",
        ),
        (
            {"plugin": "gate", "utterances": [{"id": "u", "audio": with_header("{(\n")}]},
            400,
            "utterance 'u': audio.npy is not a NumPy array of numbers",
        ),
        (
            {"plugin": "gate", "utterances": [{"id": "u", "audio": [[int("9" * 401)]]}]},
            400,
            "utterance 'u': audio",
        ),
        (
            {"plugin": "gate", "utterances": [{"id": "u", "vision": {"npz": "a"}}]},
            400,
            "utterance 'u': vision is no array. Give a list of lists of numbers, or {",
        ),
        ({"utterances": ["a"], "decode": 3, "plugin": 4, "x": 5}, 400, "utterances[0] is no obj"),
        ({"utterances": ["a"], "decode": 3, "plugin": 4, "x": 5}, 400, "; and 1 more."),
    ],
)
def test_what_cannot_be_answered_is_refused(
    client: TestClient, body: dict[str, Any], status: int, message: str
) -> None:
    response = client.post("/predict", json=body)
    assert response.status_code == status
    assert message in response.json()["error"]


class Planted:
    """What a caller would have the server run."""

    ran = False

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Planted._run, ("now",)

    @staticmethod
    def _run(_: str) -> str:
        Planted.ran = True
        return "done"


def test_nothing_pickled_is_read(client: TestClient) -> None:
    planted = np.empty((1, 12), dtype=object)
    planted[:] = Planted()
    body = {"plugin": "gate", "utterances": [{"audio": npy(planted)}]}
    response = client.post("/predict", json=body)
    assert response.status_code == 400
    assert "Object arrays cannot be loaded" in response.json()["error"]
    assert not Planted.ran


def test_an_array_that_says_to_be_huge_is_refused(client: TestClient) -> None:
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**9)}
    np.lib.format.write_array_header_1_0(file, header)
    content = base64.b64encode(file.getvalue()).decode()
    body = {"plugin": "gate", "utterances": [{"audio": {"npy": content}}]}
    response = client.post("/predict", json=body)
    assert response.status_code == 400
    assert "audio.npy is not a NumPy array of numbers" in response.json()["error"]


def test_what_is_no_json_and_other_types_are_refused(client: TestClient) -> None:
    response = client.post(
        "/predict", content=b"{", headers={"content-type": "application/json; charset=utf-8"}
    )
    assert (response.status_code, response.json()["error"][:21]) == (400, "The body is no JSON (")
    response = client.post("/predict", content=b"x", headers={"content-type": "application/x-npy"})
    assert response.status_code == 415
    assert client.get("/predict").status_code == 405
    assert client.get("/nothing").json() == {"error": "Not Found"}


def test_large_requests_are_refused_before_they_are_read(client: TestClient) -> None:
    read = []

    def chunks() -> Iterator[bytes]:
        for _ in range(10):
            read.append(1)
            yield b" " * (MOST // 2)

    said = client.post("/predict", content=b" " * (MOST + 1), headers=JSON)
    silent = client.post("/predict", content=chunks(), headers=JSON)
    form = client.post(
        "/predict", data={"plugin": "gate"}, files={"media": ("clip", b"0" * MOST, "video/mp4")}
    )
    for response in (said, silent, form):
        assert response.status_code == 413
        assert "larger than the 0.02 MB" in response.json()["error"]
    client.post("/predict", json={"plugin": "gate", "utterances": [{"text": "a"}]})
    counted = client.get("/metrics").text
    assert 'msea_requests_total{plugin="",status="413"} 3.0' in counted
    assert 'msea_requests_total{plugin="gate",status="200"} 1.0' in counted


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([3, 100_001], "utterance '1': the text has 100,001 characters, and 100,000 are read"),
        ([100_000] * 11, "The texts have 1,100,000 characters together, and 1,000,000 are read"),
    ],
)
def test_texts_that_are_too_long_are_refused(
    predictor: Predictor, sizes: list[int], message: str
) -> None:
    rows = [{"id": str(number), "text": "a" * size} for number, size in enumerate(sizes)]
    with client_of(LocalEngine(predictor, max_batch=4), max_bytes=2 * 10**6) as client:
        response = client.post("/predict", json={"plugin": "gate", "utterances": rows})
    assert response.status_code == 400
    assert message in response.json()["error"]


class Broken(LocalEngine):
    """An engine with a mistake in it."""

    async def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        raise ZeroDivisionError("/home/me")


def test_a_mistake_of_the_server_is_told_and_counted(predictor: Predictor) -> None:
    app = app_of(Broken(predictor, max_batch=4))
    body = {"plugin": "gate", "utterances": [{"text": "a"}]}
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.post("/predict", json=body)
        counted = client.get("/metrics").text
    assert response.status_code == 500
    assert response.json() == {"error": "This is a mistake of the server: its log says more."}
    assert 'msea_requests_total{plugin="gate",status="500"} 1.0' in counted
    with TestClient(app) as client, pytest.raises(ZeroDivisionError):  # which Uvicorn logs
        client.post("/predict", json=body)


def test_a_wrong_rule_is_refused_before_others_wait_for_it(predictor: Predictor) -> None:
    body = {"plugin": "emotion", "decode": "median", "utterances": [{"text": "a"}]}
    with client_of(Broken(predictor, max_batch=4)) as client:
        response = client.post("/predict", json=body)
    assert response.status_code == 400
    assert "decode=median needs intensities" in response.json()["error"]


JSON = {"content-type": "application/json"}


async def exchange(app: FastAPI, receive: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What an application sends about a request whose body comes from a function."""
    sent: list[Any] = []
    headers = [(b"host", b"testserver"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({**scope, "query_string": b"", "server": ("testserver", 80)}, receive, send)
    return sent


def test_a_caller_that_hangs_up_is_counted(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(LocalEngine(predictor, max_batch=4))
    messages = iter(
        [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> Any:
        return next(messages)

    with caplog.at_level("DEBUG", "msea_lightning"):
        asyncio.run(exchange(app, receive))
    assert [record.getMessage() for record in caplog.records if "msea" in record.name] == [
        "/predict: the caller hung up before its request had come whole."
    ]
    counted = TestClient(app).get("/metrics").text
    assert 'msea_requests_total{plugin="",status="499"} 1.0' in counted


def test_a_body_that_does_not_come_is_given_up(predictor: Predictor) -> None:
    app = app_of(LocalEngine(predictor, max_batch=4), timeout=0.05)
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive() -> Any:
        if (message := next(messages, None)) is None:
            await asyncio.Event().wait()
        return message

    start, body = asyncio.run(exchange(app, receive))
    assert start["status"] == 408
    assert b"The request had not come whole after 0.05 s" in body["body"]


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, bytes, float | None, float | None]]:
    """The clips that features were extracted from, which here are frames of ones."""
    seen: list[tuple[Path, bytes, float | None, float | None]] = []

    def extract(_: Predictor, utterance: Utterance, attached: object) -> Utterance:
        if utterance.clip is None:
            return utterance
        path, start, end = utterance.clip
        seen.append((path, path.read_bytes(), start, end))
        if path.read_bytes() == b"broken":
            raise MediaError(f"{path} cannot be decoded.")
        return Utterance(utterance.id, utterance.text, audio=np.ones((3, 12)))

    monkeypatch.setattr(Predictor, "_with_features", extract)
    return seen


def test_a_clip_is_answered_and_deleted(
    client: TestClient,
    predictor: Predictor,
    clips: list[tuple[Path, bytes, float | None, float | None]],
) -> None:
    response = client.post(
        "/predict",
        data={"plugin": "gate", "id": "c", "text": "oh", "start": "0.5", "end": ""},
        files={"media": ("../../name.mp4", b"clip", "video/mp4")},
    )
    assert response.status_code == 200
    whole = Utterance("c", "oh", audio=np.ones((3, 12)))
    [expected] = predictor.predict([whole], plugin="gate")
    [answer] = response.json()["answers"]
    assert (answer["id"], answer["prediction"]) == ("c", expected.label)
    [(path, content, start, end)] = clips
    assert (content, start, end) == (b"clip", 0.5, None)
    assert path.name == "clip"
    assert not path.parent.exists()


def test_a_clip_that_cannot_be_read_is_refused_and_deleted(
    client: TestClient, clips: list[tuple[Path, bytes, float | None, float | None]]
) -> None:
    response = client.post(
        "/predict", data={"plugin": "gate"}, files={"media": ("a.mp4", b"broken", "video/mp4")}
    )
    assert (response.status_code, response.json()) == (
        400,
        {"error": "the clip cannot be decoded."},
    )
    assert not clips[0][0].parent.exists()


@pytest.mark.parametrize(
    ("data", "files", "message"),
    [
        ({"plugin": "gate"}, {"other": b"clip"}, "other: no such field"),
        ({"plugin": "gate", "start": "-1"}, {"media": b"clip"}, "start is below 0."),
        ({"plugin": "gate", "end": "x"}, {"media": b"clip"}, "end is no number."),
        (
            {"plugin": "gate", "start": "3", "end": "1"},
            {"media": b"clip"},
            "the clip: a part from 3.0 s to 1.0 s is empty.",
        ),
        (
            {"plugin": "gate", "text": "a" * 100_001},
            {"media": b"clip"},
            "utterance '': the text has 100,001 characters, and 100,000 are read at most",
        ),
        ({"plugin": "gate", "media": "x"}, {"id": b""}, "media is missing"),
        ({"plugin": "gate"}, [("media", b"1"), ("media", b"2")], "Too many files"),
        ({"plugin": ["gate", "emotion"]}, {"media": b"clip"}, "A field is given twice"),
    ],
)
def test_forms_that_are_none_are_refused(
    predictor: Predictor, data: dict[str, Any], files: Any, message: str
) -> None:
    with client_of(LocalEngine(predictor, max_batch=4), max_bytes=10**6) as client:
        response = client.post("/predict", data=data, files=files)
    assert response.status_code == 400
    assert message in response.json()["error"]


def test_pages_of_others_are_refused(client: TestClient) -> None:
    response = client.get("/health", headers={"host": "evil.example"})
    assert (response.status_code, list(response.json())) == (400, ["error"])
    response = client.post(
        "/predict",
        data={"plugin": "gate"},
        files={"media": b"clip"},
        headers={"origin": "http://evil.example"},
    )
    assert (response.status_code, list(response.json())) == (403, ["error"])
    counted = client.get("/metrics").text
    assert 'msea_requests_total{plugin="",status="403"} 1.0' in counted


def test_plugins_health_and_metrics(client: TestClient) -> None:
    assert client.get("/health").json() == {
        "status": "ok",
        "engine": "in this process",
        "plugins": ["sentiment", "emotion", "gate", "padded", "calibrated"],
    }
    found = client.get("/plugins").json()
    assert found["sentiment"]["labels"] == "scale"
    assert "-0.4" in found["sentiment"]["answers"]
    assert found["emotion"]["labels"] == "emotions"
    assert len(found["emotion"]["emotions"]) == len(found["emotion"]["answers"])
    assert (found["gate"]["audio_dim"], found["gate"]["vision_dim"]) == (12, 10)
    body = {"plugin": "emotion", "utterances": [{"text": "oh"}, {"text": "well"}]}
    client.post("/predict", json=body)
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    for line in (
        'msea_requests_total{plugin="emotion",status="200"} 1.0',
        'msea_utterances_total{plugin="emotion"} 2.0',
        "msea_request_seconds_count 1.0",
        "msea_requests_in_progress 0.0",
    ):
        assert line in metrics.text


def test_an_engine_that_is_down_is_503_until_it_is_back(
    predictor: Predictor, backbone: FrozenBackbone
) -> None:
    server = FakeVLLM(backbone)
    completions = Completions("http://engine", transport=server.transport())
    body = {"plugin": "emotion", "utterances": [{"text": "oh"}]}
    with client_of(VLLMEngine(predictor, completions, max_batch=4)) as client:
        server.failure = (500, {"error": {"message": "dead"}})
        response = client.post("/predict", json=body)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "dead" in response.json()["error"]
        server.failure = (400, {"error": {"message": "no embeds"}})
        assert client.post("/predict", json=body).status_code == 502
        server.failure = None
        assert client.post("/predict", json=body).status_code == 200
        assert client.get("/health").status_code == 200
        server.broken = 100
        response = client.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "unavailable")


class Slow(LocalEngine):
    """An engine that answers when it is let go."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(predictor, max_batch=4)
        self.asked, self.go = threading.Event(), threading.Event()

    async def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        self.asked.set()
        while not self.go.is_set():
            await asyncio.sleep(0.001)
        return await super().answer(asked)


def test_more_requests_than_there_are_places_are_turned_away(predictor: Predictor) -> None:
    engine = Slow(predictor)
    body = {"plugin": "emotion", "utterances": [{"text": "oh"}]}
    found: list[httpx.Response] = []
    with client_of(engine, max_waiting=1) as client:
        first = threading.Thread(target=lambda: found.append(client.post("/predict", json=body)))
        first.start()
        assert engine.asked.wait(10)
        turned_away = client.post("/predict", json=body)
        engine.go.set()
        first.join()
    assert turned_away.status_code == 503
    assert "1 requests are being answered already" in turned_away.json()["error"]
    assert found[0].status_code == 200


def test_a_request_that_takes_too_long_is_given_up(predictor: Predictor) -> None:
    body = {"plugin": "emotion", "utterances": [{"text": "oh"}]}
    with client_of(Slow(predictor), timeout=0.05) as client:
        response = client.post("/predict", json=body)
    assert (response.status_code, response.json()["error"]) == (
        503,
        "There was no answer within 0.05 s.",
    )
