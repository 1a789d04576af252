"""Every choice of ``conf/backbone``: a small random model of its architecture keeps the contract.

The contract is all that an adapter needs of a language model: sequences in the preset's layout, a
loss with a gradient at the pseudo tokens, the probability of every answer, and an utterance that is
the same in any batch, with the prefix cached or computed with every sequence.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.options import BackboneConfig
from msea_lightning.commands.command_line import compose, conf_folder
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.options import Language
from msea_lightning.data.utterance import Batch, PaddedSequences
from msea_lightning.language.options import SegmentKind
from msea_lightning.language.prompt import Prompt
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.training.build import build_adapted_lm, build_data, load_config_backbone
from tests.model.test_adapted_lm import part

PRESETS = sorted(path.stem for path in (conf_folder() / "backbone").glob("*.yaml"))
ROUNDING = 1e-5
"""Models are in float64, but their logits, at most some ten, and norms in float32 (eps 6e-8)."""
WIDTH, HEADS, HEAD_WIDTH, WINDOW = 32, 4, 16, 256
FRAMES = 6
"""Of a feature at most: what the adapter makes of them is not tested here."""
PAPER = ("llama2", "qwen", "chatglm3")
BETWEEN = {
    "llama3.1-8b",
    *("qwen2.5-1.5b", "qwen2.5-3b", "qwen3-1.7b", "qwen3-4b", "llama3.2-3b", "smollm2-360m"),
}
"""Neither the smallest nor the largest of their families, whose layers are of the same kinds."""
UNCACHED: frozenset[str] = frozenset()
"""Presets that cannot continue from a cached prefix: none."""
TEXTS = [
    "no",
    "it was the best of all evenings, and everybody said so again and again until we left",
    "fine",
    "why would you ever think that this is funny? I do not know what to say to that any more",
    "well",
    "the second half was slow",
    "oh",
    "they came, they saw, they laughed",
]
"""Eight texts of very different lengths."""


def small(architecture: dict[str, object]) -> dict[str, object]:
    """A published architecture with few and narrow layers that are of all its kinds.

    Weights are larger than usual, so that what a token must not see would show in the loss.
    """
    fields = dict(architecture)
    query, key = int(str(fields["num_attention_heads"])), int(str(fields["num_key_value_heads"]))
    fields |= {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": {query: HEADS, 1: 1}.get(key, HEADS // 2),
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    # Of the widths of their own that heads have, and of the layers that repeat every so often.
    if "head_dim" in fields:
        fields["head_dim"] = HEAD_WIDTH
    if fields.get("sliding_window") is not None:
        fields["sliding_window"] = WINDOW
    if "sliding_window_pattern" in fields:
        fields["sliding_window_pattern"] = 2
    if fields["model_type"] == "smollm3":
        fields["no_rope_layer_interval"] = 2
    return fields


GPT2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_positions": 512}
"""For ``backbone=auto``: an architecture without a preset, with learned positions."""


def random_backbone(config: BackboneConfig, shipped: FrozenBackbone) -> FrozenBackbone:
    """A small random model of a preset in float64, with the layout's special tokens."""
    if config.name == "tiny":
        return FrozenBackbone(copy.deepcopy(shipped.model).double(), shipped.tokenizer)
    tokenizer = copy.deepcopy(shipped.tokenizer)
    tokens = [segment.token for segment in config.layout if segment.kind is SegmentKind.token]
    tokens += [config.pad_token] if config.pad_token else []
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in tokens if token not in known], special_tokens=True)
    fields = small(config.architecture) if config.architecture else {"model_type": "gpt2", **GPT2}
    model_type = fields.pop("model_type")
    architecture = AutoConfig.for_model(model_type, **{**fields, "vocab_size": len(tokenizer)})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(architecture).double()
    return FrozenBackbone(model, tokenizer, pad_token=config.pad_token)


def losses(task: AdaptedLM, batch: Batch) -> Tensor:
    """(B,) loss of every utterance, the mean over its label's tokens."""
    with torch.no_grad():
        logits, targets = task.label_logits(batch)
    tokens = functional.cross_entropy(logits, targets, reduction="none")
    lengths = [len(task.tree.ids(label)) for label in batch.targets]
    return torch.stack([part.mean() for part in tokens.split(lengths)])


Make = Callable[[str, str], tuple[AdaptedLM, Batch]]
"""From the variant of the demo and the adapter."""


@pytest.fixture(params=PRESETS)
def preset(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make(preset: str, options: Callable[..., TrainConfig], backbone: FrozenBackbone) -> Make:
    """Builds a task on the preset's random model, and a batch of eight for it."""

    def build(variant: str, adapter: str) -> tuple[AdaptedLM, Batch]:
        place = ["backbone.path=anywhere"] if preset == "auto" else []
        place += ["adapter.scales=[1,2,4]"] if adapter == "mse" else []
        config = options(
            f"backbone={preset}", f"dataset.demo_task={variant}", f"adapter={adapter}", *place
        )
        data: UtteranceDataModule = build_data(config)
        data.prepare_data()
        data.setup()
        seed_everything(0, verbose=False)
        task = build_adapted_lm(config, data, random_backbone(config.backbone, backbone)).double()
        batch = part(next(iter(data.evaluation_dataloader("valid"))), list(range(8)))
        absent = {"audio": torch.tensor([1, 4]), "vision": torch.tensor([2, 4])}
        return task, dataclasses.replace(
            batch,
            texts=TEXTS,
            features={
                name: PaddedSequences(
                    values[:, :FRAMES], (lengths % FRAMES + 1).index_fill(0, absent[name], 0)
                )
                for name, (values, lengths) in batch.features.items()
            },
        )

    return build


def test_the_small_model_is_of_all_kinds_of_the_published_one(preset: str) -> None:
    place = ["backbone.path=anywhere"] if preset == "auto" else []
    config = compose("train", TrainConfig, [f"backbone={preset}", *place]).backbone
    if not config.architecture:
        pytest.skip("the built-in one is small itself, and any other may be anything")
    kinds = []
    for fields in (dict(config.architecture), small(config.architecture)):
        model = AutoConfig.for_model(fields.pop("model_type"), **fields)
        groups = model.num_attention_heads // model.num_key_value_heads
        kinds.append(
            {
                "type": type(model),
                "layers": set(getattr(model, "layer_types", None) or ()),
                "positions": set(getattr(model, "no_rope_layers", None) or ()),
                "rotation": model.rope_parameters,
                "tied": model.tie_word_embeddings,
                "groups": min(groups, 2),
                "one key": model.num_key_value_heads == 1,
                "bias": getattr(model, "attention_bias", None),
                "caps": getattr(model, "final_logit_softcapping", None),
            }
        )
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    ("preset", "variant"),
    [
        *((preset, "erc") for preset in PRESETS if preset not in BETWEEN),
        # How intensities are written depends on the layout and the tokenizer, not on the layers.
        *((preset, "msa") for preset in ("tiny", "auto", *PAPER, "qwen3-0.6b", "gemma3-1b")),
    ],
    indirect=["preset"],
)
def test_backbone_contract(
    make: Make, preset: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, batch = make(variant, "mse")
    check_batches(task, batch)
    check_answers(task, part(batch, [1, 4]))
    check_prefix(task, part(batch, [1, 4, 6]), monkeypatch, cached=preset not in UNCACHED)
    check_step(task, batch)


@pytest.mark.parametrize("preset", ["auto", "chatglm3", "gemma3-1b", "llama2"], indirect=True)
@pytest.mark.parametrize("adapter", ["mag", "chfn"])
def test_backbone_contract_of_adapters_that_change_the_text(make: Make, adapter: str) -> None:
    """They meet the language model in its embeddings alone, so that a few presets will do."""
    task, batch = make("erc", adapter)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in task.adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    task.eval()
    check_batches(task, batch)
    check_step(task, batch)


def check_prefix(
    task: AdaptedLM, batch: Batch, monkeypatch: pytest.MonkeyPatch, *, cached: bool
) -> None:
    """Loss, gradients and answers are the same with and without the cached prefix."""
    prefix = task.backbone.cached_prefix(task.prompt.prefix_ids)
    assert (prefix is not None) == cached
    if prefix is None:
        return
    assert prefix.tokens == len(task.prompt.prefix_ids) > 0
    found = read(task, batch)
    with monkeypatch.context() as patch:
        patch.setattr(task.backbone, "caches_prefix", False)
        assert task.backbone.cached_prefix(task.prompt.prefix_ids) is None
        expected = read(task, batch)
    names = ["loss", "log probabilities", *dict(task.adapter.named_parameters())]
    for name, one, other in zip(names, found, expected, strict=True):
        scale = 1 + float(other.abs().max())
        assert float((one - other).abs().max()) < ROUNDING * scale, name


def read(task: AdaptedLM, batch: Batch) -> list[Tensor]:
    """Mean loss, log probabilities of all answers, and the gradient of every weight."""
    loss, count = task.loss(batch)
    gradients = torch.autograd.grad(loss / count, list(task.adapter.parameters()))
    return [loss.detach() / count, task.answer_logp(batch), *gradients]


def check_batches(task: AdaptedLM, batch: Batch) -> None:
    """The loss of an utterance is the same alone and in any batch."""
    alone = torch.cat([losses(task, part(batch, [row])) for row in range(8)])
    order = [3, 0, 6, 1, 7, 2, 5, 4]
    for size in (4, 8):
        for rows in (list(range(8)), order):
            groups = [rows[start : start + size] for start in range(0, 8, size)]
            together = torch.cat([losses(task, part(batch, group)) for group in groups])
            assert (together - alone[rows]).abs().max() < ROUNDING
    # What is read does matter: the same utterances with each other's texts.
    swapped = losses(task, dataclasses.replace(batch, texts=TEXTS[::-1]))
    assert (swapped - alone).abs().max() > 1e-3


def check_answers(task: AdaptedLM, batch: Batch) -> None:
    """One pass over the answer tree gives what reading every answer for itself gives."""
    answers = task.answers(batch)
    space = task.tree.space
    labels = [space.label(value) for value in space.values]
    # With a sign, minus zero is a legal answer that training never teaches.
    taught = [i for i, label in enumerate(labels) if space.text(label) == space.answers[i]]
    joint = torch.zeros(len(batch), len(labels), dtype=torch.float64)
    logp = task.answer_logp(batch)
    for row in range(len(batch)):
        copies = part(batch, [row] * len(taught))
        asked = dataclasses.replace(copies, labels={"M": [labels[answer] for answer in taught]})
        with torch.no_grad():
            logits, targets = task.label_logits(asked)
        tokens = -functional.cross_entropy(logits, targets, reduction="none").double()
        lengths = [len(task.tree.ids(labels[answer])) for answer in taught]
        joint[row, taught] = torch.stack([part.sum() for part in tokens.split(lengths)])
    torch.testing.assert_close(
        logp.double().sum(-1)[:, taught], joint[:, taught], atol=1e-4, rtol=1e-5
    )
    torch.testing.assert_close(answers.distribution, logp.double().sum(-1).softmax(-1))


def check_step(task: AdaptedLM, batch: Batch) -> None:
    """A step trains the adapter, through the embeddings, and leaves the language model alone."""
    parameters = list(task.backbone.model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(task.adapter.parameters(), lr=1e-3)
    loss, count = task.loss(batch)
    (loss / count).backward()
    gradients = [parameter.grad for parameter in task.adapter.parameters()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients)
    assert all(grad.abs().sum() > 0 for grad in gradients)
    optimizer.step()
    assert all(parameter.grad is None for parameter in parameters)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_random_weights_need_no_tokenizer_of_the_preset(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `backbone=<preset> backbone.weights=random` on a machine where nothing was fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = ["backbone.path=any/where"] if preset == "auto" else []
    config = compose(
        "train", TrainConfig, [f"backbone={preset}", "backbone.weights=random", *place]
    ).backbone
    if config.architecture:
        config.architecture = small(config.architecture) | {"vocab_size": 6000}
    elif preset == "auto":
        config.architecture = {"model_type": "gpt2", **GPT2, "vocab_size": 6000}
    backbone = load_config_backbone(config, torch.device("cpu"))
    Prompt(
        config.layout,
        backbone.tokenizer,
        language=Language.en,
        task="The emotion is",
        pseudo_tokens=1,
        text_tokens=8,
        pad_id=backbone.pad_id,
    )
