"""The command: what it refuses at once, and that it answers until it is told to end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from msea_lightning import Plugin, Predictor, Utterance
from msea_lightning.commands.command_line import compose
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import AppConfig, ServeConfig
from msea_lightning.serving.address import ServeError
from msea_lightning.serving.run import serve


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give either plugin=FOLDER (several: plugin=[FOLDER,OTHER]) or plugins="),
        (
            ["plugin=a", "plugins.b=c"],
            "Give either plugin=FOLDER (several: plugin=[FOLDER,OTHER]) or plugins=",
        ),
        (["plugin=a", "engine=vllm:80"], "engine=vllm:80: give local, or the address"),
        (
            ["plugin=a", "engine=http://e", "language_model.quantization=int8"],
            "language_model.quantization=int8: with engine=http://e",
        ),
    ],
)
def test_options_that_cannot_be_meant_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose("serve", ServeConfig, words)


@pytest.mark.parametrize("words", ["plugins={a: x/y, b: z}", "plugins.a=x/y plugins.b=z"])
def test_plugins_have_names(words: str) -> None:
    lines = [words] if "{" in words else words.split()
    assert compose("serve", ServeConfig, lines).plugins == {"a": "x/y", "b": "z"}
    assert compose("app", AppConfig, lines).plugins == {"a": "x/y", "b": "z"}
    assert compose("serve", ServeConfig, ["plugin=a"]).plugin == ["a"]


def test_an_address_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = compose("serve", ServeConfig, ["plugin=nowhere", f"port={port}"])
        with pytest.raises(
            ServeError, match=rf"port={port}: cannot listen there \(Address already in use\)"
        ):
            serve(config)


def test_it_answers_until_it_is_told_to_end(
    tmp_path: Path, plugins: dict[str, Plugin], predictor: Predictor, utterances: list[Utterance]
) -> None:
    for name in ("sentiment", "gate"):
        plugins[name].save_pretrained(tmp_path / name)
    words = [f"plugins.{name}={tmp_path / name}" for name in ("sentiment", "gate")]
    command = [sys.executable, "-m", "msea_lightning.serve", "port=0", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            line = next(line for line in process.stderr if "http://" in line)
            assert "sentiment, gate at" in line
            address = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert address is not None
            body = {"plugin": "gate", "utterances": [{"text": utterances[0].text}]}
            answer = httpx.post(f"{address[0]}/predict", json=body, trust_env=False).json()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) in (0, -signal.SIGTERM)
        finally:
            watchdog.cancel()
            process.kill()
    [expected] = predictor.predict([Utterance(text=utterances[0].text)], plugin="gate")
    assert answer["answers"][0]["prediction"] == expected.label
    assert answer["answers"][0]["probability"] == pytest.approx(expected.probability, abs=1e-6)
