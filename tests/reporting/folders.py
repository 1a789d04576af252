"""Writes run folders as training leaves them, with answers drawn at random."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import TrainConfig
from msea_lightning.metrics import METRIC_NAMES, score, selection_metric, zero_share
from msea_lightning.metrics.options import MetricKind
from msea_lightning.runs.folder import config_text
from msea_lightning.runs.identity import fingerprint

EMOTIONS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
_KINDS = {"mosei": MetricKind.mosei, "simsv2": MetricKind.simsv2, "mosi": MetricKind.mosei}
_HIGH = {"mosei": 3.0, "mosi": 3.0, "simsv2": 1.0}


@cache
def _composed(words: tuple[str, ...]) -> TrainConfig:
    return compose("train", TrainConfig, words)


def make_config(*words: str, seed: int = 1111) -> TrainConfig:
    """The options of a command line."""
    return replace(_composed(words), seed=seed)


def write_config(folder: Path, config: TrainConfig) -> None:
    """A run that has begun: a folder with its options alone."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config_text(config), encoding="utf-8")


def write_run(
    folder: Path,
    config: TrainConfig,
    *,
    skill: float = 0.6,
    utterances: int = 40,
    texts: Sequence[str] = (),
    epochs: int = 4,
    emotions: Sequence[str] = EMOTIONS,
    high: float | None = None,
) -> dict[str, float]:
    """A finished run; its test metrics.

    Args:
        folder: The new folder.
        config: Its options.
        skill: How good the answers are, 0..1.
        utterances: How many; the truth depends on the data set alone.
        texts: The first texts.
        epochs: Rows of its history.
        emotions: Names of the labels, of data sets with emotions.
        high: Largest intensity, of data sets with intensities where the name does not tell.
    """
    write_config(folder, config)
    high = _HIGH.get(config.dataset.name, high)
    other = MetricKind.emotion if high is None else MetricKind.mosei
    kind = _KINDS.get(config.dataset.name, other)
    truths = np.random.default_rng(7)
    luck = np.random.default_rng(int(fingerprint(config)[:8], 16))
    rows: list[dict[str, Any]] = []
    for index in range(utterances):
        if kind is MetricKind.emotion:
            truth: Any = emotions[int(len(emotions) * truths.random() ** 1.5)]
            right = luck.random() < skill
            answer: Any = truth if right else emotions[int(luck.integers(len(emotions)))]
        else:
            assert high is not None
            truth = round(float(np.clip(truths.normal(0, high / 2), -high, high)), 1)
            noise = luck.normal(0, high * (1.1 - skill))
            answer = round(float(np.clip(truth + noise, -high, high)), 1)
        rows.append(
            {
                "id": f"utterance {index}",
                "text": texts[index] if index < len(texts) else f"text number {index}",
                "label": truth,
                "prediction": answer,
                "probability": float(np.clip(luck.normal(skill, 0.2), 0.05, 0.999)),
            }
        )
    metrics = write_answers(folder, kind, rows)
    _write_history(folder, kind, luck, epochs)
    memory = {
        "trainable_parameters": 1_345_000,
        "parts": {},
        "total": 3 * 2**30 + int(luck.integers(2**20)),
        "measured_peak": int(2.8 * 2**30),
    }
    (folder / "memory.json").write_text(json.dumps(memory))
    return metrics


def write_answers(folder: Path, kind: MetricKind, rows: list[dict[str, Any]]) -> dict[str, float]:
    """``predictions.csv`` and the ``metrics.json`` that goes with it; the test metrics."""
    with (folder / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    answers = [row["prediction"] for row in rows]
    metrics = score(kind, answers, [row["label"] for row in rows])
    if kind is not MetricKind.emotion:
        metrics["zero_share"] = zero_share(answers)
    write_metrics(folder, metrics)
    return metrics


def write_metrics(folder: Path, metrics: dict[str, float]) -> None:
    """``metrics.json``, with null for what is undefined."""
    test = {name: None if math.isnan(value) else value for name, value in metrics.items()}
    (folder / "metrics.json").write_text(json.dumps({"test": test, "valid": test}))


def _write_history(folder: Path, kind: MetricKind, luck: np.random.Generator, epochs: int) -> None:
    watched = selection_metric(kind)
    with (folder / "history.csv").open("w", encoding="utf-8", newline="") as file:
        valid = [f"valid/{name}" for name in METRIC_NAMES[kind]]
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["epoch", "step", "learning_rate", "seconds", "train/loss", *valid])
        for epoch in range(epochs + int(luck.integers(3))):
            fallen = math.exp(-epoch / 3)
            value = 0.6 * fallen + 0.4 if not watched.higher_is_better else 0.6 - 0.3 * fallen
            values = [value + luck.normal(0, 0.01) for _ in valid]
            loss = 2 * fallen + 0.5 + luck.normal(0, 0.03)
            writer.writerow([epoch, 10 * epoch, 5e-4, 12.5 + luck.normal(0, 0.5), loss, *values])


def write_plan(root: Path, configs: Iterable[TrainConfig], name: str = "sweep") -> None:
    """The plan of a sweep over these options."""
    (root / "sweeps").mkdir(exist_ok=True)
    runs = [{"config": config_text(config)} for config in configs]
    (root / "sweeps" / f"{name}.json").write_text(json.dumps({"runs": runs}))
