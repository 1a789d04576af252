"""Configurations: runs that differ in nothing but the seed, finished or not.

Configurations, runs and seeds have one order, which depends on neither time nor names of folders.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from msea_lightning.adapter.options import ABLATIONS, ADAPTERS, AblationConfig
from msea_lightning.config.roots import TrainConfig
from msea_lightning.metrics import METRIC_NAMES, ZERO_SHARE
from msea_lightning.metrics.bootstrap import intervals
from msea_lightning.metrics.options import MetricKind
from msea_lightning.paper import FULL, paper_titles
from msea_lightning.reporting.folders import Folder, Run, Size, metric_info
from msea_lightning.reporting.statistics import PairedTest, Summary, holm, paired_test, summarize
from msea_lightning.runs.folder import Names
from msea_lightning.runs.identity import METHOD_OPTIONS, comparable, fingerprint


@dataclass
class Configuration:
    """Runs that differ in nothing but the seed; a row of the tables.

    Attributes:
        names: What it is called by.
        identity: Its fingerprint.
        config: The options, with 0 for the seed.
        runs: Finished runs, by seed.
        missing: Runs that are planned or begun and not finished, by seed.
        options: ``option=value`` for each in which configurations of the same names differ.
        label: What it is called among those of its data set: the difference that matters first.
        summaries: Metric to its mean and spread, in the order of ``metrics.json``.
        intervals: Metric to the ends of its 95 % interval, in the unit of the tables; empty where
            not every run has predictions, of the same utterances.
        tests: Metric to the test against the full model; empty where this is the full model.
    """

    names: Names
    identity: str
    config: TrainConfig
    runs: list[Run] = field(default_factory=list)
    missing: list[Run] = field(default_factory=list)
    options: tuple[str, ...] = ()
    label: str = ""
    summaries: dict[str, Summary] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    tests: dict[str, PairedTest] = field(default_factory=dict)

    @property
    def kind(self) -> MetricKind | None:
        """Definition of the metrics; None where no run is finished."""
        return self.runs[0].kind if self.runs else None

    @property
    def is_whole(self) -> bool:
        """Whether it is a full model that all training data made."""
        return self.names.ablation == FULL and self.names.train_fraction == 1

    @property
    def variant(self) -> str:
        """Model and what is left out of it."""
        if self.names.ablation == FULL:
            return self.names.model
        return f"{self.names.model}, {ABLATIONS.title(self.names.ablation)}"


def percent(share: float) -> str:
    """A part of the training data in words."""
    return f"{100 * share:g} % of data"


@dataclass(frozen=True)
class Grouped:
    """All configurations of a folder, and sizes of full models with their names.

    Attributes:
        configurations: In order: data sets and backbones as in the paper, then others by name.
        sizes: All sizes.
        measured: Those of runs that measured nothing else.
        size_runs: Runs that only measure sizes, finished or not.
    """

    configurations: list[Configuration]
    sizes: list[tuple[Names, Size]]
    measured: list[tuple[Names, Size]]
    size_runs: list[Run]

    @property
    def missing_sizes(self) -> list[Run]:
        """Runs that only measure sizes, planned or begun, and not finished."""
        return [run for run in self.size_runs if not run.finished]


def group(folder: Folder) -> Grouped:
    """Sorts runs into configurations, and summarises each.

    Of several finished runs of the same options and seed the one that was finished last counts;
    the others are noted among its problems. Finished runs whose metrics are of another kind,
    because the data has changed, are a configuration of their own.
    """
    sizes: list[Run] = []
    found: dict[tuple[str, MetricKind | None], Configuration] = {}
    kinds: dict[str, MetricKind | None] = {}
    # Finished ones first, so that the others join them.
    for run in sorted(_without_duplicates(folder.runs), key=lambda run: not run.finished):
        if run.config.size_only:
            sizes.append(run)
            continue
        config = replace(run.config, seed=0)
        identity = fingerprint(config)
        kind = run.kind or kinds.get(identity)
        kinds.setdefault(identity, kind)
        one = found.setdefault((identity, kind), Configuration(run.names, identity, config))
        (one.runs if run.finished else one.missing).append(run)
    _name_differences(found.values())
    ordered = sorted(
        found.values(), key=lambda one: (names_order(one.names), one.options, one.identity)
    )
    for own in by_dataset(ordered).values():
        _label(own)
    for one in ordered:
        _summarize(one)
    _test_ablations(ordered)
    sizes.sort(key=lambda run: names_order(run.names))
    return Grouped(ordered, _sizes(sizes, ordered), _sizes(sizes, []), sizes)


def names_order(names: Names) -> tuple[Any, ...]:
    """The place of names among all: as the paper and the registries have them, then others."""
    return (
        _place(names.dataset, paper_titles("dataset")),
        _place(names.adapter, ADAPTERS.names()),
        _place(names.backbone, paper_titles("backbone")),
        _place(names.ablation, ABLATIONS.names()),
        -names.train_fraction,
    )


def _place(name: str, known: Iterable[str]) -> tuple[int, str]:
    names = list(known)
    return (names.index(name) if name in names else len(names), name)


def by_dataset(configurations: Iterable[Configuration]) -> dict[str, list[Configuration]]:
    """Configurations in their order, by data set."""
    groups = groupby(configurations, key=lambda one: one.names.dataset)
    return {dataset: list(own) for dataset, own in groups}


def by_kind(
    configurations: Sequence[Configuration],
) -> dict[tuple[str, MetricKind | None], list[Configuration]]:
    """Configurations whose numbers can be compared: of one data set, with the same metrics.

    One without a finished run goes with the first kind of metrics of its data set; the kind is None
    where no run of the data set is finished.
    """
    parts: dict[tuple[str, MetricKind | None], list[Configuration]] = {}
    for dataset, own in by_dataset(configurations).items():
        first = next((one.kind for one in own if one.kind is not None), None)
        for one in own:
            parts.setdefault((dataset, one.kind or first), []).append(one)
    return parts


def _without_duplicates(runs: Sequence[Run]) -> list[Run]:
    """One run per fingerprint, by seed: the last that finished, else the last by name."""
    same: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.finished_at or -math.inf, run.name)):
        same[run.fingerprint].append(run)
    for *others, last in same.values():
        last.problems += [
            f"counts instead of {run.name}, which has the same options and is older"
            for run in others
            if run.finished
        ]
    return sorted((part[-1] for part in same.values()), key=lambda run: run.config.seed)


def _summarize(one: Configuration) -> None:
    if one.kind is None:
        return
    for name in (*METRIC_NAMES[one.kind], ZERO_SHARE.name):
        by_seed = {run.config.seed: run.test[name] for run in one.runs if name in run.test}
        if by_seed:
            directed = name != ZERO_SHARE.name
            one.summaries[name] = summarize(metric_info(name), by_seed, directed=directed)
    one.intervals = _intervals(one, one.kind)


def _intervals(one: Configuration, kind: MetricKind) -> dict[str, tuple[float, float]]:
    known = [run.predictions for run in one.runs if run.predictions is not None]
    same = all(part.ids == known[0].ids and part.labels == known[0].labels for part in known)
    if len(known) < len(one.runs) or not same:
        return {}
    found = intervals(kind, [part.answers for part in known], known[0].labels)
    units = {name: 100.0 if metric_info(name).percent else 1.0 for name in found}
    return {name: (units[name] * low, units[name] * high) for name, (low, high) in found.items()}


def _label(configurations: Sequence[Configuration]) -> None:
    """Names those of one data set by what tells them apart, an ablation before an option."""
    keys = {option.partition("=")[0] for one in configurations for option in one.options}
    several_models = len({one.names.model for one in configurations}) > 1
    has_ablations = any(one.names.ablation != FULL for one in configurations)
    has_parts = any(one.names.train_fraction != 1 for one in configurations)
    default = "all data" if has_parts else ""
    for one in configurations:
        names = one.names
        words = [] if names.ablation == FULL else [ABLATIONS.title(names.ablation)]
        if names.ablation == FULL and has_ablations and not several_models:
            words = ["complete model"]
        words += [_shortened(option, keys) for option in one.options]
        words += [] if names.train_fraction == 1 else [percent(names.train_fraction)]
        words += [names.model] if several_models else []
        one.label = ", ".join(words) or default or names.model


def _shortened(option: str, keys: Iterable[str]) -> str:
    """An option without the groups that it is in, as far as no other ends alike."""
    key, _, value = option.partition("=")
    return f"{short_key(key, keys)}={value}"


def short_key(key: str, keys: Iterable[str]) -> str:
    """The key of an option without the groups that it is in, as far as no other ends alike."""
    parts = key.split(".")
    ends = [".".join(parts[start:]) for start in range(len(parts))]
    unique = [end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1]
    return unique[-1]


def _name_differences(configurations: Iterable[Configuration]) -> None:
    """Gives configurations of the same names the options in which they differ."""
    by_names: dict[Names, list[Configuration]] = defaultdict(list)
    for one in configurations:
        by_names[one.names].append(one)
    for same in by_names.values():
        every = _with_methods([one.config for one in same])
        differing = [
            key
            for key in dict.fromkeys(key for options in every for key in options)
            if any(options.get(key) != every[0].get(key) for options in every)
        ]
        for one, options in zip(same, every, strict=True):
            one.options = tuple(f"{key}={_written(options.get(key))}" for key in differing)


def _with_methods(configs: Sequence[TrainConfig]) -> list[dict[str, Any]]:
    """The options of configurations, with the name of the method for what it sets.

    Where one has no name of a method, or one name stands for different options, the options stay.
    """
    every = [comparable(config) for config in configs]
    meant: dict[str | None, dict[str, Any]] = {}
    for config, options in zip(configs, every, strict=True):
        own = {key: value for key, value in options.items() if key in METHOD_OPTIONS}
        if config.method is None or meant.setdefault(config.method, own) != own:
            return every
    return [
        {"method": config.method}
        | {key: value for key, value in options.items() if key not in METHOD_OPTIONS}
        for config, options in zip(configs, every, strict=True)
    ]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _test_ablations(configurations: Sequence[Configuration]) -> None:
    """Tests every ablation against the full model of the same options.

    Holm's correction is over the ablations of the same full model and metric.
    """
    full = {(one.identity, one.kind): one for one in configurations if one.names.ablation == FULL}
    families: dict[tuple[str, MetricKind | None], list[Configuration]] = defaultdict(list)
    for one in configurations:
        if one.names.ablation != FULL:
            whole = fingerprint(replace(one.config, ablation=AblationConfig()))
            families[whole, one.kind].append(one)
    for same in full.keys() & families.keys():
        for metric, theirs in full[same].summaries.items():
            own = [one for one in families[same] if metric in one.summaries]
            tests = [paired_test(one.summaries[metric], theirs) for one in own]
            corrected = holm([test.p for test in tests])
            for one, test, p_holm in zip(own, tests, corrected, strict=True):
                one.tests[metric] = replace(test, holm=p_holm)


def _sizes(
    size_runs: Sequence[Run], configurations: Sequence[Configuration]
) -> list[tuple[Names, Size]]:
    """Sizes of full models: of runs that only measure, else what training runs counted."""
    found = {
        (Names(*run.names[:3]), run.size)
        for run in size_runs
        if run.size is not None and run.config.ablation.name == FULL
    }
    measured = {names for names, _ in found}
    found |= {
        (Names(*one.names[:3]), Size(run.size.trainable, run.size.estimated))
        for one in configurations
        if one.names.ablation == FULL and Names(*one.names[:3]) not in measured
        for run in one.runs
        if run.size is not None
    }
    return sorted(
        found, key=lambda it: (names_order(it[0]), it[1].trainable or 0, it[1].estimated or 0)
    )
