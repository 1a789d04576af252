"""Compares answers through a real vLLM server with those of this process (``make serve-check``).

Makes untrained plugins of several kinds on a real language model, starts vLLM and a front for it,
asks both kinds of engine the same questions, and prints differences and requests per second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from msea_lightning import Plugin, Utterance
from msea_lightning.backbone import FrozenBackbone, load_backbone
from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import TrainConfig
from msea_lightning.language.prompt import encode_all
from msea_lightning.plugin.facts import backbone_facts, describe
from msea_lightning.plugin.saving import plugin_weights
from msea_lightning.training.build import build_adapted_lm, build_data

KINDS = {
    "intensity": ["dataset.demo_task=msa"],
    "emotion_zh": ["dataset.language=zh"],
    "emotion_mag": ["adapter=mag"],
    "intensity_padded": ["dataset.demo_task=msa", "text.pad_to=24", "text.attend_padding=true"],
}
"""Options of each plugin: both tasks and languages, two adapters, padding that is read."""

WORDS = "well done oh never again what a day it was so bad 好 真 的 吗 我 很 高 兴".split()  # noqa: SIM905

LIMIT = 1e-3
"""Largest difference of log probabilities that passes."""


def main() -> None:
    """Runs the check; the exit code is 1 where answers differ."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--vllm", required=True, help="the command vllm")
    options.add_argument("--model", required=True, type=Path, help="a .gguf file or a folder")
    options.add_argument("--work", required=True, type=Path, help="folder for models and logs")
    options.add_argument("--answers", type=int, default=50)
    options.add_argument("--port", type=int, default=8399)
    given = options.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    folder = plain_folder(given.model, given.work / "model")
    backbone = load_backbone(folder, dtype="float32")
    places = {name: make_plugin(name, backbone, folder, given.work) for name in KINDS}
    asked = questions(given.answers)
    engine = f"http://127.0.0.1:{given.port}"
    with (
        front(places, folder, "local", given.work) as local,
        vllm(given.vllm, folder, given.port, given.work),
        front(places, folder, engine, given.work) as remote,
    ):
        rates = {}
        answers = {}
        for name, address in {"in process": local, "vLLM": remote}.items():
            asyncio.run(ask(address, asked[:4], 1))  # warms up
            for concurrency in (1, 16):
                answers[name], rates[name, concurrency] = asyncio.run(
                    ask(address, asked, concurrency)
                )
    report(asked, answers["in process"], answers["vLLM"], rates)


def plain_folder(model: Path, folder: Path) -> Path:
    """A folder of transformers, as vLLM reads it, from any checkpoint that is read here."""
    if not (folder / "config.json").is_file():
        backbone = load_backbone(model, dtype="float32")
        backbone.model.save_pretrained(folder)
        backbone.tokenizer.save_pretrained(folder)
    return folder


def make_plugin(name: str, backbone: FrozenBackbone, folder: Path, work: Path) -> Path:
    """A plugin with random weights, large enough that what is heard and seen shows."""
    words = ["backbone=auto", f"backbone.path={folder}", f"dataset.cache={work / 'cache'}"]
    config = compose("train", TrainConfig, [*words, "dataset.demo_utterances=60", *KINDS[name]])
    data = build_data(config)
    data.tokenize(partial(encode_all, backbone.tokenizer))
    torch.manual_seed(1)
    model = build_adapted_lm(config, data, backbone)
    with torch.no_grad():
        for weight in model.adapter.parameters():
            weight.mul_(2)
    facts = describe(
        model,
        metrics=data.metrics,
        dataset=config.dataset.name,
        labels=data.labels,
        layout=config.backbone.layout,
        pad_token=config.backbone.pad_token,
        backbone=backbone_facts(config.backbone, backbone),
        test={},
    )
    Plugin(facts, plugin_weights(model)).save_pretrained(work / name)
    return work / name


def questions(count: int) -> list[dict[str, Any]]:
    """Bodies of requests: the plugins in turn, texts and features of many lengths."""
    numbers, words = np.random.default_rng(0), random.Random(0)
    found = []
    for number in range(count):
        utterance = Utterance(
            str(number),
            " ".join(words.choices(WORDS, k=words.randint(1, 20))),
            audio=numbers.normal(size=(words.randint(1, 60), 12)) if number % 5 else None,
            vision=numbers.normal(size=(words.randint(1, 60), 10)) if number % 7 else None,
        )
        features = {name: frames.tolist() for name, frames in utterance.features.items()}
        body = {"id": utterance.id, "text": utterance.text, **features}
        found.append({"plugin": list(KINDS)[number % len(KINDS)], "utterances": [body]})
    return found


@contextmanager
def process(
    command: Sequence[str], log: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended afterwards, with what it started; its output is in a file."""
    with log.open("w") as file:
        running = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            yield running
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGTERM)
            try:
                running.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()


@contextmanager
def vllm(command: str, folder: Path, port: int, work: Path) -> Iterator[None]:
    """A vLLM server."""
    words = [command, "serve", str(folder), "--enable-prompt-embeds", "--dtype", "float32"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512"]
    words += ["--enforce-eager", "--max-num-seqs", "32", "--block-size", "32"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    settings |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with process(words, work / "vllm.log", **settings) as running:
        wait_for(running, f"http://127.0.0.1:{port}", work / "vllm.log")
        yield


@contextmanager
def front(places: dict[str, Path], folder: Path, engine: str, work: Path) -> Iterator[str]:
    """Our server in front of an engine, at the address that it yields."""
    port = {"local": 8401}.get(engine, 8402)
    words = [sys.executable, "-m", "msea_lightning.serve", f"port={port}", f"engine={engine}"]
    words += [f"plugins.{name}={place}" for name, place in places.items()]
    words += [f"language_model.path={folder}", "language_model.dtype=float32"]
    log = work / f"front-{port}.log"
    with process(words, log) as running:
        wait_for(running, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"


def wait_for(running: subprocess.Popen[bytes], address: str, log: Path, seconds: int = 600) -> None:
    """Waits until a server is healthy; ends the check where it has ended or takes too long."""
    for _ in range(seconds):
        with suppress(httpx.TransportError):
            if httpx.get(f"{address}/health", trust_env=False).status_code == 200:
                return
        if running.poll() is not None:
            sys.exit(f"{address} has ended: see {log}")
        time.sleep(1)
    sys.exit(f"{address} is not there after {seconds} s: see {log}")


async def ask(
    address: str, asked: Sequence[dict[str, Any]], concurrency: int
) -> tuple[list[dict[str, Any]], float]:
    """The answers, and requests per second, with so many requests at a time."""
    free = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=address, timeout=300, trust_env=False) as client:

        async def one(body: dict[str, Any]) -> dict[str, Any]:
            async with free:
                response = await client.post("/predict", json=body)
            if response.status_code != 200:
                sys.exit(f"{address}: {response.status_code} {response.text}")
            answer: dict[str, Any] = response.json()["answers"][0]
            return answer

        start = time.perf_counter()
        answers = await asyncio.gather(*map(one, asked))
        return list(answers), len(asked) / (time.perf_counter() - start)


def report(
    asked: Sequence[dict[str, Any]],
    local: Sequence[dict[str, Any]],
    remote: Sequence[dict[str, Any]],
    rates: dict[tuple[str, int], float],
) -> None:
    """Prints what differs, and how fast it was."""
    worst = dict.fromkeys(KINDS, 0.0)
    unequal = 0
    for body, one, other in zip(asked, local, remote, strict=True):
        unequal += one["prediction"] != other["prediction"]
        pairs = zip(one["distribution"].values(), other["distribution"].values(), strict=True)
        largest = max(abs(np.log(a) - np.log(b)) for a, b in pairs)
        worst[body["plugin"]] = max(worst[body["plugin"]], float(largest))
    print(f"{len(asked)} answers, {unequal} of them different")
    for name, difference in worst.items():
        print(f"  {name}: largest difference of log probabilities {difference:.2e}")
    for (name, concurrency), rate in rates.items():
        print(f"  {name}, {concurrency} at a time: {rate:.1f} requests per second")
    if unequal or max(worst.values()) > LIMIT:
        sys.exit("The answers are not equal.")


if __name__ == "__main__":
    main()
