"""``python -m msea_lightning.prepare``: published files to a store, and what is in it.

Training prepares on first use; this command does it before, and shows what the files hold beside
what was published.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import PrepareConfig
from msea_lightning.data.options import DatasetConfig

if TYPE_CHECKING:
    from msea_lightning.data.store import Store, StoreSplit

_BINS = 7
_NAMES_SHOWN = 20


def job(config: PrepareConfig) -> None:
    """Prepares the data set and prints a summary of it.

    Args:
        config: The data set.
    """
    from msea_lightning.data.prepare import prepare_store

    store = prepare_store(config.dataset)
    show(store, config.dataset, Console())


def show(store: Store, dataset: DatasetConfig, console: Console) -> None:
    """Prints what a store holds: counts, lengths, labels, repairs, absent modalities, its place.

    Args:
        store: The store.
        dataset: The options that it was made with.
        console: Where to print.
    """
    console.print(_utterances(store, dataset))
    console.print(_modalities(store))
    console.print(_labels(store))
    if "valid" not in store.splits:
        console.print(
            f"There is no valid split: training holds out {dataset.valid_fraction:.0%} of train, "
            "stratified by label and in whole groups.",
            soft_wrap=True,
        )
    console.print(f"source: {store.info['source']}", soft_wrap=True)
    console.print(f"store:  {store.folder}", soft_wrap=True)


def _utterances(store: Store, dataset: DatasetConfig) -> Table:
    from msea_lightning.data.prepare import expected_counts

    table = Table("split", title=f"{dataset.name}: utterances", title_justify="left")
    for column in ("found", "published", "groups", "characters (median)"):
        table.add_column(column, justify="right")
    for split, expected in expected_counts(dataset).items():
        part = store.splits.get(split)
        if part is None and expected is None:
            continue
        count = 0 if part is None else len(part)
        found = f"{count}" if expected in (None, count) else f"[bold red]{count}[/]"
        groups = set() if part is None else {group for group in part.groups if group is not None}
        lengths = [] if part is None else sorted(len(text) for text in part.texts)
        table.add_row(
            split,
            found,
            "-" if expected is None else f"{expected}",
            f"{len(groups)}" if groups else "-",
            f"{lengths[len(lengths) // 2]}" if lengths else "-",
        )
    return table


def _modalities(store: Store) -> Table:
    table = Table("split", "modality", title="features", title_justify="left")
    for column in ("per frame", "frames: min/median/max", "absent", "repaired"):
        table.add_column(column, justify="right")
    for split, part in store.splits.items():
        for modality in sorted({"audio", "vision", *part.dims}):
            width = part.dims.get(modality)
            lengths = part.lengths.get(modality, [0] * len(part))
            there = sorted(int(length) for length in lengths if length)
            repairs = store.info["found"].get(split, {}).get("repaired_values", {})
            table.add_row(
                split,
                modality,
                "-" if width is None else f"{width}",
                f"{there[0]}/{there[len(there) // 2]}/{there[-1]}" if there else "-",
                f"{len(lengths) - len(there)}",
                f"{repairs.get(modality, 0)}",
            )
    return table


def _labels(store: Store) -> Table:
    table = Table("label", title="labels", title_justify="left")
    for split in store.splits:
        table.add_column(split, justify="right")
    counts = _histograms(store)
    rows = list(dict.fromkeys(name for counter in counts.values() for name in counter))
    for name in rows[:_NAMES_SHOWN]:
        cells = []
        for split, counter in counts.items():
            share = counter[name] / len(store.splits[split])
            cells.append(f"{counter[name]} ({share:.1%})")
        table.add_row(name, *cells)
    if len(rows) > _NAMES_SHOWN:
        table.add_row(f"... {len(rows) - _NAMES_SHOWN} more")
    return table


def _histograms(store: Store) -> dict[str, Counter[str]]:
    """How often each name, or each range of intensities, occurs in each split."""
    parts: dict[str, StoreSplit] = dict(store.splits)
    labels = [label for part in parts.values() for label in part.targets]
    if isinstance(labels[0], str):
        order = [str(name) for name, _ in Counter(labels).most_common()]
        return {
            split: Counter({name: part.targets.count(name) for name in order})
            for split, part in parts.items()
        }
    numbers = [float(label) for label in labels]
    low, high = min(numbers), max(numbers)
    width = (high - low) / _BINS or 1.0
    names = [f"{low + i * width:+.2f} to {low + (i + 1) * width:+.2f}" for i in range(_BINS)]
    result = {}
    for split, part in parts.items():
        counter = Counter(dict.fromkeys(names, 0))
        counter.update(
            names[min(int((float(label) - low) / width), _BINS - 1)] for label in part.targets
        )
        result[split] = counter
    return result


def main() -> None:
    """Runs the command line."""
    launch(job, config_name="prepare", root=PrepareConfig)


if __name__ == "__main__":
    main()
