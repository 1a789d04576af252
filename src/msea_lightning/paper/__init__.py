"""The paper's published numbers, as facts to print beside our own.

The CSV files of this package hold the tables of "MSE-Adapter" (AAAI 2025); each names its table in
its first line. Adapters and ablations have the titles under which they are registered.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources

from msea_lightning.adapter.options import ABLATIONS, ADAPTERS
from msea_lightning.model.options import MODELS

FULL = "none"
"""``ablation.name`` of the full model."""

_RESULTS = {"Table 2": "results_msa", "Table 3": "results_erc"}


def paper_table(name: str) -> list[dict[str, str]]:
    """The rows of one of the CSV files beside this module, as text."""
    text = (resources.files(__name__) / f"{name}.csv").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return list(csv.DictReader(lines))


@cache
def paper_titles(kind: str) -> dict[str, str]:
    """Name on the command line to name in the tables, of each ``dataset`` or ``backbone``."""
    return {row["name"]: row["title"] for row in paper_table("names") if row["kind"] == kind}


def dataset_title(name: str) -> str:
    """What tables call a data set; one that the paper does not have as it is."""
    return paper_titles("dataset").get(name, name)


def model_title(adapter: str, backbone: str) -> str:
    """A model's name: ``MSE-Qwen-1.8B`` as in the paper's tables, else ``MSE-Adapter with tiny``.

    Of a model without a backbone, ``adapter`` is its own name.
    """
    if not backbone:
        return MODELS.title(adapter)
    title, known = ADAPTERS.title(adapter), paper_titles("backbone")
    if adapter == "none":
        return f"{known.get(backbone, backbone)} without an adapter"
    if backbone in known:
        return f"{title.removesuffix('-Adapter')}-{known[backbone]}"
    return f"{title} with {backbone}"


@cache
def result_rows(dataset: str) -> tuple[str, list[dict[str, str]]]:
    """The table with the paper's results on a data set, such as ``Table 2``, and its rows.

    Each row has ``model``, ``cited`` (``yes`` or ``no``), and the metrics that are reported. Of a
    data set that the paper does not have, nothing.
    """
    for number, name in _RESULTS.items():
        rows = [row for row in paper_table(name) if row.pop("dataset") == dataset]
        if rows:
            columns = [name for name in rows[0] if any(row[name] for row in rows)]
            return number, [{name: row[name] for name in columns} for row in rows]
    return "", []


def paper_result(
    dataset: str, backbone: str, adapter: str = "mse", ablation: str = FULL
) -> dict[str, str]:
    """What the paper reports for a model: the mean over its five seeds on the test part.

    Metric (as in :mod:`msea_lightning.metrics`) to the number as it is printed there, shares in
    percent; empty where the paper reports nothing.
    """
    title = model_title(adapter, backbone)
    found: dict[str, str] = {}
    if ablation == FULL:
        for row in result_rows(dataset)[1]:
            if row["model"] == title:
                found = {name: row[name] for name in row if name not in ("model", "cited")}
    else:
        prefix = f"{dataset}_"
        for row in paper_table("ablation"):
            if (row["model"], row["variant"]) == (title, ABLATIONS.title(ablation)):
                own = (name for name in row if name.startswith(prefix))
                found = {name.removeprefix(prefix): row[name] for name in own}
    return {name: number for name, number in found.items() if number}


def paper_parameters(adapter: str, backbone: str, dataset: str) -> str:
    """The trainable parameters that the paper reports, in millions; empty where it does not."""
    for row in paper_table("trainable_parameters"):
        if row["model"] == model_title(adapter, backbone):
            return row.get(dataset, "")
    return ""


@cache
def published_prompts(dataset: str) -> set[str]:
    """The task prompts of a data set, the paper's and the original implementation's."""
    rows = (*paper_table("prompts_meld"), *paper_table("prompts"))
    return {row["prompt"] for row in rows if row["dataset"] == dataset}


def original_prompt(dataset: str, backbone: str) -> str | None:
    """The task prompt in the original implementation's configuration files, to the letter."""
    for row in (*paper_table("prompts_meld"), *paper_table("prompts")):
        if (row["dataset"], row["backbone"]) == (dataset, backbone):
            return row["prompt"]
    return None
