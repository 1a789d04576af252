"""What makes training faster or smaller leaves the loss of every step as it was.

Six optimizer steps on the same batches, once with everything written as plainly as it can be, and
once with each change alone and with all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from msea_lightning.adapter.lstm import LastStateLSTM
from msea_lightning.backbone import FrozenBackbone, load_backbone
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.utterance import Batch
from msea_lightning.language.prompt import encode_all
from msea_lightning.metrics import UtteranceScore
from msea_lightning.training.build import build_adapted_lm, build_data
from msea_lightning.training.module import TrainingModule
from tests.model.test_adapted_lm import part
from tests.rounding import BOUND

STEPS = 6
CHANGES = ("tokens", "prefix", "last", "lstm", "fused", "accumulate", "recompute")
"""Texts tokenised beforehand; the prefix cached; the last layer at the read positions only; the
LSTM written out; one kernel for all weights; a step in two parts; layers that recompute their
activations, which excludes the cached prefix."""
TOGETHER = (CHANGES[:-1], [change for change in CHANGES if change != "prefix"])

ADAMW = torch.optim.AdamW

Curve = Callable[[Collection[str]], list[float]]


def packed_state(lstm: LastStateLSTM, frames: Tensor, lengths: Tensor) -> Tensor:
    """What the LSTM gives as PyTorch runs it."""
    packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
    _, (last_1BH, _) = nn.LSTM.forward(lstm, packed)
    return last_1BH[0]


def plain_adamw(*args: Any, **options: Any) -> torch.optim.Optimizer:
    """AdamW one weight after the other."""
    return ADAMW(*args, **{**options, "fused": False, "foreach": False})


@pytest.fixture(scope="module")
def exact() -> FrozenBackbone:
    """In float64, so that what differs is more than rounding."""
    plain = load_backbone(None)
    return FrozenBackbone(plain.model.double(), plain.tokenizer)


@pytest.fixture(scope="module")
def recomputing(exact: FrozenBackbone) -> FrozenBackbone:
    return FrozenBackbone(exact.model, exact.tokenizer, checkpoint_activations=True)


@pytest.fixture
def curve(
    options: Callable[..., TrainConfig],
    exact: FrozenBackbone,
    recomputing: FrozenBackbone,
    monkeypatch: pytest.MonkeyPatch,
) -> Curve:
    """The loss of each step, the mean over its label tokens, with some of the changes."""
    config = options("dataset.demo_task=msa", "training.batch_size=8")
    data: UtteranceDataModule = build_data(config)
    data.prepare_data()
    data.setup()
    batches = list(data.train_dataloader())[:STEPS]
    tokens = encode_all(exact.tokenizer, data.splits["train"].texts)
    assert len(batches) == STEPS

    def prepared(batch: Batch, changes: Collection[str]) -> Iterator[Batch]:
        rows = list(range(len(batch)))
        halves = [rows[:3], rows[3:]] if "accumulate" in changes else [rows]
        for half in halves:
            piece = part(batch, half)
            ids = [tokens[index] for index in piece.index.tolist()]
            yield dataclasses.replace(piece, tokens=ids if "tokens" in changes else None)

    def run(changes: Collection[str]) -> list[float]:
        with monkeypatch.context() as patch:
            read_by = recomputing if "recompute" in changes else exact
            assert read_by.last_modules
            if "last" not in changes:
                patch.setattr(read_by, "last_modules", ())
            patch.setattr(exact, "caches_prefix", "prefix" in changes)
            if "lstm" not in changes:
                patch.setattr(LastStateLSTM, "forward", packed_state)
            if "fused" not in changes:
                patch.setattr("torch.optim.AdamW", plain_adamw)
            seed_everything(config.seed, verbose=False)
            model = build_adapted_lm(config, data, read_by).double()
            task = TrainingModule(model, UtteranceScore(data.metrics), training=config.training)
            assert (read_by.cached_prefix(model.prompt.prefix_ids) is not None) == (
                "prefix" in changes
            )
            return steps(task, [list(prepared(batch, changes)) for batch in batches], patch)

    return run


def steps(
    task: TrainingModule, batches: list[list[Batch]], patch: pytest.MonkeyPatch
) -> list[float]:
    """Trains a step on the parts of each batch, as Lightning does."""
    parts = len(batches[0])
    task._trainer = SimpleNamespace(
        world_size=1,
        accumulate_grad_batches=parts,
        estimated_stepping_batches=len(batches),
        global_step=0,
    )
    patch.setattr(TrainingModule, "log", lambda *_, **__: None)
    made = task.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    losses = []
    for pieces in batches:
        optimizer.zero_grad()
        loss = 0.0
        for number, piece in enumerate(pieces):
            own = task.training_step(piece, number) / parts
            own.backward()
            loss += own.item()
        losses.append(loss / task._count)
        task.on_before_optimizer_step(optimizer)
        optimizer.step()
        schedule.step()
    return losses


@pytest.fixture(scope="module")
def before() -> list[float]:
    """The losses without any change, once they are known."""
    return []


@pytest.mark.parametrize(
    "changes", [*([change] for change in CHANGES), *TOGETHER], ids=lambda some: "+".join(some)
)
def test_every_step_has_the_loss_that_it_had(
    curve: Curve, before: list[float], changes: Collection[str]
) -> None:
    before += [] if before else curve([])
    assert curve(changes) == pytest.approx(before, rel=BOUND)
    # It does train, or shows nothing.
    assert max(before) - min(before) > 0.1
