"""The adapted language model: what trains, what stays, and what a batch must not change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import seed_everything

from msea_lightning.backbone import FrozenBackbone, load_backbone
from msea_lightning.backbone.options import Quantization
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.utterance import Batch, PaddedSequences
from msea_lightning.language.prompt import encode_all
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.build import trainable
from msea_lightning.model.contract import ModelError
from msea_lightning.plugin import Plugin, attach
from msea_lightning.plugin.facts import PluginFacts, describe
from msea_lightning.plugin.saving import plugin_weights
from msea_lightning.training.build import build_adapted_lm, build_data
from tests.rounding import BOUND, assert_same

Options = Callable[..., TrainConfig]
ADAPTERS = ("mse", "mag", "chfn")
ABLATIONS = ("none", "no_audio", "no_vision", "no_text", "no_audio_vision", "no_tgm", "no_msf")


def set_up(config: TrainConfig) -> UtteranceDataModule:
    data = build_data(config)
    data.prepare_data()
    data.setup()
    return data


def make(
    config: TrainConfig, backbone: FrozenBackbone
) -> tuple[AdaptedLM, UtteranceDataModule, Batch]:
    data = set_up(config)
    seed_everything(config.seed, verbose=False)
    task = build_adapted_lm(config, data, backbone)
    return task, data, next(iter(data.evaluation_dataloader("valid")))


def part(batch: Batch, rows: list[int]) -> Batch:
    """Some utterances of a batch, padded as they were in it."""
    return dataclasses.replace(
        batch,
        index=batch.index[rows],
        ids=[batch.ids[row] for row in rows],
        texts=[batch.texts[row] for row in rows],
        labels={name: [labels[row] for row in rows] for name, labels in batch.labels.items()},
        features={
            name: PaddedSequences(values[rows], lengths[rows])
            for name, (values, lengths) in batch.features.items()
        },
        groups=[batch.groups[row] for row in rows],
        speakers=[batch.speakers[row] for row in rows],
        positions=batch.positions[rows],
    )


@pytest.mark.parametrize(
    ("variant", "adapter"), [("erc", "mse"), ("msa", "mse"), ("erc", "mag"), ("erc", "chfn")]
)
def test_an_utterance_is_the_same_alone_and_in_any_batch(
    options: Options, backbone: FrozenBackbone, variant: str, adapter: str
) -> None:
    task, _, batch = make(options(f"dataset.demo_task={variant}", f"adapter={adapter}"), backbone)
    task.eval()
    loss, count = task.loss(batch)
    alone = [task.loss(part(batch, [row])) for row in range(len(batch))]
    assert count == sum(tokens for _, tokens in alone)
    assert loss.item() == pytest.approx(sum(nll.item() for nll, _ in alone), rel=BOUND)
    answers = task.answers(batch)
    for row in range(len(batch)):
        one = task.answers(part(batch, [row]))
        assert_same(one.distribution[0], answers.distribution[row], scale=1.0)


@pytest.mark.parametrize("variant", ["erc", "msa"])
def test_one_pass_over_the_answer_tree_equals_scoring_each_answer(
    options: Options, backbone: FrozenBackbone, variant: str
) -> None:
    """The training loss of an answer is minus the sum of its token log probabilities."""
    task, _, batch = make(options(f"dataset.demo_task={variant}"), backbone)
    batch = part(batch, [0, 1, 2])
    logp = task.answer_logp(batch)
    space = task.tree.space
    for answer in (0, len(space.answers) // 2, len(space.answers) - 1):
        label = space.label(space.values[answer])
        length = int((task.tree.answer_ids[answer] >= 0).sum())
        asked = dataclasses.replace(batch, labels={"M": [label] * 3})
        loss, _ = task.loss(asked)
        assert -logp[:, answer, :length].sum().item() == pytest.approx(loss.item(), rel=BOUND)


@pytest.mark.parametrize(
    ("adapter", "ablation"),
    [("mse", ablation) for ablation in ABLATIONS]
    + [(adapter, ablation) for adapter in ("mag", "chfn") for ablation in ABLATIONS[:3]],
)
def test_a_step_trains_the_adapter_and_nothing_else(
    options: Options, backbone: FrozenBackbone, adapter: str, ablation: str
) -> None:
    task, _, batch = make(options(f"adapter={adapter}", f"ablation={ablation}"), backbone)
    frozen = [parameter.detach().clone() for parameter in backbone.model.parameters()]
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    ids = backbone.tokenizer("The sentiment is", return_tensors="pt")["input_ids"]
    generate = {"max_new_tokens": 8, "do_sample": False}
    written = backbone.model.generate(ids, **generate)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    loss, count = task.loss(batch)
    (loss / count).backward()
    during = backbone.model.generate(ids, **generate)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in task.parameters())
    optimizer.step()
    moved = {name for name, p in task.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before)
    after = backbone.model.generate(ids, **generate)
    assert torch.equal(written, during)
    assert torch.equal(written, after)
    assert all(torch.equal(a, b) for a, b in zip(frozen, backbone.model.parameters(), strict=True))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_backbone_is_no_part_of_the_module(
    options: Options, backbone: FrozenBackbone, adapter: str
) -> None:
    task, *_ = make(options(f"adapter={adapter}"), backbone)
    assert all(name.startswith("adapter.") for name, _ in task.named_parameters())
    assert {name.split(".")[0] for name in task.state_dict()} == {"adapter", "standardizer"}
    assert trainable(task) == sum(weight.numel() for weight in task.adapter.parameters())


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_step_through_a_quantised_backbone(options: Options, quantization: str) -> None:
    backbone = load_backbone(None, quantization=Quantization(quantization))
    task, _, batch = make(options(), backbone)
    frozen = [parameter.detach().clone() for parameter in backbone.model.parameters()]
    loss, count = task.loss(batch)
    (loss / count).backward()
    gradients = [p.grad for p in task.parameters()]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0
    task.answers(batch)
    assert all(torch.equal(a, b) for a, b in zip(frozen, backbone.model.parameters(), strict=True))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_only_what_an_utterance_has_reaches_the_model(
    options: Options, backbone: FrozenBackbone, adapter: str
) -> None:
    """Frames beyond a length are never read, whatever they hold."""
    task, _, batch = make(options(f"adapter={adapter}"), backbone)
    task.eval()
    features = {
        name: PaddedSequences(v.clone(), lengths) for name, (v, lengths) in batch.features.items()
    }
    spoilt = dataclasses.replace(batch, features=features)
    for values, lengths in features.values():
        for row, length in enumerate(lengths.tolist()):
            values[row, length:] = float("nan")
    assert torch.equal(task.answer_logp(batch), task.answer_logp(spoilt))


@pytest.mark.parametrize("adapter", ["mag", "chfn"])
def test_text_in_padded_places_is_changed_alike(
    options: Options, backbone: FrozenBackbone, adapter: str
) -> None:
    """Places that are filled up and masked change nothing, as with pseudo tokens."""
    task, _, batch = make(options(f"adapter={adapter}"), backbone)
    padded, *_ = make(options(f"adapter={adapter}", "text.pad_to=40"), backbone)
    padded.load_state_dict(task.state_dict())
    assert_same(padded.eval().answer_logp(batch), task.eval().answer_logp(batch))


def test_without_text_no_text_is_read(options: Options, backbone: FrozenBackbone) -> None:
    task, _, batch = make(options("ablation=no_text"), backbone)
    other = dataclasses.replace(batch, texts=["something else"] * len(batch))
    assert torch.equal(task.answer_logp(batch), task.answer_logp(other))


def test_sequences_beyond_the_backbone_are_refused(
    options: Options, backbone: FrozenBackbone
) -> None:
    with pytest.raises(ModelError, match=r"lower dataset\.text_tokens=5000 to \d+ or less"):
        make(options("dataset.text_tokens=5000"), backbone)


def described(task: AdaptedLM, data: UtteranceDataModule) -> PluginFacts:
    """The facts of a plugin of the demo."""
    return describe(
        task,
        metrics=data.metrics,
        dataset="demo",
        labels=data.labels,
        pad_token=None,
        backbone={},
        test={},
    )


def test_what_the_tokenizer_decided_about_the_sign_is_kept_with_the_plugin(
    options: Options, backbone: FrozenBackbone
) -> None:
    config = options("dataset.demo_task=msa", "backbone.signed_labels=null")
    task, data, _ = make(config, backbone)
    facts = described(task, data)
    assert facts.signed_labels is task.tree.space.signed is False


def test_a_calibrated_plugin_answers_as_its_run(options: Options, backbone: FrozenBackbone) -> None:
    task, data, batch = make(options("training.loss=answers", "prompt.calibrate=true"), backbone)
    facts = described(task, data)
    again = attach(Plugin(facts, plugin_weights(task)), backbone)
    assert facts.calibrated
    assert_same(again.answer_logp(batch), task.eval().answer_logp(batch))


def test_distribution_covers_every_legal_answer(options: Options, backbone: FrozenBackbone) -> None:
    task, _, batch = make(options("dataset.demo_task=msa"), backbone)
    answers = task.answers(batch)
    assert answers.distribution.shape == (len(batch), len(task.tree.space.answers))
    torch.testing.assert_close(
        answers.distribution.sum(-1), torch.ones(len(batch), dtype=torch.float64)
    )


@pytest.mark.parametrize("variant", ["erc", "msa"])
def test_texts_tokenised_beforehand_are_read_as_they_would_be_now(
    options: Options, backbone: FrozenBackbone, variant: str
) -> None:
    config = options(f"dataset.demo_task={variant}", "dataset.text_tokens=9")
    task, data, batch = make(config, backbone)
    data.tokenize(lambda texts: encode_all(backbone.tokenizer, texts))
    tokens = [data.splits["valid"].tokens[index] for index in batch.index.tolist()]
    assert max(map(len, tokens)) > 9, "some text is to be cut, or it shows nothing"
    before = dataclasses.replace(batch, tokens=tokens)
    task.eval()
    assert torch.equal(task.answer_logp(before), task.answer_logp(batch))
    assert torch.equal(task.loss(before)[0], task.loss(batch)[0])
