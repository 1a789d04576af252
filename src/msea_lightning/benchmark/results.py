"""What a benchmark measured, as plain numbers and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from msea_lightning.backbone.loading.memory import readable_bytes

if TYPE_CHECKING:
    from msea_lightning.benchmark.variant import Timing

_TITLES = {"train": "training", "evaluate": "evaluation"}


@dataclass
class VariantResult:
    """What was measured of a variant.

    Attributes:
        name: As in ``bench.compare``.
        device: Where it ran.
        start: Seconds from the start of its process to the end of the first training step.
        start_stages: Seconds of the stages of that.
        start_resident: Bytes of the device's memory that it held then.
        weights: Bytes of the language model's weights.
        peak: Most bytes that it held at any time; of several devices, the first one's process.
        rounds: The timings of ``train`` and ``evaluate``.
        stages: Seconds of the stages of a step, of ``train`` and ``evaluate``.
        dtype: Dtype in which its language model computes.
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
        """Speeds, and ratios to the first variant, as plain numbers.

        Args:
            first: The first variant, whose rounds were taken in turn with these.
        """
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
    """What was measured of all variants.

    Attributes:
        title: What was measured, in a line.
        options: All options.
        environment: Versions and hardware.
        variants: The variants; the others are compared with the first.
    """

    title: str
    options: dict[str, Any]
    environment: dict[str, Any]
    variants: list[VariantResult]

    def as_json(self) -> dict[str, Any]:
        """All numbers, and those that follow from them."""
        first = self.variants[0]
        return {
            **{name: getattr(self, name) for name in ("title", "options", "environment")},
            "variants": [asdict(found) | found.compared(first) for found in self.variants],
        }


def speed(rounds: Sequence[Timing], unit: str = "utterances") -> float:
    """Utterances, tokens or operations per second, of all rounds together.

    No single round stands for all: where batches differ in cost, each has other batches.
    """
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
    for task in first.rounds:
        console.print(_speeds(task, numbers))
    memory = _table("memory", "peak", "ratio", "above weights", "ratio", "after the first step")
    for variant in variants:
        own = numbers[variant.name]
        memory.add_row(
            variant.name,
            readable_bytes(variant.peak),
            f"{own['peak_ratio']:.2f}",
            readable_bytes(variant.above_weights),
            f"{own['above_weights_ratio']:.2f}",
            readable_bytes(variant.start_resident),
        )
    console.print(memory)
    for task, title in _TITLES.items():
        shares = {
            variant.name: {stage: 100 * part / sum(found.values()) for stage, part in found.items()}
            for variant in variants
            if (found := variant.stages.get(task))
        }
        if shares:
            title = f"where the time goes in {title}, share of a step [%]"
            console.print(_stages(title, shares))
    spans = {variant.name: variant.start_stages | {"all": variant.start} for variant in variants}
    console.print(_stages("start, seconds", spans))


def _speeds(task: str, numbers: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = ("utterances/s", "tokens/s", "ratio", "from", "to", "share of limit")
    table = _table(_TITLES[task], *columns)
    for name, found in numbers.items():
        share = found["share_of_limit"][task]
        table.add_row(
            name,
            f"{found['utterances_per_second'][task]:.3g}",
            f"{found['tokens_per_second'][task]:.0f}",
            f"{found['ratio'][task]:.2f}",
            f"{min(found['ratios'][task]):.2f}",
            f"{max(found['ratios'][task]):.2f}",
            "-" if share is None else f"{share:.0%}",
        )
    return table


def _stages(title: str, found: Mapping[str, Mapping[str, float]]) -> Table:
    names = list(dict.fromkeys(stage for stages in found.values() for stage in stages))
    table = _table(title, *names)
    for name, stages in found.items():
        table.add_row(name, *(f"{stages.get(stage, 0):.1f}" for stage in names))
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
