"""The twelve pairs of the paper, small: data in the published layouts, models in their own formats.

Where the real tokenizers are at hand they are used; the language models have the architectures of
the paper's with small random weights.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from msea_lightning.backbone import load_tokenizer
from msea_lightning.config.roots import EvaluateConfig, TrainConfig
from msea_lightning.data.options import Split
from msea_lightning.model.build import build_prompt
from msea_lightning.paper import paper_table
from msea_lightning.runs.folder import RunFolder
from msea_lightning.training.evaluation import evaluate
from msea_lightning.training.fit import fit
from tests.backbone.checkpoints import SMALL, write_checkpoint, write_tokenizer
from tests.data.published import COUNTS, write_dialogue, write_mmsa
from tests.places import ROOT

Options = Callable[..., TrainConfig]

BACKBONES = ("llama2", "qwen", "chatglm3")
DATASETS = ("mosei", "simsv2", "meld", "cherma")
WIDTHS = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
HEADS = {
    "llama2": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "qwen": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "chatglm3": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
}
BEGINNINGS = {
    "llama2": '<s> <s> "<',
    "qwen": '<|im_start|> <|im_start|> "<',
    "chatglm3": '[gMASK] sop "{',
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every data set of the paper as it is published, with a few utterances."""
    folder = tmp_path_factory.mktemp("published")
    paths = {name: write_mmsa(folder / name, name) for name in ("mosei", "simsv2")}
    return paths | {name: write_dialogue(folder / name, name) for name in ("meld", "cherma")}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The real tokenizers where they are at hand, else small ones in the same formats."""
    real = ROOT.parent / "shared" / "tokenizers"
    if real.is_dir():
        return {name: real / name for name in BACKBONES}
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {name: write_tokenizer(folder / name, name) for name in BACKBONES}
    (made["chatglm3"] / "config.json").write_text(json.dumps({"model_type": "chatglm"}))
    return made


def rows(run: RunFolder) -> list[dict[str, str]]:
    with run.predictions.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def loaded(tokenizers: dict[str, Path]) -> dict[str, PreTrainedTokenizerBase]:
    return {name: load_tokenizer(str(folder)) for name, folder in tokenizers.items()}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_pair_has_its_recipe_and_its_sequence(
    options: Options,
    loaded: dict[str, PreTrainedTokenizerBase],
    dataset: str,
    backbone: str,
) -> None:
    config = options(f"dataset={dataset}", f"backbone={backbone}")
    (recipe,) = (
        row
        for row in paper_table("hyperparameters")
        if (row["dataset"], row["backbone"]) == (dataset, backbone)
    )
    assert config.recipe == f"{dataset}_{backbone}"
    assert config.training.batch_size == int(recipe["batch_size"])
    prompt, tree = build_prompt(
        loaded[backbone],
        config.dataset.labels,
        config.dataset,
        config.backbone,
        config.adapter,
        config.text,
        config.prompt,
    )
    assert prompt.describe(tree.space.answers[-1], None).startswith(BEGINNINGS[backbone])


@pytest.mark.parametrize(
    ("dataset", "backbone"),
    [("mosei", "llama2"), ("simsv2", "qwen"), ("meld", "chatglm3"), ("cherma", "llama2")],
)
def test_every_data_set_and_every_backbone_trains_from_its_recipe(
    options: Options,
    published: dict[str, Path],
    tokenizers: dict[str, Path],
    dataset: str,
    backbone: str,
) -> None:
    architecture = WIDTHS | HEADS[backbone]
    config = options(
        f"dataset={dataset}",
        f"dataset.path={published[dataset]}",
        f"backbone={backbone}",
        "backbone.weights=random",
        f"backbone.tokenizer={tokenizers[backbone]}",
        *(f"backbone.architecture.{name}={value}" for name, value in architecture.items()),
        "training.schedule_epochs=1",
        "trainer.threads=1",
    )
    run = fit(config)
    assert run.finished
    results = json.loads(run.metrics.read_text())
    assert {"test", "valid"} <= set(results)
    found = rows(run)
    assert len(found) == COUNTS["test"]
    for row in found:
        if dataset in ("meld", "cherma"):
            assert row["prediction"] in config.dataset.labels.names
        else:
            bound = {"mosei": 3.0, "simsv2": 1.0}[dataset]
            assert abs(float(row["prediction"])) <= bound
    weights = torch.load(run.last, weights_only=True)["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.parametrize(
    ("backbone", "form"),
    [
        ("llama2", "safetensors"),
        ("qwen", "bin"),
        ("chatglm3", "bin"),
        ("chatglm3", "safetensors"),
    ],
)
def test_a_published_checkpoint_trains_and_is_evaluated(
    options: Options, tokenizers: dict[str, Path], tmp_path: Path, backbone: str, form: str
) -> None:
    """In float16 shards with the original config and tokenizer, and traps for code that runs."""
    fields = dict(SMALL[backbone])
    if backbone == "qwen" and not (tokenizers[backbone] / "tokenizer_config.json").exists():
        fields["vocab_size"] = 512  # for the small tokenizer
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, fields, tokenizer=tokenizers[backbone], form=form)
    (folder / "config.json").write_text(json.dumps(fields))
    run = fit(
        options(
            f"backbone={backbone}",
            f"backbone.path={folder}",
            "training.schedule_epochs=1",
            "trainer.threads=1",
        )
    )
    again = evaluate(EvaluateConfig(run=str(run.path), split=Split.test))
    assert again == json.loads(run.metrics.read_text())["test"]
    assert not (folder / "sprung").exists()
