"""Small data sets for the tests of this package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msea_lightning.data.store import Store, write_store
from msea_lightning.data.utterance import Utterance


def utterance(identity: str = "a", **changes: Any) -> Utterance:
    """A complete utterance, some attributes of it, its label, audio or vision changed."""
    values: dict[str, Any] = {
        "id": identity,
        "text": f"text of {identity}",
        "label": 0.5,
        "audio": np.full((3, 4), 1.5, dtype=np.float32),
        "vision": np.full((2, 5), -2.0, dtype=np.float32),
    }
    values |= changes
    features = {name: values.pop(name) for name in ("audio", "vision")}
    features = {name: frames for name, frames in features.items() if frames is not None}
    label = values.pop("label")
    labels = {} if label is None else {"M": label}
    return Utterance(**{"labels": labels, "features": features} | values)


def corpus(
    counts: Mapping[str, int], *, labels: Iterable[float | str] = (-1.0, 0.2, 0.6), seed: int = 0
) -> dict[str, list[Utterance]]:
    """Random utterances by split: three to a group, texts and features of varying length."""
    random = np.random.default_rng(seed)
    legal = list(labels)
    return {
        split: [
            Utterance(
                id=f"{split}-{number}",
                text="x" * int(random.integers(1, 80)),
                labels={"M": legal[number % len(legal)]},
                features={
                    "audio": random.normal(size=(random.integers(1, 9), 4)).astype(np.float32),
                    "vision": random.normal(size=(random.integers(1, 5), 3)).astype(np.float32),
                },
                group=f"{split}-group-{number // 3}",
            )
            for number in range(count)
        ]
        for split, count in counts.items()
    }


def stored(folder: Path, splits: Mapping[str, Iterable[Utterance]]) -> Store:
    """A store of the splits in a folder of that folder."""
    return write_store(folder / "store", splits, info={})
