"""The paper's numbers as package data."""

from __future__ import annotations

import pytest

from msea_lightning.metrics import METRICS
from msea_lightning.paper import paper_result, paper_table

TABLES = (
    "ablation",
    "datasets",
    "hyperparameters",
    "prompts",
    "results_erc",
    "results_msa",
    "trainable_parameters",
)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (
            ("mosei", "llama2"),
            {"acc2": "86.74", "f1": "86.51", "acc7": "55.57", "mae": "0.501", "corr": "0.787"},
        ),
        (
            ("simsv2", "chatglm3", "mse", "none"),
            {"acc2": "83.77", "f1": "83.76", "acc2_weak": "75.24", "mae": "0.296", "corr": "0.720"},
        ),
        (("cherma", "qwen"), {"acc": "70.38", "wf1": "70.21"}),
        (("meld", "chatglm3", "chfn"), {"acc": "63.03", "wf1": "62.08"}),
        (("meld", "chatglm3", "mse", "no_text"), {"acc": "46.44", "wf1": "36.53"}),
        (("simsv2", "chatglm3", "mse", "no_audio_vision"), {"acc2": "76.54", "f1": "75.98"}),
    ],
)
def test_cells(cell: tuple[str, ...], expected: dict[str, str]) -> None:
    assert paper_result(*cell) == expected


@pytest.mark.parametrize(
    "cell",
    [
        ("demo", "tiny"),
        ("meld", "tiny"),
        ("mosi", "llama2"),
        ("meld", "qwen", "mag"),
        ("meld", "llama2", "mse", "no_text"),
        ("meld", "chatglm3", "mag", "no_text"),
        ("mosei", "chatglm3", "mse", "no_text"),
    ],
)
def test_what_the_paper_does_not_report(cell: tuple[str, ...]) -> None:
    assert paper_result(*cell) == {}


def test_every_cell_of_the_grid_has_known_metrics() -> None:
    for dataset in ("mosei", "simsv2", "meld", "cherma"):
        for backbone in ("qwen", "llama2", "chatglm3"):
            result = paper_result(dataset, backbone)
            assert result
            assert set(result) <= set(METRICS)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_whole(name: str) -> None:
    rows = paper_table(name)
    assert rows
    for row in rows:
        assert None not in row
        assert None not in row.values()


def test_the_full_model_of_table_4_is_that_of_tables_2_and_3() -> None:
    (row,) = (row for row in paper_table("ablation") if row["variant"] == "MSE-Adapter")
    for dataset, names in (("meld", ("acc", "wf1")), ("simsv2", ("acc2", "f1"))):
        result = paper_result(dataset, "chatglm3")
        for name in names:
            assert result[name] == row[f"{dataset}_{name}"]
