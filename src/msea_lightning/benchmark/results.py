"""What a benchmark measured, as plain numbers and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

from msea_lightning.backbone.loading.memory import readable_bytes
from msea_lightning.commands.tables import plain_table

if TYPE_CHECKING:
    from msea_lightning.benchmark.variant import Timing

_TITLES = {"train": "training", "evaluate": "evaluation"}


@dataclass
class VariantResult:
    """What was measured of a variant, in seconds and bytes.

    Attributes:
        start: From the start of its process to the end of the first training step.
        start_resident: The device's memory that it held then.
        weights: Of the language model.
        rounds: The timings of ``train`` and ``evaluate``.
        stages: Of a step, of ``train`` and ``evaluate``.
        rate: Operations per second of a product of large matrices in the same dtype, the best that
            any variant on such a device reached; None where it was not measured.
    """

    name: str
    device: str = ""
    start: float = 0.0
    start_stages: dict[str, float] = field(default_factory=dict)
    start_resident: int = 0
    weights: int = 0
    peak: int = 0
    rounds: dict[str, list[Timing]] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    dtype: str = ""
    rate: float | None = None

    def compared(self, first: VariantResult) -> dict[str, Any]:
        """Speeds, and ratios to the first variant, whose rounds were taken in turn with these."""
        numbers: dict[str, dict[str, Any]] = {}
        for task, rounds in self.rounds.items():
            pairs = zip(rounds, first.rounds[task], strict=True)
            share = None if self.rate is None else speed(rounds, "operations") / self.rate
            for name, value in {
                "utterances_per_second": speed(rounds),
                "tokens_per_second": speed(rounds, "tokens"),
                "ratio": speed(rounds) / speed(first.rounds[task]),
                "ratios": [speed([mine]) / speed([other]) for mine, other in pairs],
                "share_of_limit": share,
            }.items():
                numbers.setdefault(name, {})[task] = value
        return {
            **numbers,
            "peak_ratio": self.peak / first.peak,
            "above_weights_ratio": self.above_weights / first.above_weights,
        }

    @property
    def above_weights(self) -> int:
        """Bytes at the peak beside the language model's weights."""
        return self.peak - self.weights


@dataclass(frozen=True)
class Results:
    """What was measured of all variants; the others are compared with the first."""

    title: str
    options: dict[str, Any]
    environment: dict[str, Any]
    variants: list[VariantResult]

    def as_json(self) -> dict[str, Any]:
        """All numbers, and those that follow from them."""
        first = self.variants[0]
        variants = [asdict(found) | found.compared(first) for found in self.variants]
        return {**vars(self), "variants": variants}


def speed(rounds: Sequence[Timing], unit: str = "utterances") -> float:
    """Utterances, tokens or operations per second of all rounds, which differ in their batches."""
    return float(sum(getattr(item, unit) for item in rounds) / sum(item.seconds for item in rounds))


def share_rates(variants: Sequence[VariantResult]) -> None:
    """Gives variants the best rate that was measured in their dtype on their device.

    Each measures its own, at a moment when the device may have been busy with something else.
    """
    measured = [(found.device, found.dtype, found.rate) for found in variants if found.rate]
    for found in variants:
        if found.rate:
            own = found.device, found.dtype
            found.rate = max(rate for *kind, rate in measured if tuple(kind) == own)


def show(results: Results, console: Console) -> None:
    """Prints tables."""
    variants, first = results.variants, results.variants[0]
    numbers = {variant.name: variant.compared(first) for variant in variants}
    console.print(results.title, style="bold", highlight=False)
    console.print(f"on {first.device}; ratios are to {first.name!r}", highlight=False)

    def table(title: str, columns: Iterable[str], rows: Mapping[str, Iterable[str]]) -> None:
        shown = plain_table(title)
        shown.add_column("variant", overflow="fold")
        for column in columns:
            shown.add_column(column, justify="right")
        for name, cells in rows.items():
            shown.add_row(name, *cells)
        console.print(shown)

    def stages(title: str, found: Mapping[str, Mapping[str, float]]) -> None:
        names = list(dict.fromkeys(stage for seconds in found.values() for stage in seconds))
        table(
            title,
            names,
            {
                name: [f"{seconds.get(stage, 0):.1f}" for stage in names]
                for name, seconds in found.items()
            },
        )

    for task in first.rounds:
        columns = ("utterances/s", "tokens/s", "ratio", "from", "to", "share of limit")
        table(_TITLES[task], columns, {name: _speeds(own, task) for name, own in numbers.items()})
    memory = {
        variant.name: (
            readable_bytes(variant.peak),
            f"{numbers[variant.name]['peak_ratio']:.2f}",
            readable_bytes(variant.above_weights),
            f"{numbers[variant.name]['above_weights_ratio']:.2f}",
            readable_bytes(variant.start_resident),
        )
        for variant in variants
    }
    parts = ("peak", "ratio", "above weights", "ratio", "after the first step")
    table("memory", parts, memory)
    for task, title in _TITLES.items():
        shares = {
            variant.name: {stage: 100 * part / sum(found.values()) for stage, part in found.items()}
            for variant in variants
            if (found := variant.stages.get(task))
        }
        if shares:
            stages(f"where the time goes in {title}, share of a step [%]", shares)
    spans = {variant.name: variant.start_stages | {"all": variant.start} for variant in variants}
    stages("start, seconds", spans)


def _speeds(numbers: Mapping[str, Any], task: str) -> list[str]:
    share = numbers["share_of_limit"][task]
    return [
        f"{numbers['utterances_per_second'][task]:.3g}",
        f"{numbers['tokens_per_second'][task]:.0f}",
        f"{numbers['ratio'][task]:.2f}",
        f"{min(numbers['ratios'][task]):.2f}",
        f"{max(numbers['ratios'][task]):.2f}",
        "-" if share is None else f"{share:.0%}",
    ]
