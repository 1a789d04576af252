"""A run as users get it: through Lightning's trainer, with all that it does around a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from msea_lightning.benchmark.variant import StageClock, Variant, evenly, now
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.sampler import TrainingSampler
from msea_lightning.data.store import Store
from msea_lightning.data.utterance import Batch, Label
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.training.build import make_ready, make_trainer
from msea_lightning.training.module import TrainingModule

_STAGED_BATCHES = 4
"""Batches whose stages are timed."""


@dataclass(eq=False)
class Ours(Variant):
    """This framework.

    Attributes:
        module: The model, ready to train.
        model: The language model with the adapter in front.
        data: The data module, set up and tokenised.
        devices: Number of devices that share a training batch.
        gradient_clip: Largest norm of the gradient.
    """

    module: TrainingModule
    model: AdaptedLM
    data: UtteranceDataModule
    devices: int
    gradient_clip: float | None

    @property
    def _methods(self) -> Mapping[str, tuple[object, str]]:
        backbone = self.backbone
        return {
            "backbone": (backbone, "hidden"),
            "head": (backbone, "logits"),
            "adapter": (self.model, "_adapt"),
        }

    def _train(self, steps: int, offset: float) -> tuple[float, Sequence[int]]:
        clock = _EpochClock()
        trainer = self._trainer(clock, max_epochs=1)
        parts = self.accumulate
        sampler = cast("TrainingSampler", self.data.train_dataloader().sampler)
        shares, batches = list(sampler), sampler.global_batches(0)
        # Whole steps, whose parts stay together.
        grouped = [shares[start : start + parts] for start in range(0, len(shares), parts)]
        lengths, _ = self._texts("train")
        costs = [lengths[batch].max() for batch in batches]
        # In an epoch's own order: from short to long, memory would grow as it never does.
        places = sorted(evenly(np.argsort(costs, kind="stable").tolist(), steps, offset))
        picked = [share for place in places for share in grouped[place]]
        loader = self.data.loader(self.data.splits["train"], picked)
        # Lightning asks for validation batches where there is a step for them.
        trainer.fit(self.module, loader, self.data.val_dataloader())
        return clock.seconds, _indices(batches, places)

    def _evaluate(self, utterances: int, offset: float) -> tuple[float, Sequence[int]]:
        clock = _EpochClock()
        trainer = self._trainer(clock)
        shares = list(self.data.test_dataloader().sampler)
        together = self.data.eval_batch_size * self.devices
        batches = self.data.evaluation_batches("test", together)
        places = evenly(range(len(shares)), -(-utterances // together), offset)
        picked = [shares[place] for place in places]
        loader = self.data.loader(self.data.splits["test"], picked)
        trainer.test(self.module, dataloaders=loader, verbose=False)
        return clock.seconds, _indices(batches, places)

    def _texts(self, split: str) -> tuple[NDArray[np.int64], list[Label]]:
        part = self.data.splits[split]
        assert part.tokens is not None
        tokens = np.array([len(ids) for ids in part.tokens])
        return np.minimum(tokens, self.prompt.text_tokens), part.targets

    def _few_batches(self, split: str, clock: StageClock) -> Sequence[Batch]:
        """A few batches, spread over all lengths."""
        self.model.train(split == "train").to(self.device)
        loader: Any = self.data.train_dataloader()
        if split != "train":
            loader = self.data.evaluation_dataloader(split)
        batches = []
        for share in evenly(list(loader.sampler), _STAGED_BATCHES, offset=0.5):
            with clock.during("data"):
                batches.append(loader.dataset[share].to(self.device))
        return batches

    def _mean_loss(self, batch: Batch) -> Tensor:
        step = self.model.step(batch)
        return step.loss_sum / step.count

    def _decode(self, batch: Batch) -> object:
        return self.model.predict(batch)

    def _trainer(self, clock: _EpochClock, **options: Any) -> Trainer:
        trainer = make_trainer(
            self.device,
            devices=self.devices,
            callbacks=[clock],
            accumulate_grad_batches=self.accumulate,
            gradient_clip_val=self.gradient_clip,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            **options,
        )
        # So that its batches are shared among devices, whoever makes the loader.
        self.data.trainer = trainer
        return trainer


def load_ours(config: TrainConfig, store: Path) -> Ours:
    """This framework on the data of a store."""
    ready = make_ready(config, store=Store.open(store))
    model = ready.module.model
    assert isinstance(model, AdaptedLM)
    return Ours(
        model.backbone,
        model.adapter,
        model.prompt,
        model.tree,
        torch.optim.AdamW(model.adapter.parameters(), fused=True),
        config.trainer.accumulate,
        module=ready.module,
        model=model,
        data=ready.data,
        devices=config.trainer.devices,
        gradient_clip=config.training.gradient_clip,
    )


def _indices(batches: Sequence[list[int]], places: Sequence[int]) -> list[int]:
    """Positions of the utterances that all devices together read, in order."""
    return sorted(index for place in places for index in batches[place])


class _EpochClock(Callback):
    """The seconds from the beginning of an epoch to its end."""

    seconds: float = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = -now(pl_module.device)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += now(pl_module.device)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = -now(pl_module.device)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The module's own end of the epoch, with its metrics, comes after a callback's.
        self.seconds += now(pl_module.device)
