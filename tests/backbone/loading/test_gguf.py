"""Language models in one ``.gguf`` file."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from lightning.pytorch import seed_everything

from msea_lightning.backbone import (
    BackboneError,
    FrozenBackbone,
    load_backbone,
    load_language_model,
    load_tokenizer,
)
from msea_lightning.backbone.loading.gguf import gguf_config
from msea_lightning.backbone.loading.load import backbone_config
from msea_lightning.backbone.loading.tokenizers import _PROBES, has_tokenizer
from msea_lightning.config.roots import TrainConfig
from msea_lightning.training.build import build_adapted_lm, build_data, load_config_backbone
from tests.backbone.gguf_files import real_model, small_llama, write_gguf
from tests.model.test_adapted_lm import part

Q8_0 = gguf.GGMLQuantizationType.Q8_0
IDS = torch.tensor([[5, 9, 70, 33, 101, 64]])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", small_llama())


def test_the_weights_are_those_that_were_written(
    small: Path, options: Callable[..., TrainConfig]
) -> None:
    config = options("backbone=auto", f"backbone.path={small}").backbone
    found, expected = load_config_backbone(config, torch.device("cpu")).model, small_llama()
    assert type(found) is type(expected)
    weights = found.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(weights[name], tensor), name
    # The file keeps eps in float32.
    assert found.config.rms_norm_eps == pytest.approx(expected.config.rms_norm_eps, rel=1e-7)
    torch.testing.assert_close(found(IDS).logits, expected(IDS).logits)
    assert not hasattr(found, "quantization_method")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_its_own_quantisation_is_undone_in_any_dtype(
    tmp_path: Path, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_llama()
    path = write_gguf(tmp_path / "quantised.gguf", model, kind=Q8_0)
    caplog.set_level(logging.INFO, "msea_lightning")
    backbone = load_backbone(path, dtype=dtype)
    assert backbone.dtype is getattr(torch, dtype)
    assert not backbone.quantized
    written = model.model.layers[1].mlp.down_proj.weight.numpy()
    unpacked = gguf.quants.dequantize(gguf.quants.quantize(written, Q8_0), Q8_0)
    found = backbone.model.model.layers[1].mlp.down_proj.weight
    assert torch.equal(found, torch.from_numpy(unpacked).to(backbone.dtype))
    (said,) = [line for line in caplog.messages if "unpacked" in line]
    assert said.startswith(f"quantised.gguf: weights stored as Q8_0 are unpacked to {dtype} (")


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_it_can_be_quantised_anew(small: Path, quantization: str) -> None:
    backbone = load_backbone(small, quantization=quantization)
    assert backbone.quantized
    assert backbone.model.model.layers[0].mlp.up_proj.weight.dtype in {torch.int8, torch.uint8}


def test_its_tokenizer_reads_back_what_it_writes(small: Path) -> None:
    tokenizer = load_tokenizer(small)
    assert has_tokenizer(small)
    assert tokenizer.padding_side == "left"
    assert tokenizer.convert_ids_to_tokens(tokenizer("the 0.4")["input_ids"]) == [
        *("the", "Ġ", "0", ".", "4")
    ]
    for text in _PROBES:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer("<|start|>")["input_ids"] == [1]


def test_the_config_is_read_once_as_long_as_the_file_stays(small: Path, tmp_path: Path) -> None:
    one, two = gguf_config(str(small)), backbone_config(small)
    assert one.to_dict() == two.to_dict()
    one.vocab_size = 1
    assert gguf_config(str(small)).vocab_size == two.vocab_size > 1
    other = tmp_path / "other.gguf"
    other.write_bytes(small.read_bytes())
    assert gguf_config(str(other)).hidden_size == 64
    other.write_bytes(b"version https://git-lfs")
    with pytest.raises(BackboneError, match="pointer of Git LFS"):
        gguf_config(str(other))


def test_files_that_cannot_be_read(small: Path, tmp_path: Path) -> None:
    for reader in (load_backbone, load_tokenizer):
        with pytest.raises(BackboneError, match=r"There is no file .*hf download"):
            reader(tmp_path / "missing.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(small.read_bytes()[:-5000])
    with pytest.raises(BackboneError, match=r"cut\.gguf could not be loaded .*download it again"):
        load_backbone(cut)
    cut.write_bytes(small.read_bytes()[:900])
    with pytest.raises(BackboneError, match=r"cut\.gguf could not be loaded"):
        load_backbone(cut)


def test_a_missing_package_is_no_damaged_file(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.is_gguf_available", bool)
    other = Path(shutil.copy(small, tmp_path / "other.gguf"))  # the config of the first is kept
    for read in (load_backbone, load_language_model):
        with pytest.raises(BackboneError, match=r"package gguf, which is missing .*pip ins") as up:
            read(other)
        assert "damaged" not in str(up.value)


def test_what_transformers_would_get_wrong_is_refused(tmp_path: Path) -> None:
    stretched = write_gguf(
        tmp_path / "stretched.gguf", small_llama(), more={"rope_freqs.weight": torch.ones(8)}
    )
    with pytest.raises(BackboneError, match=r"holds rope_freqs\.weight, which stretch"):
        load_backbone(stretched)
    strange = write_gguf(tmp_path / "strange.gguf", small_llama(), architecture="dreamer")
    with pytest.raises(BackboneError, match=r"transformers does not know .*dreamer"):
        load_backbone(strange)


# ---- real language models (make real-lm) ---------------------------------------------------------

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA3 = "gemma-3-270m-q4_k_m.gguf"
PARIS = {SMOLLM2: " Paris", GEMMA3: " the"}
"""What they write after "The capital of France is"."""


@pytest.fixture(scope="module", params=[SMOLLM2, GEMMA3])
def real(request: pytest.FixtureRequest) -> FrozenBackbone:
    return load_backbone(real_model(request.param))


def test_a_real_model_reads_and_writes(real: FrozenBackbone) -> None:
    ids = torch.tensor([real.tokenizer("The capital of France is")["input_ids"]])
    mask, positions = torch.ones_like(ids, dtype=torch.bool), torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        logits = real.logits(real.hidden(real.embed(ids), mask, positions, last=1)[:, -1])
    assert real.tokenizer.decode(logits.argmax(-1)) in PARIS.values()
    assert real.caches_prefix
    assert any(name.endswith("self_attn.q_proj") for name in real.last_modules)
    assert real.model.get_input_embeddings().weight is real.model.get_output_embeddings().weight


def test_a_real_tokenizer_reads_back_what_it_writes(real: FrozenBackbone) -> None:
    for text in _PROBES:
        ids = real.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert real.tokenizer.decode(ids) == text
        assert max(ids) < real.vocabulary
    digits = real.tokenizer("0123", add_special_tokens=False)["input_ids"]
    assert len(digits) == 4


def test_a_real_model_learns_and_answers(
    real: FrozenBackbone, options: Callable[..., TrainConfig]
) -> None:
    """Steps lower the loss, the language model stays, and answers are legal labels."""
    config = options("backbone=auto", "backbone.path=anywhere.gguf", "training.batch_size=4")
    data = build_data(config)
    data.prepare_data()
    data.setup()
    seed_everything(0, verbose=False)
    model = build_adapted_lm(config, data, real)
    batch = part(next(iter(data.train_dataloader())), [0, 1, 2, 3])
    weight = real.model.get_input_embeddings().weight
    before = weight.clone()
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss, count = model.loss(batch)
        (loss / count).backward()
        optimizer.step()
        losses.append(loss.item() / count)
    assert losses[2] < losses[0]
    assert torch.equal(weight, before)
    answers = model.answers(batch)
    assert set(answers.value.tolist()) <= set(range(7))
    assert torch.allclose(answers.distribution.sum(-1), torch.ones(4).double())


def test_a_real_model_in_int8_writes_the_same() -> None:
    backbone = load_backbone(real_model(SMOLLM2), quantization="int8")
    ids = torch.tensor([backbone.tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        logits = backbone.model(ids).logits[:, -1]
    assert backbone.tokenizer.decode(logits.argmax(-1)) == PARIS[SMOLLM2]
