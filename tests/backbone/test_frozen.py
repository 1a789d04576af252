"""The interface of a frozen language model."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from msea_lightning.backbone import BackboneError, FrozenBackbone, load_backbone
from msea_lightning.backbone.fingerprint import same_model
from msea_lightning.backbone.options import Quantization

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
}


EXACT = 1e-10
"""Of the largest number: less than two ways to compute the same in float64 (eps 2e-16) differ.

Norms and rotations are computed in float32 in whatever dtype the model is, but from inputs that are
equal up to float64's rounding, and so they are equal too.
"""

FLOAT32_SOFTMAX = 5e-6
"""The same where eager attention (Gemma 2) takes its softmax in float32 whatever the dtype is.

A sum over n positions, in another order with other padding, is off by n * 6e-8 of itself; here n is
13 at most, and there are two layers, which states and gradients pass.
"""


def bound_of(frozen: FrozenBackbone) -> float:
    """How near two ways to compute the same have to be."""
    eager = frozen.model.config._attn_implementation == "eager"
    return FLOAT32_SOFTMAX if eager else EXACT


def random_model(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A small model; in float64 two ways to compute the same can be compared on any processor."""
    torch.manual_seed(seed)
    config = copy.deepcopy(CONFIGS[name])
    config.vocab_size = len(tokenizer)
    return Auto.from_config(config).to(dtype)


def assert_same(found: Tensor, expected: Tensor, bound: float = EXACT) -> None:
    """Equal up to a bound, which is of the largest number."""
    assert found.shape == expected.shape
    assert found.dtype is expected.dtype
    largest = expected.detach().abs().max().clamp(min=1e-6)
    assert float((found - expected).detach().abs().max() / largest) < bound


@pytest.fixture(params=list(CONFIGS))
def frozen(request: pytest.FixtureRequest, backbone: FrozenBackbone) -> FrozenBackbone:
    model = random_model(request.param, backbone.tokenizer, dtype=torch.float64)
    return FrozenBackbone(model, backbone.tokenizer, pad_token="<pad>")


def test_embed_hidden_logits_add_up_to_the_model(frozen: FrozenBackbone) -> None:
    ids = torch.randint(3, 60, (2, 9))
    mask = torch.ones_like(ids, dtype=torch.bool)
    positions = torch.arange(9).expand(2, -1)
    logits = frozen.logits(frozen.hidden(frozen.embed(ids), mask, positions))
    # Logits are handed on in float32, which rounds them by 6e-8.
    assert_same(logits, frozen.model(ids).logits.float(), bound=1e-6)


def test_left_padding_changes_nothing(frozen: FrozenBackbone) -> None:
    ids = torch.randint(3, 60, (1, 7))
    alone = frozen.hidden(
        frozen.embed(ids), torch.ones(1, 7, dtype=torch.bool), torch.arange(7)[None]
    )
    padded_ids = torch.cat([torch.full((1, 4), frozen.pad_id), ids], dim=1)
    mask = torch.arange(11)[None] >= 4
    positions = (torch.arange(11)[None] - 4).clamp(min=0)
    padded = frozen.hidden(frozen.embed(padded_ids), mask, positions)
    assert_same(padded[:, 4:], alone, bound_of(frozen))


def test_mask_between_positions_equals_the_causal_default(frozen: FrozenBackbone) -> None:
    embedded = frozen.embed(torch.randint(3, 60, (2, 6)))
    positions = torch.arange(6).expand(2, -1)
    causal = torch.ones(2, 6, 6, dtype=torch.bool).tril()
    assert_same(
        frozen.hidden(embedded, causal, positions),
        frozen.hidden(embedded, torch.ones(2, 6, dtype=torch.bool), positions),
    )


def test_gradients_reach_the_inputs_and_no_parameter(frozen: FrozenBackbone) -> None:
    embedded = frozen.embed(torch.randint(3, 60, (1, 5))).requires_grad_()
    mask, positions = torch.ones(1, 5, dtype=torch.bool), torch.arange(5)[None]
    frozen.logits(frozen.hidden(embedded, mask, positions)).square().sum().backward()
    assert embedded.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in frozen.model.parameters())


def test_token_logp_picks_from_the_full_softmax(
    frozen: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = torch.randn(3, 5, frozen.width, dtype=frozen.dtype)
    predictors = torch.tensor([[0, 4], [2, -1]])
    tokens = torch.tensor([[7, 9], [11, -1]])
    logp = frozen.logits(hidden).log_softmax(-1)
    expected = torch.stack(
        [
            torch.stack([logp[:, 0, 7], logp[:, 4, 9]], -1),
            torch.stack([logp[:, 2, 11], torch.zeros(3)], -1),
        ],
        dim=1,
    )
    torch.testing.assert_close(frozen.token_logp(hidden, predictors, tokens), expected)
    monkeypatch.setattr("msea_lightning.backbone.frozen._LOGITS_AT_ONCE", 1)
    torch.testing.assert_close(frozen.token_logp(hidden, predictors, tokens), expected)


def test_fingerprint_tells_models_apart_and_survives_a_change_of_dtype(
    backbone: FrozenBackbone,
) -> None:
    tokenizer = backbone.tokenizer
    model = random_model("llama", tokenizer)
    before = FrozenBackbone(model, tokenizer).fingerprint()
    assert before == FrozenBackbone(random_model("llama", tokenizer), tokenizer).fingerprint()
    halved = FrozenBackbone(model.to(torch.bfloat16), tokenizer)
    assert same_model(before, halved.fingerprint())
    other = FrozenBackbone(random_model("llama", tokenizer, seed=1), tokenizer)
    assert not same_model(before, other.fingerprint())


def test_fine_tuned_layers_change_the_fingerprint(backbone: FrozenBackbone) -> None:
    model = random_model("llama", backbone.tokenizer)
    before = FrozenBackbone(model, backbone.tokenizer).fingerprint()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    after = FrozenBackbone(model, backbone.tokenizer).fingerprint()
    assert before["embeddings"] == after["embeddings"]
    assert not same_model(before, after)


def test_model_without_ordinary_attention_is_refused(backbone: FrozenBackbone) -> None:
    config = MambaConfig(
        vocab_size=len(backbone.tokenizer), hidden_size=32, num_hidden_layers=1, state_size=4
    )
    with pytest.raises(BackboneError, match="MambaForCausalLM cannot be a backbone"):
        FrozenBackbone(Auto.from_config(config), backbone.tokenizer)


def test_unknown_pad_token_is_refused(backbone: FrozenBackbone) -> None:
    with pytest.raises(BackboneError, match=r"backbone\.pad_token='\[nope\]'"):
        FrozenBackbone(
            random_model("llama", backbone.tokenizer), backbone.tokenizer, pad_token="[nope]"
        )


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (LlamaConfig(max_position_embeddings=2048), 2048),
        (GPT2Config(n_positions=512), 512),
        (MambaConfig(), None),
        (MistralConfig(max_position_embeddings=4096, sliding_window=256), 256),
        (MistralConfig(max_position_embeddings=4096, sliding_window=None), 4096),
        (Gemma2Config(max_position_embeddings=8192, sliding_window=4096), 4096),
        (Gemma3TextConfig(max_position_embeddings=32768, sliding_window=512), 512),
        (Gemma2Config(sliding_window=64, layer_types=["full_attention"] * 26), 8192),
        (Qwen2Config(sliding_window=256, use_sliding_window=False), 32768),
        (Qwen2Config(sliding_window=256, use_sliding_window=True), 256),
        (Qwen2Config(sliding_window=256, use_sliding_window=True, max_window_layers=99), 32768),
        (Llama4TextConfig(attention_chunk_size=128), 128),
        (GPTNeoConfig(window_size=128), 128),
        (GPTNeoConfig(window_size=128, attention_types=[[["global"], 24]]), 2048),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_sequences_end_where_an_attention_window_does(
    backbone: FrozenBackbone, config: PreTrainedConfig, longest: int | None
) -> None:
    frozen = copy.copy(backbone)
    frozen.model = SimpleNamespace(config=config)
    assert frozen.max_positions == longest


def test_within_its_window_a_layer_sees_everything(backbone: FrozenBackbone) -> None:
    """The reach counts the token itself: a sequence of that length is read as under any mask."""
    torch.manual_seed(0)
    config = Gemma2Config(
        **SMALL, vocab_size=len(backbone.tokenizer), sliding_window=8, initializer_range=0.3
    )
    frozen = FrozenBackbone(Auto.from_config(config).double(), backbone.tokenizer)
    embedded = frozen.embed(torch.randint(3, 60, (1, 8)))
    positions, mask = torch.arange(8)[None], torch.ones(1, 8, dtype=torch.bool)
    own = frozen.hidden(embedded, mask, positions)
    explicit = frozen.hidden(embedded, torch.ones(1, 8, 8, dtype=torch.bool).tril(), positions)
    assert_same(own, explicit)


def test_tokenizer_without_a_vocabulary_is_refused() -> None:
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()), unk_token="<unk>")
    config = LlamaConfig(**SMALL, vocab_size=64)
    with pytest.raises(BackboneError, match=r"vocabulary of 0, which writes no label.*tokenizer"):
        FrozenBackbone(Auto.from_config(config), empty)


def test_tokenizer_of_another_model_is_refused(backbone: FrozenBackbone) -> None:
    config = LlamaConfig(**SMALL, vocab_size=64)
    with pytest.raises(BackboneError, match="only 64 embeddings: they are not of one model"):
        FrozenBackbone(Auto.from_config(config), backbone.tokenizer)


def test_weights_that_were_repacked_for_the_cpu_are_refused() -> None:
    backbone = load_backbone(None, quantization=Quantization.nf4)
    weight = next(w for w in backbone.model.parameters() if hasattr(w, "quant_state"))
    weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(BackboneError, match=r"repacked the 4-bit weights.*Load the model anew"):
        FrozenBackbone(backbone.model, backbone.tokenizer)


def test_evaluation_leaves_quantised_weights_as_they_are() -> None:
    backbone = load_backbone(None, quantization=Quantization.nf4)
    before = [parameter.detach().clone() for parameter in backbone.model.parameters()]
    with torch.no_grad():
        mask, positions = torch.ones(1, 4, dtype=torch.bool), torch.arange(4)[None]
        backbone.hidden(backbone.embed(torch.arange(4)[None]), mask, positions)
    after = backbone.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (0, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
        (1, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
        (4, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
        (1, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2")),
        (2, MemoryError()),
    ],
)
def test_full_memory_is_not_taken_for_a_model_that_cannot_be_a_backbone(
    backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch, call: int, error: Exception
) -> None:
    """At any forward pass of the self-check: the model's own, embeddings, the prefix."""
    model = random_model("llama", backbone.tokenizer)
    calls = iter(range(99))
    forward = type(model.model.layers[0].mlp).forward

    def full(self: torch.nn.Module, x: Tensor) -> Tensor:
        if next(calls) // 2 == call:  # of two layers
            raise error
        return forward(self, x)

    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", full)
    with pytest.raises(
        BackboneError, match=r"Memory was full .*backbone\.quantization=int8"
    ) as found:
        FrozenBackbone(model, backbone.tokenizer)
    assert "cannot be a backbone" not in str(found.value)
