"""The report as a whole: what is in the tables and the page for run folders in every state."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from msea_lightning.adapter.options import ABLATIONS, ADAPTERS, AblationConfig, AdapterOptions
from msea_lightning.metrics.options import MetricKind
from msea_lightning.model.options import MODELS, ModelOptions
from msea_lightning.reporting.console import print_table
from msea_lightning.reporting.report import Report, write_report
from msea_lightning.reporting.results import RESULTS_COLUMNS
from msea_lightning.reporting.tables import Table
from tests.reporting.folders import (
    make_config,
    write_answers,
    write_config,
    write_metrics,
    write_plan,
    write_run,
)

MELD = ("dataset=meld", "dataset.path=published", "backbone=chatglm3")
SIMSV2 = ("dataset=simsv2", "dataset.path=published", "backbone=chatglm3")
NASTY = "<script>alert(1)</script> a|b & 50 % _x_ $5 你好 #1 {y} \\z ~ ^"


class Page(HTMLParser):
    """Texts of table cells by row, ids, and every address that the page names."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.ids: list[str] = []
        self.places: list[str] = []
        self.tags: set[str] = set()
        self.targets: set[str] = set()
        self.images: list[dict[str, str | None]] = []
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._inside = True
            self.rows[-1].append("")
        if tag == "svg":
            self.images.append(values)
        if (name := values.get("id")) is not None:
            self.ids.append(name)
        for key in ("href", "src", "xlink:href", "srcset", "data", "action"):
            if (place := values.get(key)) is not None:
                self.places.append(place)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


def results(report: Report) -> list[dict[str, str]]:
    with report.results[0].open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def page(report: Report) -> Page:
    return Page(report.page.read_text(encoding="utf-8"))


def markdown_rows(report: Report) -> list[list[str]]:
    lines = report.results[1].read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip().replace("\\_", "_") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
        if line.startswith("|")
    ]


def markdown_headings(report: Report) -> list[str]:
    lines = report.results[1].read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("## ") for line in lines if line.startswith("## ")]


def latex_rows(report: Report) -> list[list[str]]:
    lines = report.results[2].read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip().replace("\\_", "_") for cell in line.removesuffix(r" \\").split(" & ")]
        for line in lines
        if line.endswith(r" \\")
    ]


def write_seeds(root: Path, words: Sequence[str], seeds: Sequence[int], skill: float = 0.6) -> None:
    for seed in seeds:
        name = "-".join(word.partition("=")[2] for word in words)
        write_run(root / f"{name}-{seed}", make_config(*words, seed=seed), skill=skill)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The paper's data sets with ablations of one, an adapter of Tables 5 and 10, and the demo."""
    root = tmp_path_factory.mktemp("runs")
    write_seeds(root, MELD, (1, 2, 3), 0.7)
    write_seeds(root, (*MELD, "ablation=no_text"), (1, 2, 3), 0.4)
    write_seeds(root, (*MELD, "ablation=no_audio"), (1, 2, 3), 0.6)
    for dataset in ("mosei", "simsv2", "meld", "cherma"):
        words = (f"dataset={dataset}", "dataset.path=published", "backbone=chatglm3")
        write_seeds(root, (*words, "adapter=mag"), (1,))
    write_seeds(root, SIMSV2, (1, 2))
    write_seeds(root, ("dataset=mosei", "dataset.path=published", "backbone=qwen"), (1,))
    write_seeds(root, ("dataset=cherma", "dataset.path=published", "backbone=llama2"), (1,))
    write_seeds(root, ("dataset=demo",), (1,))
    return write_report(root)


def test_results_are_what_the_predictions_say(report: Report) -> None:
    rows = {(r["dataset"], r["ablation"], r["adapter"], r["metric"]): r for r in results(report)}

    def predictions(name: str, seed: int) -> list[dict[str, str]]:
        with (report.page.parent / f"{name}-{seed}" / "predictions.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    accuracies = []
    for seed in (1, 2, 3):
        answers = predictions("meld-published-chatglm3", seed)
        right = sum(row["label"] == row["prediction"] for row in answers)
        accuracies.append(100 * right / len(answers))
    row = rows["meld", "none", "mse", "acc"]
    assert float(row["mean"]) == pytest.approx(statistics.mean(accuracies), abs=1e-9)
    assert float(row["sd"]) == pytest.approx(statistics.stdev(accuracies), abs=1e-9)
    assert float(row["max"]) == float(row["best"]) == pytest.approx(max(accuracies), abs=1e-9)
    assert float(row["min"]) == pytest.approx(min(accuracies), abs=1e-9)
    assert float(row["median"]) == pytest.approx(sorted(accuracies)[1], abs=1e-9)
    assert int(row["best_seed"]) == 1 + accuracies.index(max(accuracies))
    assert (row["n"], row["seeds"], row["unit"]) == ("3", "1;2;3", "%")
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    errors = []
    for seed in (1, 2):
        answers = predictions("simsv2-published-chatglm3", seed)
        wrong = [abs(float(row["label"]) - float(row["prediction"])) for row in answers]
        errors.append(statistics.mean(wrong))
    row = rows["simsv2", "none", "mse", "mae"]
    # Intensities are compared in float32.
    assert float(row["mean"]) == pytest.approx(statistics.mean(errors), abs=1e-7)
    assert float(row["best"]) == pytest.approx(min(errors), abs=1e-7)
    assert row["unit"] == ""
    assert list(row) == list(RESULTS_COLUMNS)


def test_the_papers_numbers_are_its_own(report: Report, shared: Path) -> None:
    def read(name: str) -> list[dict[str, str]]:
        lines = (shared / "paper" / name).read_text(encoding="utf-8").splitlines()
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))

    rows = {
        "html": page(report).rows,
        "md": markdown_rows(report),
        "tex": latex_rows(report),
    }
    paper = [*read("results_msa.csv"), *read("results_erc.csv")]
    for table in rows.values():
        for row in paper:
            source = "cited" if row["cited"] == "yes" else "paper"
            names = [n for n in row if n not in ("dataset", "model", "cited")]
            columns = {
                "mosei": ("acc2", "f1", "acc7", "mae", "corr"),
                "simsv2": ("acc2", "f1", "acc2_weak", "mae", "corr"),
            }.get(row["dataset"], tuple(names))
            expected = [row["model"], source, "", *(row[name] for name in columns)]
            assert any(found[: len(expected)] == expected for found in table), expected
        for row in read("ablation.csv"):
            expected = [row["variant"], "paper", "", row["meld_acc"], row["meld_wf1"]]
            assert expected in table
    reported = {
        (r["dataset"], r["backbone"], r["adapter"], r["ablation"], r["metric"]): r["paper"]
        for r in results(report)
    }
    assert reported["meld", "chatglm3", "mse", "none", "acc"] == "66.23"
    assert reported["meld", "chatglm3", "mse", "no_text", "wf1"] == "36.53"
    assert reported["meld", "chatglm3", "mag", "none", "acc"] == "60.38"
    assert reported["simsv2", "chatglm3", "mse", "none", "corr"] == "0.720"
    assert reported["mosei", "qwen", "mse", "none", "acc7"] == "52.02"
    assert reported["demo", "tiny", "mse", "none", "acc"] == ""
    # Table 1
    for row in read("trainable_parameters.csv"):
        if row["model"] in ("MSE-ChatGLM3-6B", "MSE-LLaMA2-7B", "MSE-Qwen-1.8B"):
            names = ("mosei", "simsv2", "meld", "cherma")
            expected = [row["model"], "paper", *(row[name] for name in names)]
            for table in rows.values():
                assert expected in table


def test_the_papers_tables_have_only_the_runs_that_were_asked_for(report: Report) -> None:
    rows = page(report).rows
    assert ["MSE-LLaMA2-7B", "paper", "", "65.14", "63.66"] in rows  # of MELD, without a run
    assert not any(row[:3] == ["w/o TGM", "ours", "0"] for row in rows)
    headings = [heading for heading in markdown_headings(report) if "demo" in heading]
    assert headings == ["Variants: demo"]


def test_ablations_are_tested_against_the_full_model(report: Report) -> None:
    def accuracies(words: Sequence[str]) -> list[float]:
        name = "-".join(word.partition("=")[2] for word in words)
        folders = [report.page.parent / f"{name}-{seed}" for seed in (1, 2, 3)]
        return [json.loads((f / "metrics.json").read_text())["test"]["acc"] for f in folders]

    full = accuracies(MELD)
    p_values = [
        stats.ttest_rel(accuracies((*MELD, f"ablation={name}")), full).pvalue
        for name in ("no_audio", "no_text")
    ]
    smaller = min(p_values)
    corrected = [min(1, max(2 * smaller, p if p > smaller else 2 * p)) for p in p_values]
    rows = {(r["ablation"], r["metric"]): r for r in results(report) if r["dataset"] == "meld"}
    for index, name in enumerate(("no_audio", "no_text")):
        row = rows[name, "acc"]
        assert float(row["p_value"]) == pytest.approx(p_values[index], rel=1e-6)
        assert float(row["p_holm"]) == pytest.approx(corrected[index], rel=1e-6)
    assert rows["none", "acc"]["p_value"] == ""
    assert "scipy.stats.ttest_rel" in report.page.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(report: Report) -> None:
    html = report.page.read_text(encoding="utf-8")
    found = page(report)
    assert not re.search(r"https?:|@import|url\((?!#)|//[a-z]", html)
    # Nothing but the one script, which has no address, may run, whatever a text smuggles in.
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    assert f"{policy}script-src 'sha256-{digest}'" in html
    assert all(place.startswith("#") or place == "data:," for place in found.places)
    assert len(found.ids) == len(set(found.ids))
    # Clip paths and anchors lead somewhere.
    targets = {place[1:] for place in found.places if place.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert targets <= set(found.ids)
    assert found.images
    for image in found.images:
        assert image["role"] == "img"
        assert image["aria-label"]
        assert int(image["width"] or 0) <= 350
    assert "prefers-color-scheme: dark" in html


def test_what_a_point_stands_for_is_beside_the_pointer(report: Report) -> None:
    html = report.page.read_text(encoding="utf-8")
    (row,) = (
        r
        for r in results(report)
        if (r["dataset"], r["backbone"], r["adapter"]) == ("mosei", "qwen", "mse")
        and r["metric"] == "corr"
    )
    assert f"<title>MSE-Qwen-1.8B, seed 1: {float(row['mean']):.3f}</title>" in html
    titles = re.findall(r"<title>(truth .*?)</title>", html)
    assert any(re.fullmatch(r"truth joy, answer \w+: \d+ \(.* % of joy\)", t) for t in titles)


def test_charts_of_every_kind(report: Report) -> None:
    html = report.page.read_text(encoding="utf-8")
    for heading in (
        "Result per seed",
        "Learning curves",
        "Confusion matrices",
        "Predicted and true intensity",
        "Reliability of the probabilities",
        "Time and memory",
        "Disputed utterances",
    ):
        assert heading in html


def test_names_and_order_of_folders_change_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_seeds(first, MELD, (1, 2))
    write_seeds(first, (*MELD, "ablation=no_text"), (1, 2))
    write_seeds(first, SIMSV2, (1,))
    for index, run in enumerate(sorted(first.iterdir(), reverse=True)):
        shutil.copytree(run, second / "deep" / f"{index:02d}" / "x")
    before, after = (write_report(root) for root in (first, second))
    for one, other in zip(
        (before.page, *before.results), (after.page, *after.results), strict=True
    ):
        assert one.read_bytes() == other.read_bytes()


def test_planned_failed_and_partial(tmp_path: Path) -> None:
    seeds = (1, 2, 3, 4, 5)
    write_seeds(tmp_path, MELD, (1, 2, 3))
    failed = tmp_path / "failed"
    write_config(failed, make_config(*MELD, seed=4))
    (failed / "error.json").write_text(json.dumps({"error": NASTY, "kind": "memory"}))
    (failed / ".metrics.json.partial").write_text("{}")
    none = (*MELD, "ablation=no_msf")
    plan = [make_config(*words, seed=seed) for words in (MELD, none) for seed in seeds]
    write_plan(tmp_path, plan)
    # The same runs in the plan of another sweep, and one that trains nothing.
    write_plan(tmp_path, [replace(config, experiment="figure4") for config in plan], name="again")
    size = make_config("dataset=mosei", "backbone=qwen", "size_only=true")
    write_plan(tmp_path, [size], name="size")
    report = write_report(tmp_path)
    names = ("finished runs", "missing", "of these failed")
    assert [report.counts[name] for name in names] == [3, 8, 1]
    found = page(report).rows
    assert any(row[0] == "MSE-ChatGLM3-6B" and row[2] == "3 of 5 seeds" for row in found)
    assert ["w/o MSF", "ours", "0 of 5 seeds", "missing", "missing"] in found
    assert ["MELD", "complete model", "4", "failed", f"memory: {NASTY}"] in found
    assert ["MELD", "complete model", "5", "planned", "not begun"] in found
    assert ["MOSEI", "MSE-Qwen-1.8B, size only", "1111", "planned", "not begun"] in found
    rows = {(r["ablation"], r["metric"]): r for r in results(report)}
    assert rows["none", "acc"]["missing_seeds"] == "4;5"
    assert rows["no_msf", "acc"]["n"] == "0"
    assert rows["no_msf", "acc"]["paper"] == "62.72"
    assert rows["no_msf", "acc"]["missing_seeds"] == "1;2;3;4;5"


def test_of_two_runs_with_the_same_options_the_later_counts(tmp_path: Path) -> None:
    config = make_config("dataset=demo")
    write_run(tmp_path / "b-old", config, skill=0.2)
    late = write_run(tmp_path / "a-new", config, skill=0.9)
    os.utime(tmp_path / "b-old" / "metrics.json", (1, 1))
    report = write_report(tmp_path)
    (row,) = (r for r in results(report) if r["metric"] == "acc")
    assert (row["n"], float(row["mean"])) == ("1", pytest.approx(100 * late["acc"]))
    assert any(
        row[0] == "a-new" and "b-old, which has the same options" in row[1]
        for row in page(report).rows
    )


def test_runs_that_differ_in_an_option_are_not_averaged(tmp_path: Path) -> None:
    write_seeds(tmp_path, MELD, (1, 2))
    write_seeds(tmp_path, (*MELD, "adapter.pseudo_tokens=7"), (1, 2))
    # Where and how they ran is no difference.
    write_run(tmp_path / "elsewhere", make_config(*MELD, "trainer.threads=3", "runs=there", seed=3))
    rows = [r for r in results(write_report(tmp_path)) if r["metric"] == "acc"]
    assert {(r["options"], r["n"]) for r in rows} == {
        ("adapter.pseudo_tokens=4", "3"),
        ("adapter.pseudo_tokens=7", "2"),
    }


def test_two_kinds_of_labels_under_one_name_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "emotions", make_config("dataset=demo"))
    write_run(tmp_path / "scale", make_config("dataset=demo", "dataset.demo_task=msa"), high=3)
    report = write_report(tmp_path)
    assert markdown_headings(report) == ["Variants: demo (emotion)", "Variants: demo (mosei)"]
    html = report.page.read_text(encoding="utf-8")
    assert "<h2>demo (mosei)</h2>" in html
    assert "<h2>demo (emotion)</h2>" in html


def test_runs_whose_data_has_changed_are_not_averaged(tmp_path: Path) -> None:
    words = ("dataset=table", "dataset.path=mine")
    write_run(tmp_path / "1", make_config(*words, seed=1))
    write_run(tmp_path / "2", make_config(*words, seed=2), high=3)
    write_run(tmp_path / "3", make_config(*words, "ablation=no_text", seed=2), high=3)
    write_config(tmp_path / "4", make_config(*words, seed=4))
    report = write_report(tmp_path)
    assert report.counts["configurations"] == 3
    rows = {(r["ablation"], r["metric"]): r for r in results(report)}
    assert rows["none", "acc"]["seeds"] == "1"
    assert rows["none", "acc"]["missing_seeds"] == "4"
    assert rows["none", "mae"]["seeds"] == "2"
    assert ["w/o T", "MAE", "1"] in [row[:3] for row in page(report).rows]


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("metrics.json", "[" * 100_000, "metrics.json is broken: maximum recursion depth"),
        (
            "metrics.json",
            '{"test": {"acc": 1%s, "wf1": 1}}' % ("0" * 400),
            "metrics.json is broken",
        ),
        ("memory.json", '{"total": 1e999}', "memory.json is broken: cannot convert float infinity"),
        ("config.yaml", "3", "config.yaml: it holds no options"),
    ],
)
def test_no_file_stops_the_report(tmp_path: Path, file: str, text: str, problem: str) -> None:
    write_seeds(tmp_path, MELD, (1, 2))
    (tmp_path / "meld-published-chatglm3-1" / file).write_text(text)
    rows = page(write_report(tmp_path)).rows
    assert any(entry.startswith(problem) for row in rows for entry in row)


def test_an_infinite_metric_is_undefined(tmp_path: Path) -> None:
    write_seeds(tmp_path, MELD, (1, 2))
    folder = tmp_path / "meld-published-chatglm3-1"
    (folder / "predictions.csv").unlink()
    (folder / "metrics.json").write_text(
        '{"test": {"acc": Infinity, "wf1": 0.5}, "warnings": null}'
    )
    (row,) = (r for r in results(write_report(tmp_path)) if r["metric"] == "acc")
    assert (row["n"], row["undefined_seeds"]) == ("1", "1")


def test_broken_files_are_shown_and_stop_nothing(tmp_path: Path) -> None:
    write_seeds(tmp_path, MELD, (1, 2, 3, 4, 5, 6))
    name = "meld-published-chatglm3"
    (tmp_path / f"{name}-1" / "predictions.csv").write_text("id,text\n1\n")
    (tmp_path / f"{name}-2" / "history.csv").unlink()
    (tmp_path / f"{name}-3" / "memory.json").write_text('{"total": "much"}')
    (tmp_path / f"{name}-4" / "metrics.json").write_text("{")
    (tmp_path / f"{name}-5" / "config.yaml").write_text("- a list")
    (tmp_path / f"{name}-6" / "config.yaml").write_text("seed: [")
    write_seeds(tmp_path, MELD, (7,))
    (tmp_path / f"{name}-7" / "history.csv").write_text("epoch,seconds\n0,1.5\n")
    write_seeds(tmp_path, MELD, (8,))
    add(tmp_path / f"{name}-8", "metrics.json", verdict="Better.")
    (tmp_path / "sweeps").mkdir()
    # As earlier versions wrote it.
    (tmp_path / "sweeps" / "earlier.json").write_text('{"cells": [{"overrides": []}]}')
    report = write_report(tmp_path)
    found = page(report).rows
    for run, text in (
        (f"{name}-1", "predictions.csv is broken: record 1 has more or fewer fields"),
        (f"{name}-2", "history.csv is missing"),
        (f"{name}-3", "memory.json is broken: invalid literal"),
        (f"{name}-7", "history.csv is broken: it has no 'train/loss'"),
        (f"{name}-8", "metrics.json is broken: verdict is no list but 'Better.'"),
        (f"{name}-5", "config.yaml: it holds no options"),
        (f"{name}-6", "config.yaml: "),
        ("sweeps/earlier.json", "the plan of this sweep cannot be read (KeyError('runs'))"),
    ):
        assert any(row[0] == run and row[1].startswith(text) for row in found if len(row) == 2)
    assert any(
        row[2:4] == ["4", "failed"] and "metrics.json is broken" in row[4]
        for row in found
        if len(row) == 5
    )
    assert report.counts["finished runs"] == 5


def test_classes_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    names = ("somewhat calm", "somewhat sad")
    write_run(tmp_path / "run", make_config("dataset=demo"), emotions=names, skill=0.5)
    html = write_report(tmp_path).page.read_text(encoding="utf-8")
    assert all(f">{shown}<" in html for shown in ("somew… calm", "somew…t sad"))


def test_wrong_metrics_are_called_out(tmp_path: Path) -> None:
    config = make_config("dataset=demo")
    metrics = write_run(tmp_path / "run", config)
    write_metrics(tmp_path / "run", {**metrics, "acc": 0.123})
    report = write_report(tmp_path)
    text = f"metrics.json states acc 0.123, but predictions.csv gives {metrics['acc']!r}"
    assert any(row[0] == "run" and text in row[1] for row in page(report).rows)
    assert "1 metric in metrics.json disagrees" in report.page.read_text(encoding="utf-8")
    (row,) = (r for r in results(report) if r["metric"] == "acc")
    assert float(row["mean"]) == pytest.approx(100 * metrics["acc"])


def test_undefined_metrics(tmp_path: Path) -> None:
    for seed, answer in ((1, 0.5), (2, -0.5)):
        folder = tmp_path / str(seed)
        write_config(folder, make_config(*SIMSV2, seed=seed))
        rows = [
            {"id": i, "text": "", "label": label, "prediction": answer, "probability": 0.5}
            for i, label in enumerate((-0.8, 0.8))
        ]
        metrics = write_answers(folder, MetricKind.simsv2, rows)
        assert math.isnan(metrics["corr"])
    report = write_report(tmp_path)
    rows_by_metric = {r["metric"]: r for r in results(report)}
    assert rows_by_metric["corr"]["n"] == "0"
    assert rows_by_metric["corr"]["mean"] == ""
    assert rows_by_metric["corr"]["undefined_seeds"] == "1;2"
    assert rows_by_metric["mae"]["n"] == "2"
    assert any("undefined" in row for row in markdown_rows(report))


def test_texts_are_escaped(tmp_path: Path) -> None:
    config = make_config("dataset=demo", "dataset.name='<b>x|&_%'")
    names = ("<i>a|b</i>", "$c_d%")
    for seed in (1, 2):
        run = make_config("dataset=demo", "dataset.name='<b>x|&_%'", seed=seed)
        write_run(tmp_path / f"<run {seed}>", run, texts=[NASTY] * 40, emotions=names, skill=0.1)
    assert config.dataset.name == "<b>x|&_%"
    report = write_report(tmp_path)
    html = report.page.read_text(encoding="utf-8")
    for raw in ("<script>alert", "<b>", "<i>"):
        assert raw not in html
    assert any(NASTY in row for row in page(report).rows)
    markdown = report.results[1].read_text(encoding="utf-8")
    assert "## Variants: &lt;b&gt;x\\|&amp;\\_%" in markdown
    latex = report.results[2].read_text(encoding="utf-8")
    assert r"\textless{}b\textgreater{}x\textbar{}\&\_\%" in latex
    assert len({len(row) for row in latex_rows(report)}) == 1


def test_sizes(tmp_path: Path) -> None:
    for name, measured in (("done", True), ("begun", False)):
        words = (*MELD, "size_only=true", f"seed={1 if measured else 2}")
        write_config(tmp_path / name, make_config(*words[:-1], seed=1 if measured else 2))
    size = {"trainable_parameters": 2_634_567, "backbone_parameters": 1, "memory_bytes": 2**34}
    (tmp_path / "done" / "metrics.json").write_text(json.dumps({"size": size}))
    report = write_report(tmp_path)
    rows = page(report).rows
    assert ["MSE-ChatGLM3-6B", "paper", "2.63"] in rows
    assert ["MSE-ChatGLM3-6B", "ours", "2.63"] in rows
    assert ["MSE-ChatGLM3-6B", "memory", "16.00 GiB"] in rows
    assert any("size only" in row[1] and row[3] == "begun" for row in rows if len(row) == 5)
    (counted,) = results(report)
    assert (counted["metric"], counted["unit"], counted["paper"]) == (
        "trainable_parameters",
        "M",
        "2.63",
    )
    assert float(counted["mean"]) == 2.634567
    assert float(counted["difference"]) == pytest.approx(0.004567)


def test_sizes_that_are_broken_or_there_twice(tmp_path: Path) -> None:
    words = (*MELD, "size_only=true")
    size = {"trainable_parameters": 2_634_567, "memory_bytes": 2**34}
    files = {"old": {"size": size}, "new": {"size": size}}
    broken: dict[str, Any] = {"list": {"size": [3]}, "unknown": {"size": {"memory_bytes": 2**34}}}
    for seed, (name, found) in enumerate((files | broken).items()):
        write_config(tmp_path / name, make_config(*words, seed=max(1, seed)))
        (tmp_path / name / "metrics.json").write_text(json.dumps(found))
    os.utime(tmp_path / "old" / "metrics.json", (1, 1))
    report = write_report(tmp_path)
    assert report.counts["of these failed"] == 2
    assert [row["mean"] for row in results(report)] == ["2.634567"]
    rows = page(report).rows
    assert any(row[0] == "new" and "old, which has the same options" in row[1] for row in rows)
    assert any("it has no 'trainable_parameters'" in row[-1] for row in rows)


def test_a_data_set_of_which_nothing_is_finished(tmp_path: Path) -> None:
    words = ("dataset=table", "dataset.path=mine")
    write_plan(tmp_path, [make_config(*words, seed=seed) for seed in (1, 2)])
    report = write_report(tmp_path)
    assert (report.counts["finished runs"], report.counts["missing"]) == (0, 2)
    (row,) = results(report)
    assert (row["dataset"], row["metric"], row["n"], row["missing_seeds"]) == (
        "table",
        "",
        "0",
        "1;2",
    )
    assert ["MSE-Adapter with tiny", "0 of 2 seeds", "missing"] in markdown_rows(report)
    assert ["MSE-Adapter with tiny", "0 of 2 seeds", "missing"] in page(report).rows


def test_amounts_of_training_data(tmp_path: Path) -> None:
    words = ("dataset=cherma", "dataset.path=published", "backbone=llama2")
    for fraction in ("0.2", "1.0"):
        write_seeds(tmp_path, (*words, f"dataset.train_fraction={fraction}"), (1, 2))
    report = write_report(tmp_path)
    assert "Amount of training data" in report.page.read_text(encoding="utf-8")
    found = {
        (r["train_fraction"], r["paper"], r["tables"])
        for r in results(report)
        if r["metric"] == "acc"
    }
    assert found == {("0.2", "", "figure4"), ("1.0", "71.58", "table3;figure4")}


def test_what_is_newly_registered_has_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class NewOptions(AdapterOptions):
        """An adapter that nobody has heard of."""

    @dataclass
    class OtherOptions(ModelOptions):
        """A model without an adapter."""

    for registry in (ADAPTERS, ABLATIONS, MODELS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    MODELS.register("other", "nowhere.Other", title="Other")(OtherOptions)
    ADAPTERS.register("new", "nowhere.New", title="NEW")(NewOptions)
    ABLATIONS.register("no_sound", title="w/o Sound")(AblationConfig("no_sound", audio=False))
    full = make_config(*MELD)
    write_run(tmp_path / "full", full)
    write_run(tmp_path / "new", replace(full, adapter=NewOptions()))
    write_run(tmp_path / "part", replace(full, ablation=ABLATIONS.options("no_sound")))
    write_run(tmp_path / "other", replace(full, model=OtherOptions()))
    report = write_report(tmp_path)
    for rows in (markdown_rows(report), latex_rows(report), page(report).rows):
        assert any(row[:3] == ["Other", "ours", "1"] for row in rows)
        shown = {tuple(row[:3]) for row in rows}
        assert {("NEW-ChatGLM3-6B", "ours", "1"), ("w/o Sound", "ours", "1")} <= shown
    tables = {(r["adapter"], r["ablation"]): r["tables"] for r in results(report)}
    assert tables == {
        ("mse", "none"): "table3;table4;table5",
        ("new", "none"): "table5",
        ("mse", "no_sound"): "table4",
        ("other", "none"): "table3",
    }


def test_results_of_little_worth_are_said_beside_the_row(tmp_path: Path) -> None:
    write_seeds(tmp_path, MELD, (1, 2))
    file = tmp_path / "meld-published-chatglm3-1" / "metrics.json"
    sentence = "all 40 test predictions are joy; the most frequent label, neutral, is 48.1% of them"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "majority": 0.481, "warnings": [sentence]})
    )
    report = write_report(tmp_path)
    for rows in (markdown_rows(report), page(report).rows):
        index = rows.index(["MSE-ChatGLM3-6B", "warning", "", "see warnings: 1 of 2 runs", ""])
        assert rows[index - 2][:3] == ["MSE-ChatGLM3-6B", "ours", "2"]
        assert ["MELD", "MSE-ChatGLM3-6B", "1", sentence] in rows


def test_control_characters_are_escaped(tmp_path: Path) -> None:
    evil = "a\x1b[31mb\u202ec\x00\x85d"
    shown = r"a\x1b[31mb\u202ec\x00\x85d"
    for seed in (1, 2):
        config = make_config("dataset=demo", seed=seed)
        folder = tmp_path / str(seed)
        write_run(folder, config, texts=[evil] * 40, emotions=("p\x07q", "r"), skill=0.1)
    file = tmp_path / "1" / "metrics.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "warnings": [evil]}))
    failed = tmp_path / "3"
    write_config(failed, replace(config, seed=3))
    (failed / "error.json").write_text(json.dumps({"error": evil, "kind": "crashed"}))
    report = write_report(tmp_path)
    for path in (report.page, *report.results):
        text = path.read_text(encoding="utf-8")
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text), path
    rows = page(report).rows
    assert any(shown in row for row in rows)
    assert any(f"crashed: {shown}" in row for row in rows)


def add(folder: Path, name: str, **values: Any) -> None:
    """Adds values to a JSON file of a run, which need not be there."""
    file = folder / name
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **values}))


def test_the_report_is_about_the_data(tmp_path: Path) -> None:
    words = ("dataset=table", "dataset.path=mine")
    write_seeds(tmp_path, words, (1, 2))
    write_seeds(tmp_path, (*words, "ablation=no_audio"), (1, 2))
    plan = [make_config(*words, seed=seed) for seed in (1, 2)]
    write_plan(tmp_path, plan)
    add(tmp_path / "sweeps", "sweep.json", command=["train.py", "-m", "seed=1,2"])
    labels = {"train": {"dull": 30, "bright": 10}, "test": {"dull": 8, "bright": 2}}
    for folder in (path for path in tmp_path.iterdir() if path.name.startswith("table")):
        constant = {"name": "always dull", "kind": "constant", "test": {"acc": 0.8, "wf1": 0.7}}
        text = {"name": "TF-IDF", "kind": "text", "test": {"acc": 0.85, "wf1": None}}
        add(
            folder,
            "metrics.json",
            references=[constant, text],
            verdict=["Better than always dull."],
            data={"utterances": {"train": 1040, "test": 10}, "labels": labels},
        )
        command = ["train.py", f"seed={folder.name[-1]}", "dataset.path=my table"]
        add(folder, "env.json", command=command, commit="0123456789abcdef-dirty")
    report = write_report(tmp_path)
    found = page(report).rows
    (headings,) = (row for row in found if row[:2] == ["Variant", "n"] and row[-1] == "p (Holm)")
    assert headings[2:-1] == ["WF1 [%]", "95 % interval", "Acc [%]", "Δ WF1 [%]"]
    variants = found[found.index(headings) + 1 :][:4]
    assert [row[:2] for row in variants] == [
        ["complete model", "2"],
        ["w/o A", "2"],
        ["always dull", ""],
        ["TF-IDF", ""],
    ]
    assert re.fullmatch(r"\d+\.\d\d to \d+\.\d\d", variants[0][3])
    assert variants[2][2:5] == ["70.00", "", "80.00"]
    assert variants[3][2:5] == ["undefined", "", "85.00"]
    assert ["complete model", "1, 2", "Better than always dull."] in found
    html = report.page.read_text(encoding="utf-8")
    for text in (
        "<dd>1,040 train, 10 test</dd>",
        "<dd>0123456789 with changes</dd>",
        "<code>python -m msea_lightning.train -m seed=1,2</code>",
        # Of a run that no sweep has planned.
        "<code>python -m msea_lightning.train seed=1 &#39;dataset.path=my table&#39;</code>",
        "<title>dull, train: 30 of 40 utterances (75.0 %)</title>",
    ):
        assert text in html
    assert "Table 3" not in html
    (table,) = report.tables
    assert table.columns == ("Variant", "n", "WF1 [%]", "Acc [%]")
    assert [row[0] for row in table.rows] == [row[0] for row in variants]


def test_a_data_set_without_a_word_of_its_labels_shows_those_of_its_answers(tmp_path: Path) -> None:
    write_run(tmp_path / "run", make_config("dataset=demo", "dataset.demo_task=msa"), high=3)
    report = write_report(tmp_path)
    html = report.page.read_text(encoding="utf-8")
    assert "<dd>40 test</dd>" in html
    assert re.search(r"<title>-1, test: \d+ of 40 utterances", html)
    # Seven classes, as Acc-7 has them.
    headings = next(row for row in page(report).rows if row[2:3] and row[2].startswith("-3 ("))
    assert [heading.partition(" ")[0] for heading in headings[2:]] == list(map(str, range(-3, 4)))


def test_what_differs_is_said_first_and_never_cut(tmp_path: Path) -> None:
    words = ("dataset=demo", "ablation=no_audio")
    value = "A very long prompt, " * 20
    for index, more in enumerate(("adapter.pseudo_tokens=7", "training.patience=3")):
        write_run(tmp_path / str(index), make_config(*words, more))
    options = make_config("dataset=demo")
    write_run(tmp_path / "long", replace(options, prompt=replace(options.prompt, task=value)))
    write_run(tmp_path / "full", make_config("dataset=demo"))
    labels = {row[0] for table in write_report(tmp_path).tables for row in table.rows}
    assert any(label.startswith("w/o A, pseudo_tokens=7, patience=") for label in labels)
    assert any(value.strip() in label for label in labels)


@pytest.mark.parametrize("width", [80, 100])
def test_a_table_fits_the_terminal(width: int) -> None:
    name = "w/o A, a_long_option=of many words, and another_one_as_well=0.123456"
    columns = ("Variant", "n", *(f"Metric {number} [%]" for number in range(9)))
    rows = [(name, "5", *["12.34 ± 5.67"] * 9), ("complete model", "5", *["99.99 ± 0.01"] * 9)]
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    print_table(Table("Variants: mine", "", columns, rows, words=1), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert text.count("12.34 ± 5.67") == text.count("99.99 ± 0.01") == 9
    assert "…" not in text
    for number in range(9):
        assert text.count(f"Metric {number} [%]") == 1


def test_histories_of_before_are_read(tmp_path: Path) -> None:
    config = make_config("dataset=demo")
    for name, column, value in (("new", "valid/WF1", "43.5"), ("old", "valid/wf1", "0.435")):
        write_run(tmp_path / name / "run", config)
        text = f"epoch,seconds,train/loss,{column}\n0,1.5,2.0,{value}\n"
        (tmp_path / name / "run" / "history.csv").write_text(text)
        html = write_report(tmp_path / name).page.read_text(encoding="utf-8")
        assert "epoch 0: valid WF1 [%] 43.5<" in html
