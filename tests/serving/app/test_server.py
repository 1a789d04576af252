"""The app as a server: who may ask, what it says to browsers, how much it takes."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msea_lightning import Predictor
from msea_lightning.serving.app.page import respond
from tests.features.clips import tone, write_clip

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def gradio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    yield pytest.importorskip("gradio", reason="gradio (extra app) is not installed")
    # Gradio sets event loops and closes none: here, where that is no error.
    asyncio.set_event_loop(None)
    gc.collect()


@pytest.fixture
def client(gradio: Any, predictor: Predictor) -> Iterator[Any]:
    from starlette.testclient import TestClient

    from msea_lightning.serving.app.server import build_app

    predictors = dict.fromkeys(predictor.plugins, predictor)
    app = build_app(predictors, host="127.0.0.1", max_upload=1)
    with TestClient(app, base_url="http://127.0.0.1") as found:
        yield found


def test_the_page_is_served_with_a_policy_against_connections_elsewhere(client: Any) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "fonts.googleapis.com" not in answer.text
    assert "emotion" in answer.text
    assert "sentiment" in answer.text


def test_other_names_than_those_of_this_machine_are_refused(client: Any) -> None:
    assert client.get("/", headers={"Host": "localhost:7860"}).status_code == 200
    assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 400


def test_pages_of_others_cannot_upload(client: Any) -> None:
    for origin, status in (("http://127.0.0.1", 200), ("http://elsewhere.example", 403)):
        file = {"files": ("clip.wav", b"RIFF")}
        headers = {"Origin": origin}
        answer = client.post("/gradio_api/upload", files=file, headers=headers)
        assert answer.status_code == status


def test_uploads_have_a_limit(client: Any) -> None:
    for megabytes, status in ((0.9, 200), (1.1, 413)):
        file = {"files": ("clip.mp4", bytes(int(megabytes * 1e6)))}
        assert client.post("/gradio_api/upload", files=file).status_code == status


def answered(client: Any, path: Path | str) -> str:
    """What the page says of a sound at a path of the server, by its own interface."""
    sound = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    question = {"fn_index": 0, "session_hash": "s", "data": ["emotion", "hello", None, sound]}
    assert client.post("/gradio_api/queue/join", json=question).status_code == 200
    said = client.get("/gradio_api/queue/data", params={"session_hash": "s"}).text
    return str(next(line for line in said.splitlines() if "process_completed" in line))


def test_files_that_nobody_uploaded_are_not_read(client: Any, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.wav", tone(0.5))
    sent = client.post("/gradio_api/upload", files={"files": ("mine.wav", clip.read_bytes())})
    [upload] = sent.json()
    assert "All answers" in answered(client, upload)
    (tmp_path / "uploads" / "link.wav").symlink_to(clip)
    before = set((tmp_path / "uploads").rglob("*"))
    for place in (clip, tmp_path / "uploads" / "link.wav", "/dev/zero", "no/such.wav"):
        assert '"success":false' in answered(client, place)
    assert '"success":false' in answered(client, "HTTPS://127.0.0.1/clip.wav")
    assert set((tmp_path / "uploads").rglob("*")) == before


def test_errors_are_messages_and_unexpected_ones_say_nothing_of_the_machine(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nothing to answer yet" in respond(predictor, "emotion", "", [])
    clip = write_clip(tmp_path / "clip.wav", tone(0.5))
    assert "remove one of them" in respond(predictor, "emotion", "", [clip, clip])
    assert "All answers" in respond(predictor, "emotion", "", [clip])

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"no such thing in {Path.cwd()}")

    monkeypatch.setattr(predictor, "explain", broken)
    html = respond(predictor, "emotion", "well done", [])
    assert "the log of the app says what" in html
    assert str(Path.cwd()) not in html
