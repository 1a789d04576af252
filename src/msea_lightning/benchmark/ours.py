"""A run as users get it: through Lightning's trainer, with all that it does around a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from msea_lightning.benchmark.variant import STAGED_BATCHES, StageClock, Variant, evenly, now
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.store import Store
from msea_lightning.data.utterance import Batch, Label
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.training.build import make_ready, make_trainer
from msea_lightning.training.module import TrainingModule


@dataclass(eq=False)
class Ours(Variant):
    """This framework; the data module is set up and tokenised, the module ready to train."""

    module: TrainingModule
    model: AdaptedLM
    data: UtteranceDataModule
    gradient_clip: float | None

    @property
    def _methods(self) -> Mapping[str, tuple[object, str]]:
        return {
            "backbone": (self.backbone, "hidden"),
            "head": (self.backbone, "logits"),
            "adapter": (self.model, "_adapt"),
        }

    def _train(self, batches: int, offset: float) -> tuple[float, list[int]]:
        every, size = list(self.data.train_dataloader().sampler), self.accumulate
        # Whole steps, whose parts stay together.
        steps = [every[start : start + size] for start in range(0, len(every), size)]
        lengths, _ = self._texts("train")
        costs = [max(lengths[part].max() for part in step) for step in steps]
        # In an epoch's own order: from short to long, memory would grow as it never does.
        places = sorted(evenly(np.argsort(costs, kind="stable").tolist(), batches, offset))
        picked = [part for place in places for part in steps[place]]
        clock = _EpochClock()
        loader = self.data.loader(self.data.splits["train"], picked)
        # Lightning asks for validation batches where there is a step for them.
        trainer = self._trainer(clock, max_epochs=1)
        trainer.fit(self.module, loader, self.data.val_dataloader())
        return clock.seconds, list(chain(*picked))

    def _evaluate(self, utterances: int, offset: float) -> tuple[float, list[int]]:
        batches = -(-utterances // self.data.eval_batch_size)
        picked = evenly(list(self.data.test_dataloader().sampler), batches, offset)
        clock = _EpochClock()
        loader = self.data.loader(self.data.splits["test"], picked)
        self._trainer(clock).test(self.module, dataloaders=loader, verbose=False)
        return clock.seconds, list(chain(*picked))

    def _texts(self, split: str) -> tuple[NDArray[np.int64], list[Label]]:
        part = self.data.splits[split]
        assert part.tokens is not None
        tokens = np.array([len(ids) for ids in part.tokens])
        return np.minimum(tokens, self.prompt.text_tokens), part.targets

    def _few_batches(self, split: str, clock: StageClock) -> Sequence[Batch]:
        """A few batches, spread over all lengths."""
        self.model.train(split == "train").to(self.device)
        data = self.data
        loader: Any = data.train_dataloader() if split == "train" else data.test_dataloader()
        batches = []
        for part in evenly(list(loader.sampler), STAGED_BATCHES, offset=0.5):
            with clock.during("data"):
                batches.append(loader.dataset[part].to(self.device))
        return batches

    def _mean_loss(self, batch: Batch) -> Tensor:
        step = self.model.step(batch)
        return step.loss_sum / step.count

    def _decode(self, batch: Batch) -> object:
        return self.model.predict(batch)

    def _trainer(self, clock: _EpochClock, **options: Any) -> Trainer:
        return make_trainer(
            self.device,
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
        config.training.batch_size,
        config.trainer.accumulate,
        module=ready.module,
        model=model,
        data=ready.data,
        gradient_clip=config.training.gradient_clip,
    )


class _EpochClock(Callback):
    """The seconds from the beginning of an epoch to its end."""

    seconds: float = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = -now(pl_module.device)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += now(pl_module.device)

    on_test_epoch_start = on_train_epoch_start
    # The module's own end of the epoch, with its metrics, comes after a callback's.
    on_test_end = on_train_epoch_end
