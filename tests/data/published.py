"""Small files in the exact layouts, widths and lengths in which the data sets are published.

The contents are noise; what is true of the published files is kept: float64 arrays, zeros (and
sometimes rubbish) beyond the lengths, further keys, -inf in audio and NaN in vision.
"""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COUNTS = {"train": 6, "valid": 3, "test": 4}
EMOTIONS = {
    "meld": ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"],
    "cherma": ["愤怒", "厌恶", "恐惧", "高兴", "平静", "悲伤", "惊奇"],
    "iemocap": ["ang", "exc", "fru", "hap", "neu", "sad"],
}


@dataclass(frozen=True)
class Shape:
    """Widths and padded lengths of a published data set, and the bound of its labels."""

    audio_dim: int
    vision_dim: int
    audio_steps: int
    vision_steps: int
    bound: float = 0.0


SHAPES = {
    "mosei": Shape(74, 35, 500, 375, 3),
    "simsv2": Shape(25, 177, 925, 232, 1),
    "mosi": Shape(5, 20, 375, 500, 3),
    "sims": Shape(33, 709, 400, 55, 1),
    "meld": Shape(64, 64, 157, 32),
    "cherma": Shape(1024, 2048, 543, 16),
    "iemocap": Shape(64, 64, 157, 32),
}
HUB_FILES = {"mosei": "unaligned_50.pkl", "simsv2": "ch-simsv2s.pkl"}


def mmsa_content(
    name: str, *, counts: Mapping[str, int] = COUNTS, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """What ``unaligned_50.pkl`` and its like hold."""
    rng = np.random.default_rng(seed)
    shape = SHAPES[name]
    content = {}
    for split, count in counts.items():
        audio_lengths = rng.integers(1, shape.audio_steps + 1, count)
        vision_lengths = rng.integers(1, shape.vision_steps + 1, count)
        labels = np.round(rng.uniform(-shape.bound, shape.bound, count), 1)
        content[split] = {
            "raw_text": np.array([f"{split} words {i}, said aloud" for i in range(count)]),
            "audio": _padded(rng, audio_lengths, shape.audio_steps, shape.audio_dim),
            "vision": _padded(rng, vision_lengths, shape.vision_steps, shape.vision_dim),
            "id": [f"{split}Video{i // 2}$_${i}" for i in range(count)],
            "audio_lengths": audio_lengths.tolist(),
            "vision_lengths": vision_lengths.tolist(),
            "regression_labels": labels.astype(np.float32),
            "classification_labels": np.sign(labels),
            "annotations": ["Neutral"] * count,
            "text_bert": np.zeros((count, 3, 5)),
        }
    return content


def dialogue_content(
    name: str, *, counts: Mapping[str, int] = COUNTS, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """What ``meld_train.pkl`` and its like hold, by split."""
    rng = np.random.default_rng(seed)
    shape, names = SHAPES[name], EMOTIONS[name]
    content = {}
    for split, count in counts.items():
        audio_lengths = rng.integers(1, shape.audio_steps + 1, count)
        vision_lengths = rng.integers(1, shape.vision_steps + 1, count)
        audio = _padded(rng, audio_lengths, shape.audio_steps, shape.audio_dim)
        vision = _padded(rng, vision_lengths, shape.vision_steps, shape.vision_dim)
        content[split] = [
            {
                "label": names[i % len(names)],
                "features": {
                    "text": f"{split}: oh, really {i}?",
                    "audio": audio[i].astype(np.float32),
                    "video": vision[i],
                    "audio_len": int(audio_lengths[i]),
                    "video_len": int(vision_lengths[i]),
                },
            }
            for i in range(count)
        ]
    return content


def write_mmsa(folder: Path, name: str, content: Mapping[str, Any] | None = None) -> Path:
    """Writes the one pickle of MOSEI, SIMS-V2, MOSI or SIMS and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / HUB_FILES.get(name, "unaligned.pkl")
    path.write_bytes(pickle.dumps(mmsa_content(name) if content is None else content, 4))
    return path


def write_dialogue(
    folder: Path,
    name: str,
    content: Mapping[str, Any] | None = None,
    *,
    called: Mapping[str, str] | None = None,
) -> Path:
    """Writes the three pickles of MELD, CHERMA or IEMOCAP and returns their folder.

    Args:
        folder: Where to write.
        name: The data set.
        content: What to write instead of what :func:`dialogue_content` makes.
        called: What the splits are called, where not ``train``, ``valid`` and ``test``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = dialogue_content(name) if content is None else content
    for split, items in content.items():
        path = folder / f"{name}_{(called or {}).get(split, split)}.pkl"
        path.write_bytes(pickle.dumps(items, 4))
    return folder


def write_cherma(
    folder: Path,
    *,
    counts: Mapping[str, int] = COUNTS,
    words: str | None = "text",
    shape: Shape = SHAPES["cherma"],
) -> Path:
    """Writes CHERMA as its authors publish it and returns the folder.

    Args:
        folder: Where to write.
        counts: Utterances by split.
        words: Field of the JSON entries that holds the transcript; None leaves it out.
        shape: Widths and lengths; the authors' arrays are not padded.
    """
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        stage = {"valid": "dev"}.get(split, split)
        for modality in ("text", "audio", "visual"):
            (folder / modality / stage).mkdir(parents=True, exist_ok=True)
        entries = []
        for i in range(count):
            stem = f"{split}_{i:04d}"
            entry = {
                "audio_file": f"{stem}.wav",
                "video_file": f"{stem}.mp4",
                "txt_label": "平静",
                "audio_label": "悲伤",
                "visual_label": "惊奇",
                "video_label": EMOTIONS["cherma"][i % 7],
            }
            entries.append(entry | ({} if words is None else {words: f"第{i}句话。"}))
            frames = int(rng.integers(1, shape.audio_steps + 1))
            for path, size in (
                (folder / "text" / stage / f"{stem}.npy", (7, 1024)),
                (folder / "audio" / stage / f"{stem}.npy", (frames, shape.audio_dim)),
                (
                    folder / "visual" / stage / f"{stem}.mp4.npy",
                    (shape.vision_steps, shape.vision_dim),
                ),
            ):
                np.save(path, rng.standard_normal(size).astype(np.float32))
        text = json.dumps(entries, ensure_ascii=False)
        (folder / f"{stage}.json").write_text(text, encoding="utf-8")
    return folder


@dataclass(frozen=True)
class TableRow:
    """A row of ``utterances.csv`` and its features."""

    id: str
    split: str
    text: str
    label: str
    group: str = ""
    speaker: str = ""
    audio: np.ndarray[Any, Any] | None = None
    vision: np.ndarray[Any, Any] | None = None


def table_rows(
    *, labels: Sequence[str] = ("happy", "sad", "angry"), count: int = 12, seed: int = 0
) -> list[TableRow]:
    """Rows of an own data set: audio of varying length, vision of another."""
    rng = np.random.default_rng(seed)
    splits = ["train"] * (count - 6) + ["valid"] * 2 + ["test"] * 4
    return [
        TableRow(
            id=f"clip.{i}",
            split=split,
            text=f"well, utterance {i}",
            label=labels[i % len(labels)],
            group=f"video{i // 2}",
            speaker=f"S{i % 2}",
            audio=rng.standard_normal((int(rng.integers(2, 9)), 5)),
            vision=rng.standard_normal((int(rng.integers(2, 5)), 3)).astype(np.float32),
        )
        for i, split in enumerate(splits)
    ]


def write_table(
    folder: Path,
    rows: Sequence[TableRow],
    *,
    form: str = "keys",
    modalities: Sequence[str] = ("audio", "vision"),
    columns: Sequence[str] = ("id", "group", "split", "text", "label", "speaker"),
) -> Path:
    """Writes an own data set and returns its folder.

    Args:
        folder: Where to write.
        rows: The utterances.
        form: ``keys`` (``audio/<id>`` in the archive), ``padded`` (N, La, da) with lengths,
            ``means`` (N, da), or ``files`` (``audio/<id>.npy``).
        modalities: Which features to write.
        columns: Columns of the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "utterances.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([getattr(row, column) for column in columns] for row in rows)
    arrays: dict[str, Any] = {}
    for modality in modalities:
        features = [getattr(row, modality) for row in rows]
        if form == "keys":
            pairs = zip(rows, features, strict=True)
            arrays |= {f"{modality}/{row.id}": part for row, part in pairs if part is not None}
        elif form == "files":
            (folder / modality).mkdir(exist_ok=True)
            for row, part in zip(rows, features, strict=True):
                if part is not None:
                    np.save(folder / modality / f"{row.id}.npy", part)
        elif form == "padded":
            steps = max(len(part) for part in features)
            arrays[modality] = np.stack(
                [np.pad(part, ((0, steps - len(part)), (0, 0))) for part in features]
            )
            arrays[f"{modality}_lengths"] = np.array([len(part) for part in features])
        else:
            arrays[modality] = np.stack([part.mean(axis=0) for part in features])
    if arrays:
        np.savez(folder / "features.npz", **arrays)
    return folder


def _padded(
    rng: np.random.Generator, lengths: np.ndarray[Any, Any], steps: int, width: int
) -> np.ndarray[Any, Any]:
    """(N, steps, width) float64, zeros beyond each length."""
    values = rng.standard_normal((len(lengths), steps, width))
    values[np.arange(steps) >= lengths[:, None]] = 0
    return values
