"""Draws what the W&B view of ``docs/reports-and-wandb.md`` has to show, from offline runs.

``python -m scripts.draw_wandb_view RUNS OUT.svg``: RUNS is a folder of run folders that were
trained with ``logger=wandb logger.wandb_mode=offline``. The numbers are read back from the files
that ``wandb sync`` would upload; the layout is ours, not a picture of the web app.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import matplotlib as mpl
from matplotlib.figure import Figure
from tests.reporting.wandb_files import Recorded, recordings, records

from msea_lightning.runs.folder import find_runs

CURVES = ("train/loss", "valid/WF1", "train/learning_rate", "train/seconds")


def main(root: Path, out: Path) -> None:
    """Reads the runs and draws."""
    groups: dict[tuple[str, str], list[Recorded]] = defaultdict(list)
    for run in (run for run in find_runs(root) if run.finished):
        for file in recordings(run):
            one = Recorded(run.load_config(), run, file.parent / "files", records(file))
            groups[one.begun.run_group, one.begun.job_type].append(one)
    runs = [one for own in groups.values() for one in own]
    known = {key for one in runs for row in one.history for key in row}
    curves = [key for key in CURVES if key in known]
    mpl.rcParams.update({"svg.fonttype": "none", "font.size": 8.5, "svg.hashsalt": "view"})
    figure = Figure(figsize=(9.4, 4.1))
    figure.suptitle("Read back from offline runs; not a picture of the web app", x=0.01, ha="left")
    grid = figure.add_gridspec(2, len(curves), height_ratios=(1.25, 1), hspace=0.35, wspace=0.4)
    grid.update(left=0.06, right=0.985, top=0.86, bottom=0.03)
    for place, key in enumerate(curves):
        axes = figure.add_subplot(grid[0, place], title=key, xlabel="trainer/global_step")
        for number, ((_, job), own) in enumerate(groups.items()):
            for index, one in enumerate(own):
                points = [(r["trainer/global_step"], r[key]) for r in one.history if key in r]
                label = f"Job Type {job}" if index == 0 else None
                style = "-" if number % 2 == 0 else "--"
                axes.plot(*zip(*points, strict=True), style, color=f"C{number}", lw=1, label=label)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        if place == 0:
            axes.legend(frameon=False)
    columns = ["test/WF1", "test/Acc", "valid/WF1", "best_epoch"]
    rows = []
    for (group, job), own in groups.items():
        cells = [f"{group} ▸ {job}", str(len(own))]
        for key in columns:
            values = [one.summary[key] for one in own if key in one.summary]
            spread = f" ± {stdev(values):.2f}" if len(values) > 1 and key.startswith("test") else ""
            cells.append(f"{fmean(values):.2f}{spread}" if values else "")
        rows.append(cells)
    axes = figure.add_subplot(grid[1, :])
    axes.axis("off")
    names = ["Group ▸ Job Type", "runs", *columns]
    table = axes.table(
        rows, colLabels=names, loc="upper center", cellLoc="left", edges="horizontal"
    )
    table.auto_set_column_width(range(len(names)))
    table.scale(1, 1.5)
    figure.savefig(out, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
