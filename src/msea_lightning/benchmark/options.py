"""Options of the benchmark."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import option


class Measured(enum.Enum):
    """What a benchmark measures besides the start, which ends with the first step."""

    everything = "everything"
    start = "start"
    train = "train"
    evaluate = "evaluate"


@dataclass
class BenchOptions:
    """What is measured, and against what."""

    shape: str = option(
        "meld",
        "data set whose sizes and lengths the generated data has: mosei, simsv2, meld or cherma; "
        "the same as dataset",
    )
    compare: list[str] = option(
        ["original", "ours"],
        "variants, the first of which the others are compared with: original (written to the "
        "original implementation's behaviour), ours (the options as they are), or options that "
        "differ from ours, several of them joined by '+': "
        "'bench.compare=[ours,\"backbone.dtype=bfloat16\"]'",
    )
    measure: Measured = option(Measured.everything, "what is measured")
    utterances: int | None = option(
        1024, "training utterances that there are; null: as many as published", low=1
    )
    eval_utterances: int | None = option(
        512, "test utterances that there are; null: as many as published", low=1
    )
    steps: int = option(
        16,
        "training batches of a round, at most all; its evaluation has as many utterances. Where "
        "batches go by length, some of every length are taken",
        low=1,
    )
    rounds: int = option(3, "rounds, after two steps that are not counted", low=1)
    together: bool = option(
        True,
        "variants are in memory together and take turns, so that a machine that gets slower slows "
        "all of them; false: one after another",
    )
    json: str | None = option(None, "a file for all numbers as JSON, besides the table")

    def check(self, where: str) -> None:
        """Refuses a comparison of nothing, or of a variant with itself."""
        doubles = sorted({name for name in self.compare if self.compare.count(name) > 1})
        if not self.compare or doubles:
            raise ConfigError(
                f"{where}.compare={self.compare}: give one or more different variants, such as "
                "[original,ours]."
            )
