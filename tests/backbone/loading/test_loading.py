"""Loading: quantisation, random weights, and errors that say what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from msea_lightning.backbone import (
    BackboneError,
    FrozenBackbone,
    load_backbone,
    load_language_model,
    load_tokenizer,
    resolve_device,
)
from msea_lightning.backbone.loading.load import tiny_backbone
from msea_lightning.backbone.options import Accelerator, Quantization, Weights

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 300,
}


def test_the_built_in_backbone_is_frozen() -> None:
    backbone = load_backbone(None)
    assert isinstance(backbone, FrozenBackbone)
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert backbone.dtype is torch.float32


def test_the_built_in_backbone_is_loaded_without_a_bar(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    load_backbone(None)
    assert capsys.readouterr().err == ""
    shutil.copytree(tiny_backbone(), tmp_path, dirs_exist_ok=True)
    load_backbone(tmp_path)
    assert "Loading weights: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("weights", [Weights.pretrained, Weights.random])
def test_only_linear_layers_are_quantised(quantization: str, weights: Weights) -> None:
    dense = load_language_model(str(tiny_backbone()), weights=weights)
    model = load_language_model(str(tiny_backbone()), weights=weights, quantization=quantization)
    head = model.get_output_embeddings()
    for name, module in dense.named_modules():
        found = model.get_submodule(name)
        if isinstance(module, nn.Linear) and found is not head:
            assert type(found).__name__ in {"Linear8bitLt", "Linear4bit"}
            assert found.weight.dtype in {torch.int8, torch.uint8}
        elif not list(module.children()):
            assert type(found) is type(module)
    ids = torch.arange(5, 25)[None]
    # Tiny random layers suffer from 4 bits; other layers than these would not correlate at all.
    both = torch.stack([model(ids).logits.flatten(), dense(ids).logits.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.6


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_gradients_flow_through_a_quantised_backbone(quantization: str) -> None:
    backbone = load_backbone(None, quantization=Quantization(quantization))
    embedded = backbone.embed(torch.arange(5, 15)[None]).requires_grad_()
    mask, positions = torch.ones(1, 10, dtype=torch.bool), torch.arange(10)[None]
    backbone.logits(backbone.hidden(embedded, mask, positions)).square().mean().backward()
    assert torch.isfinite(embedded.grad).all()
    assert embedded.grad.abs().sum() > 0


def test_random_weights_have_the_real_architecture_and_are_the_same_each_time() -> None:
    one, two = (
        load_language_model("nobody/nothing", weights=Weights.random, architecture=LLAMA)
        for _ in range(2)
    )
    assert one.config.hidden_size == 64
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_dtype_is_as_asked() -> None:
    model = load_language_model("x/y", weights=Weights.random, architecture=LLAMA, dtype="bfloat16")
    assert model.dtype is torch.bfloat16


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_as_asked(attention: str) -> None:
    for weights in Weights:
        model = load_language_model(str(tiny_backbone()), weights=weights, attention=attention)
        assert model.config._attn_implementation == attention


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "bogus"}, "weights=bogus is none of pretrained, random"),
        ({"quantization": "int4"}, "quantization=int4 is none of none, int8, nf4"),
        ({"dtype": "half"}, "dtype=half is none of auto, float32"),
        ({"attention": "flash"}, "attention=flash is none of auto, sdpa, eager"),
    ],
)
def test_options_that_there_are_not(options: dict[str, str], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_language_model(str(tiny_backbone()), **options)


def test_attention_is_fused_where_the_architecture_has_it() -> None:
    gemma2 = LLAMA | {"model_type": "gemma2", "head_dim": 16}
    for architecture, expected in ((LLAMA, "sdpa"), (gemma2, "eager")):
        model = load_language_model("x/y", weights=Weights.random, architecture=architecture)
        assert model.config._attn_implementation == expected
    with pytest.raises(BackboneError, match=r"no such attention for gemma2 .*attention=eager"):
        load_language_model(
            "x/y", weights=Weights.random, architecture=gemma2, attention="sdpa", check_fit=False
        )


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (LLAMA | {"hidden_size": 65}, "not a config of transformers"),
        ({"model_type": "vit"}, "not as a causal language model"),
        ({"model_type": "never_heard_of"}, "not a config of transformers"),
    ],
)
def test_architectures_that_there_are_not(architecture: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_language_model("x/y", weights="random", architecture=architecture)


def test_sizes_that_make_no_model() -> None:
    broken = {"model_type": "gpt2", "n_embd": 64, "n_head": 12, "vocab_size": 300}
    with pytest.raises(BackboneError, match=r"cannot build this gpt2 backbone: .*divisible"):
        load_language_model("x/y", weights=Weights.random, architecture=broken)


def test_flash_attention_needs_its_package_a_gpu_and_half_precision() -> None:
    with pytest.raises(BackboneError, match=r"flash-attn is not installed.*cpu, not a GPU.*dtype"):
        load_language_model(str(tiny_backbone()), attention="flash_attention_2")


def test_attention_that_takes_no_masks_steps_aside_for_the_answer_tree() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    masks = []

    def forward(*arguments: Any, **options: Any) -> Any:
        masks.append(arguments[4])
        return sdpa_attention_forward(*arguments, **options)

    AttentionInterface.register("takes_no_masks", forward)
    AttentionMaskInterface.register("takes_no_masks", sdpa_mask)
    backbone = load_backbone(None)
    embedded = backbone.embed(torch.arange(5, 11)[None])
    positions = torch.arange(6)[None]
    causal = torch.ones(1, 6, 6, dtype=torch.bool).tril()
    expected = backbone.hidden(embedded, causal, positions)
    backbone.model.set_attn_implementation("takes_no_masks")
    backbone = FrozenBackbone(backbone.model, backbone.tokenizer)
    masks.clear()
    assert torch.equal(backbone.hidden(embedded, causal, positions), expected)
    assert not masks
    assert backbone.model.config._attn_implementation == "takes_no_masks"
    backbone.hidden(embedded, torch.ones(1, 6, dtype=torch.bool), positions)
    assert masks


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    shutil.copytree(tiny_backbone(), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lacks: model\.norm\.weight\. .*download it again"):
        load_backbone(str(tmp_path))


def test_a_layer_more_than_the_config_says_is_refused(tmp_path: Path) -> None:
    shutil.copytree(tiny_backbone(), tmp_path, dirs_exist_ok=True)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["num_hidden_layers"] -= 1
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(BackboneError, match=r"holds beyond the model's own: model\.layers\."):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_of_a_model_that_also_sees_the_text_part_is_loaded(
    tmp_path: Path, quantization: str
) -> None:
    text = {**LLAMA, "model_type": "qwen3_5_text", "num_key_value_heads": 4, "head_dim": 16}
    config = AutoConfig.for_model("qwen3_5", text_config=text)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    for weights in Weights:
        model = load_language_model(tmp_path, weights=weights, quantization=quantization)
        assert type(model).__name__ == "Qwen3_5ForCausalLM"


def test_a_place_may_be_a_path_or_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_backbone(), tmp_path / "tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("~/tiny", tmp_path / "tiny"):
        assert load_language_model(place).config.model_type == "llama"
        assert len(load_tokenizer(place)) > 2
        assert load_backbone(place).width


def test_a_file_is_no_checkpoint() -> None:
    with pytest.raises(BackboneError, match=r"is a file; give the folder that holds it"):
        load_backbone(tiny_backbone() / "config.json")


@pytest.mark.parametrize("damage", ["", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path, damage: str) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        folder = tmp_path / name
        shutil.copytree(tiny_backbone(), folder)
        (folder / name).write_text(damage)
        with pytest.raises(BackboneError, match="download it again"):
            load_backbone(folder)


def test_a_tokenizer_stands_in_for_one_that_is_not_at_hand(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    architecture = LLAMA | {"vocab_size": 6000}
    backbone = load_backbone(
        "nobody/nothing",
        weights=Weights.random,
        architecture=architecture,
        special_tokens=["[gMASK]", "<s>"],
    )
    assert "stands in for that of nobody/nothing" in caplog.text
    built_in = load_tokenizer(str(tiny_backbone()))
    assert backbone.tokenizer.convert_tokens_to_ids("[gMASK]") == len(built_in)
    own = load_backbone(str(tiny_backbone()), weights=Weights.random, special_tokens=["[gMASK]"])
    assert len(own.tokenizer) == len(built_in)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"There is no folder .*nowhere.*backbone\.path"):
        load_backbone(str(tmp_path / "nowhere"))


def test_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"holds no checkpoint: config\.json is missing"):
        load_backbone(str(tmp_path))


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}
    config = {"model_type": "never_heard_of", "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    with pytest.raises(BackboneError, match="brings its own Python code, which is never run"):
        load_backbone(str(tmp_path))
    assert not (tmp_path / "sprung").exists()


def test_unknown_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "never_heard_of"}))
    with pytest.raises(BackboneError, match="does not know the architecture"):
        load_backbone(str(tmp_path))


def test_architecture_that_does_not_write_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(BackboneError, match="not as a causal language model"):
        load_backbone(str(tmp_path))


def test_no_access_and_no_such_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PretrainedConfig

    for name, message in (
        ("GatedRepoError", "Accept the licence"),
        ("RepositoryNotFoundError", "There is no model some/model"),
        ("LocalEntryNotFoundError", "the Hugging Face Hub cannot be reached"),
    ):
        cause = type(name, (Exception,), {})("...")

        def fail(*_: object, cause: Exception = cause, **__: object) -> None:
            raise OSError("...") from cause

        monkeypatch.setattr(PretrainedConfig, "get_config_dict", fail)
        with pytest.raises(BackboneError, match=message):
            load_backbone("some/model")


def test_random_architecture_needs_a_model_type() -> None:
    with pytest.raises(BackboneError, match="no model_type"):
        load_language_model("x/y", weights=Weights.random, architecture={"hidden_size": 64})


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackboneError, match=r"PyTorch sees no GPU: set that option to cpu"):
        resolve_device(Accelerator.gpu)
    assert resolve_device(Accelerator.auto).type == "cpu"
