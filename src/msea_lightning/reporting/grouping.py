"""Configurations: runs that differ in nothing but the seed, beside the runs planned for them.

Which options make a run what it is, :mod:`msea_lightning.runs.identity` says; nothing here lists
options of its own. Configurations, runs and seeds have one order, which depends on neither time nor
names of folders.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from msea_lightning.adapter.options import ABLATIONS, ADAPTERS, AblationConfig
from msea_lightning.config.roots import TrainConfig
from msea_lightning.metrics import METRIC_NAMES, selection_metric
from msea_lightning.metrics.options import MetricKind
from msea_lightning.paper import FULL, paper_titles
from msea_lightning.reporting.folders import (
    ZERO_SHARE,
    Folder,
    Names,
    Planned,
    Run,
    Size,
    metric_info,
)
from msea_lightning.reporting.statistics import PairedTest, Summary, holm, paired_test, summarize
from msea_lightning.runs.identity import comparable, fingerprint

_NAMING = ("dataset", "backbone", "adapter", "ablation", "dataset.train_fraction")
"""Options that the names of a configuration tell."""

_APART = ("seed", "runs", "ckpt", "experiment", "trainer", "logger", "hydra")
"""Options and sections of a command line that do not tell configurations apart."""

_SEEDLESS = 0
"""The seed that stands for all seeds of a configuration."""

_SIZES = "table1"
"""The experiment that measures sizes alone."""


class Missing(NamedTuple):
    """A run that was planned or begun and is not finished; ``failed`` where it left an error."""

    names: Names
    seed: int
    reason: str
    failed: bool = False


@dataclass
class Configuration:
    """Runs that differ in nothing but the seed; a row of the tables.

    Attributes:
        names: What it is called by.
        identity: Its fingerprint, or the words of the plan where no run of it has begun.
        config: The options, with the seed of no run; None where no run of it has begun.
        runs: Finished runs, by seed.
        missing: Runs that are planned or begun and not finished, by seed.
        options: ``option=value`` for each in which configurations of the same names differ.
        summaries: Metric to its mean and spread, in the order of ``metrics.json``.
        tests: Metric to the test against the full model; empty where this is the full model.
    """

    names: Names
    identity: str
    config: TrainConfig | None = None
    runs: list[Run] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    options: tuple[str, ...] = ()
    summaries: dict[str, Summary] = field(default_factory=dict)
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
        full = self.names.ablation == FULL
        return self.names.model + ("" if full else f", {ABLATIONS.title(self.names.ablation)}")

    @property
    def label(self) -> str:
        """The configuration in words, without its data set."""
        share = self.names.train_fraction
        return ", ".join([self.variant, *([percent(share)] if share != 1 else []), *self.options])

    @property
    def selection(self) -> Summary | None:
        """The metric by which epochs are chosen, over the seeds of the test part."""
        return None if self.kind is None else self.summaries[selection_metric(self.kind).name]


def percent(share: float) -> str:
    """A part of the training data in words."""
    return f"{100 * share:g} % of data"


@dataclass(frozen=True)
class Grouped:
    """All configurations of a folder.

    Attributes:
        configurations: In order: data sets and backbones as in the paper, then others by name.
        sizes: Sizes of full models, with their names.
        measured: Those of runs that measured nothing else.
        missing_sizes: Runs that only measure sizes, planned or begun, and not finished.
        duplicates: Finished run that does not count to the one of the same options that was
            finished later.
    """

    configurations: list[Configuration]
    sizes: list[tuple[Names, Size]]
    measured: list[tuple[Names, Size]]
    missing_sizes: list[Missing]
    duplicates: dict[str, str]


def group(folder: Folder) -> Grouped:
    """Sorts runs and plans into configurations, and summarises each.

    Of several finished runs of the same options and seed the one that was finished last counts.
    """
    counted, duplicates = _without_duplicates(folder.runs)
    found: dict[str, Configuration] = {}
    missing_sizes = []
    for run in counted:
        if run.config.size_only:
            if not run.finished:
                missing_sizes.append(_begun(run))
        elif run.finished:
            _of(found, run.config).runs.append(run)
        else:
            _of(found, run.config).missing.append(_begun(run))
    missing_sizes += _add_planned(found, folder.planned, counted)
    for one in found.values():
        one.runs.sort(key=lambda run: run.config.seed)
        one.missing.sort(key=lambda missing: missing.seed)
        _summarize(one)
    _name_differences(list(found.values()))
    ordered = sorted(found.values(), key=_order)
    _test_ablations(ordered)
    sizes = [run for run in counted if run.config.size_only]
    return Grouped(
        ordered,
        _sizes(sizes, ordered),
        _sizes(sizes, []),
        sorted(missing_sizes, key=lambda size: (names_order(size.names), size.seed)),
        duplicates,
    )


def names_order(names: Names) -> tuple[Any, ...]:
    """The place of names among all: as the paper and the registries have them, then others."""
    return (
        _place(names.dataset, paper_titles("dataset")),
        _place(names.adapter, ADAPTERS.names()),
        _place(names.backbone, paper_titles("backbone")),
        _place(names.ablation, ABLATIONS.names()),
        -names.train_fraction,
    )


def _order(one: Configuration) -> tuple[Any, ...]:
    return (*names_order(one.names), one.options, one.identity)


def _place(name: str, known: Iterable[str]) -> tuple[int, str]:
    names = list(known)
    return (names.index(name) if name in names else len(names), name)


def by_dataset(configurations: Iterable[Configuration]) -> dict[str, list[Configuration]]:
    """Configurations by data set, in order."""
    parts: dict[str, list[Configuration]] = {}
    for one in configurations:
        parts.setdefault(one.names.dataset, []).append(one)
    return parts


def by_kind(configurations: Sequence[Configuration]) -> list[list[Configuration]]:
    """Configurations whose numbers can be compared: of one data set, with the same metrics.

    One without a finished run goes with the first kind of metrics of its data set.
    """
    parts = []
    for own in by_dataset(configurations).values():
        kinds: list[MetricKind | None] = []
        kinds += dict.fromkeys(one.kind for one in own if one.kind is not None)
        for kind in kinds or [None]:
            fitting = (kind, None) if kind in kinds[:1] else (kind,)
            parts.append([one for one in own if one.kind in fitting])
    return parts


def _without_duplicates(runs: Sequence[Run]) -> tuple[list[Run], dict[str, str]]:
    """One run per fingerprint: the last that finished, else the last by name that did not."""
    by_print: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_print[run.fingerprint].append(run)
    counted, duplicates = [], {}
    for same in by_print.values():
        same.sort(key=lambda run: (run.finished_at or -math.inf, run.error or "", run.name))
        counted.append(same[-1])
        duplicates.update({run.name: same[-1].name for run in same[:-1] if run.finished})
    return counted, duplicates


def _of(found: dict[str, Configuration], config: TrainConfig) -> Configuration:
    """The configuration of a run, new where it is the first of it."""
    config = replace(config, seed=_SEEDLESS)
    identity = fingerprint(config)
    return found.setdefault(identity, Configuration(Names.of(config), identity, config))


def _add_planned(
    found: dict[str, Configuration], planned: Sequence[Planned], runs: Sequence[Run]
) -> list[Missing]:
    """Adds what was planned and never begun; gives the missing runs that only measure sizes.

    Plans whose words differ in nothing but the seed are one configuration: that of any run of
    theirs that has begun, else one of their own.
    """
    begun = {run.fingerprint: run for run in runs}
    groups: dict[tuple[Any, ...], dict[int, Planned]] = defaultdict(dict)
    for plan in planned:
        words = tuple(sorted(filter(_tells_apart, plan.overrides)))
        old = plan.fingerprint is None
        groups[plan.names, words, plan.experiment == _SIZES, old][plan.seed] = plan
    missing_sizes = []
    for (names, words, sizes, old), plans in groups.items():
        in_order = [plans[seed] for seed in sorted(plans)]
        sizes = sizes or "size_only=true" in words
        known = [begun[plan.fingerprint] for plan in in_order if plan.fingerprint in begun]
        never = [plan for plan in in_order if plan.fingerprint not in begun]
        if old:  # names and seeds have to do
            same = [run for run in runs if run.config.size_only == sizes]
            known = [run for run in same if Names.of(run.config) == names]
            seeds = {run.config.seed for run in known}
            never = [plan for plan in in_order if plan.seed not in seeds]
        missing = [Missing(names, plan.seed, "planned, not begun") for plan in never]
        if sizes or any(run.config.size_only for run in known):
            missing_sizes += missing
            continue
        if not missing:
            continue
        if known:
            one = _of(found, known[0].config)
        else:
            identity = " ".join(("planned", *map(str, names), *words))
            one = found.setdefault(identity, Configuration(names, identity, options=words))
        # An earlier plan of the same words may have had other defaults.
        there = {run.config.seed for run in one.runs} | {item.seed for item in one.missing}
        one.missing += [item for item in missing if item.seed not in there]
    return missing_sizes


def _begun(run: Run) -> Missing:
    reason = run.error or "not finished (no metrics.json), and it left no error"
    return Missing(Names.of(run.config), run.config.seed, reason, failed=run.error is not None)


def _tells_apart(word: str) -> bool:
    """Whether an override such as ``training.patience=3`` makes a configuration of its own."""
    key = word.partition("=")[0].lstrip("+~")
    return key not in _NAMING and re.split("[./]", key)[0] not in _APART


def _summarize(one: Configuration) -> None:
    if one.kind is None:
        return
    for name in (*METRIC_NAMES[one.kind], ZERO_SHARE.name):
        by_seed = {run.config.seed: run.test[name] for run in one.runs if name in run.test}
        if by_seed:
            directed = name != ZERO_SHARE.name
            one.summaries[name] = summarize(metric_info(name), by_seed, directed=directed)


def _name_differences(configurations: Sequence[Configuration]) -> None:
    """Gives configurations of the same names the options in which they differ.

    One that is only planned keeps the words of its plan.
    """
    by_names: dict[Names, list[Configuration]] = defaultdict(list)
    for one in configurations:
        by_names[one.names].append(one)
    for same in by_names.values():
        if len(same) == 1:
            same[0].options = ()
            continue
        begun = [(one, comparable(one.config)) for one in same if one.config is not None]
        keys = list(dict.fromkeys(key for _, options in begun for key in options))
        differing = [
            key for key in keys if len({repr(options.get(key)) for _, options in begun}) > 1
        ]
        for one, options in begun:
            one.options = tuple(f"{key}={_written(options.get(key))}" for key in differing)


def _written(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _test_ablations(configurations: Sequence[Configuration]) -> None:
    """Tests every ablation against the full model of the same options.

    Holm's correction is over the ablations of the same full model and metric.
    """
    full = {one.identity: one for one in configurations if one.names.ablation == FULL}
    families: dict[str, list[Configuration]] = defaultdict(list)
    for one in configurations:
        if one.names.ablation != FULL and one.config is not None:
            whole = fingerprint(replace(one.config, ablation=AblationConfig()))
            if whole in full:
                families[whole].append(one)
    for whole, ablations in families.items():
        for metric, theirs in full[whole].summaries.items():
            own = [one for one in ablations if metric in one.summaries]
            tests = [paired_test(one.summaries[metric], theirs) for one in own]
            corrected = holm([test.p for test in tests])
            for one, test, p_holm in zip(own, tests, corrected, strict=True):
                one.tests[metric] = replace(test, holm=p_holm)


def _sizes(
    size_runs: Sequence[Run], configurations: Sequence[Configuration]
) -> list[tuple[Names, Size]]:
    """Sizes of full models: of runs that only measure, and what training runs counted."""
    found = {
        (Names(*Names.of(run.config)[:3]), run.size)
        for run in size_runs
        if run.size is not None and run.config.ablation.name == FULL
    }
    measured = {names for names, _ in found}
    for one in configurations:
        names = Names(*one.names[:3])
        if one.names.ablation == FULL and names not in measured:
            found |= {
                (names, Size(run.size.trainable, run.size.estimated))
                for run in one.runs
                if run.size is not None and run.size.trainable is not None
            }
    return sorted(
        found,
        key=lambda item: (names_order(item[0]), item[1].trainable or 0, item[1].estimated or 0),
    )
