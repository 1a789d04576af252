"""A run as users get it: through Lightning's trainer, with all that it does around a step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch.nn import functional

from msea_lightning.benchmark.subject import Material, Round, StageClock, Subject, Workload, rest
from msea_lightning.config import TrainConfig
from msea_lightning.data.store import Store, StoreSplit
from msea_lightning.data.utterance import Batch
from msea_lightning.fit import Ready, make_ready, make_trainer

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
            self._fit(max_steps=1)

    @property
    def device(self) -> torch.device:
        """See the base class."""
        return self._parts.device

    def train(self) -> Round:
        """See the base class."""
        clock = self._fit(max_epochs=1)
        train = self._parts.data.splits["train"]
        return Round(clock.seconds, len(train), int(self._lengths(train, training=True).sum()))

    def evaluate(self) -> Round:
        """See the base class."""
        clock, (task, data) = _EpochClock(), (self._parts.task, self._parts.data)
        trainer = self._trainer(callbacks=[clock])
        trainer.test(task, dataloaders=data.evaluation_dataloader("test"), verbose=False)
        test = data.splits["test"]
        return Round(clock.seconds, len(test), int(self._lengths(test, training=False).sum()))

    def stages(self) -> tuple[dict[str, float], dict[str, float]]:
        """See the base class."""
        task, data = self._parts.task, self._parts.data
        task.to(self.device)
        optimizer = torch.optim.AdamW(task.adapter.parameters(), fused=True)
        training, evaluation = StageClock(self.device), StageClock(self.device)
        task.train()
        for batch in self._batches(data.train_dataloader(), training):
            with self._watched(training):
                since = training.now()
                logits, targets = task.label_logits(batch)
                functional.cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]
                training.add("step", since)
            with training.during("optimizer"):
                optimizer.step()
                optimizer.zero_grad()
        task.eval()
        for batch in self._batches(data.evaluation_dataloader("test"), evaluation):
            with self._watched(evaluation):
                since = evaluation.now()
                task.answers(batch)
                evaluation.add("step", since)
        return (
            rest(training.seconds(), "step", "adapter"),
            rest(evaluation.seconds(), "step", "decode"),
        )

    @property
    def _parts(self) -> Ready:
        assert self._ready is not None, "start() comes first"
        return self._ready

    def _watched(self, clock: StageClock) -> ExitStack:
        task = self._parts.task
        watching = ExitStack()
        watching.enter_context(clock.watching(task.backbone, "hidden", "backbone"))
        watching.enter_context(
            clock.watching(task.backbone, "logits", "head", to_the_end=task.training)
        )
        if not task.training:
            watching.enter_context(clock.watching(task, "_adapt", "adapter"))
        return watching

    def _batches(self, loader: Any, clock: StageClock) -> Sequence[Batch]:
        """A few batches spread over the loader, on the device; the time of reading them counts."""
        batches = []
        every = max(1, len(loader) // _PROFILED)
        for share in islice(loader.sampler, 0, None, every):
            with clock.during("data"):
                batches.append(loader.dataset[share].to(self.device))
        return batches[:_PROFILED]

    def _fit(self, **options: Any) -> _EpochClock:
        """Trains, and says how long the epoch took."""
        clock = _EpochClock()
        trainer = self._trainer(
            callbacks=[clock],
            accumulate_grad_batches=self.config.trainer.accumulate,
            gradient_clip_val=self.config.training.gradient_clip,
            limit_val_batches=0,
            **options,
        )
        trainer.fit(self._parts.task, datamodule=self._parts.data)
        return clock

    def _trainer(self, **options: Any) -> Trainer:
        return make_trainer(
            self.device,
            devices=self.config.trainer.devices,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            **options,
        )

    def workload(self) -> Workload:
        """See the base class."""
        task, splits = self._parts.task, self._parts.data.splits
        return Workload(
            language=task.backbone.model.config,
            dtype=task.backbone.dtype,
            labels=int(task.tree.answer_ids.shape[1]),
            nodes=len(task.tree),
            opening=len(task.prompt.opening),
            train=self._lengths(splits["train"], training=True),
            test=self._lengths(splits["test"], training=False),
        )

    def _lengths(self, split: StoreSplit, *, training: bool) -> NDArray[np.int64]:
        """(N,) tokens of the sequences of a split, without padding."""
        assert split.tokens is not None
        prompt, tree = self._parts.task.prompt, self._parts.task.tree
        fixed = prompt.longest - (prompt.pad_to or prompt.text_tokens)
        lengths = np.array([min(len(ids), prompt.text_tokens) for ids in split.tokens]) + fixed
        if training:
            # The last token of a label is predicted, and not read.
            lengths += np.array([len(tree.ids(label)) - 1 for label in split.labels])
        return lengths


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

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, begins=False)
