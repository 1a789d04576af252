"""The LightningModule: the loss over parts and ranks, and divergence."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.utterance import Batch
from msea_lightning.metrics import UtteranceScore
from msea_lightning.training.module import TrainingError, TrainingModule
from tests.model.test_adapted_lm import make, part
from tests.rounding import assert_same

Options = Callable[..., TrainConfig]


def wrapped(config: TrainConfig, backbone: FrozenBackbone) -> tuple[TrainingModule, Batch]:
    model, data, batch = make(config, backbone)
    return TrainingModule(model, UtteranceScore(data.metrics), training=config.training), batch


def alone(task: TrainingModule, monkeypatch: pytest.MonkeyPatch, **state: int) -> None:
    """Puts a task into a trainer's place in training, without a trainer."""
    standing = {"world_size": 1, "accumulate_grad_batches": 1, "global_step": 0, "current_epoch": 0}
    task._trainer = SimpleNamespace(**{**standing, **state})
    monkeypatch.setattr(TrainingModule, "log", lambda *_, **__: None)


def test_the_loss_of_a_step_is_the_mean_over_all_its_label_tokens(
    options: Options, backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its parts hold labels of different lengths."""
    task, batch = wrapped(options("training.batch_size=16"), backbone)
    short = task.model.tree.ids
    longer = {label: short(label) * (1 + number) for number, label in enumerate(set(batch.targets))}
    monkeypatch.setattr(task.model.tree, "ids", longer.__getitem__)
    alone(task, monkeypatch, accumulate_grad_batches=3)
    # The order makes the first part's labels the shortest.
    rows = sorted(range(12), key=lambda row: len(longer[batch.targets[row]]))
    whole = part(batch, rows)
    pieces = [part(batch, rows[start : start + 4]) for start in (0, 4, 8)]
    counts = [sum(len(longer[label]) for label in piece.targets) for piece in pieces]
    assert len(set(counts)) > 1, "it is to be uneven, or shows nothing"

    loss, count = task.model.loss(whole)
    assert count == sum(counts)
    expected = torch.autograd.grad(loss / count, list(task.model.parameters()))
    for number, piece in enumerate(pieces):
        # Lightning divides by the number of parts.
        (task.training_step(piece, number) / 3).backward()
    task.on_before_optimizer_step(torch.optim.AdamW(task.parameters()))
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for parameter, gradient in zip(task.model.parameters(), expected, strict=True):
        assert_same(parameter.grad, gradient, scale=largest)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_divisions_of_lightning_and_of_ddp_are_undone(
    options: Options, backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    task, batch = wrapped(options(), backbone)
    loss, _ = task.model.loss(batch)
    alone(task, monkeypatch, world_size=ranks, accumulate_grad_batches=3)
    assert task.training_step(batch, 0).item() == pytest.approx(3 * ranks * loss.item())


def broken(task: TrainingModule, *, how: float) -> torch.optim.Optimizer:
    """Gives every weight a gradient, one number of which is not a number, or infinite."""
    for parameter in task.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    next(task.model.parameters()).grad.view(-1)[3] = how
    return torch.optim.AdamW(task.model.parameters())


@pytest.mark.parametrize("how", [float("nan"), float("inf")])
def test_on_a_cpu_divergence_is_refused_before_the_weights_are_spoilt(
    options: Options, backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch, how: float
) -> None:
    task, _ = wrapped(options("training.learning_rate=0.25"), backbone)
    alone(task, monkeypatch, global_step=3, current_epoch=2)
    task.on_before_optimizer_step(broken(task, how=1.0))
    with pytest.raises(
        TrainingError,
        match=r"^The gradient is not finite in epoch 2, step 3: training has diverged\. Lower "
        r"training\.learning_rate=0\.25, set training\.gradient_clip=1, standardise the features "
        r"\(dataset\.standardize=true\), or use backbone\.dtype=float32\.$",
    ):
        task.on_before_optimizer_step(broken(task, how=how))


@pytest.mark.parametrize("later", ["step", "epoch"])
def test_elsewhere_divergence_is_refused_some_steps_later_or_at_the_end_of_the_epoch(
    options: Options, backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    """Looking means to wait for the device; the first such step is the one that is named."""
    task, _ = wrapped(options(), backbone)
    task.on_train_epoch_end()  # nothing has happened yet
    monkeypatch.setattr(TrainingModule, "device", torch.device("cuda"))
    for step, how in ((10, 1.0), (11, 1.0), (12, float("nan")), (13, 1.0), (14, float("nan"))):
        alone(task, monkeypatch, global_step=step, current_epoch=1)
        task.on_before_optimizer_step(broken(task, how=how))
    optimizer = broken(task, how=1.0)
    alone(task, monkeypatch, global_step=20, current_epoch=1)
    with pytest.raises(
        TrainingError, match="not finite in epoch 1, step 12: training has diverged"
    ):
        task.on_train_epoch_end() if later == "epoch" else task.on_before_optimizer_step(optimizer)


def test_steps_without_an_error_are_not_refused(
    options: Options, backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _ = wrapped(options(), backbone)
    for step in range(12):
        alone(task, monkeypatch, global_step=step)
        task.on_before_optimizer_step(broken(task, how=1e9))
    task.on_train_epoch_end()
