"""Checkpoints of the original implementation, turned into plugins that answer as it does."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.commands.command_line import compose, launch
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import ImportOriginalConfig
from msea_lightning.import_original import job
from msea_lightning.language.options import SegmentKind
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.paper import paper_table
from msea_lightning.plugin import (
    Imported,
    PluginError,
    attach,
    import_plugin,
    load_plugin,
    load_plugin_backbone,
)
from msea_lightning.plugin.original import write_new
from tests.adapter.original_names import original_names
from tests.model.recorded import CASES, RECORDED, RecordedTokenizer, load_case, recorded_batch
from tests.rounding import assert_same

PAIRS = [(row["dataset"], row["backbone"]) for row in paper_table("hyperparameters")]
MELD = ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"]
FROZEN = "Model.LLM.model.transformer.rotary_pos_emb.inv_freq"
"""What every checkpoint of the original with ChatGLM3 holds of the language model."""


def words(name: str, *more: str) -> list[str]:
    """The command line that fits a recorded case, whose sizes are small."""
    case, _ = load_case(name)
    own = [
        f"dataset={case['dataset']}",
        "backbone=llama2",
        f"dataset.text_tokens={case['text_length']}",
        "dataset.audio_dim=6",
        "dataset.vision_dim=5",
    ]
    given = dict(word.split("=", 1) for word in (*own, *more))
    return [f"{key}={value}" for key, value in given.items()]


def write(folder: Path, state: dict[str, Any]) -> Path:
    """A checkpoint as the original writes it, under the name that it has there."""
    path = folder / "cmcm-mosei-regression.pth"
    torch.save(OrderedDict(state), path)
    return path


def recorded_state(prefix: str = "Model.") -> dict[str, Tensor]:
    return original_names(load_case("regression_mosei")[1], prefix)


def imported(path: Path, *more: str, name: str = "regression_mosei") -> Imported:
    """A case's checkpoint, imported without its language model."""
    config = compose(
        "import_original",
        ImportOriginalConfig,
        [f"checkpoint={path}", *words(name, "backbone.architecture.hidden_size=32", *more)],
    )
    return import_plugin(
        path, config.dataset, config.backbone, task=config.prompt.task, decode=config.decode
    )


def tiny_llama(tokenizer: Any) -> FrozenBackbone:
    """The language model of the recorded cases."""
    model = LlamaForCausalLM.from_pretrained(RECORDED / "tiny_llama", dtype=torch.float32)
    return FrozenBackbone(model, tokenizer, pad_token="<unk>")


def assert_answers_are_the_originals(model: AdaptedLM, name: str) -> None:
    case, tensors = load_case(name)
    regression = case["train_mode"] == "regression"
    labels = case["labels"] if regression else [MELD[label] for label in case["labels"]]
    batch = recorded_batch(case, tensors, labels)
    assert model.answers(batch).value.tolist() == case["parsed_values"]
    logits, targets = model.label_logits(batch)
    nll = nn.functional.cross_entropy(logits, targets, reduction="none")
    scale = float(logits.detach().abs().max())
    assert_same(nll, tensors["out.label_nll"].flatten(), scale=scale)
    # The same from the distribution over all answers.
    logp = model.answer_logp(batch)
    rows = range(len(batch))
    answers = [model.tree.space.answers.index(model.tree.space.text(label)) for label in labels]
    assert_same(-logp[list(rows), answers], tensors["out.label_nll"], scale=scale)


@pytest.mark.parametrize("name", CASES)
def test_an_imported_plugin_answers_as_the_original(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case, tensors = load_case(name)
    path = write(tmp_path, original_names(tensors))
    write_new(tmp_path / "plugin", imported(path, name=name).plugin)
    plugin = load_plugin(tmp_path / "plugin")
    assert plugin.facts.prompt.task == case["task_prompt"]
    model = attach(plugin, tiny_llama(RecordedTokenizer(case)))
    assert_answers_are_the_originals(model, name)
    assert "imported without its language model, meta-llama/Llama-2-7b-hf: whether" in caplog.text


@pytest.mark.parametrize("name", CASES)
def test_the_command_with_the_real_tokenizer(
    name: str,
    shared: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the language model at hand: tried on it, fingerprinted, and attached without a word."""
    path = write(tmp_path, original_names(load_case(name)[1]))
    tokenizer = str(shared / "tokenizers" / "llama2")
    places = [f"backbone.path={RECORDED / 'tiny_llama'}", f"backbone.tokenizer={tokenizer}"]
    launch(
        job,
        config_name="import_original",
        root=ImportOriginalConfig,
        arguments=[f"checkpoint={path}", *words(name, *places)],
    )
    folder = tmp_path / "cmcm-mosei-regression-llama2"
    assert [child.name for child in tmp_path.iterdir() if child.is_dir()] == [folder.name]
    assert "32 tensors of the adapter; 0 of the frozen" in capsys.readouterr().out
    plugin = load_plugin(folder)
    assert str(tmp_path) not in (folder / "plugin.json").read_text(encoding="utf-8")
    caplog.clear()
    backbone = load_plugin_backbone(
        plugin, RECORDED / "tiny_llama", tokenizer=tokenizer, dtype="float32"
    )
    assert plugin.facts.fingerprint == backbone.fingerprint()
    assert_answers_are_the_originals(attach(plugin, backbone), name)
    assert caplog.text == ""


@pytest.mark.parametrize(("dataset", "backbone"), PAIRS)
def test_every_published_pair_reads_what_the_original_reads(
    dataset: str, backbone: str, tmp_path: Path
) -> None:
    (sizes,) = (row for row in paper_table("datasets") if row["dataset"] == dataset)
    config = compose(
        "import_original",
        ImportOriginalConfig,
        ["checkpoint=x", f"dataset={dataset}", f"backbone={backbone}"],
    )
    config.backbone.architecture["hidden_size"] = 32
    config.dataset.audio_dim, config.dataset.vision_dim = 6, 5
    facts = import_plugin(write(tmp_path, recorded_state()), config.dataset, config.backbone).plugin
    prompt = facts.facts.prompt
    assert prompt.pad_to == prompt.text_tokens == int(sizes["text_tokens"])
    assert prompt.attend_padding
    assert facts.facts.signed_labels == (backbone == "qwen")
    (row,) = (
        row
        for row in paper_table("prompts")
        if (row["dataset"], row["backbone"]) == (dataset, backbone)
    )
    blanks = re.findall("  +", prompt.task)
    assert re.sub("  +", " ", prompt.task) == row["prompt"]
    assert [len(run) for run in blanks] == {"meld": [49 if backbone == "chatglm3" else 45]}.get(
        dataset, []
    )
    begins = [segment.token for segment in prompt.layout if segment.kind is SegmentKind.token]
    assert (
        begins
        == {
            "llama2": ["<s>", "<s>"],
            "qwen": ["<|im_start|>"],
            "chatglm3": ["[gMASK]", "sop"],
        }[backbone]
    )


@pytest.mark.parametrize(("dataset", "backbone"), [pair for pair in PAIRS if pair[0] == "meld"])
def test_the_prompts_blanks_are_those_that_the_originals_tokenizer_read(
    dataset: str, backbone: str, shared: Path
) -> None:
    recorded = (shared / "vectors" / "tokenizers" / f"{backbone}.json").read_text(encoding="utf-8")
    (row,) = (row for row in paper_table("prompts_meld") if row["backbone"] == backbone)
    assert f'"text": "{row["prompt"]}"' in recorded


@pytest.mark.parametrize("prefix", ["", "Model.", "module.Model.", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_may_have_prefixes_and_the_language_models_are_left_out(
    prefix: str, suffix: str, tmp_path: Path
) -> None:
    frozen = prefix + FROZEN.removeprefix("Model.")
    state = {**recorded_state(prefix), frozen: torch.ones(4)}
    path = write(tmp_path, state)
    if suffix == ".safetensors":
        path = path.with_suffix(suffix)
        save_file(state, path)
    found = imported(path, "backbone=chatglm3")
    assert (found.used, found.frozen) == (32, 1)
    expected = recorded_state()
    assert found.plugin.facts.imported_from is not None
    assert found.plugin.facts.imported_from.startswith(path.name)
    assert torch.equal(
        found.plugin.weights["adapter.audio.lstm.weight_hh_l0"],
        expected["Model.audio_LSTM.rnn.weight_hh_l0"],
    )


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {"Model.cls_head.0.weight": torch.ones(1), "Model.cls_token": torch.ones(1)},
            [],
            "Unknown: 'Model.cls_head.0.weight', 'Model.cls_token'",
        ),
        ({"Model.video_LSTM.linear.bias": None}, [], "Missing: 'video_LSTM.linear.bias'"),
        ({"Model.video_LSTM.linear.bias": torch.ones(9)}, [], r"\[9\].*\[256\]"),
        ({"Model.video_LSTM.linear.bias": torch.full((256,), torch.nan)}, [], "NaN or infinite"),
        (
            {},
            ["dataset.audio_dim=74", "dataset.vision_dim=35"],
            "reads 6 values per audio frame and 5 per vision frame, but dataset=mosei has 74 and "
            "35: it was trained on other features.*dataset.audio_dim=6 dataset.vision_dim=5",
        ),
        (
            {
                "Model.audio_LSTM.rnn.weight_ih_l0": torch.ones(32, 25),
                "Model.video_LSTM.rnn.weight_ih_l0": torch.ones(24, 177),
            },
            [],
            "25 values.*177.*has 6 and 5: .*probably simsv2. Give dataset=simsv2, or",
        ),
        (
            {},
            ["backbone.architecture.hidden_size=64"],
            "of width 32, but backbone=llama2 has 64: .*none of the original's",
        ),
        ({FROZEN: torch.ones(1)}, [], "tensors of the frozen chatglm3, but backbone=llama2"),
        ({}, ["dataset=mosi"], "no task prompt for dataset=mosi backbone=llama2: give prompt.task"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], options: list[str], message: str, tmp_path: Path
) -> None:
    state = {**recorded_state(), **change}
    path = write(tmp_path, {name: tensor for name, tensor in state.items() if tensor is not None})
    with pytest.raises(PluginError, match=f"(?s){message}"):
        imported(path, *options)


def test_another_language_models_width_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, recorded_state())
    config = compose("import_original", ImportOriginalConfig, ["checkpoint=x", *words(CASES[0])])
    wide = {
        name: torch.zeros(
            [
                2048 if size == 32 and name.split(".")[1] != "audio_LSTM" else size
                for size in t.shape
            ]
        )
        for name, t in recorded_state().items()
    }
    for scale, hidden in (("scale1", 256), ("scale2", 64), ("scale3", 128)):
        wide[f"Model.mutli_scale_fusion.{scale}.0.weight"] = torch.zeros(hidden, 256)
        wide[f"Model.mutli_scale_fusion.{scale}.0.bias"] = torch.zeros(hidden)
        wide[f"Model.mutli_scale_fusion.{scale}.2.weight"] = torch.zeros(256, hidden)
    path = write(tmp_path, wide)
    with pytest.raises(PluginError, match=r"width 2048, but backbone=llama2 has 4096.*bly qwen"):
        import_plugin(path, config.dataset, config.backbone)


class Trap:
    """Pickled, it would be called when the file is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"Model.x": Trap()}, "holds the Python object print"),
        (nn.Linear(1, 1), "holds the Python object torch.nn.modules.linear.Linear.*state_dict"),
        ({"state_dict": {"a": torch.ones(1)}}, "Here 'state_dict' is no tensor: dict"),
        ([torch.ones(1)], "holds no state dict but one list"),
        (b"junk", "cannot be read as a checkpoint"),
        (b"", "cannot be read as a checkpoint"),
        (None, "is no file"),
    ],
)
def test_other_files_are_refused(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(PluginError, match=message):
        imported(path)
    assert "executed" not in capsys.readouterr().out


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = imported(write(tmp_path, recorded_state())).plugin
    before = set(tmp_path.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("msea_lightning.plugin.saving.write_json", full)
    with pytest.raises(PluginError, match=r"plugin cannot be written: No space left"):
        write_new(tmp_path / "plugin", plugin)
    assert set(tmp_path.iterdir()) == before
    monkeypatch.undo()
    write_new(tmp_path / "plugin", plugin)
    with pytest.raises(PluginError, match="exists already: give another folder with output="):
        write_new(tmp_path / "plugin", plugin)


def test_an_unseen_language_model_must_have_the_width(
    tmp_path: Path, backbone: FrozenBackbone
) -> None:
    plugin = imported(write(tmp_path, recorded_state())).plugin
    with pytest.raises(PluginError, match="whose width is 32, but this language model has 96"):
        attach(plugin, backbone)


def test_a_seen_language_model_is_checked_later(
    tmp_path: Path, backbone: FrozenBackbone, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = imported(write(tmp_path, recorded_state())).plugin
    case, _ = load_case(CASES[0])
    seen = tiny_llama(RecordedTokenizer(case))
    known = replace(plugin, facts=replace(plugin.facts, fingerprint=seen.fingerprint()))
    caplog.set_level(logging.WARNING)
    attach(known, seen)
    assert caplog.text == ""
    with pytest.raises(PluginError, match="but this language model has"):
        attach(known, backbone)


def test_the_card_says_where_it_is_from_and_shows_no_empty_table(tmp_path: Path) -> None:
    card = imported(write(tmp_path, recorded_state())).plugin.generate_model_card()
    where = "checkpoint of the original implementation: cmcm-mosei-regression.pth, SHA-256"
    assert where in card.text
    assert "| metric |" not in card.text
    assert card.data.base_model == "meta-llama/Llama-2-7b-hf"
    assert (card.data.datasets, card.data.language) == (["AZYoung/MOSEI_processed"], "en")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "dataset is missing: give dataset="),
        (["dataset=mosei"], "backbone is missing: give backbone="),
        (["dataset=demo", "backbone=qwen"], "dataset=demo takes its labels from the data"),
        (["dataset=mosei", "backbone=auto", "backbone.path=a/b"], "signed_labels=true"),
        (["dataset=mosei", "backbone=qwen", "backbone.weights=random"], "Leave it out"),
        (["dataset=mosei", "backbone=tiny"], "tiny sets adapter, which this command does not have"),
    ],
)
def test_command_lines_that_cannot_be_meant(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose("import_original", ImportOriginalConfig, ["checkpoint=x", *options])
