"""Cells: runs that differ in nothing but the seed, beside the runs that were planned for them.

Which options make a run what it is, :func:`msea_lightning.runs.fingerprint` says; nothing here
lists options of its own. Cells, runs and seeds have one order, which depends on neither time nor
names of folders.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from msea_lightning.adapter.options import ABLATIONS, ADAPTERS, AblationConfig
from msea_lightning.config.roots import TrainConfig
from msea_lightning.metrics import METRIC_NAMES, selection_metric
from msea_lightning.metrics.options import MetricKind
from msea_lightning.paper import BACKBONES
from msea_lightning.reporting.folders import ZERO_SHARE, Folder, Planned, Run, Size, metric_info
from msea_lightning.reporting.statistics import PairedTest, Summary, holm, paired_test, summarize
from msea_lightning.runs.identity import comparable, fingerprint

DATASETS = {"mosei": "MOSEI", "simsv2": "SIMS-V2", "meld": "MELD", "cherma": "CHERMA"}
"""Data sets of the paper, in its order, with their titles."""

FULL = "none"
"""``ablation.name`` of the full model."""

_NAMING = ("dataset", "backbone", "adapter", "ablation", "dataset.train_fraction")
"""Options that a cell's own name tells."""

_APART = ("seed", "runs", "ckpt", "experiment", "trainer", "logger", "hydra")
"""Options and sections of a command line that do not tell cells apart."""

_SEEDLESS = 0
"""The seed that stands for all seeds of a cell."""

_SIZES = "table1"
"""The experiment that measures sizes alone."""


@dataclass(frozen=True)
class Missing:
    """A run that was planned or begun and is not finished.

    Attributes:
        seed: Its seed.
        reason: The error that stopped it, or what is known of it.
        failed: Whether it left an error.
    """

    seed: int
    reason: str
    failed: bool


@dataclass
class Cell:
    """Runs that differ in nothing but the seed.

    Attributes:
        dataset: Name of the data set.
        adapter: Name of the adapter.
        backbone: Name of the backbone.
        ablation: Name of the ablation.
        train_fraction: Part of the training data, 0..1.
        identity: Fingerprint of the cell, or the words of the plan where no run of it has begun.
        config: The options, with the seed of no run; None where no run of it has begun.
        runs: Finished runs, by seed.
        missing: Runs that are planned or begun and not finished, by seed.
        options: ``option=value`` for each in which cells of the same five names differ.
        summaries: Metric to its mean and spread, in the order of ``metrics.json``.
        tests: Metric to the test against the full model; empty where this is the full model.
        full: The full model of an ablation, where there is one with the same options.
    """

    dataset: str
    adapter: str
    backbone: str
    ablation: str
    train_fraction: float
    identity: str
    config: TrainConfig | None = None
    runs: list[Run] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    options: tuple[str, ...] = ()
    summaries: dict[str, Summary] = field(default_factory=dict)
    tests: dict[str, PairedTest] = field(default_factory=dict)
    full: Cell | None = None

    @property
    def names(self) -> tuple[str, str, str, str, float]:
        """The five names."""
        return (self.dataset, self.adapter, self.backbone, self.ablation, self.train_fraction)

    @property
    def kind(self) -> MetricKind | None:
        """Definition of the metrics; None where no run is finished."""
        return self.runs[0].kind if self.runs else None

    @property
    def planned(self) -> int:
        """Number of seeds that are finished, begun or planned."""
        return len(self.runs) + len(self.missing)

    @property
    def model(self) -> str:
        """Title of the model, as in the paper's tables."""
        return model_title(self.adapter, self.backbone)

    @property
    def label(self) -> str:
        """The cell in words, without its data set."""
        parts = [self.model]
        if self.ablation != FULL:
            parts.append(ABLATIONS.title(self.ablation))
        if self.train_fraction != 1:
            parts.append(percent(self.train_fraction))
        return ", ".join([*parts, *self.options])

    @property
    def selection(self) -> Summary | None:
        """The metric by which epochs are chosen, over the seeds of the test part."""
        return None if self.kind is None else self.summaries[selection_metric(self.kind).name]


def model_title(adapter: str, backbone: str) -> str:
    """A model's name as the paper's tables have it, such as ``MSE-Qwen-1.8B``."""
    return f"{ADAPTERS.title(adapter)}-{BACKBONES.get(backbone, backbone)}"


def percent(share: float) -> str:
    """A part of the training data in words."""
    return f"{100 * share:g} % of data"


@dataclass(frozen=True)
class Measured:
    """Size of one model on one data set.

    Attributes:
        dataset: Name of the data set.
        adapter: Name of the adapter.
        backbone: Name of the backbone.
        size: Parameters and memory.
    """

    dataset: str
    adapter: str
    backbone: str
    size: Size


@dataclass(frozen=True)
class MissingSize:
    """A run that was to measure a size and is not finished.

    Attributes:
        dataset: Name of the data set.
        model: Title of the model.
        missing: What is known of it.
    """

    dataset: str
    model: str
    missing: Missing


@dataclass(frozen=True)
class Duplicate:
    """A finished run that another one of the same options replaces.

    Attributes:
        name: The run that does not count.
        counted: The run that counts, which was finished later.
    """

    name: str
    counted: str


@dataclass(frozen=True)
class Grouped:
    """All cells of a folder.

    Attributes:
        cells: In order: data sets and backbones as in the paper, then the others by name.
        sizes: Sizes of full models.
        measured: Those of runs that measured nothing else.
        missing_sizes: Runs that only measure sizes, planned or begun, and not finished.
        duplicates: Runs that do not count.
    """

    cells: list[Cell]
    sizes: list[Measured]
    measured: list[Measured]
    missing_sizes: list[MissingSize]
    duplicates: list[Duplicate]


def group(folder: Folder) -> Grouped:
    """Sorts runs and plans into cells, and summarises each.

    Of several finished runs of the same options and seed the one that was finished last counts.
    """
    counted, duplicates = _without_duplicates(folder.runs)
    sizes = [run for run in counted if run.config.size_only]
    cells: dict[str, Cell] = {}
    for run in counted:
        if run.config.size_only:
            continue
        config = replace(run.config, seed=_SEEDLESS)
        cell = _cell(cells, config, fingerprint(config))
        if run.finished:
            cell.runs.append(run)
        else:
            cell.missing.append(_begun(run))
    missing_sizes = _add_planned(cells, folder.planned, counted)
    for cell in cells.values():
        cell.runs.sort(key=lambda run: run.config.seed)
        cell.missing.sort(key=lambda missing: missing.seed)
        _summarize(cell)
    _name_differences(list(cells.values()))
    ordered = sorted(cells.values(), key=order)
    _test_ablations(ordered)
    return Grouped(ordered, _sizes(sizes, ordered), _sizes(sizes, []), missing_sizes, duplicates)


def order(cell: Cell) -> tuple[Any, ...]:
    """The place of a cell among all cells."""
    return (
        _place(cell.dataset, DATASETS),
        _place(cell.adapter, ADAPTERS.names()),
        _place(cell.backbone, BACKBONES),
        (0, "") if cell.ablation == FULL else _place(cell.ablation, ABLATIONS.names()),
        -cell.train_fraction,
        cell.options,
        cell.identity,
    )


def dataset_order(names: Iterable[str]) -> list[str]:
    """Data sets as in the paper, then the others by name."""
    return sorted(set(names), key=lambda name: _place(name, DATASETS))


def by_kind(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells whose numbers can be compared: of one data set, with the same metrics.

    A cell without a finished run goes with the first kind of metrics of its data set.
    """
    parts = []
    for dataset in dataset_order(cell.dataset for cell in cells):
        own = [cell for cell in cells if cell.dataset == dataset]
        kinds = list(dict.fromkeys(cell.kind for cell in own if cell.kind is not None))
        first = kinds[0] if kinds else None
        parts.append([cell for cell in own if cell.kind in (first, None)])
        parts += [[cell for cell in own if cell.kind is kind] for kind in kinds[1:]]
    return parts


def _place(name: str, known: Iterable[str]) -> tuple[int, str]:
    names = list(known)
    return (names.index(name) + 1 if name in names else len(names) + 1, name)


def _without_duplicates(runs: Sequence[Run]) -> tuple[list[Run], list[Duplicate]]:
    """One run per fingerprint: the last that finished, else the last by name that did not."""
    by_print: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_print[run.fingerprint].append(run)
    counted, duplicates = [], []
    for same in by_print.values():
        same.sort(key=lambda run: (run.finished_at or -math.inf, run.error or "", run.name))
        counted.append(same[-1])
        duplicates += [Duplicate(run.name, same[-1].name) for run in same[:-1] if run.finished]
    return counted, duplicates


def _cell(cells: dict[str, Cell], config: TrainConfig, identity: str) -> Cell:
    if identity not in cells:
        cells[identity] = Cell(
            dataset=config.dataset.name,
            adapter=config.adapter.name,
            backbone=config.backbone.name,
            ablation=config.ablation.name,
            train_fraction=config.dataset.train_fraction,
            identity=identity,
            config=config,
        )
    return cells[identity]


def _add_planned(
    cells: dict[str, Cell], planned: Sequence[Planned], runs: Sequence[Run]
) -> list[MissingSize]:
    """Adds what was planned and never begun; gives the missing runs that only measure sizes.

    Plans whose words differ in nothing but the seed are one cell: that of any run of theirs that
    has begun, else one of their own.
    """
    begun = {run.fingerprint: run for run in runs}
    groups: dict[tuple[Any, ...], dict[int, Planned]] = defaultdict(dict)
    for plan in planned:
        names = (plan.dataset, plan.adapter, plan.backbone, plan.ablation, plan.train_fraction)
        words = tuple(sorted(filter(_tells_apart, plan.overrides)))
        groups[names, words, plan.experiment == _SIZES][plan.seed] = plan
    missing_sizes = [
        _missing_size(
            run.config.dataset.name, run.config.adapter.name, run.config.backbone.name, _begun(run)
        )
        for run in runs
        if run.config.size_only and not run.finished
    ]
    for (names, words, _), plans in groups.items():
        in_order = [plans[seed] for seed in sorted(plans)]
        known = [begun[plan.fingerprint] for plan in in_order if plan.fingerprint in begun]
        never = [plan for plan in in_order if plan.fingerprint not in begun]
        sizes = any(run.config.size_only for run in known) or "size_only=true" in words
        if sizes or in_order[0].experiment == _SIZES:
            missing_sizes += [
                _missing_size(plan.dataset, plan.adapter, plan.backbone, _not_begun(plan))
                for plan in never
            ]
            continue
        if not never:
            continue
        if known:
            config = replace(known[0].config, seed=_SEEDLESS)
            cell = _cell(cells, config, fingerprint(config))
        else:
            identity = " ".join(("planned", *map(str, names), *words))
            dataset, adapter, backbone, ablation, fraction = names
            cell = Cell(dataset, adapter, backbone, ablation, fraction, identity)
            cell.options = words
            cells[identity] = cell
        # An earlier plan of the same words may have had other defaults.
        there = {run.config.seed for run in cell.runs} | {item.seed for item in cell.missing}
        cell.missing += [_not_begun(plan) for plan in never if plan.seed not in there]
    return sorted(missing_sizes, key=lambda size: (_place(size.dataset, DATASETS), size.model))


def _begun(run: Run) -> Missing:
    reason = run.error or "not finished (no metrics.json), and it left no error"
    return Missing(run.config.seed, reason, failed=run.error is not None)


def _not_begun(plan: Planned) -> Missing:
    return Missing(plan.seed, "planned, not begun", failed=False)


def _missing_size(dataset: str, adapter: str, backbone: str, missing: Missing) -> MissingSize:
    return MissingSize(dataset, model_title(adapter, backbone), missing)


def _tells_apart(word: str) -> bool:
    """Whether an override such as ``training.patience=3`` makes a cell of its own."""
    key = word.partition("=")[0].lstrip("+~")
    return key not in _NAMING and re.split("[./]", key)[0] not in _APART


def _summarize(cell: Cell) -> None:
    if cell.kind is None:
        return
    for name in (*METRIC_NAMES[cell.kind], ZERO_SHARE.name):
        by_seed = {run.config.seed: run.test[name] for run in cell.runs if name in run.test}
        if by_seed:
            directed = name != ZERO_SHARE.name
            cell.summaries[name] = summarize(metric_info(name), by_seed, directed=directed)


def _name_differences(cells: Sequence[Cell]) -> None:
    """Gives cells of the same five names the options in which they differ.

    A cell that is only planned keeps the words of its plan.
    """
    by_names: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        by_names[cell.names].append(cell)
    for same in by_names.values():
        if len(same) < 2:
            same[0].options = ()
            continue
        begun = [(cell, comparable(cell.config)) for cell in same if cell.config is not None]
        options = [flat for _, flat in begun]
        keys = [
            key
            for key in (options[0] if options else ())
            if len({repr(flat[key]) for flat in options}) > 1
        ]
        for cell, flat in begun:
            cell.options = tuple(f"{key}={_written(flat[key])}" for key in keys)


def _written(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _test_ablations(cells: Sequence[Cell]) -> None:
    """Tests every ablation against the full model of the same options.

    Holm's correction is over the ablations of the same full model and metric.
    """
    full = {cell.identity: cell for cell in cells if cell.ablation == FULL}
    families: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.ablation == FULL or cell.config is None:
            continue
        whole = fingerprint(replace(cell.config, ablation=AblationConfig()))
        cell.full = full.get(whole)
        if cell.full is not None:
            families[whole].append(cell)
    for whole, ablations in families.items():
        for metric, theirs in full[whole].summaries.items():
            _test_family(ablations, metric, theirs)


def _test_family(ablations: Sequence[Cell], metric: str, full: Summary) -> None:
    tests: Mapping[str, PairedTest] = {
        cell.identity: paired_test(cell.summaries[metric], full)
        for cell in ablations
        if metric in cell.summaries
    }
    tested = [identity for identity, test in tests.items() if test.p is not None]
    corrected = holm([p for identity in tested if (p := tests[identity].p) is not None])
    by_identity = dict(zip(tested, corrected, strict=True))
    for cell in ablations:
        if cell.identity in tests:
            value = by_identity.get(cell.identity)
            cell.tests[metric] = replace(tests[cell.identity], holm=value)


def _sizes(size_runs: Sequence[Run], cells: Sequence[Cell]) -> list[Measured]:
    """Sizes of full models: of runs that only measure, and what training runs counted."""
    found: set[tuple[str, str, str, Size]] = set()
    for run in size_runs:
        if run.size is not None and run.config.ablation.name == FULL:
            names = (run.config.dataset.name, run.config.adapter.name, run.config.backbone.name)
            found.add((*names, run.size))
    measured = {item[:3] for item in found}
    for cell in cells:
        names = (cell.dataset, cell.adapter, cell.backbone)
        if cell.ablation != FULL or names in measured:
            continue
        for run in cell.runs:
            if run.memory is not None and run.memory.trainable is not None:
                found.add((*names, Size(run.memory.trainable, run.memory.estimated)))
    in_order = sorted(
        found,
        key=lambda item: (
            _place(item[0], DATASETS),
            _place(item[1], ADAPTERS.names()),
            _place(item[2], BACKBONES),
            item[3].trainable,
            item[3].memory or 0,
        ),
    )
    return [Measured(*item) for item in in_order]
