"""The app as a server: who may ask, what it says to browsers, how much it takes."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msea_lightning import Predictor
from msea_lightning.serving.app.asking import QuestionError
from msea_lightning.serving.app.page import respond
from tests.features.clips import tone, write_clip

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def gradio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    yield pytest.importorskip("gradio", reason="gradio (extra app) is not installed")
    gc.collect()  # Gradio closes no event loop of its own: here, where that is no error


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


def test_uploads_have_a_limit(client: Any) -> None:
    for megabytes, status in ((0.9, 200), (1.1, 413)):
        file = {"files": ("clip.mp4", bytes(int(megabytes * 2**20)))}
        assert client.post("/gradio_api/upload", files=file).status_code == status


def test_addresses_are_not_fetched_for_a_client(gradio: Any, predictor: Predictor) -> None:
    from msea_lightning.serving.app.page import build

    page = build(dict.fromkeys(predictor.plugins, predictor), max_upload=1)
    takers = [block for block in page.blocks.values() if isinstance(block, gradio.Video)]
    takers += [block for block in page.blocks.values() if isinstance(block, gradio.Audio)]
    assert len(takers) == 2
    for taker in takers:
        with pytest.raises(QuestionError, match="Addresses are not fetched"):
            asyncio.run(taker.async_move_resource_to_block_cache("HTTPS://127.0.0.1/clip.mp4"))


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
