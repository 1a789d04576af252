"""What a benchmark found, as tables and as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from msea_lightning.backbone.loading.memory import readable_bytes
from msea_lightning.benchmark.comparison import Comparison, Variant, ratios
from msea_lightning.benchmark.subject import Round

_DOING = {"train": "training", "evaluate": "evaluation"}


def speed(rounds: Sequence[Round], what: str = "utterances") -> float:
    """Utterances, tokens or operations of all rounds by their seconds.

    No round stands for all: where batches cost differently, each has batches of its own.
    """
    return float(sum(getattr(item, what) for item in rounds) / sum(item.seconds for item in rounds))


def share_of_limit(variant: Variant, doing: str) -> float | None:
    """Useful operations per second by those of a matrix product; None where that is not known."""
    rounds = variant.rounds.get(doing)
    if not rounds or variant.rate is None:
        return None
    return speed(rounds, "operations") / variant.rate


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All numbers, and what follows from them.

    Args:
        comparison: What was measured.
    """
    first = comparison.variants[0]
    return {
        "title": comparison.title,
        "options": comparison.options,
        "environment": comparison.environment,
        "variants": [
            {
                **asdict(variant),
                "utterances_per_second": {
                    doing: speed(rounds) for doing, rounds in variant.rounds.items()
                },
                "tokens_per_second": {
                    doing: speed(rounds, "tokens") for doing, rounds in variant.rounds.items()
                },
                "ratio": {
                    doing: speed(rounds) / speed(first.rounds[doing])
                    for doing, rounds in variant.rounds.items()
                },
                "ratios": {
                    doing: ratios(rounds, first.rounds[doing])
                    for doing, rounds in variant.rounds.items()
                },
                "share_of_limit": {
                    doing: share_of_limit(variant, doing) for doing in variant.rounds
                },
                "peak_ratio": variant.peak / first.peak,
                "above_weights_ratio": _above(variant) / _above(first),
            }
            for variant in comparison.variants
        ],
    }


def show(comparison: Comparison, console: Console) -> None:
    """Prints tables.

    Args:
        comparison: What was measured.
        console: Where to.
    """
    first = comparison.variants[0]
    console.print(comparison.title, style="bold", highlight=False)
    console.print(f"on {first.device}; ratios are to {first.name!r}", highlight=False)
    for doing, word in _DOING.items():
        if any(doing in variant.rounds for variant in comparison.variants):
            console.print(_speeds(comparison, doing, word))
    console.print(_memory(comparison))
    for doing, word in _DOING.items():
        staged = [variant for variant in comparison.variants if variant.stages.get(doing)]
        if staged:
            title = f"where the time goes in {word}, share of a step [%]"
            console.print(_shares(title, {item.name: item.stages[doing] for item in staged}))
    title = "start, seconds"
    console.print(_spans(title, comparison.variants))


def _speeds(comparison: Comparison, doing: str, word: str) -> Table:
    first = comparison.variants[0]
    table = _table(word, "utterances/s", "tokens/s", "ratio", "from", "to", "share of limit")
    for variant in comparison.variants:
        rounds = variant.rounds[doing]
        found = ratios(rounds, first.rounds[doing])
        share = share_of_limit(variant, doing)
        table.add_row(
            variant.name,
            f"{speed(rounds):.3g}",
            f"{speed(rounds, 'tokens'):.0f}",
            f"{speed(rounds) / speed(first.rounds[doing]):.2f}",
            f"{min(found):.2f}",
            f"{max(found):.2f}",
            "-" if share is None else f"{share:.0%}",
        )
    return table


def _memory(comparison: Comparison) -> Table:
    first = comparison.variants[0]
    table = _table("memory", "peak", "ratio", "above weights", "ratio", "after the first step")
    for variant in comparison.variants:
        table.add_row(
            variant.name,
            readable_bytes(variant.peak),
            f"{variant.peak / first.peak:.2f}",
            readable_bytes(_above(variant)),
            f"{_above(variant) / _above(first):.2f}",
            readable_bytes(variant.start_resident),
        )
    return table


def _above(variant: Variant) -> int:
    """Bytes at the peak beside the language model's weights."""
    return variant.peak - variant.weights


def _shares(title: str, stages: Mapping[str, Mapping[str, float]]) -> Table:
    names = list(dict.fromkeys(name for found in stages.values() for name in found))
    table = _table(title, *names)
    for variant, found in stages.items():
        whole = sum(found.values())
        table.add_row(variant, *(f"{100 * found.get(name, 0) / whole:.1f}" for name in names))
    return table


def _spans(title: str, variants: Sequence[Variant]) -> Table:
    names = list(dict.fromkeys(name for variant in variants for name in variant.start_stages))
    table = _table(title, *names, "all")
    for variant in variants:
        spans = [f"{variant.start_stages.get(name, 0):.1f}" for name in names]
        table.add_row(variant.name, *spans, f"{variant.start:.1f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    table.add_column("variant", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table
