"""A run as users get it: through Lightning's trainer, with all that it does around a step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, TypeVar, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch.nn import functional

from msea_lightning.benchmark.subject import (
    Material,
    Round,
    StageClock,
    Subject,
    Workload,
    rest,
    weight_bytes,
)
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.sampler import EvaluationBatchSampler, Share, TrainingBatchSampler
from msea_lightning.data.store import Store, StoreSplit
from msea_lightning.data.utterance import Batch
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.training.build import Ready, make_ready, make_trainer

Item = TypeVar("Item")

_PROFILED = 4
"""Batches whose stages are timed."""


class Ours(Subject):
    """The framework.

    Args:
        config: All options.
        material: The data.
    """

    def __init__(self, config: TrainConfig, material: Material) -> None:
        super().__init__(config, material)
        self._ready: Ready | None = None

    def start(self, clock: StageClock) -> None:
        """See the base class."""
        with clock.during("load"):
            self._ready = make_ready(self.config, store=Store.open(self.material.store))
        with clock.during("first step"):
            trainer = self._trainer_of_steps(_EpochClock(), max_steps=1)
            trainer.fit(self._parts.module, datamodule=self._parts.data)

    @property
    def device(self) -> torch.device:
        """See the base class."""
        return self._parts.device

    def train(self, steps: int, beginning: float = 0.5) -> Round:
        """See the base class."""
        clock, data = _EpochClock(), self._parts.data
        trainer = self._trainer_of_steps(clock, max_epochs=1)
        parts = self.config.trainer.accumulate
        shares = list(cast("TrainingBatchSampler", data.train_dataloader().sampler))
        # Whole steps, whose parts stay together.
        wholes = [shares[start : start + parts] for start in range(0, len(shares), parts)]
        by_cost = sorted(range(len(wholes)), key=lambda place: self._cost(wholes[place][0].step))
        # In an epoch's own order: from cheap to dear, memory would grow as it never does.
        picked = [
            share for place in sorted(spread(by_cost, steps, beginning)) for share in wholes[place]
        ]
        loader = data.loader(data.splits["train"], picked)
        # Lightning asks for validation batches where there is a step for them.
        trainer.fit(self._parts.module, loader, data.val_dataloader())
        return self.measured("train", clock.seconds, _read(picked))

    def evaluate(self, utterances: int, beginning: float = 0.5) -> Round:
        """See the base class."""
        clock, data = _EpochClock(), self._parts.data
        trainer = self._trainer(callbacks=[clock])
        shares = list(cast("EvaluationBatchSampler", data.test_dataloader().sampler))
        together = data.eval_batch_size * self.config.trainer.devices
        picked = spread(shares, -(-utterances // together), beginning)
        loader = data.loader(data.splits["test"], picked)
        trainer.test(self._parts.module, dataloaders=loader, verbose=False)
        return self.measured("test", clock.seconds, _read(picked))

    def _cost(self, indices: Sequence[int]) -> int:
        """Text tokens of the longest of some training utterances."""
        tokens = self._parts.data.splits["train"].tokens
        assert tokens is not None
        longest = max(len(tokens[index]) for index in indices)
        return min(longest, self._model.prompt.text_tokens)

    def stages(self) -> tuple[dict[str, float], dict[str, float]]:
        """See the base class."""
        model, data = self._model, self._parts.data
        model.to(self.device)
        optimizer = torch.optim.AdamW(model.adapter.parameters(), fused=True)
        training, evaluation = StageClock(self.device), StageClock(self.device)
        model.train()
        for batch in self._batches(data.train_dataloader(), training):
            with self._watched(training):
                since = training.now()
                logits, targets = model.label_logits(batch)
                functional.cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]
                training.add("step", since)
            with training.during("optimizer"):
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        for batch in self._batches(data.evaluation_dataloader("test"), evaluation):
            with self._watched(evaluation):
                since = evaluation.now()
                model.answers(batch)
                evaluation.add("step", since)
        seconds = training.seconds()
        # One optimizer step is for all parts that a batch is taken in.
        seconds["optimizer"] /= self.config.trainer.accumulate
        return (
            rest(seconds, "step", "adapter"),
            rest(evaluation.seconds(), "step", "decode"),
        )

    @property
    def _parts(self) -> Ready:
        assert self._ready is not None, "start() comes first"
        return self._ready

    @property
    def _model(self) -> AdaptedLM:
        assert isinstance(self._parts.module.model, AdaptedLM)
        return self._parts.module.model

    def _watched(self, clock: StageClock) -> ExitStack:
        model = self._model
        watching = ExitStack()
        watching.enter_context(clock.watching(model.backbone, "hidden", "backbone"))
        watching.enter_context(
            clock.watching(model.backbone, "logits", "head", to_the_end=model.training)
        )
        if not model.training:
            watching.enter_context(clock.watching(model, "_adapt", "adapter"))
        return watching

    def _batches(self, loader: Any, clock: StageClock) -> Sequence[Batch]:
        """A few batches spread over the loader, on the device; the time of reading them counts."""
        batches = []
        for share in spread(list(loader.sampler), _PROFILED, beginning=0.5):
            with clock.during("data"):
                batches.append(loader.dataset[share].to(self.device))
        return batches

    def _trainer_of_steps(self, clock: _EpochClock, **options: Any) -> Trainer:
        return self._trainer(
            callbacks=[clock],
            accumulate_grad_batches=self.config.trainer.accumulate,
            gradient_clip_val=self.config.training.gradient_clip,
            limit_val_batches=0,
            **options,
        )

    def _trainer(self, **options: Any) -> Trainer:
        trainer = make_trainer(
            self.device,
            devices=self.config.trainer.devices,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            **options,
        )
        # So that its batches are shared among devices, whoever makes the loader.
        self._parts.data.trainer = trainer
        return trainer

    def workload(self) -> Workload:
        """See the base class."""
        model, splits = self._model, self._parts.data.splits
        return Workload(
            language=model.backbone.model.config,
            dtype=model.backbone.dtype,
            weights=weight_bytes(model.backbone.model),
            labels=int(model.tree.answer_ids.shape[1]),
            nodes=len(model.tree),
            opening=len(model.prompt.prefix_ids),
            train=self._lengths(splits["train"], training=True),
            test=self._lengths(splits["test"], training=False),
        )

    def _lengths(self, split: StoreSplit, *, training: bool) -> NDArray[np.int64]:
        """(N,) tokens of the sequences of a split, without padding."""
        assert split.tokens is not None
        prompt, tree = self._model.prompt, self._model.tree
        fixed = prompt.longest - (prompt.pad_to or prompt.text_tokens)
        lengths = np.array([min(len(ids), prompt.text_tokens) for ids in split.tokens])
        lengths = lengths * self._model.adapter.use_text + fixed
        if training:
            # The last token of a label is predicted, and not read.
            lengths += np.array([len(tree.ids(label)) - 1 for label in split.targets])
        return lengths


def spread(items: Sequence[Item], count: int, beginning: float) -> list[Item]:
    """Some of what is in the order of its cost: every so manieth.

    Args:
        items: What is in that order.
        count: How many; all where there are no more.
        beginning: How far into each of as many equal parts the one to take is, in [0, 1).
    """
    count = min(count, len(items))
    return [items[int((beginning + number) * len(items) / count)] for number in range(count)]


def _read(shares: Sequence[Share]) -> list[int]:
    """Positions of what all devices read, in order."""
    return sorted({index for share in shares for index in share.step})


class _EpochClock(Callback):
    """The seconds from the beginning of an epoch to its end."""

    seconds: float = 0.0

    def _note(self, trainer: Trainer, *, begins: bool) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        now = time.perf_counter()
        self.seconds = -now if begins else self.seconds + now

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, begins=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, begins=False)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, begins=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The module's own end of the epoch, with its metrics, comes after a callback's.
        self._note(trainer, begins=False)
