"""What a store holds, as tables in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from msea_lightning.config.errors import UserError
from msea_lightning.config.text import visible
from msea_lightning.data.options import DatasetConfig
from msea_lightning.data.prepare import expected_counts
from msea_lightning.data.resolve import describe_labels, resolve_labels
from msea_lightning.data.store import Store
from msea_lightning.data.utterance import MAIN_LABEL

_BINS = 7
_NAMES_SHOWN = 20
_UNLABELLED = "(none)"


def show(store: Store, dataset: DatasetConfig, console: Console) -> None:
    """Prints what a store holds: counts, lengths, labels, repairs, absent modalities, its place.

    Args:
        store: The store.
        dataset: The options that it was made with.
        console: Where to print.
    """
    console.print(_utterances(store, dataset))
    console.print(_features(store))
    console.print(_labels(store))
    lines = []
    try:
        lines.append(f"labels: {describe_labels(resolve_labels(dataset.labels, store.splits))}")
    except UserError as error:
        lines.append(f"not to be trained on: {error}")
    further = [name for name in next(iter(store.splits.values())).labels if name != MAIN_LABEL]
    if further:
        lines.append(f"further labels: {', '.join(further)}")
    for split, found in store.info["found"].items():
        if found.get("empty_text"):
            lines.append(
                f"utterances of {split} without words: {found['empty_text']} "
                f"(dataset.empty_text={dataset.empty_text.value})"
            )
    if "valid" not in store.splits:
        lines.append(
            f"There is no valid split: training holds out {dataset.valid_fraction:.0%} of train, "
            "stratified by label and in whole groups."
        )
    lines += [f"source: {store.info['source']}", f"store:  {store.folder}"]
    for line in lines:
        console.print(Text(visible(line)), soft_wrap=True)


def _table(title: str, name: str, *columns: str) -> Table:
    """A table whose first column holds names, and the others numbers."""
    table = Table(name, title=Text(visible(title)), title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _utterances(store: Store, dataset: DatasetConfig) -> Table:
    columns = ("found", "published", "groups", "characters (median)")
    table = _table(f"{dataset.name}: utterances", "split", *columns)
    for split, expected in expected_counts(dataset).items():
        part = store.splits.get(split)
        if part is None and expected is None:
            continue
        count = 0 if part is None else len(part)
        groups = set() if part is None else set(part.groups) - {None}
        lengths = [] if part is None else sorted(len(text) for text in part.texts)
        table.add_row(
            split,
            Text(f"{count}", "" if expected in (None, count) else "bold red"),
            "-" if expected is None else f"{expected}",
            f"{len(groups)}" if groups else "-",
            f"{lengths[len(lengths) // 2]}" if lengths else "-",
        )
    return table


def _features(store: Store) -> Table:
    columns = ("per frame", "frames: min/median/max", "absent", "repaired")
    table = _table("features", "split", "feature", *columns)
    for split, part in store.splits.items():
        repairs = store.info["found"].get(split, {}).get("repaired_values", {})
        for name in sorted({"audio", "vision", *part.dims}):
            lengths = part.lengths.get(name, [0] * len(part))
            there = sorted(int(length) for length in lengths if length)
            table.add_row(
                split,
                name,
                f"{part.dims.get(name, '-')}",
                f"{there[0]}/{there[len(there) // 2]}/{there[-1]}" if there else "-",
                f"{len(lengths) - len(there)}",
                f"{repairs.get(name, 0)}",
            )
    return table


def _labels(store: Store) -> Table:
    table = _table("labels", "label", *store.splits)
    counts = _histograms(
        {
            split: part.labels.get(MAIN_LABEL, [None] * len(part))
            for split, part in store.splits.items()
        }
    )
    rows = list(dict.fromkeys(name for counter in counts.values() for name in counter))
    for name in rows[:_NAMES_SHOWN]:
        shares = ((counter[name], counter[name] / counter.total()) for counter in counts.values())
        table.add_row(Text(visible(name)), *(f"{count} ({share:.1%})" for count, share in shares))
    if len(rows) > _NAMES_SHOWN:
        table.add_row(f"... {len(rows) - _NAMES_SHOWN} more")
    return table


def _histograms(labels: dict[str, Sequence[float | str | None]]) -> dict[str, Counter[str]]:
    """How often each name, the most frequent first, or range of intensities is in each split."""
    found = [label for part in labels.values() for label in part]
    numbers = [label for label in found if isinstance(label, float)]
    if numbers:
        low, high = min(numbers), max(numbers)
        width = (high - low) / _BINS or 1.0
        names = [f"{low + i * width:+.2f} to {low + (i + 1) * width:+.2f}" for i in range(_BINS)]
    else:
        names = [name for name, _ in Counter(map(str, filter(None, found))).most_common()]

    def name_of(label: float | str | None) -> str:
        if isinstance(label, float):
            return names[min(int((label - low) / width), _BINS - 1)]
        return label or _UNLABELLED

    counts = {split: Counter(dict.fromkeys(names, 0)) for split in labels}
    for split, part in labels.items():
        counts[split].update(map(name_of, part))
    return counts
