"""What a step costs, measured on a small copy of the model without numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, MambaConfig, PretrainedConfig

from msea_lightning.adapter import FeatureStandardizer
from msea_lightning.adapter.contract import Adapter
from msea_lightning.adapter.options import AblationConfig
from msea_lightning.backbone import BackboneError, FrozenBackbone, backbone_config, load_tokenizer
from msea_lightning.backbone.loading import memory
from msea_lightning.backbone.loading.load import tiny_backbone
from msea_lightning.backbone.options import Attention, Weights
from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import TrainConfig
from msea_lightning.cost import step
from msea_lightning.cost.step import BatchSize, LiveBytes, StepMeter, batch_of, with_layers
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.prompt import Prompt
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.build import build_adapter, build_prompt

CPU = torch.device("cpu")
DIMS = {"audio": 6, "vision": 5}
TOKENIZER = load_tokenizer(str(tiny_backbone()))
WIDTH, INNER, LAYERS, VOCABULARY = 64, 160, 5, 6000
LLAMA = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 5, "n_head": 4, "vocab_size": VOCABULARY}
SIZE = BatchSize(4, 30, {"audio": 9, "vision": 7})


class Nothing(Adapter):
    """An adapter without matrix products."""

    pseudo_tokens = 4

    def __init__(self) -> None:
        super().__init__({})
        self.shift = torch.nn.Parameter(torch.zeros(()))

    def forward(self, text: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Reads no features, so that there is nothing to check."""
        return self._adapt(text)

    def _adapt(self, text: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return text.new_zeros(len(text), 4, text.shape[2]) + self.shift, text


def architecture(fields: dict[str, Any], **changes: Any) -> PretrainedConfig:
    """A config of transformers."""
    return AutoConfig.for_model(**(fields | changes))


Parts = tuple[Adapter, Prompt, AnswerTree]


def parts(name: str = "mse", *, width: int = WIDTH, device: str = "meta") -> Parts:
    """An adapter with the sequences that it is read in."""
    choice = [] if name == "nothing" else [f"adapter={name}"]
    config = compose(
        "train", TrainConfig, ["dataset=meld", "backbone=tiny", "method=published", *choice]
    )
    prompt, tree = build_prompt(
        TOKENIZER,
        config.dataset.labels,
        config.dataset,
        config.backbone,
        config.adapter,
        config.text,
        config.prompt,
    )
    with torch.device(device):
        if name == "nothing":
            return Nothing(), prompt, tree
        adapter = build_adapter(config.adapter, AblationConfig(), width=width, dims=DIMS)
    return adapter, prompt, tree


def meter(language: PretrainedConfig, adapter: str = "mse", **options: Any) -> StepMeter:
    """What measures a language model with an adapter in front."""
    return StepMeter(language, *parts(adapter, width=language.hidden_size), DIMS, **options)


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["mse", "mag", "chfn"])
@pytest.mark.parametrize("attention", [Attention.sdpa, Attention.eager])
def test_without_numbers_as_much_is_alive_as_with_them(adapter: str, attention: Attention) -> None:
    """The same model with real weights, computing on a CPU, holds as many bytes at its peak."""
    language = architecture(LLAMA, num_hidden_layers=2)
    measured = meter(language, adapter, attention=attention)
    with torch.device("cpu"):
        real = memory.architecture_on_meta(language, torch.float32, attention).to_empty(
            device="cpu"
        )
    for tensor in (*real.parameters(), *real.buffers()):
        tensor.data.normal_()
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    real.model.rotary_emb = LlamaRotaryEmbedding(real.config)
    made, prompt, tree = parts(adapter, device="cpu")
    backbone, standardizer = FrozenBackbone(real, TOKENIZER), FeatureStandardizer()
    model = AdaptedLM(backbone, made, standardizer=standardizer, prompt=prompt, tree=tree)
    model.backbone.cached_prefix(model.prompt.prefix_ids)
    size = replace(SIZE, frames={"audio": 2, "vision": 2})
    for training, expected in (
        (True, measured.peak(size, training=True)),
        (False, measured.peak(size, training=False)),
    ):
        live = LiveBytes(model, CPU)
        with live:
            batch = batch_of(model, size, DIMS)
            if training:
                model.step(batch).loss_sum.backward()
            else:
                model.predict(batch)
        # Token ids, masks and places of tokens are on the CPU as well there; the four places of
        # each answer token, which other devices get a copy of, are there only once.
        copied = 4 * 8 * int((tree.predictors >= 0).sum())
        assert expected <= live.peak + (0 if training else copied)
        assert live.peak == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("fields", [LLAMA, GPT2], ids=lambda fields: fields["model_type"])
def test_few_layers_tell_what_the_whole_model_takes(fields: dict[str, Any]) -> None:
    few = meter(architecture(fields))
    whole = meter(architecture(fields))
    whole._layers = (LAYERS, LAYERS)
    assert few._layers == (3, 4)
    assert few.peak(SIZE, training=True) == pytest.approx(whole.peak(SIZE, training=True), rel=0.01)
    assert few.peak(SIZE, training=False) == pytest.approx(
        whole.peak(SIZE, training=False), rel=0.01
    )
    for training in (True, False):
        assert few.flops(20, training=training) == whole.flops(20, training=training)


def test_few_frames_tell_what_many_take(monkeypatch: pytest.MonkeyPatch) -> None:
    size = replace(SIZE, frames={"audio": 90, "vision": 75})
    few = meter(architecture(LLAMA))
    found = few.peak(size, training=True), few.peak(size, training=False)
    monkeypatch.setattr(step, "_FEW_FRAMES", 90)
    all_of_them = meter(architecture(LLAMA))
    assert found[0] == pytest.approx(all_of_them.peak(size, training=True), rel=0.01)
    # With more frames the peak moves from the language model to the adapter.
    assert found[1] == pytest.approx(all_of_them.peak(size, training=False), rel=0.02)


def test_activations_grow_linearly_with_the_batch() -> None:
    measured = meter(architecture(LLAMA))
    for training in (True, False):
        small, middle, large = (
            measured.peak(replace(SIZE, utterances=count), training=training)
            for count in (4, 8, 12)
        )
        assert large - middle == pytest.approx(middle - small, rel=0.02)
        assert middle > 1.7 * small


def test_training_keeps_what_evaluation_lets_go() -> None:
    few, many = (meter(architecture(LLAMA, num_hidden_layers=layers)) for layers in (3, 9))
    assert many.peak(SIZE, training=True) > 2 * few.peak(SIZE, training=True)
    assert many.peak(SIZE, training=False) < 1.05 * few.peak(SIZE, training=False)


def test_attention_scores_are_kept_by_eager_attention_only() -> None:
    size = replace(SIZE, text=60)
    fused, plain = (
        meter(architecture(LLAMA), attention=how).peak(size, training=True)
        for how in (Attention.auto, Attention.eager)
    )
    assert plain - fused > LAYERS * 4 * 4 * 60 * 60 * 4  # layers, and B heads S S floats


def test_flash_attention_keeps_what_fused_attention_keeps() -> None:
    fused, flash = (
        meter(architecture(LLAMA), attention=how).peak(SIZE, training=True)
        for how in (Attention.sdpa, Attention.flash_attention_2)
    )
    assert fused == flash


def test_layers_that_compute_again_keep_little() -> None:
    def growth(*, again: bool) -> int:
        few, many = (
            meter(architecture(LLAMA, num_hidden_layers=layers), checkpoint_activations=again)
            for layers in (2, 8)
        )
        return many.peak(SIZE, training=True) - few.peak(SIZE, training=True)

    assert 0 < growth(again=True) < growth(again=False) / 5


@pytest.mark.parametrize(
    "fields",
    [
        *(LLAMA | {"model_type": kind, "head_dim": 16} for kind in ("qwen2", "qwen3", "mistral")),
        *(LLAMA | {"model_type": kind, "head_dim": 16} for kind in ("glm", "glm4", "gemma2")),
        LLAMA | {"model_type": "gemma3_text", "head_dim": 16, "num_key_value_heads": 2},
        LLAMA | {"model_type": "smollm3", "pad_token_id": 0},
        GPT2,
    ],
    ids=lambda fields: fields["model_type"],
)
def test_every_architecture_runs_without_numbers(fields: dict[str, Any]) -> None:
    padding = {} if fields is GPT2 else {"pad_token_id": 0}
    # transformers has no other attention for Gemma 2.
    how = Attention.eager if fields["model_type"] == "gemma2" else Attention.auto
    measured = meter(architecture(fields, **padding), attention=how)
    assert measured.peak(SIZE, training=True) > measured.peak(SIZE, training=False) > 0
    assert measured.flops(20, training=True) > measured.flops(20, training=False)


def test_seven_billion_weights_are_measured_without_memory_for_them() -> None:
    config = compose("train", TrainConfig, ["backbone=llama2"]).backbone
    assert config.path is not None
    language = backbone_config(
        config.path, weights=Weights.random, architecture=config.architecture
    )
    meter(architecture(LLAMA)).peak(SIZE, training=True)  # what is imported only once
    before = memory.process_bytes(CPU)
    memory.reset_peak(CPU)
    measured = meter(language, dtype=torch.bfloat16)
    assert measured.peak(BatchSize(16, 60, {}), training=True) > 5 * 10**9
    assert memory.peak_bytes(CPU) - before < 150 << 20


def test_what_cannot_be_a_backbone_is_said_without_numbers_too() -> None:
    mamba = MambaConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=1, state_size=4
    )
    with pytest.raises(BackboneError, match="MambaForCausalLM cannot be a backbone"):
        meter(mamba).peak(SIZE, training=True)


def test_what_cannot_be_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def numbers(*_: Any) -> None:
        torch.ones(1, device="meta").item()

    monkeypatch.setattr(AdaptedLM, "step", numbers)
    with pytest.raises(
        BackboneError, match=r"cost of a llama backbone cannot be estimated: .*check_memory=false"
    ):
        meter(architecture(LLAMA)).peak(SIZE, training=True)


@pytest.mark.parametrize("adapter", ["mse", "mag"])
def test_shapes_that_are_known_change_no_result(
    monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    class Forgetful(dict[Any, Any]):
        def __setitem__(self, *_: Any) -> None:
            pass

    def costs() -> tuple[Any, ...]:
        measured = meter(architecture(LLAMA, num_hidden_layers=3), adapter)
        operations = measured.flops(9, training=True)
        return (
            measured.peak(SIZE, training=True),
            measured.peak(SIZE, training=False),
            operations,
        )

    first, again = costs(), costs()
    monkeypatch.setattr(step, "_SHAPES", Forgetful())
    assert costs() == first == again


# ---- operations ----------------------------------------------------------------------------------


def by_hand(
    language: StepMeter, text: int, *, training: bool, keys: int = WIDTH, width: int = WIDTH
) -> int:
    """Operations for an utterance.

    Nothing is computed for the cached prefix, but the other tokens attend to it. Of the last layer,
    all but keys and values is computed at the positions that are read.
    """
    model = language._model(3)
    prefix, tree = len(model.prompt.prefix_ids), model.tree
    labels, nodes = tree.answer_ids.shape[1], len(tree)
    tokens = model.prompt.longest - model.prompt.text_tokens + text
    tokens += labels - 1 if training else nodes
    new, read = tokens - prefix, labels if training else 1 + nodes
    others = 2 * WIDTH * width + 3 * WIDTH * INNER
    matrices = LAYERS * 2 * 2 * WIDTH * keys * new + 2 * others * ((LAYERS - 1) * new + read)
    attention = LAYERS * 4 * tokens * new * width
    head = 2 * WIDTH * VOCABULARY * read
    # The gradient of a product by a fixed matrix is one more product; that of a product of two
    # activations, of which attention consists, is two.
    return 2 * (matrices + head) + 3 * attention if training else matrices + head + attention


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("text", [1, 20, 60])
def test_operations_are_those_counted_by_hand(text: int, training: bool) -> None:
    measured = meter(architecture(LLAMA), "nothing")
    assert measured.flops(text, training=training) == by_hand(measured, text, training=training)


def test_heads_that_share_keys_save_the_matrices_of_keys_alone() -> None:
    measured = meter(architecture(LLAMA, num_key_value_heads=1, head_dim=32), "nothing")
    expected = by_hand(measured, 30, training=False, keys=32, width=128)
    assert measured.flops(30, training=False) == expected


def test_neither_dtype_nor_attention_changes_the_operations() -> None:
    config = architecture(LLAMA)
    expected = meter(config).flops(30, training=True)
    before = config.to_dict()
    other = meter(config, dtype=torch.bfloat16, attention=Attention.eager)
    assert other.flops(30, training=True) == expected
    assert config.to_dict() == before


def test_reading_features_is_a_thousandth_of_a_published_model() -> None:
    language = architecture(LLAMA, hidden_size=2048, intermediate_size=5504, num_hidden_layers=24)
    with_adapter, without = (meter(language, name) for name in ("mse", "nothing"))
    found, least = (each.flops(30, training=True) for each in (with_adapter, without))
    assert found == pytest.approx(least, rel=0.001)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "fields",
    [
        LLAMA,
        LLAMA | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 512},
        GPT2,
    ],
    ids=lambda fields: fields["model_type"],
)
def test_three_lengths_tell_all_others(fields: dict[str, Any], training: bool) -> None:
    measured = meter(architecture(fields))
    lengths = np.array([[3, 4], [40, 61]])
    expected = [[measured._counted(int(n), training=training) for n in row] for row in lengths]
    np.testing.assert_array_equal(measured.flops(lengths, training=training), expected)


def test_layers_that_differ_are_all_measured() -> None:
    # A model whose deeper layers are others cannot be told from its first.
    mixed = architecture(LLAMA | {"model_type": "qwen2_moe"}, mlp_only_layers=[0, 1, 2, 4])
    assert meter(mixed)._layers == (LAYERS, LAYERS)
    assert meter(architecture(LLAMA))._layers == (3, 4)


@pytest.mark.parametrize("name", ["gemma3-1b", "qwen3-0.6b", "smollm3-3b"])
def test_what_a_config_says_of_each_layer_is_cut_too(name: str) -> None:
    config = compose("train", TrainConfig, [f"backbone={name}"]).backbone
    assert config.path is not None
    whole = backbone_config(config.path, weights=Weights.random, architecture=config.architecture)
    small = with_layers(whole, 2)
    assert small.num_hidden_layers == 2
    assert small.layer_types == whole.layer_types[:2]
    assert len(whole.layer_types) == whole.num_hidden_layers > 2
    if name == "smollm3-3b":
        assert small.no_rope_layers == whole.no_rope_layers[:2]
