"""Readouts: from last states to probabilities of answers, and the losses over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.utterance import Batch
from msea_lightning.language.answers import AnswerTree, stepwise_logp
from msea_lightning.language.labels import EmotionSet
from msea_lightning.language.options import Decode, Loss
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.build import answer_prior
from msea_lightning.model.contract import ModelError
from msea_lightning.model.options import ModelOptions
from msea_lightning.model.readout import TokenReadout
from msea_lightning.training.build import build_data
from tests.model.test_adapted_lm import make
from tests.rounding import assert_same

Options = Callable[..., TrainConfig]
ANSWERS = "training.loss=answers"
UNTRAINED = "training.schedule_epochs=0"


def scored(task: AdaptedLM, batch: Batch) -> Tensor:
    """(B, A) log probability of every answer, from what evaluation reads."""
    logp = task.answer_logp(batch).masked_fill(task.tree.answer_ids < 0, 0.0)
    return logp.sum(-1)


def numbers(task: AdaptedLM, batch: Batch) -> Tensor:
    return torch.tensor([task.tree.number(label) for label in batch.targets])


@pytest.mark.parametrize("variant", ["erc", "msa"])
@pytest.mark.parametrize("readout", ["tokens", "linear"])
def test_what_is_trained_is_what_is_decoded(
    options: Options, backbone: FrozenBackbone, variant: str, readout: str
) -> None:
    """The loss over legal answers is minus the log probability that evaluation gives the label."""
    config = options(f"dataset.demo_task={variant}", ANSWERS, f"readout={readout}")
    task, _, batch = make(config, backbone)
    logp = scored(task, batch)
    assert_same(logp.exp().sum(-1), torch.ones(len(batch)))
    step = task.step(batch)
    assert step.count == len(batch)
    expected = -logp.gather(1, numbers(task, batch)[:, None]).sum()
    assert_same(step.loss_sum, expected)


def test_renormalising_changes_no_greedy_answer(options: Options, backbone: FrozenBackbone) -> None:
    words = ("dataset.demo_task=msa", "decode=greedy")
    over_all, _, batch = make(options(*words), backbone)
    over_answers, _, _ = make(options(*words, ANSWERS), backbone)
    assert torch.equal(over_all.predict(batch).value, over_answers.predict(batch).value)


def test_log_probabilities_over_the_vocabulary_can_be_renormalised_later(
    options: Options, backbone: FrozenBackbone
) -> None:
    """As those of an engine that gives no others."""
    words = ("dataset.demo_task=msa", ANSWERS, "prompt.calibrate=true")
    task, _, batch = make(options(*words), backbone)
    readout = task.readout
    assert isinstance(readout, TokenReadout)
    over_all = TokenReadout(backbone, task.tree)
    found = task.answer_logp(batch)
    task.readout = over_all
    beyond = task.tree.answer_ids < 0
    renormalised = readout.renormalized(task.answer_logp(batch)).masked_fill(beyond, 0.0)
    assert_same(renormalised, found.masked_fill(beyond, 0.0))


def test_stepwise_probabilities_by_hand() -> None:
    """Answers "aa", "ab" and "b" with three legal tokens at most."""
    written = {"x": [7, 7], "y": [7, 9], "z": [9]}
    names = {(7, 7): "0", (7, 9): "1", (9,): "2"}
    space = EmotionSet(list(written))
    tree = AnswerTree(
        space, lambda text: list(written.values())[int(text)], lambda ids: names[tuple(ids)]
    )
    scores = torch.log(torch.tensor([[[0.2, 0.6], [0.5, 0.25]]]))  # rows: the prompt, after "7"
    logp = stepwise_logp(tree, scores).masked_fill(tree.answer_ids < 0, 0.0)
    expected = [0.25 * 2 / 3, 0.25 / 3, 0.75]
    torch.testing.assert_close(logp.sum(-1).exp()[0], torch.tensor(expected))


@pytest.mark.parametrize("readout", ["tokens", "linear"])
def test_the_ordinal_loss_adds_the_expected_error(
    options: Options, backbone: FrozenBackbone, readout: str
) -> None:
    words = ("dataset.demo_task=msa", ANSWERS, f"readout={readout}")
    plain, _, batch = make(options(*words), backbone)
    ordinal, _, _ = make(options(*words, "training.ordinal=0.5"), backbone)
    step = ordinal.step(batch)
    labels = torch.tensor([float(label) for label in batch.targets], dtype=torch.float64)
    distribution = plain.predict(batch, Decode.mean).distribution
    assert distribution is not None
    error = (distribution * (plain.tree.values - labels[:, None]).abs()).sum()
    assert_same(step.terms["expected_error"], error.float())
    assert_same(step.loss_sum, plain.step(batch).loss_sum + 0.5 * error)
    step.loss_sum.backward()
    assert all(weight.grad is not None for weight in ordinal.parameters())


def test_balanced_classes_count_the_same(options: Options, backbone: FrozenBackbone) -> None:
    task, data, batch = make(options(ANSWERS, "training.class_weights=balanced"), backbone)
    plain, _, _ = make(options(ANSWERS), backbone)
    labels = data.splits["train"].targets
    weights = task._class_weights
    assert weights is not None
    by_class: dict[str, float] = {}
    for label in labels:
        by_class[str(label)] = by_class.get(str(label), 0.0) + float(
            weights[task.tree.number(label)]
        )
    assert len(by_class) == 7
    assert list(by_class.values()) == pytest.approx([len(labels) / 7] * 7)
    each = -scored(plain, batch).gather(1, numbers(plain, batch)[:, None])[:, 0]
    assert_same(task.step(batch).loss_sum, (each * weights[numbers(task, batch)]).sum())


def test_calibration_takes_out_what_the_prompt_says_by_itself(
    options: Options, backbone: FrozenBackbone
) -> None:
    task, _, batch = make(options(ANSWERS, "prompt.calibrate=true"), backbone)
    plain, _, _ = make(options(ANSWERS), backbone)
    prior = answer_prior(backbone, task.prompt, task.tree)
    # Every answer is the same token first, and then one of its own.
    first, last = task.tree.predictors[:, 1], task.tree.slots[:, 1]
    assert len(set(first.tolist())) == 1
    # Probabilities without an utterance are subtracted, and the rest is normalised again.
    expected = (scored(plain, batch) - prior[first, last]).log_softmax(-1)
    assert_same(scored(task, batch), expected)
    loss = task.step(batch).loss_sum
    assert_same(loss, -expected.gather(1, numbers(task, batch)[:, None]).sum())


def test_a_linear_readout_is_trained_and_the_language_model_is_not(
    options: Options, backbone: FrozenBackbone
) -> None:
    task, _, batch = make(options(ANSWERS, "readout=linear"), backbone)
    assert {name for name, _ in task.readout.named_parameters()} == {"linear.weight", "linear.bias"}
    before = [weight.clone() for weight in backbone.model.parameters()]
    optimizer = torch.optim.AdamW(task.parameter_groups(), lr=1e-3)
    first = task.step(batch).loss_sum
    first.backward()
    optimizer.step()
    assert task.step(batch).loss_sum < first
    assert all(torch.equal(*pair) for pair in zip(backbone.model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["readout=linear"],
            "readout=linear needs .* training.loss=vocabulary: set training.loss=a",
        ),
        (["training.ordinal=1"], "training.ordinal=1.0 needs probabilities of the legal answers"),
        (["prompt.calibrate=true"], "prompt.calibrate=true needs probabilities of the legal"),
        (["readout=linear", ANSWERS, "prompt.calibrate=true"], "no effect with readout=linear"),
        ([UNTRAINED, "training.class_weights=balanced"], "class_weights=balanced means nothing"),
        ([UNTRAINED, ANSWERS, "training.ordinal=1"], "training.ordinal=1.0 means nothing untrai"),
        (["adapter=none"], "adapter=none with readout=tokens has nothing to train: set training.s"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(
    options: Options, words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        options(*words)


def test_a_model_of_its_own_has_to_be_trained(options: Options) -> None:
    config = replace(options(UNTRAINED), model=ModelOptions("fusion"))
    with pytest.raises(ConfigError, match="model=fusion means nothing untrained"):
        config.check("")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((ANSWERS, "training.ordinal=1"), "training.ordinal=1.0 needs intensities"),
        (
            ("dataset.demo_task=msa", "training.class_weights=balanced"),
            "training.class_weights=balanced needs emotions",
        ),
        (
            ("dataset.demo_task=msa", "dataset.labels.words=names"),
            "dataset.labels.words=names needs emotions; the labels of demo are intensities",
        ),
    ],
)
def test_what_the_labels_do_not_allow_is_refused_before_a_language_model_is_read(
    options: Options, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build_data(options(*words))


def test_the_default_is_the_paper_s(options: Options, backbone: FrozenBackbone) -> None:
    task, _, _ = make(options(), backbone)
    assert isinstance(task.readout, TokenReadout)
    assert task.readout.loss is Loss.vocabulary
    assert list(task.readout.state_dict()) == []
