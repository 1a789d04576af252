"""The paper's published numbers, as facts to print beside our own.

The CSV files of this package hold the tables of "MSE-Adapter" (AAAI 2025); each names its table in
its first line.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources

BACKBONES = {"qwen": "Qwen-1.8B", "llama2": "LLaMA2-7B", "chatglm3": "ChatGLM3-6B"}
"""``backbone.name`` to the model's name in the tables."""

ADAPTERS = {"mse": "MSE", "mag": "MAG", "chfn": "CHFN"}
"""``adapter.name`` to the prefix of a model in the tables."""

VARIANTS = {
    "no_audio": "w/o A",
    "no_vision": "w/o V",
    "no_text": "w/o T",
    "no_audio_vision": "w/o A V",
    "no_tgm": "w/o TGM",
    "no_msf": "w/o MSF",
}
"""``ablation.name`` to the row of Table 4."""

_ABLATION_BACKBONE = "chatglm3"

_AS_THEY_ARE = ("mae", "corr")
"""Columns that are no percentages."""


def paper_table(name: str) -> list[dict[str, str]]:
    """The rows of one table, as text.

    Args:
        name: File name without its ending: ``results_msa`` (Table 2), ``results_erc`` (Table 3),
            ``ablation`` (Table 4), ``trainable_parameters`` (Tables 1 and 10), ``datasets``
            (Table 6), ``hyperparameters`` (Tables 7 to 9) or ``prompts`` (Figure 3).
    """
    text = (resources.files(__name__) / f"{name}.csv").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return list(csv.DictReader(lines))


def paper_result(
    dataset: str, backbone: str, adapter: str = "mse", ablation: str = "none"
) -> dict[str, float] | None:
    """What the paper reports for one cell: the mean over its five seeds on the test part.

    Args:
        dataset: ``dataset.name``: mosei, simsv2, meld or cherma.
        backbone: ``backbone.name``: qwen, llama2 or chatglm3.
        adapter: ``adapter.name``: mse, mag or chfn.
        ablation: ``ablation.name``: none, no_audio, no_vision, no_text, no_audio_vision, no_tgm
            or no_msf.

    Returns:
        Metric name (as in :mod:`msea_lightning.metrics`) to value, with shares between 0 and 1;
        None where the paper reports nothing.
    """
    return _results().get((dataset, backbone, adapter, ablation))


@cache
def _results() -> dict[tuple[str, str, str, str], dict[str, float]]:
    models = {
        f"{prefix}-{model}": (backbone, adapter)
        for backbone, model in BACKBONES.items()
        for adapter, prefix in ADAPTERS.items()
    }
    results = {}
    for row in paper_table("results_msa") + paper_table("results_erc"):
        dataset, model, _ = row.pop("dataset"), row.pop("model"), row.pop("cited")
        if model in models:
            backbone, adapter = models[model]
            results[dataset, backbone, adapter, "none"] = _numbers(row)
    variants = {row.pop("variant"): row for row in paper_table("ablation")}
    for ablation, variant in VARIANTS.items():
        for dataset in ("meld", "simsv2"):
            results[dataset, _ABLATION_BACKBONE, "mse", ablation] = _numbers(
                {
                    column.removeprefix(f"{dataset}_"): value
                    for column, value in variants[variant].items()
                    if column.startswith(f"{dataset}_")
                }
            )
    return results


def _numbers(row: dict[str, str]) -> dict[str, float]:
    """Percentages as shares; empty cells are left out."""
    return {
        name: float(value) if name in _AS_THEY_ARE else round(float(value) / 100, 6)
        for name, value in row.items()
        if value
    }
