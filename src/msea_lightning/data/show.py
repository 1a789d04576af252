"""What a store holds, as tables in a terminal."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from statistics import median_high

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from msea_lightning.config.errors import UserError
from msea_lightning.config.text import visible
from msea_lightning.data.options import DatasetConfig
from msea_lightning.data.prepare import expected_counts
from msea_lightning.data.resolve import describe_labels, resolve_labels
from msea_lightning.data.store import Store
from msea_lightning.data.utterance import MAIN_LABEL, Label

_BINS = 7
_NAMES_SHOWN = 20


def show(store: Store, dataset: DatasetConfig, console: Console) -> None:
    """Prints what a store holds: counts, lengths, labels, repairs, absent modalities, its place."""
    console.print(_utterances(store, dataset))
    console.print(_features(store))
    console.print(_labels(store))
    lines = []
    lacking = [split for split in ("train", "test") if split not in store.splits]
    if lacking:
        lines.append(
            f"not to be trained on: there is no {' and no '.join(lacking)} split. The rest can "
            "be evaluated (evaluate dataset_path=) and predicted (predict input=)."
        )
    if "train" in store.splits:
        try:
            lines.append(f"labels: {describe_labels(resolve_labels(dataset.labels, store.splits))}")
        except UserError as error:
            lines.append(f"not to be trained on: {error}")
    further = [name for name in next(iter(store.splits.values())).labels if name != MAIN_LABEL]
    if further:
        lines.append(f"further labels: {', '.join(further)}")
    for split, found in store.info["found"].items():
        if found.get("empty_text"):
            done = f"{found['empty_text']} (dataset.empty_text={dataset.empty_text.value})"
            lines.append(f"utterances of {split} without words: {done}")
    if "valid" not in store.splits and not lacking:
        lines.append(
            f"There is no valid split: training holds out {dataset.valid_fraction:.0%} of train, "
            "stratified by label and in whole groups."
        )
    lines += store.info.get("notes", [])
    lines += [f"source: {store.info['source']}", f"store:  {store.folder}"]
    for line in lines:
        console.print(Text(visible(line)), soft_wrap=True)


def _table(title: str, names: str, *numbers: str) -> Table:
    table = Table(names, title=Text(visible(title)), title_justify="left")
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def _utterances(store: Store, dataset: DatasetConfig) -> Table:
    columns = ("split", "found", "published", "groups", "characters (median)")
    table = _table(f"{dataset.name}: utterances", *columns)
    for split, expected in expected_counts(dataset).items():
        if split not in store.splits and expected is None:
            continue
        texts = store.splits[split].texts if split in store.splits else []
        groups = set(store.splits[split].groups) - {None} if texts else set()
        table.add_row(
            split,
            Text(f"{len(texts)}", "" if expected in (None, len(texts)) else "bold red"),
            "-" if expected is None else f"{expected}",
            f"{len(groups) or '-'}",
            f"{median_high(map(len, texts))}" if texts else "-",
        )
    return table


def _features(store: Store) -> Table:
    columns = ("split", "feature", "per frame", "frames: min/median/max", "absent", "repaired")
    table = _table("features", *columns)
    for split, part in store.splits.items():
        repairs = store.info["found"].get(split, {}).get("repaired_values", {})
        for name in sorted({"audio", "vision", *part.dims}):
            lengths = part.lengths.get(name, [0] * len(part))
            there = sorted(int(length) for length in lengths if length)
            table.add_row(
                split,
                name,
                f"{part.dims.get(name, '-')}",
                f"{there[0]}/{median_high(there)}/{there[-1]}" if there else "-",
                f"{len(lengths) - len(there)}",
                f"{repairs.get(name, 0)}",
            )
    return table


def _labels(store: Store) -> Table:
    """How often each name, the most frequent first, or range of intensities is in each split."""
    labels = {split: part.labels[MAIN_LABEL] for split, part in store.splits.items()}
    numbers = [label for part in labels.values() for label in part if isinstance(label, float)]
    edges = np.histogram_bin_edges(numbers, _BINS)
    ranges = [f"{low:+.2f} to {high:+.2f}" for low, high in pairwise(edges)]

    def row(label: Label | None) -> str:
        if isinstance(label, float):
            return ranges[min(int(np.searchsorted(edges, label, side="right")), _BINS) - 1]
        return label or "(none)"

    counts = {split: Counter(map(row, part)) for split, part in labels.items()}
    frequent = [name for name, _ in sum(counts.values(), Counter()).most_common()]
    names = list(dict.fromkeys((*ranges, *frequent))) if numbers else frequent
    table = _table("labels", "label", *store.splits)
    for name in names[:_NAMES_SHOWN]:
        shares = (f"{count[name]} ({count[name] / count.total():.1%})" for count in counts.values())
        table.add_row(Text(visible(name)), *shares)
    if len(names) > _NAMES_SHOWN:
        table.add_row(f"... {len(names) - _NAMES_SHOWN} more")
    return table
