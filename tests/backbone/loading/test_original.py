"""ChatGLM3 and Qwen from their original checkpoints.

Recorded numbers: random checkpoints in the original formats, and what the original implementations
computed from them (float32; logits have a standard deviation of about 1). Measured on a CPU, the
native models differ by at most 5e-6; a wrong norm epsilon, the smallest of all mistakes, by 4e-5.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from msea_lightning.backbone import (
    BackboneError,
    FrozenBackbone,
    backbone_config,
    load_language_model,
)
from msea_lightning.backbone.loading.original import (
    native_config,
    original_family,
    original_weights,
)
from msea_lightning.backbone.options import Weights
from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import TrainConfig
from tests.backbone.checkpoints import (
    CHATGLM3_6B,
    LLAMA2_7B,
    QWEN_1_8B,
    SMALL,
    VECTORS,
    original_shapes,
    random_weights,
    write_checkpoint,
    write_weights,
)

TOLERANCE = 1e-5
TINY = {"chatglm": "chatglm3_tiny", "qwen": "qwen1_tiny"}
CLASSES = {"chatglm": GlmForCausalLM, "qwen": Qwen2ForCausalLM}
FULL = {"chatglm3": CHATGLM3_6B, "qwen": QWEN_1_8B, "llama2": LLAMA2_7B}
MODELS = {"chatglm3": GlmForCausalLM, "qwen": Qwen2ForCausalLM, "llama2": LlamaForCausalLM}

Recorded = dict[str, Tensor]


@pytest.fixture(params=list(TINY))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, family: str) -> PreTrainedModel:
    return load_language_model(str(VECTORS / TINY[family]), attention=request.param)


@pytest.fixture
def recorded(family: str) -> Recorded:
    return load_file(VECTORS / TINY[family] / "expected.safetensors")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def with_prefix(model: PreTrainedModel, recorded: Recorded) -> Tensor:
    embedded = model.get_input_embeddings()(recorded["prefix.input_ids"])
    prefix = recorded["prefix.prefix_embeds"]
    return torch.cat([prefix, embedded[:, prefix.shape[1] :]], dim=1)


# ---- the recorded outputs ----------------------------------------------------------------


def test_classes_are_native(model: PreTrainedModel, family: str) -> None:
    assert type(model) is CLASSES[family]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_token_ids(model: PreTrainedModel, recorded: Recorded) -> None:
    output = model(recorded["ids.input_ids"], output_hidden_states=True)
    assert_equal(output.logits, recorded["ids.logits"])
    assert_equal(output.hidden_states[-1], recorded["ids.last_hidden_state"])
    # The native classes' last entry is normed, the original's are not; they reach values of 10.
    states = recorded["ids.hidden_states"][:3]
    torch.testing.assert_close(
        torch.stack(output.hidden_states[:3]), states, atol=TOLERANCE, rtol=TOLERANCE
    )


def test_embeddings(model: PreTrainedModel, recorded: Recorded) -> None:
    output = model(inputs_embeds=recorded["embeds.inputs_embeds"])
    assert_equal(output.logits, recorded["embeds.logits"])


@pytest.mark.parametrize("positions", ["given", "left out"])
def test_left_padding(model: PreTrainedModel, recorded: Recorded, positions: str) -> None:
    mask = recorded["leftpad.attention_mask"]
    extra = {}
    if positions == "given":
        extra = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    logits = model(recorded["leftpad.input_ids"], attention_mask=mask, **extra).logits
    real = mask.bool()
    assert_equal(logits[real], recorded["leftpad.logits"][real])


def test_mask_between_positions(model: PreTrainedModel, recorded: Recorded, family: str) -> None:
    if family == "qwen":
        assert "mask4d.allowed" not in recorded  # recorded for ChatGLM3 alone
        return
    allowed = recorded["mask4d.allowed"]
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    output = model(
        recorded["mask4d.input_ids"],
        attention_mask=mask,
        position_ids=recorded["mask4d.position_ids"],
    )
    assert_equal(output.logits, recorded["mask4d.logits"])


def test_embeddings_before_tokens_and_their_loss(
    model: PreTrainedModel, recorded: Recorded
) -> None:
    output = model(inputs_embeds=with_prefix(model, recorded), labels=recorded["prefix.labels"])
    assert_equal(output.logits, recorded["prefix.logits"])
    assert_equal(output.loss.reshape(-1), recorded["prefix.loss"].reshape(-1))


def test_long_sequences(model: PreTrainedModel, recorded: Recorded) -> None:
    output = model(recorded["long.input_ids"])
    assert_equal(output.logits[:, -4:], recorded["long.last_logits"])


def test_greedy_tokens_with_a_cache(model: PreTrainedModel, recorded: Recorded) -> None:
    ids, cache, steps = recorded["ids.input_ids"], DynamicCache(config=model.config), []
    new = ids
    for _ in range(8):
        logits = model(new, past_key_values=cache, use_cache=True).logits[:, -1]
        new = logits.argmax(-1, keepdim=True)
        ids = torch.cat([ids, new], dim=1)
        steps.append(logits)
    assert torch.equal(ids, recorded["greedy.output_ids"])
    assert_equal(torch.stack(steps, dim=1), recorded["greedy.step_logits"])


def test_stretched_rotation_of_the_32k_variant(tmp_path: Path) -> None:
    recorded = load_file(VECTORS / TINY["chatglm"] / "expected.safetensors")
    folder = changed(tmp_path, "chatglm", rope_ratio=50)
    for attention in ("sdpa", "eager"):
        model = load_language_model(str(folder), attention=attention)
        assert_equal(model(recorded["ids.input_ids"]).logits, recorded["rope50.logits"])
        long = model(recorded["long.input_ids"]).logits[:, -4:]
        assert_equal(long, recorded["rope50.long_last_logits"])


def test_the_paper_s_own_generation_with_chatglm3() -> None:
    """Its copy of the model feeds the whole sequence again at every step, on top of the cache."""
    recorded = load_file(VECTORS / TINY["chatglm"] / "expected.safetensors")
    model = load_language_model(str(VECTORS / TINY["chatglm"]))
    ids, cache, steps = recorded["prefix.input_ids"], DynamicCache(config=model.config), []
    start = with_prefix(model, recorded)
    embedded = start
    for _ in range(6):
        count, cached = embedded.shape[1], cache.get_seq_length()
        mask = torch.zeros(1, 1, count, cached + count)
        future = torch.ones(count, count, dtype=torch.bool).triu(1)
        mask[..., cached:] = mask[..., cached:].masked_fill(future, torch.finfo(mask.dtype).min)
        output = model(
            inputs_embeds=embedded,
            attention_mask=mask.expand(len(ids), -1, -1, -1),
            position_ids=torch.arange(count).expand(len(ids), -1),
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        embedded = torch.cat([start, model.get_input_embeddings()(ids[:, start.shape[1] :])], dim=1)
        steps.append(logits)
    assert torch.equal(ids, recorded["refeed.output_ids"])
    assert_equal(torch.stack(steps, dim=1), recorded["refeed.step_logits"])


def swap_gate_and_value(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        mlp = layer.mlp
        if hasattr(mlp, "gate_up_proj"):
            gate, value = mlp.gate_up_proj.weight.data.chunk(2)
            mlp.gate_up_proj.weight.data = torch.cat([value, gate])
        else:
            mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


def change_epsilon(model: PreTrainedModel) -> None:
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1.5625e-7 if module.variance_epsilon > 5e-6 else 1e-5


def rotate_other_parts(model: PreTrainedModel) -> None:
    """Whole heads where halves rotate (ChatGLM3), half as fast where whole ones do (Qwen)."""
    rotary = model.model.rotary_emb
    if model.config.model_type == "glm":
        model.config.rope_parameters["partial_rotary_factor"] = 1.0
        rotary.inv_freq, _ = rotary.compute_default_rope_parameters(model.config)
    else:
        rotary.inv_freq = rotary.inv_freq / 2


@pytest.mark.parametrize("mistake", [swap_gate_and_value, change_epsilon, rotate_other_parts])
def test_a_wrong_mapping_would_be_found_out(
    model: PreTrainedModel, recorded: Recorded, mistake: Callable[[PreTrainedModel], None]
) -> None:
    test_long_sequences(model, recorded)
    mistake(model)
    with pytest.raises(AssertionError, match="not close"):
        test_long_sequences(model, recorded)


# ---- the formats -------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "shards"), [("bin", 2), ("bin", 1), ("safetensors", 3)])
@pytest.mark.parametrize("name", list(SMALL))
def test_published_formats_hold_the_same_weights(
    tmp_path: Path, name: str, form: str, shards: int
) -> None:
    folder = write_checkpoint(tmp_path / name, small(name), form=form, shards=shards)
    weights = random_weights(original_shapes(small(name)))
    model = load_language_model(str(folder))
    assert model.dtype is torch.float32
    found = dict(model.named_parameters())
    embedding = next(weights[key] for key in weights if "embed" in key or "wte" in key)
    assert torch.equal(found["model.embed_tokens.weight"], embedding.float())
    buffers = sum(tensor.numel() for key, tensor in weights.items() if key.endswith("inv_freq"))
    total = sum(tensor.numel() for tensor in weights.values()) - buffers
    assert sum(parameter.numel() for parameter in found.values()) == total
    ids = torch.arange(3, 12)[None]
    other = write_checkpoint(tmp_path / "other", small(name), form="safetensors", shards=1)
    assert torch.equal(model(ids).logits, load_language_model(str(other))(ids).logits)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantised_on_load(family: str, recorded: Recorded, quantization: str) -> None:
    model = load_language_model(str(VECTORS / TINY[family]), quantization=quantization)
    layers = {type(module).__name__ for module in model.model.modules()}
    assert layers & {"Linear8bitLt", "Linear4bit"}
    assert "Linear" not in layers
    logits = model(recorded["ids.input_ids"]).logits
    both = torch.stack([logits.flatten(), recorded["ids.logits"].flatten()])
    # Measured: 0.999 in 8 bits, 0.887 in 4; layers in the wrong places would not correlate.
    assert torch.corrcoef(both)[0, 1] > {"int8": 0.99, "nf4": 0.8}[quantization]


def test_scales_are_quantised_too_unless_told_otherwise() -> None:
    path = str(VECTORS / TINY["qwen"])
    for double in (True, False):
        model = load_language_model(path, quantization="nf4", double_quantization=double)
        state = model.model.layers[0].mlp.gate_proj.weight.quant_state
        assert state.nested == double


@pytest.mark.parametrize("dtype", ["float32", "float16", torch.bfloat16])
def test_dtypes(family: str, recorded: Recorded, dtype: str | torch.dtype) -> None:
    model = load_language_model(str(VECTORS / TINY[family]), dtype=dtype)
    assert model.dtype is (dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype))
    difference = model(recorded["ids.input_ids"]).logits.float() - recorded["ids.logits"]
    assert difference.abs().max() < 0.3


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path, family: str) -> None:
    name = {"chatglm": "chatglm3", "qwen": "qwen"}[family]
    folder = write_checkpoint(tmp_path, small(name))
    assert list(folder.glob("modeling_*.py"))
    load_language_model(str(folder))
    assert not (folder / "sprung").exists()


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_no_object_in_a_weight_file_is_made(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, small("qwen"), form="bin", shards=1)
    content = {"transformer.wte.weight": Trap(tmp_path / "sprung")}
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="Python objects besides tensors"):
        load_language_model(str(folder))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(BackboneError):
        load_language_model(str(folder))
    assert not (tmp_path / "sprung").exists()


def test_a_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """As it lies in the Hub's cache, without a network."""
    snapshot = tmp_path / "models--some--original" / "snapshots" / ("0" * 40)
    (tmp_path / "models--some--original" / "refs").mkdir(parents=True)
    (tmp_path / "models--some--original" / "refs" / "main").write_text("0" * 40)
    shutil.copytree(VECTORS / TINY[family], snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert type(load_language_model("some/original")) is CLASSES[family]


def test_saved_models_are_native(tmp_path: Path, family: str, recorded: Recorded) -> None:
    load_language_model(str(VECTORS / TINY[family])).save_pretrained(tmp_path)
    assert "model.layers.0.self_attn.q_proj.weight" in load_file(tmp_path / "model.safetensors")
    again = CLASSES[family].from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_equal(again(recorded["ids.input_ids"]).logits, recorded["ids.logits"])


def test_reading_leaves_no_names_behind(tmp_path: Path, family: str) -> None:
    load_language_model(str(VECTORS / TINY[family]))
    model_type = {"chatglm": "glm", "qwen": "qwen2"}[family]
    assert not get_checkpoint_conversion_mapping(model_type)
    config = backbone_config(str(VECTORS / TINY[family]))
    CLASSES[family](config).save_pretrained(tmp_path)
    assert "model.embed_tokens.weight" in load_file(tmp_path / "model.safetensors")


# ---- the full sizes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("chatglm3", 6_243_584_000), ("qwen", 1_836_828_672), ("llama2", 6_738_415_616)],
)
def test_every_weight_of_the_published_models_has_its_place(name: str, parameters: int) -> None:
    fields = FULL[name]
    family = original_family(fields)
    config = LlamaConfig(**fields) if family is None else native_config(name, fields)
    shapes = original_shapes(fields)
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    with nullcontext() if family is None else original_weights(family):
        model, found = MODELS[name].from_pretrained(
            None,
            config=config,
            state_dict=weights,
            device_map={"": "meta"},
            output_loading_info=True,
        )
    assert found["missing_keys"] == found["mismatched_keys"] == set()
    assert found["unexpected_keys"] <= {"transformer.rotary_pos_emb.inv_freq"}
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(config)
    assert {key: weight.shape for key, weight in model.named_parameters()} == {
        key: weight.shape for key, weight in expected.named_parameters()
    }


@pytest.mark.parametrize("name", ["chatglm3", "qwen"])
def test_presets_describe_the_published_configs(name: str) -> None:
    preset = compose("train", TrainConfig, [f"backbone={name}"]).backbone.architecture
    found = backbone_config("nowhere", weights=Weights.random, architecture=preset).to_dict()
    expected = native_config(name, FULL[name]).to_dict()
    # Where the published file says nothing, the presets do not either.
    assert found == expected


# ---- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("chatglm", {"quantization_bit": 4}, "quantization_bit=4.*only quantization_bit=0"),
        ("chatglm", {"multi_query_attention": None}, "multi_query_attention=False"),
        ("chatglm", {"rmsnorm": False}, "rmsnorm=False"),
        ("chatglm", {"seq_length": None}, "but has no seq_length"),
        (
            "chatglm",
            {"padded_vocab_size": 400},
            r"holds in another shape: lm_head\.weight \(512, 64\) for \(400, 64\)",
        ),
        ("chatglm", {"num_layers": 4}, "lacks: model.layers.3"),
        ("chatglm", {"num_layers": 2}, "holds beyond the model's own: .* more"),
        ("qwen", {"no_bias": False}, "no_bias=False"),
        ("qwen", {"kv_channels": 8}, "kv_channels=8 and num_attention_heads=4.*hidden_size=64"),
        ("qwen", {"intermediate_size": 191}, "intermediate_size=191"),
        ("qwen", {"num_hidden_layers": 4}, "lacks"),
    ],
)
def test_other_architectures_are_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackboneError, match=message):
        load_language_model(str(changed(tmp_path, name, **changes)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("chatglm", {"hidden_size": "64"}),
        ("chatglm", {"layernorm_epsilon": "small"}),
        ("qwen", {"num_attention_heads": 0}),
    ],
)
def test_configs_that_make_no_sense_are_refused(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(BackboneError, match=r"could not be loaded \(.*download it again"):
        load_language_model(str(changed(tmp_path, name, **changes)))


def test_null_means_the_original_s_default(tmp_path: Path, recorded: Recorded, family: str) -> None:
    names = {"chatglm": ["rope_ratio", "pad_token_id"], "qwen": ["rotary_emb_base", "kv_channels"]}
    path = changed(tmp_path, family)
    fields = json.loads((path / "config.json").read_text())
    fields |= dict.fromkeys([*names[family], "tie_word_embeddings"])
    (path / "config.json").write_text(json.dumps(fields))
    model = load_language_model(str(path))
    assert_equal(model(recorded["ids.input_ids"]).logits, recorded["ids.logits"])


def test_every_field_of_the_config_counts() -> None:
    qwen = native_config("qwen", QWEN_1_8B | {"rotary_emb_base": 1e6, "tie_word_embeddings": True})
    assert qwen.rope_parameters["rope_theta"] == 1e6
    assert qwen.tie_word_embeddings
    glm = native_config("glm", CHATGLM3_6B | {"rope_ratio": 50, "tie_word_embeddings": True})
    assert glm.rope_parameters["rope_theta"] == 500_000
    assert glm.tie_word_embeddings
    other = {"layernorm_epsilon": 1e-3, "add_qkv_bias": False, "pad_token_id": 7, "eos_token_id": 9}
    glm = native_config("glm", CHATGLM3_6B | other)
    assert (glm.rms_norm_eps, glm.attention_bias) == (1e-3, False)
    assert (glm.pad_token_id, glm.eos_token_id) == (7, 9)


def test_weights_that_are_quantised_already_are_refused(tmp_path: Path, family: str) -> None:
    folder = changed(tmp_path, family, quantization_config={"quant_method": "gptq"})
    with pytest.raises(BackboneError, match=r"stored quantised already.*backbone\.quantization"):
        load_language_model(str(folder))


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, small("chatglm3"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BackboneError, match="model-00002-of-00002"):
        load_language_model(str(folder))


def test_a_damaged_weight_file_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, small("chatglm3"), shards=1)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(BackboneError, match="could not be loaded"):
        load_language_model(str(folder))


def test_surplus_weights_of_an_original_checkpoint_are_refused(tmp_path: Path) -> None:
    fields = small("qwen")
    folder = write_checkpoint(tmp_path, fields)
    surplus = {"transformer.visual.proj": torch.ones(2, 2)}
    write_weights(folder, random_weights(original_shapes(fields)) | surplus)
    with pytest.raises(BackboneError, match=r"holds beyond the model's own: .*visual\.proj"):
        load_language_model(str(folder))


def test_windows_beyond_the_trained_length_are_refused(
    tmp_path: Path, family: str, backbone: FrozenBackbone
) -> None:
    """There, Qwen's original would stretch the rotation and scale the queries."""
    model = load_language_model(str(changed(tmp_path, family, seq_length=16)))
    model.resize_token_embeddings(len(backbone.tokenizer))
    frozen = FrozenBackbone(model, backbone.tokenizer, pad_token="<pad>")
    assert frozen.max_positions == 16
    for tokens in (16, 17):
        ids = torch.arange(tokens)[None]
        arguments = (frozen.embed(ids), torch.ones_like(ids, dtype=torch.bool), ids)
        if tokens == 16:
            assert frozen.hidden(*arguments).shape == (1, 16, 64)
        else:
            with pytest.raises(BackboneError, match=r"17 tokens long.*was made for 16"):
                frozen.hidden(*arguments)


def test_families_are_told_by_their_config() -> None:
    assert original_family({"model_type": "chatglm"}) == "chatglm"
    assert original_family({"architectures": ["ChatGLMForConditionalGeneration"]}) == "chatglm"
    assert original_family({"architectures": ["QWenLMHeadModel"]}) == "qwen"
    assert original_family({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}) is None
    assert original_family({"model_type": "glm", "architectures": ["GlmForCausalLM"]}) is None


def small(name: str) -> dict[str, Any]:
    """The small architecture with a small vocabulary."""
    key = "padded_vocab_size" if name == "chatglm3" else "vocab_size"
    return SMALL[name] | {key: 64}


def changed(folder: Path, family: str, **changes: Any) -> Path:
    """A recorded checkpoint with other options; None removes one."""
    path = folder / TINY[family]
    shutil.copytree(VECTORS / TINY[family], path)
    fields = json.loads((path / "config.json").read_text()) | changes
    kept = {key: value for key, value in fields.items() if value is not None}
    (path / "config.json").write_text(json.dumps(kept))
    return path
