"""Charts as inline SVG whose texts are set by the browser; sizes are in CSS pixels.

Matplotlib draws for a light page (``charts.mplstyle``), and the page inverts the charts in its dark
scheme. Series differ in marker besides colour, and maps are one hue, so that they read in grey.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple, TypeAlias

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import binned_statistic  # type: ignore[import-untyped]

from msea_lightning.config.text import visible
from msea_lightning.metrics import selection_metric
from msea_lightning.metrics.options import MetricKind
from msea_lightning.reporting.folders import Predictions, metric_info
from msea_lightning.reporting.grouping import Configuration, by_dataset
from msea_lightning.reporting.statistics import reliability
from msea_lightning.reporting.tables import table_metrics, volume_series

_WIDTH = 344
"""Width of every chart in pixels: it fits a window of 400 without shrinking."""

_STYLE = resources.files("msea_lightning.reporting") / "charts.mplstyle"

_LABEL = 52  # characters of a configuration's label that fit into a chart
_MOST_CLASSES = 12  # a confusion matrix of more is unreadable in this width
_BINS = 13  # squares per side of the map of intensities
_RANGES = 6  # of the true intensity, for each of which there is a mean error
_STEP = 0.1  # distance of legal intensities where the options leave it to the data


class Chart(NamedTuple):
    """A drawing, its title, and what is said beside the title; both texts unescaped."""

    title: str
    caption: str
    svg: Markup


Drawings: TypeAlias = Iterator[tuple[str, str, Figure]]
"""Title, caption and drawing of charts."""


def draw_all(configurations: Sequence[Configuration]) -> dict[str, dict[str, list[Chart]]]:
    """All charts: data set to heading to its charts; what would be empty is left out."""
    drawn: dict[str, dict[str, list[Chart]]] = {}
    numbers = itertools.count()
    with resources.as_file(_STYLE) as style, mpl.rc_context(fname=style):
        for dataset, own in by_dataset(one for one in configurations if one.runs).items():
            for heading, draw in _KINDS.items():
                for title, caption, figure in draw(own):
                    chart = Chart(title, caption, _as_svg(figure, title, f"chart-{next(numbers)}"))
                    drawn.setdefault(dataset, {}).setdefault(heading, []).append(chart)
    return drawn


def _as_svg(figure: Figure, title: str, name: str) -> Markup:
    """A drawing as a part of the page, in which its ids begin with its name."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # The browser's fonts have more glyphs than Matplotlib's.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph")
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    svg = visible(buffer.getvalue())
    inside = svg[svg.index(">", svg.index("<svg")) + 1 :]
    inside = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", inside)
    width, height = (72 * inches for inches in figure.get_size_inches())
    # The drawing is Matplotlib's, which escapes the texts that it is given.
    return Markup(
        f'<svg role="img" aria-label="{escape(visible(title))}" width="{width:g}" '
        f'height="{height:g}" viewBox="0 0 {width:g} {height:g}">'
        f"{inside.replace('xlink:href', 'href')}"
    )


def _frames(
    height: float, rows: int = 1, *, left: int = 52, bottom: int = 42, **options: Any
) -> tuple[Figure, Any]:
    """A figure and its axes, one below the other, with fixed margins: measuring texts is slow."""
    figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=72)
    margins = {"left": left / _WIDTH, "right": 1 - 14 / _WIDTH, "bottom": bottom / height}
    options |= {"top": 1 - 10 / height, **margins}
    return figure, figure.subplots(rows, 1, gridspec_kw=options)


def _seeds(count: int) -> str:
    return f"{count} seed" + ("" if count == 1 else "s")


def _unit(metric: str) -> str:
    info = metric_info(metric)
    return f"{info.title} [%]" if info.percent else info.title


def _strips(
    unit: str, rows: Sequence[tuple[str, Sequence[Sequence[float]]]], legend: Sequence[str] = ()
) -> Figure:
    """A line of points per row (label, values of each series); of a single series also the mean."""
    below = 60 if legend else 42
    figure, axes = _frames(10 + 34 * len(rows) + below, left=8, bottom=below)
    for index, (label, _) in enumerate(rows):
        label = label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"
        place = axes.get_yaxis_transform()
        axes.text(0, index - 0.4, label, transform=place, va="center")
    for number in range(max(1, len(legend))):
        points = [(value, index) for index, (_, own) in enumerate(rows) for value in own[number]]
        look = {"linestyle": "", "markersize": 6.5, "fillstyle": "none", "clip_on": False}
        axes.plot(*np.transpose(points), **look, label=legend[number] if legend else None)
    if legend:
        figure.legend(loc="lower left", ncols=len(legend))
    else:
        means = [np.mean(own[0]) for _, own in rows]
        axes.plot(means, range(len(rows)), "k|", markersize=12, markeredgewidth=2.2)
    axes.set(xlabel=unit, ylim=(len(rows) - 0.6, -0.7), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure


def _seed_spread(configurations: Sequence[Configuration]) -> Drawings:
    for metric in table_metrics(configurations):
        rows = [
            (f"{one.label}, n={summary.n}", [list(summary.values.values())])
            for one in configurations
            if (summary := one.summaries.get(metric)) is not None and summary.n
        ]
        if rows:
            yield f"{metric_info(metric).title} per seed", "", _strips(_unit(metric), rows)


def _volume(configurations: Sequence[Configuration]) -> Drawings:
    series = volume_series(configurations)
    if not series:
        return
    for metric in table_metrics(configurations):
        figure, axes = _frames(200 + 17 * len(series), bottom=42 + 17 * len(series))
        counts = []
        for own in series:
            known = [one for one in own if metric in one.summaries and one.summaries[metric].n]
            summaries = [one.summaries[metric] for one in known]
            counts += [summary.n for summary in summaries]
            shares = [100 * one.names.train_fraction for one in known]
            means, spreads = ([getattr(one, name) for one in summaries] for name in ("mean", "sd"))
            axes.errorbar(shares, means, yerr=spreads, capsize=3, label=own[-1].label)
        axes.set(xlim=(0, 105), xlabel="training data [%]", ylabel=_unit(metric))
        figure.legend(loc="lower left", handlelength=3.2)
        if counts:
            n = " to ".join(map(str, sorted({min(counts), max(counts)})))
            yield f"{metric_info(metric).title} by training data", f"n={n} seeds", figure


def _learning(configurations: Sequence[Configuration]) -> Drawings:
    for one in configurations:
        histories = [run.history for run in one.runs if run.history]
        if not histories or one.kind is None:
            continue
        info = selection_metric(one.kind)
        figure, (above, below) = _frames(250, 2, hspace=0.14)
        above.sharex(below)
        above.tick_params(labelbottom=False)
        for axes, column, label, unit in (
            (above, "train/loss", "training loss", 1),
            (below, f"valid/{info.name}", f"valid {_unit(info.name)}", 100 if info.percent else 1),
        ):
            curves = [unit * history[column] for history in histories]
            for history, curve in zip(histories, curves, strict=True):
                marker = "." if len(curve) == 1 else ""
                axes.plot(history["epoch"], curve, linewidth=1, marker=marker)
            if len(curves) > 1:
                shared = min(map(len, curves))
                mean = np.mean([curve[:shared] for curve in curves], axis=0)
                axes.plot(histories[0]["epoch"][:shared], mean, "k-", marker="", linewidth=2.2)
            axes.set_ylabel(label)
            axes.yaxis.set_major_locator(MaxNLocator(4))
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        seeds = ", ".join(str(run.config.seed) for run in one.runs if run.history)
        yield one.label, f"seeds {seeds}", figure


def _answers(one: Configuration) -> list[Predictions]:
    return [run.predictions for run in one.runs if run.predictions is not None]


def _shares(counts: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Counts by their sums along an axis; NaN, which is not drawn, where nothing is counted."""
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis, keepdims=True)
    return np.where(counts > 0, shares, np.nan)


def _confusion(configurations: Sequence[Configuration]) -> Drawings:
    for one in configurations:
        answers = _answers(one)
        pairs = Counter(
            pair for part in answers for pair in zip(part.labels, part.answers, strict=True)
        )
        found = {name for pair in pairs for name in pair}
        known = [name for name in one.config.dataset.labels.names if name in found]
        names: list[Any] = [*known, *sorted(found.difference(known))]
        if one.kind is not MetricKind.emotion or not 0 < len(names) <= _MOST_CLASSES:
            continue
        counts = np.array([[pairs[truth, answer] for answer in names] for truth in names], float)
        shares = _shares(counts, axis=1)
        figure, axes = _frames(336, left=80, bottom=84)
        axes.pcolormesh(shares, vmin=0, vmax=1)
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.6 else "black"
            look = {"ha": "center", "va": "center", "color": color}
            axes.text(column + 0.5, row + 0.5, f"{counts[row, column]:.0f}", **look)
        places = np.arange(len(names)) + 0.5
        shown = [name if len(name) <= 11 else f"{name[:10]}…" for name in names]
        axes.set_xticks(places, shown, rotation=50, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, shown)
        axes.set(xlabel="answer", ylabel="truth", ylim=(len(names), 0))
        axes.grid(visible=False)
        yield one.label, f"{_seeds(len(answers))}, n={counts.sum():.0f}", figure


def _intensity(configurations: Sequence[Configuration]) -> Drawings:
    for one in configurations:
        answers = _answers(one)
        if one.kind is MetricKind.emotion or not answers:
            continue
        truth = np.concatenate([part.labels for part in answers])
        answer = np.concatenate([part.answers for part in answers])
        known = np.isfinite(truth) & np.isfinite(answer)
        truth, answer = truth[known], answer[known]
        if not len(truth):
            continue
        labels = one.config.dataset.labels
        low = min(truth.min(), answer.min()) if labels.low is None else labels.low
        high = max(truth.max(), answer.max()) if labels.high is None else labels.high
        limits = (low, high) if low < high else (low - 0.5, low + 0.5)
        inside = np.clip(truth, *limits)
        figure, (above, below) = _frames(400, 2, height_ratios=(2, 1), hspace=0.3)

        counts, edges, _ = np.histogram2d(
            inside, np.clip(answer, *limits), bins=_BINS, range=[limits, limits]
        )
        above.pcolormesh(edges, edges, _shares(counts, axis=1).T, vmin=0)
        above.plot(limits, limits, "k--", marker="", linewidth=1)
        above.set(xlabel="true intensity", ylabel="predicted intensity")
        above.locator_params(nbins=5)
        above.grid(visible=False)

        errors = np.abs(answer - truth)
        counts, edges, _ = binned_statistic(inside, errors, "count", _RANGES, limits)
        means, _, _ = binned_statistic(inside, errors, "mean", _RANGES, limits)
        middles, width = (edges[1:] + edges[:-1]) / 2, 0.8 * (edges[1] - edges[0])
        look = {"hatch": "///", "edgecolor": "black", "linewidth": 0.8}
        bars = below.bar(middles, np.nan_to_num(means), width, **look)
        below.bar_label(bars, [f"n={count:.0f}" for count in counts], fontsize=9)
        below.margins(y=0.2)
        below.set_xticks(edges, [f"{edge:.2g}" for edge in edges])
        below.set(xlabel="range of the true intensity", ylabel="MAE")
        below.grid(visible=False, axis="x")
        yield one.label, f"{_seeds(len(answers))}, n={len(truth)}", figure


def _reliability(configurations: Sequence[Configuration]) -> Drawings:
    for one in configurations:
        answers = _answers(one)
        if not answers:
            continue
        probabilities = np.concatenate([part.probabilities for part in answers])
        right = np.concatenate([_right(one, part) for part in answers])
        found = reliability(probabilities, right)
        filled = found.counts > 0
        width = 1 / len(found.counts)
        figure, axes = _frames(235)
        axes.plot([0, 1], [0, 1], "k--", marker="", linewidth=1)
        middles = (np.arange(len(found.counts))[filled] + 0.5) * width
        look = {"edgecolor": "black", "linewidth": 0.7, "alpha": 0.55}
        bars = axes.bar(middles, found.accuracy[filled], 0.86 * width, **look)
        axes.bar_label(bars, [f"{count:.0f}" for count in found.counts[filled]], padding=4)
        axes.plot(found.confidence[filled], found.accuracy[filled], "ko-", markersize=4)
        axes.set(xlim=(0, 1), ylim=(0, 1.12), xticks=np.linspace(0, 1, 5))
        axes.set(yticks=np.linspace(0, 1, 5), xlabel="probability of the answer")
        axes.set_ylabel("share right")
        n = f"{_seeds(len(answers))}, n={found.counts.sum():.0f}"
        yield one.label, f"ECE {found.ece:.3f}, {n}", figure


def _right(one: Configuration, part: Predictions) -> NDArray[np.bool_]:
    """(N,) whether an answer is the truth, or of intensities the legal one nearest to it."""
    truth, answers = np.array(part.labels), np.array(part.answers)
    if one.kind is MetricKind.emotion:
        return np.asarray(truth == answers)
    step = one.config.dataset.labels.step or _STEP
    # Intensities were float32 on their way.
    return np.asarray(np.abs(answers - truth) <= step / 2 + 1e-6)


def _costs(configurations: Sequence[Configuration]) -> Drawings:
    timed, memory = [], []
    for one in configurations:
        seconds = [run.epoch_seconds for run in one.runs if run.epoch_seconds is not None]
        if seconds:
            timed.append((f"{one.label}, n={len(seconds)}", [seconds]))
        sizes = [run.size for run in one.runs if run.size is not None]
        known = [
            [value / 2**30 for value in values if value is not None]
            for values in ([s.estimated for s in sizes], [s.measured for s in sizes])
        ]
        if any(known):
            memory.append((f"{one.label}, n={len(sizes)}", known))
    for title, caption, unit, rows, legend in (
        ("Time per epoch", "Mean over the epochs of a run.", "seconds", timed, ()),
        ("Memory", "Of the device that trained.", "GiB", memory, ("estimated", "measured peak")),
    ):
        if rows:
            figure = _strips(unit, rows, legend)
            figure.axes[0].set_xlim(left=0)
            yield title, caption, figure


_KINDS = {
    "Spread over seeds": _seed_spread,
    "Amount of training data": _volume,
    "Learning curves": _learning,
    "Confusion matrices": _confusion,
    "Predicted and true intensity": _intensity,
    "Reliability of the probabilities": _reliability,
    "Time and memory": _costs,
}
"""Heading to what draws the charts below it; ``page.html.jinja`` explains each."""
