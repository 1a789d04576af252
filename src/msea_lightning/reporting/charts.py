"""Charts as inline SVG whose texts are set by the browser; sizes are in CSS pixels.

Matplotlib draws for a light page (``charts.mplstyle``), and the page inverts the charts in its dark
scheme. Series differ in marker besides colour, and maps are one hue, so that they read in grey.
Charts of one kind have the same axes for all variants of a data set. What a point, bar or square
stands for is the SVG title that :func:`_tell` gives it, which browsers show beside the pointer.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple, TypeAlias
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import binned_statistic  # type: ignore[import-untyped]

from msea_lightning.config.text import visible
from msea_lightning.metrics import selection_metric
from msea_lightning.metrics.options import MetricKind
from msea_lightning.reporting.folders import Predictions, metric_info
from msea_lightning.reporting.grouping import Configuration
from msea_lightning.reporting.statistics import reliability
from msea_lightning.reporting.tables import number_text, volume_series
from msea_lightning.reporting.variants import Part, comparisons, heading

_WIDTH = 322
"""Width of every chart in pixels: one fits into a window of 400, four into one of 1400."""

_STYLE = resources.files("msea_lightning.reporting") / "charts.mplstyle"

_LINE = 50  # characters of a label that fit into a line of a chart
_MOST_CLASSES = 12  # a confusion matrix of more is unreadable in this width
_MOST_LABELS = 24  # rows of the chart of labels
_BINS = 13  # squares per side of the map of intensities
_RANGES = 6  # of the true intensity, for each of which there is a mean error
_STEP = 0.1  # distance of legal intensities where the options leave it to the data

_TELLING = "tells "
"""Begins the id of what has titles, until they are put into it."""

_SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", _SVG.strip("{}"))
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


class Chart(NamedTuple):
    """A drawing, its title, and what is said beside the title; both texts unescaped."""

    title: str
    caption: str
    svg: Markup


Drawings: TypeAlias = Iterator[tuple[str, str, Figure]]
"""Title, caption and drawing of charts."""


def draw_part(part: Part, name: str) -> dict[str, list[Chart]]:
    """All charts of a data set: heading to its charts; what would be empty is left out.

    Their ids begin with ``name``.
    """
    finished = part._replace(configurations=part.finished)
    drawn: dict[str, list[Chart]] = {}
    if part.kind is None:
        return drawn
    numbers = itertools.count()
    with resources.as_file(_STYLE) as style, mpl.rc_context(fname=style):
        for kind, draw in _KINDS.items():
            for title, caption, figure in draw(finished):
                svg = _as_svg(figure, title, f"{name}-chart-{next(numbers)}")
                drawn.setdefault(kind, []).append(Chart(title, caption, svg))
    return drawn


def draw_labels(labels: Mapping[str, Mapping[str, int]], name: str) -> Chart | None:
    """How often each label is in each split, as shares of the split; None where none is known.

    ``labels`` is split to label to number of utterances. Of many labels the rarest are one row.
    """
    sums = {split: sum(counts.values()) for split, counts in labels.items()}
    labels = {split: counts for split, counts in labels.items() if sums[split]}
    if not labels:
        return None
    found = list(dict.fromkeys(itertools.chain(*labels.values())))
    if len(found) > _MOST_LABELS:
        total: Counter[str] = Counter()
        for counts in labels.values():
            total.update(counts)
        kept = {label for label, _ in total.most_common(_MOST_LABELS - 1)}
        rest = f"{len(found) - len(kept)} others"
        labels = {
            split: {
                **{label: counts.get(label, 0) for label in found if label in kept},
                rest: sum(counts.get(label, 0) for label in found if label not in kept),
            }
            for split, counts in labels.items()
        }
        found = [*(label for label in found if label in kept), rest]
    with resources.as_file(_STYLE) as style, mpl.rc_context(fname=style):
        figure = _label_bars(found, labels)
        caption = f"Shares of each split; numbers are utterances ({', '.join(labels)})."
        return Chart("Labels", caption, _as_svg(figure, "Labels", name))


def _label_bars(found: Sequence[str], labels: Mapping[str, Mapping[str, int]]) -> Figure:
    """For each label its name and a bar per split, from above."""
    bar, text = 7, 18
    row = text + bar * len(labels) + 4
    figure, axes = _frames(10 + row * len(found) + 59, left=14, bottom=59)
    transform = axes.get_yaxis_transform()
    for index, label in enumerate(found):
        numbers = ", ".join(f"{own.get(label, 0):,}" for own in labels.values())
        axes.text(0, index * row, f"{label}: {numbers}", transform=transform, va="top")
    for number, (split, own) in enumerate(labels.items()):
        total = sum(own.values())
        counts = [own.get(label, 0) for label in found]
        places = [index * row + text + bar * (number + 0.5) for index in range(len(found))]
        bars = axes.barh(places, [100 * n / total for n in counts], 0.85 * bar, label=split)
        for one, label, n in zip(bars, found, counts, strict=True):
            share = f"{n:,} of {total:,} utterances ({100 * n / total:.1f} %)"
            _tell(one, [f"{label}, {split}: {share}"])
    axes.set(xlabel="share of the split [%]", ylim=(row * len(found), 0), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    figure.legend(loc="lower left", ncols=len(labels), handlelength=1.2)
    return figure


def _tell(artist: Artist, texts: Sequence[str]) -> None:
    """Gives each point of a line, each square of a mesh, or a bar, a text of its own."""
    artist.set_gid(_TELLING + json.dumps(list(texts), ensure_ascii=False))


def _as_svg(figure: Figure, title: str, name: str) -> Markup:
    """A drawing as a part of the page, in which its ids begin with its name."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # The browser's fonts have more glyphs than Matplotlib's.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph")
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    # XML has no way to write the two that are no characters.
    root = ElementTree.fromstring(re.sub("[\ufffe\uffff]", "\ufffd", visible(buffer.getvalue())))
    for group in root.iter(f"{_SVG}g"):
        if group.get("id", "").startswith(_TELLING):
            _put_titles(group, json.loads(group.attrib.pop("id").removeprefix(_TELLING)))
    svg = ElementTree.tostring(root, encoding="unicode")
    inside = svg[svg.index(">", svg.index("<svg")) + 1 :]
    inside = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", inside)
    inside = re.sub(r"\n\s*", "\n", inside)
    width, height = (72 * inches for inches in figure.get_size_inches())
    # The drawing is Matplotlib's, which escapes the texts that it is given.
    return Markup(
        f'<svg role="img" aria-label="{escape(visible(title))}" width="{width:g}" '
        f'height="{height:g}" viewBox="0 0 {width:g} {height:g}">'
        f"{inside.replace('xlink:href', 'href')}"
    )


def _put_titles(group: ElementTree.Element, texts: Sequence[str]) -> None:
    """Titles for the markers of a line, or else for what is drawn in the group itself."""
    shapes = [*group.iter(f"{_SVG}use")] or group.findall(f"{_SVG}path")
    for shape, text in zip(shapes, texts, strict=True):
        if text:
            ElementTree.SubElement(shape, f"{_SVG}title").text = visible(text)


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


_Points: TypeAlias = Sequence[tuple[float, str]]
"""Values with the texts that tell of them."""


def _strips(
    unit: str,
    rows: Sequence[tuple[str, Sequence[_Points]]],
    legend: Sequence[str] = (),
    lines: Sequence[tuple[str, float]] = (),
) -> Figure:
    """A line of points per row (label, points of each series); of a single series also the mean.

    ``lines`` are names and values that go through all rows. Labels are never cut, but broken.
    """
    broken = [textwrap.wrap(label, _LINE) or [""] for label, _ in rows]
    below = 42 + 17 * (len(lines) or bool(legend))
    heights = [24 + 14 * len(own) for own in broken]
    height = sum(heights)
    figure, axes = _frames(10 + height + below, left=14, bottom=below)
    # In pixels from above; the points of a row are below its label.
    places = [end - 14 for end in itertools.accumulate(heights)]
    for own, place, size in zip(broken, places, heights, strict=True):
        transform = axes.get_yaxis_transform()
        # On a ground of its own, or the lines of references go through its letters.
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.text(0, place + 14 - size, "\n".join(own), transform=transform, va="top", bbox=ground)
    for number in range(max(1, len(legend))):
        points = [
            (value, place, text)
            for (_, own), place in zip(rows, places, strict=True)
            for value, text in own[number]
        ]
        look = {"linestyle": "", "markersize": 6.5, "fillstyle": "none", "clip_on": False}
        x, y, texts = zip(*points, strict=True) if points else ((), (), ())
        (drawn,) = axes.plot(x, y, **look, label=legend[number] if legend else None)
        _tell(drawn, texts)
    if not legend:
        means = [np.mean([value for value, _ in own[0]]) for _, own in rows]
        axes.plot(means, places, "k|", markersize=12, markeredgewidth=2.2)
    for (name, value), style in zip(lines, itertools.cycle(("--", ":", "-.")), strict=False):
        axes.axvline(value, color="black", linestyle=style, linewidth=1.5, marker="", label=name)
    if legend or lines:
        figure.legend(loc="lower left", ncols=max(1, len(legend)), handlelength=2.6)
    axes.set(xlabel=unit, ylim=(height + 2, 0), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure


def _seed_spread(part: Part) -> Drawings:
    others = comparisons(part)
    for metric in part.metrics:
        rows = []
        for one in part.configurations:
            summary = one.summaries.get(metric)
            if summary is None or not summary.n:
                continue
            points = [
                (value, f"{one.label}, seed {seed}: {number_text(metric, value)}")
                for seed, value in summary.values.items()
            ]
            rows.append((f"{one.label}, n={summary.n}", [points]))
        lines = [
            (f"{name}: {number_text(metric, summaries[metric].mean)}", summaries[metric].mean)
            for name, summaries in others
            if metric in summaries and summaries[metric].n
        ]
        if rows:
            title = f"{metric_info(metric).title} per seed"
            yield title, "", _strips(heading(metric), rows, lines=lines)


def _volume(part: Part) -> Drawings:
    series = volume_series(part.configurations)
    if not series:
        return
    for metric in part.metrics:
        names = [
            textwrap.wrap(", ".join((own[-1].variant, *own[-1].options)), 46) for own in series
        ]
        below = 42 + 15 * sum(map(len, names)) + 3 * len(names)
        figure, axes = _frames(160 + below, bottom=below)
        counts = []
        for own, name in zip(series, names, strict=True):
            known = [one for one in own if metric in one.summaries and one.summaries[metric].n]
            summaries = [one.summaries[metric] for one in known]
            counts += [summary.n for summary in summaries]
            shares = [100 * one.names.train_fraction for one in known]
            means, spreads = ([getattr(one, name) for one in summaries] for name in ("mean", "sd"))
            bars = axes.errorbar(shares, means, yerr=spreads, capsize=3, label="\n".join(name))
            _tell(
                bars.lines[0],
                [
                    f"{share:g} % of data: {number_text(metric, summary.mean)} (n={summary.n})"
                    for share, summary in zip(shares, summaries, strict=True)
                ],
            )
        axes.set(xlim=(0, 105), xlabel="training data [%]", ylabel=heading(metric))
        figure.legend(loc="lower left", handlelength=3.2)
        if counts:
            n = " to ".join(map(str, sorted({min(counts), max(counts)})))
            yield f"{metric_info(metric).title} by training data", f"n={n} seeds", figure


def _learning(part: Part) -> Drawings:
    histories = [run.history for one in part.configurations for run in one.runs if run.history]
    if not histories:
        return
    assert part.kind is not None
    info = selection_metric(part.kind)
    limits = {
        name: _limits(np.concatenate([history[name] for history in histories]))
        for name in ("epoch", "train/loss", "valid")
    }
    for one in part.configurations:
        runs = [run for run in one.runs if run.history]
        if not runs:
            continue
        figure, (above, below) = _frames(250, 2, left=66, hspace=0.14)
        above.sharex(below)
        above.tick_params(labelbottom=False)
        for axes, column, label in (
            (above, "train/loss", "training loss"),
            (below, "valid", f"valid {heading(info.name)}"),
        ):
            curves = [run.history[column] for run in runs]
            for run, curve in zip(runs, curves, strict=True):
                epochs = run.history["epoch"]
                (line,) = axes.plot(epochs, curve, linewidth=1, marker="o", markersize=3)
                # Nothing is drawn where a value is missing.
                _tell(
                    line,
                    [
                        f"seed {run.config.seed}, epoch {epoch:.0f}: {label} {value:.4g}"
                        for epoch, value in zip(epochs, curve, strict=True)
                        if np.isfinite(value) and np.isfinite(epoch)
                    ],
                )
            if len(curves) > 1:
                shared = min(map(len, curves))
                mean = np.mean([curve[:shared] for curve in curves], axis=0)
                look = {"marker": "", "linewidth": 2.2, "alpha": 0.55, "zorder": 1}
                axes.plot(runs[0].history["epoch"][:shared], mean, "k-", **look)
            axes.set(ylabel=label, ylim=limits[column])
            axes.yaxis.set_major_locator(MaxNLocator(4))
        below.set(xlabel="epoch", xlim=limits["epoch"])
        below.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        yield one.label, f"seeds {', '.join(str(run.config.seed) for run in runs)}", figure


def _limits(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Ends of an axis that all variants share; None where no value is a number."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    margin = 0.05 * (known.max() - known.min()) or 0.5
    return known.min() - margin, known.max() + margin


def _answers(one: Configuration) -> list[Predictions]:
    return [run.predictions for run in one.runs if run.predictions is not None]


def _shares(counts: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Counts by their sums along an axis; NaN, which is not drawn, where nothing is counted."""
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis, keepdims=True)
    return np.where(counts > 0, shares, np.nan)


def _confusion(part: Part) -> Drawings:
    counted = {
        one.identity: Counter(
            pair for own in _answers(one) for pair in zip(own.labels, own.answers, strict=True)
        )
        for one in part.configurations
    }
    found = {name for pairs in counted.values() for pair in pairs for name in pair}
    if part.kind is not MetricKind.emotion or not 0 < len(found) <= _MOST_CLASSES:
        return
    names = part.in_order(found)
    for one in part.configurations:
        pairs = counted[one.identity]
        counts = np.array([[pairs[truth, answer] for answer in names] for truth in names], float)
        if not counts.any():
            continue
        shares = _shares(counts, axis=1)
        figure, axes = _frames(336, left=80, bottom=84)
        _tell(
            axes.pcolormesh(shares, vmin=0, vmax=1),
            [
                f"truth {truth}, answer {answer}: {counts[row, column]:.0f} "
                f"({100 * shares[row, column]:.1f} % of {truth})"
                if counts[row, column]
                else ""
                for row, truth in enumerate(names)
                for column, answer in enumerate(names)
            ],
        )
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.6 else "black"
            look = {"ha": "center", "va": "center", "color": color}
            axes.text(column + 0.5, row + 0.5, f"{counts[row, column]:.0f}", **look)
        places = np.arange(len(names)) + 0.5
        # Long names may begin alike, or end alike.
        shown = [name if len(name) <= 11 else f"{name[:5]}…{name[-5:]}" for name in names]
        axes.set_xticks(places, shown, rotation=50, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, shown)
        axes.set(xlabel="answer", ylabel="truth", ylim=(len(names), 0))
        axes.grid(visible=False)
        yield one.label, f"{_seeds(len(_answers(one)))}, n={counts.sum():.0f}", figure


def _intensity(part: Part) -> Drawings:
    if part.kind is MetricKind.emotion:
        return
    pairs = {}
    for one in part.configurations:
        if answers := _answers(one):
            truth = np.concatenate([own.labels for own in answers])
            answer = np.concatenate([own.answers for own in answers])
            known = np.isfinite(truth) & np.isfinite(answer)
            if known.any():
                pairs[one.identity] = truth[known], answer[known]
    if not pairs:
        return
    every = np.concatenate([value for pair in pairs.values() for value in pair])
    labels = part.configurations[0].config.dataset.labels
    low = every.min() if labels.low is None else labels.low
    high = every.max() if labels.high is None else labels.high
    limits = (low, high) if low < high else (low - 0.5, low + 0.5)
    errors = {
        name: binned_statistic(
            np.clip(truth, *limits), np.abs(answer - truth), "mean", _RANGES, limits
        )[0]
        for name, (truth, answer) in pairs.items()
    }
    highest = max(np.nan_to_num(means).max() for means in errors.values())
    for one in part.configurations:
        if one.identity not in pairs:
            continue
        truth, answer = pairs[one.identity]
        inside = np.clip(truth, *limits)
        figure, (above, below) = _frames(400, 2, height_ratios=(2, 1), hspace=0.3)
        counts, edges, _ = np.histogram2d(
            inside, np.clip(answer, *limits), bins=_BINS, range=[limits, limits]
        )
        shares = _shares(counts, axis=1)
        _tell(
            above.pcolormesh(edges, edges, shares.T, vmin=0, vmax=1),
            [
                f"truth {edges[row]:.2g} to {edges[row + 1]:.2g}, answer {edges[column]:.2g} to "
                f"{edges[column + 1]:.2g}: {counts[row, column]:.0f}"
                if counts[row, column]
                else ""
                for column in range(_BINS)
                for row in range(_BINS)
            ],
        )
        above.plot(limits, limits, "k--", marker="", linewidth=1)
        above.set(xlabel="true intensity", ylabel="predicted intensity")
        above.locator_params(nbins=5)
        above.grid(visible=False)

        counts, edges, _ = binned_statistic(inside, inside, "count", _RANGES, limits)
        means = np.nan_to_num(errors[one.identity])
        middles, width = (edges[1:] + edges[:-1]) / 2, 0.8 * (edges[1] - edges[0])
        look = {"hatch": "///", "edgecolor": "black", "linewidth": 0.8}
        bars = below.bar(middles, means, width, **look)
        for bar, mean, count in zip(bars, means, counts, strict=True):
            _tell(bar, [f"mean absolute error {mean:.3f}, n={count:.0f}"])
        below.bar_label(bars, [f"n={count:.0f}" for count in counts], fontsize=9)
        below.set_ylim(0, 1.2 * highest or 1)
        below.set_xticks(edges, [f"{edge:.2g}" for edge in edges])
        below.set(xlabel="range of the true intensity", ylabel="MAE")
        below.grid(visible=False, axis="x")
        yield one.label, f"{_seeds(len(_answers(one)))}, n={len(truth)}", figure


def _reliability(part: Part) -> Drawings:
    for one in part.configurations:
        answers = _answers(one)
        if not answers:
            continue
        probabilities = np.concatenate([own.probabilities for own in answers])
        right = np.concatenate([_right(one, own) for own in answers])
        found = reliability(probabilities, right)
        filled = found.counts > 0
        width = 1 / len(found.counts)
        figure, axes = _frames(235)
        axes.plot([0, 1], [0, 1], "k--", marker="", linewidth=1)
        middles = (np.arange(len(found.counts))[filled] + 0.5) * width
        look = {"edgecolor": "black", "linewidth": 0.7, "alpha": 0.55}
        bars = axes.bar(middles, found.accuracy[filled], 0.86 * width, **look)
        for bar, accuracy, count in zip(
            bars, found.accuracy[filled], found.counts[filled], strict=True
        ):
            _tell(bar, [f"{100 * accuracy:.1f} % of {count:.0f} answers are right"])
        axes.bar_label(bars, [f"{count:.0f}" for count in found.counts[filled]], padding=4)
        axes.plot(found.confidence[filled], found.accuracy[filled], "ko-", markersize=4)
        axes.set(xlim=(0, 1), ylim=(0, 1.12), xticks=np.linspace(0, 1, 5))
        axes.set(yticks=np.linspace(0, 1, 5), xlabel="probability of the answer")
        axes.set_ylabel("share right")
        n = f"{_seeds(len(answers))}, n={found.counts.sum():.0f}"
        yield one.label, f"ECE {found.ece:.3f}, {n}", figure


def _right(one: Configuration, own: Predictions) -> NDArray[np.bool_]:
    """(N,) whether an answer is the truth, or of intensities the legal one nearest to it."""
    truth, answers = np.array(own.labels), np.array(own.answers)
    if one.kind is MetricKind.emotion:
        return np.asarray(truth == answers)
    step = one.config.dataset.labels.step or _STEP
    # Intensities were float32 on their way.
    return np.asarray(np.abs(answers - truth) <= step / 2 + 1e-6)


def _costs(part: Part) -> Drawings:
    timed: list[tuple[str, list[_Points]]] = []
    memory: list[tuple[str, list[_Points]]] = []
    for one in part.configurations:
        seconds = [
            (run.epoch_seconds, f"{one.label}, seed {run.config.seed}: {run.epoch_seconds:.2f} s")
            for run in one.runs
            if run.epoch_seconds is not None
        ]
        if seconds:
            timed.append((f"{one.label}, n={len(seconds)}", [seconds]))
        sizes = [(run.config.seed, run.size) for run in one.runs if run.size is not None]
        known = [
            [
                (value / 2**30, f"{one.label}, seed {seed}: {value / 2**30:.2f} GiB")
                for seed, value in values
                if value is not None
            ]
            for values in (
                [(seed, size.estimated) for seed, size in sizes],
                [(seed, size.measured) for seed, size in sizes],
            )
        ]
        if any(known):
            memory.append((f"{one.label}, n={len(sizes)}", list(known)))
    for title, caption, unit, rows, legend in (
        ("Time per epoch", "Mean over the epochs of a run.", "seconds", timed, ()),
        ("Memory", "Of the device that trained.", "GiB", memory, ("estimated", "measured peak")),
    ):
        if rows:
            figure = _strips(unit, rows, legend)
            figure.axes[0].set_xlim(left=0)
            yield title, caption, figure


_KINDS = {
    "Result per seed": _seed_spread,
    "Amount of training data": _volume,
    "Learning curves": _learning,
    "Confusion matrices": _confusion,
    "Predicted and true intensity": _intensity,
    "Reliability of the probabilities": _reliability,
    "Time and memory": _costs,
}
"""Heading to what draws the charts below it; ``page.html.jinja`` explains each."""
