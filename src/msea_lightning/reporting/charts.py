"""Charts as inline SVG: text stays text, colours are the page's, and each fits a narrow window.

Matplotlib draws with sentinel colours, which become CSS variables of the page, so that a chart
follows its light and dark scheme. Series differ in marker and line style besides colour, and maps
are one hue whose opacity grows with the value, so that they read in grey. Sizes are in CSS pixels.
"""

from __future__ import annotations

import io
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import Any, NamedTuple, TypeAlias

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import binned_statistic  # type: ignore[import-untyped]

from msea_lightning.config.text import visible
from msea_lightning.metrics import selection_metric
from msea_lightning.metrics.options import MetricKind
from msea_lightning.reporting.folders import Predictions, Run, metric_info
from msea_lightning.reporting.grouping import Configuration, by_dataset
from msea_lightning.reporting.statistics import reliability
from msea_lightning.reporting.tables import table_metrics, volume_series

WIDTH = 344
"""Width of every chart in pixels: it fits a window of 400 without shrinking."""

_INK, _MUTED, _GRID, _PAPER, _MAP = "#010203", "#010204", "#010205", "#010206", "#010207"
_SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    _PAPER: "var(--paper)",
    _MAP: "var(--map)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(_SERIES, start=1)},
}
"""Sentinel colour to the page's variable."""

_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P")

_MAIN = _SERIES[0]

_STYLE = resources.files("msea_lightning.reporting") / "charts.mplstyle"

_PALE = 0.85
"""Share up to which a square of a map is pale enough for text in ink."""

_STEP = 0.1
"""Distance of the intensities that can be written, where the options leave it to the data."""

_MOST_CLASSES = 12
"""A confusion matrix of more classes is unreadable in this width."""

_BINS = 13
"""Squares per side of the map of intensities."""


class Chart(NamedTuple):
    """A drawing, its title, and one sentence below it; both texts unescaped."""

    title: str
    svg: Markup
    caption: str


class ChartGroup(NamedTuple):
    """Charts of one kind on one data set, with a heading and a note on what all of them show."""

    title: str
    note: str
    charts: list[Chart]


class _Canvas:
    """A figure whose places and sizes are in pixels from the top left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        # One point is one unit of the SVG's own coordinates, which the page shows as one pixel.
        self.figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        self.figure.patch.set_visible(False)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose frame lies there."""
        bottom = self.height - top - height
        axes = self.figure.add_axes(
            (left / WIDTH, bottom / self.height, width / WIDTH, height / self.height)
        )
        axes.patch.set_visible(False)
        return axes

    def chart(self, title: str, caption: str, *parts: str) -> Chart:
        """The finished chart.

        Args:
            title: Its title.
            caption: One sentence below it.
            *parts: What tells it from all others in the page.
        """
        self.figure.text(2 / WIDTH, 1 - 13 / self.height, title, fontsize=11.5, weight="bold")
        name = _id(*parts)
        buffer = io.StringIO()
        with mpl.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
            # The browser sets the text, with fonts that have more glyphs than Matplotlib's.
            warnings.filterwarnings("ignore", message=".*[Gg]lyph")
            self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        return Chart(title, _page_svg(buffer.getvalue(), name, title, self.height), caption)


def _page_svg(svg: str, name: str, title: str, height: float) -> Markup:
    """Matplotlib's document as a part of the page."""
    svg = visible(svg)
    inside = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inside = re.sub(r"<metadata>.*?</metadata>", "", inside, count=1, flags=re.DOTALL)
    inside = re.sub(r"<style.*?</style>", "", inside, flags=re.DOTALL)
    inside = re.sub(r'<g id="[^"]*"', "<g", inside)
    inside = re.sub(r"font-family: [^;\"]*;? ?", "", inside)
    inside = re.sub(r'\bid="', f'id="{name}-', inside)
    inside = inside.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    inside = re.sub(r"<!--.*?-->\n?", "", inside, flags=re.DOTALL)
    inside = re.sub(r"<defs>\s*</defs>", "", inside)
    inside = re.sub(r"\n\s*", "\n", inside).strip()
    for colour, variable in _VARIABLES.items():
        inside = inside.replace(colour, variable)
    text = escape(visible(title))
    # The drawing is Matplotlib's, which escapes the texts that it is given.
    return Markup(
        f'<svg role="img" aria-label="{text}" width="{WIDTH}" height="{height:g}" '
        f'viewBox="0 0 {WIDTH} {height:g}"><title>{text}</title>{inside}</svg>'
    )


_Drawing: TypeAlias = "tuple[_Canvas, str, str]"
"""A canvas, what its title says after the label of the configuration, and so the caption."""


def draw_all(configurations: Sequence[Configuration]) -> dict[str, list[ChartGroup]]:
    """All charts: data set to the groups of its charts, empty groups left out."""
    drawn = {}
    with resources.as_file(_STYLE) as style, mpl.rc_context(fname=style):
        for dataset, own in by_dataset(configurations).items():
            finished = [one for one in own if one.runs]
            groups = [
                _seed_spread(dataset, finished),
                _volume(dataset, finished),
                *(_each(dataset, finished, *kind) for kind in _KINDS),
                _costs(dataset, finished),
            ]
            drawn[dataset] = [group for group in groups if group.charts]
    return drawn


def _each(
    dataset: str,
    configurations: Sequence[Configuration],
    title: str,
    note: str,
    draw: Callable[[Configuration], _Drawing | None],
) -> ChartGroup:
    """One chart for each configuration of which there is something to draw."""
    group = ChartGroup(title, note, [])
    for index, one in enumerate(configurations):
        drawing = draw(one)
        if drawing is not None:
            canvas, rest, caption = drawing
            chart = canvas.chart(
                _named(one, rest), f"{one.label}{caption}.", title, dataset, str(index)
            )
            group.charts.append(chart)
    return group


def _finish_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, labelpad=3)
    axes.set_ylabel(y, labelpad=3)
    axes.tick_params(length=3, pad=4)


def _named(one: Configuration, rest: str, width: int = 42) -> str:
    """The label of a configuration, cut where it would leave the chart, and what follows it whole.

    The caption of a chart has the whole label. Chinese characters are two wide.
    """
    room, cut = width - len(rest), ""
    for character in one.label:
        room -= 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if room < 1 and len(cut) + 1 < len(one.label):
            return f"{cut.rstrip(', ')}…{rest}"
        cut += character
    return f"{one.label}{rest}"


def _seeds(count: int) -> str:
    return f"{count} seed" + ("" if count == 1 else "s")


def _strips(
    unit: str,
    rows: Sequence[tuple[str, Sequence[tuple[float, int]]]],
    *,
    from_zero: bool = False,
    legend: Sequence[str] = (),
) -> _Canvas:
    """One line of points per row, its label above it; of a single series also the mean.

    Args:
        unit: Label of the axis.
        rows: Label, and points with the index of their series.
        from_zero: Whether the axis begins at zero.
        legend: Names of the series, where there is more than one.
    """
    pitch, top = 34, 30 + (18 if legend else 0)
    canvas = _Canvas(top + pitch * len(rows) + 38)
    axes = canvas.axes(14, top, WIDTH - 32, pitch * len(rows))
    for index, (label, _) in enumerate(rows):
        axes.text(
            0, 0.24 - index, label, transform=axes.get_yaxis_transform(), va="center", fontsize=10.5
        )
    for series in range(max(1, len(legend))):
        places = [
            (value, -index - 0.22)
            for index, (_, points) in enumerate(rows)
            for value, own in points
            if own == series
        ]
        axes.plot(
            [x for x, _ in places],
            [y for _, y in places],
            marker=_MARKERS[series],
            color=_SERIES[series],
            markersize=6.5,
            markerfacecolor="none",
            markeredgewidth=1.3,
            linestyle="none",
            clip_on=False,
            label=legend[series] if legend else None,
        )
    if not legend:
        axes.plot(
            [math.fsum(value for value, _ in points) / len(points) for _, points in rows],
            [-index - 0.22 for index in range(len(rows))],
            marker="|",
            color=_INK,
            markersize=12,
            markeredgewidth=2.2,
            linestyle="none",
        )
    axes.set_ylim(-len(rows) + 0.45, 0.55)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.04)
    if from_zero:
        axes.set_xlim(left=0)
    _finish_axes(axes, unit, "")
    if legend:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.03, 1.0),
            ncols=len(legend),
            handletextpad=0.2,
            columnspacing=1.2,
            borderaxespad=0,
        )
    return canvas


def _unit(metric: str) -> str:
    info = metric_info(metric)
    return f"{info.title} [%]" if info.percent else info.title


def _metrics(configurations: Sequence[Configuration]) -> list[str]:
    """The metrics that the tables of these configurations show."""
    dataset = configurations[0].names.dataset if configurations else ""
    known = {metric for one in configurations for metric in one.summaries}
    return [metric for metric in table_metrics(dataset, configurations) if metric in known]


def _seed_spread(dataset: str, configurations: Sequence[Configuration]) -> ChartGroup:
    note = "One point per seed on the test part; the bar is the mean."
    group = ChartGroup("Spread over seeds", note, [])
    for metric in _metrics(configurations):
        rows = [
            (
                _named(one, f", n={summary.n}", 50),
                [(value, 0) for value in summary.values.values()],
            )
            for one in configurations
            if (summary := one.summaries.get(metric)) is not None and summary.n
        ]
        if rows:
            title = f"{metric_info(metric).title} per seed"
            canvas = _strips(_unit(metric), rows)
            group.charts.append(canvas.chart(title, "Test part.", "spread", dataset, metric))
    return group


def _id(*parts: str) -> str:
    """An id of letters, digits and hyphens; different parts give different ids."""
    safe = (re.sub(r"[^A-Za-z0-9]", lambda m: f"_{ord(m[0]):x}_", part) for part in parts)
    return "-".join(safe)


def _volume(dataset: str, configurations: Sequence[Configuration]) -> ChartGroup:
    note = "Mean over seeds; whiskers are one sample standard deviation (layout of Figure 4)."
    group = ChartGroup("Amount of training data", note, [])
    series = volume_series(configurations)
    most = len(_MARKERS)
    # Six lines are told apart by their markers; more go into further charts.
    parts = [series[start : start + most] for start in range(0, len(series), most)]
    for metric in _metrics(configurations):
        for number, part in enumerate(parts):
            canvas = _Canvas(220 + 16 * len(part))
            axes = canvas.axes(48, 26, WIDTH - 64, 150)
            counts = []
            for index, own in enumerate(part):
                known = [
                    (one.names.train_fraction, summary)
                    for one in own
                    if (summary := one.summaries.get(metric)) is not None and summary.n
                ]
                counts += [summary.n for _, summary in known]
                axes.errorbar(
                    [100 * share for share, _ in known],
                    [summary.mean for _, summary in known],
                    yerr=[0 if math.isnan(summary.sd) else summary.sd for _, summary in known],
                    color=_SERIES[index],
                    linestyle=_LINES[index],
                    marker=_MARKERS[index],
                    markersize=5,
                    linewidth=1.5,
                    capsize=3,
                    label=own[-1].label,
                )
            axes.set_xlim(0, 105)
            _finish_axes(axes, "training data [%]", _unit(metric))
            axes.legend(loc="upper left", bbox_to_anchor=(-0.12, -0.22), handlelength=3.2)
            few, many = min(counts, default=0), max(counts, default=0)
            n = f"n={few}" if few == many else f"n={few} to {many}"
            title = f"{metric_info(metric).title} by training data, {n} seeds"
            chart = canvas.chart(title, "Test part.", "volume", dataset, metric, str(number))
            group.charts.append(chart)
    return group


def _learning(one: Configuration) -> _Drawing | None:
    runs = [run for run in one.runs if run.history]
    if not runs or one.kind is None:
        return None
    info = selection_metric(one.kind)
    canvas = _Canvas(272)
    columns = (
        ("train/loss", "training loss", 1.0),
        (f"valid/{info.name}", f"valid {_unit(info.name)}", 100.0 if info.percent else 1.0),
    )
    for place, (column, label, unit) in enumerate(columns):
        axes = canvas.axes(52, 28 + 112 * place, WIDTH - 66, 94)
        curves = [
            np.array([(row["epoch"], unit * row[column]) for row in run.history]) for run in runs
        ]
        for number, curve in enumerate(curves):
            axes.plot(
                *curve.T,
                color=_SERIES[number % len(_SERIES)],
                linestyle=_LINES[number % len(_LINES)],
                linewidth=1,
                marker="." if len(curve) == 1 else None,
            )
        if len(curves) > 1:
            shared = min(map(len, curves))
            mean = np.mean([curve[:shared, 1] for curve in curves], axis=0)
            axes.plot(curves[0][:shared, 0], mean, color=_INK, linewidth=2.2)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        _finish_axes(axes, "epoch" if place else "", label)
        if not place:
            axes.tick_params(labelbottom=False)
    seeds = ", ".join(str(run.config.seed) for run in runs)
    return canvas, f", {_seeds(len(runs))}", f"; seeds {seeds}"


def _answers(one: Configuration) -> list[Predictions]:
    return [run.predictions for run in one.runs if run.predictions is not None]


def _map(
    axes: Axes, counts: NDArray[np.float64], share: NDArray[np.float64], *, numbers: bool
) -> None:
    """Fills the squares of a map, (rows, columns), the first row on top; opacity is the share."""
    rows, columns = counts.shape
    filled = [
        (row, column) for row in range(rows) for column in range(columns) if counts[row, column]
    ]
    patches = [Rectangle((column - 0.5, row - 0.5), 1, 1) for row, column in filled]
    base = mpl.colors.to_rgb(_MAP)
    colours = [(*base, 0.06 + 0.94 * float(share[place])) for place in filled]
    axes.add_collection(
        PatchCollection(patches, facecolors=colours, edgecolors="none", linewidths=0)
    )
    if numbers:
        for row, column in filled:
            axes.text(
                column,
                row,
                f"{counts[row, column]:.0f}",
                ha="center",
                va="center",
                fontsize=9.5 if counts[row, column] < 1e4 else 7.5,
                color=_PAPER if share[row, column] > _PALE else _INK,
            )
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.grid(visible=False)


def _class_names(one: Configuration, answers: Sequence[Predictions]) -> list[str]:
    """Emotions in the order of the label space; further ones by name."""
    found = {str(name) for part in answers for name in (*part.labels, *part.answers)}
    known = [] if one.config is None else one.config.dataset.labels.names
    return [*(name for name in known if name in found), *sorted(found - set(known))]


def _confusion(one: Configuration) -> _Drawing | None:
    answers = _answers(one)
    names = _class_names(one, answers)
    if one.kind is not MetricKind.emotion or not 0 < len(names) <= _MOST_CLASSES:
        return None
    place = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for part in answers:
        rows, columns = (
            [place[str(name)] for name in side] for side in (part.labels, part.answers)
        )
        np.add.at(counts, (rows, columns), 1)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    side = WIDTH - 96
    canvas = _Canvas(side + 112)
    axes = canvas.axes(82, 28, side, side)
    _map(axes, counts, share, numbers=True)
    shown = [name if len(name) <= 11 else f"{name[:10]}…" for name in names]
    axes.set_xticks(range(len(names)), shown, rotation=50, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), shown)
    _finish_axes(axes, "", "")
    canvas.figure.text(0.62, 6 / canvas.height, "answer", ha="center")
    canvas.figure.text(4 / WIDTH, 0.62, "truth", rotation=90, va="center")
    return canvas, f", {_seeds(len(answers))}, n={int(counts.sum())}", ""


def _intensity(one: Configuration) -> _Drawing | None:
    answers = _answers(one)
    if one.kind in (None, MetricKind.emotion) or not answers:
        return None
    truth = np.concatenate([np.asarray(part.labels, dtype=np.float64) for part in answers])
    answer = np.concatenate([np.asarray(part.answers, dtype=np.float64) for part in answers])
    known = np.isfinite(truth) & np.isfinite(answer)
    truth, answer = truth[known], answer[known]
    if not len(truth):
        return None
    canvas = _Canvas(432)
    low, high = _range(one, truth, answer)
    _intensity_map(canvas.axes(52, 28, 240, 196), truth, answer, low, high)
    _error_bars(canvas.axes(52, 282, WIDTH - 66, 104), truth, answer, low, high)
    return canvas, f", {_seeds(len(answers))}, n={len(truth)}", ""


def _range(
    one: Configuration, truth: NDArray[np.float64], answer: NDArray[np.float64]
) -> tuple[float, float]:
    """Lowest and highest intensity: the label space's, else those found."""
    labels = None if one.config is None else one.config.dataset.labels
    low = min(truth.min(), answer.min()) if labels is None or labels.low is None else labels.low
    high = max(truth.max(), answer.max()) if labels is None or labels.high is None else labels.high
    return (float(low), float(high)) if low < high else (float(low) - 0.5, float(low) + 0.5)


def _intensity_map(
    axes: Axes, truth: NDArray[np.float64], answer: NDArray[np.float64], low: float, high: float
) -> None:
    edges = np.linspace(low, high, _BINS + 1)
    counts, _, _ = np.histogram2d(
        np.clip(answer, low, high), np.clip(truth, low, high), bins=[edges, edges]
    )
    totals = counts.sum(axis=0, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    _map(axes, counts, share / (share.max() or 1), numbers=False)
    axes.set_ylim(-0.5, _BINS - 0.5)
    axes.plot([-0.5, _BINS - 0.5], [-0.5, _BINS - 0.5], color=_INK, linewidth=1, linestyle="--")
    ticks = np.linspace(low, high, 5)
    places = np.linspace(-0.5, _BINS - 0.5, 5)
    axes.set_xticks(places, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(places, [f"{tick:g}" for tick in ticks])
    _finish_axes(axes, "true intensity", "predicted intensity")


def _error_bars(
    axes: Axes, truth: NDArray[np.float64], answer: NDArray[np.float64], low: float, high: float
) -> None:
    errors, bins = np.abs(answer - truth), {"bins": 6, "range": (low, high)}
    counts, edges, _ = binned_statistic(np.clip(truth, low, high), errors, "count", **bins)
    sums, _, _ = binned_statistic(np.clip(truth, low, high), errors, "sum", **bins)
    heights = np.divide(sums, counts, out=np.zeros(6), where=counts > 0)
    axes.bar(range(6), heights, width=0.8, color=_MAIN, hatch="///", edgecolor=_INK, linewidth=0.8)
    for index, count in enumerate(counts):
        axes.text(index, heights[index], f"n={count:.0f}", ha="center", va="bottom", fontsize=9)
    axes.set_ylim(0, (heights.max() or 1) * 1.2)
    axes.set_xticks(np.arange(7) - 0.5, [f"{edge:.2g}" for edge in edges])
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(visible=False, axis="x")
    _finish_axes(axes, "range of the true intensity", "MAE")


def _reliability(one: Configuration) -> _Drawing | None:
    answers = _answers(one)
    if not answers:
        return None
    probabilities = np.concatenate([part.probabilities for part in answers])
    right = np.concatenate([_right(one, part) for part in answers])
    found = reliability(probabilities, right)
    canvas = _Canvas(258)
    axes = canvas.axes(48, 28, WIDTH - 64, 184)
    axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle="--")
    filled = found.counts > 0
    centres = ((np.arange(len(found.counts)) + 0.5) / len(found.counts))[filled]
    accuracy, counts = found.accuracy[filled], found.counts[filled]
    width = 0.86 / len(found.counts)
    axes.bar(centres, accuracy, width=width, color=_MAIN, edgecolor=_INK, linewidth=0.7, alpha=0.55)
    axes.plot(found.confidence[filled], accuracy, color=_INK, marker="o", markersize=4, linewidth=1)
    for centre, height, count in zip(centres, accuracy, counts, strict=True):
        size = 9 if count < 1e4 else 7
        axes.text(centre, height + 0.035, str(count), ha="center", fontsize=size)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 5))
    axes.set_yticks(np.linspace(0, 1, 5))
    _finish_axes(axes, "probability of the answer", "share right")
    rest = f", ECE {found.ece:.3f}, n={int(found.counts.sum())}"
    return canvas, rest, f"; {_seeds(len(answers))}"


def _right(one: Configuration, part: Predictions) -> NDArray[np.bool_]:
    """(N,) whether an answer is the truth, or of intensities the legal one nearest to it."""
    if one.kind is MetricKind.emotion:
        same: NDArray[np.bool_] = np.asarray(part.labels) == np.asarray(part.answers)
        return same
    step = None if one.config is None else one.config.dataset.labels.step
    distance = np.abs(np.asarray(part.answers, dtype=float) - np.asarray(part.labels, dtype=float))
    # Intensities were float32 on their way.
    close: NDArray[np.bool_] = distance <= (step or _STEP) / 2 + 1e-6
    return close


_KINDS = (
    (
        "Learning curves",
        "One thin line per seed; the thick one is their mean, as far as all of them go.",
        _learning,
    ),
    (
        "Confusion matrices",
        "Rows are the truth, columns the answer. Numbers are utterances, summed over the seeds; "
        "the stronger a square, the larger its share of the row.",
        _confusion,
    ),
    (
        "Predicted and true intensity",
        "Above: utterances by truth and answer, all seeds together; the stronger a square, the "
        "larger its share of those with this truth; the line is answer = truth. Below: the mean "
        "absolute error by range of the truth.",
        _intensity,
    ),
    (
        "Reliability of the probabilities",
        "Answers in ten bins by the probability that the model gave them (among all legal "
        "answers), all seeds together: the share that is right should lie on the dashed line. An "
        "intensity is right when it is the legal answer nearest to the truth. ECE: expected "
        "calibration error with these bins. The numbers are answers per bin.",
        _reliability,
    ),
)
"""Title, note and drawing of the charts that each configuration has."""


def _costs(dataset: str, configurations: Sequence[Configuration]) -> ChartGroup:
    note = "Training alone, without loading the backbone and without the test; one point per seed."
    group = ChartGroup("Time and memory", note, [])
    timed, memory = [], []
    for one in configurations:
        seconds = [(value, 0) for run in one.runs if (value := epoch_seconds(run)) is not None]
        if seconds:
            timed.append((_named(one, f", n={len(seconds)}", 50), seconds))
        known = [run.size for run in one.runs if run.size is not None]
        points = [(size.estimated / 2**30, 0) for size in known if size.estimated is not None]
        points += [(size.measured / 2**30, 1) for size in known if size.measured is not None]
        if points:
            memory.append((_named(one, f", n={len(known)}", 50), points))
    if timed:
        canvas = _strips("seconds", timed, from_zero=True)
        caption = "Mean over the epochs of a run."
        group.charts.append(canvas.chart("Time per epoch", caption, "time", dataset))
    if memory:
        canvas = _strips("GiB", memory, from_zero=True, legend=("estimated", "measured peak"))
        caption = "Of the device that trained."
        group.charts.append(canvas.chart("Memory", caption, "memory", dataset))
    return group


def epoch_seconds(run: Run) -> float | None:
    """Mean seconds of a run's epochs; None where its history does not say."""
    seconds = [row["seconds"] for row in run.history if math.isfinite(row["seconds"])]
    return math.fsum(seconds) / len(seconds) if seconds else None


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """Mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
