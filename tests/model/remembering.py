"""A small model that uses all of the contract, and a command that trains it on several ranks.

From mean audio to an emotion, drawn towards what each utterance gave in the epoch before.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from msea_lightning.commands.command_line import compose
from msea_lightning.config.options import option
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.utterance import Batch
from msea_lightning.language.answers import Answers
from msea_lightning.model.contract import DataFacts, Model, Needs, Step, gather_rows
from msea_lightning.model.options import MODELS, ModelOptions
from msea_lightning.training.fit import fit


class Remembering(Model):
    needs = Needs(features=("audio",))

    def __init__(self, data: DataFacts, width: int) -> None:
        super().__init__()
        self.space = data.space
        classes = len(data.space.answers)
        self.encoder, self.head = nn.Linear(data.dims["audio"], width), nn.Linear(width, classes)
        self.register_buffer("memory", torch.zeros(data.utterances, classes))
        self.pull = 0.0

    def parameter_groups(self) -> list[dict[str, Any]]:
        encoder, head = list(self.encoder.parameters()), list(self.head.parameters())
        slow = {"params": encoder, "lr_scale": 0.5}
        return [slow, {"params": head, "lr": 0.02, "weight_decay": 0.0}]

    def start_epoch(self, epoch: int) -> None:
        self.pull = 0.1 * epoch

    def augment(self, batch: Batch) -> Batch:
        audio = batch.features["audio"]
        return replace(batch, features={"audio": audio._replace(values=0.9 * audio.values)})

    def step(self, batch: Batch) -> Step:
        self.logits = self.scores(batch)
        targets = torch.tensor([int(self.space.target(label)) for label in batch.targets])
        loss = functional.cross_entropy(self.logits, targets, reduction="sum")
        memory = (self.logits - self.memory[batch.index]).square().sum()
        return Step(loss + self.pull * memory, len(batch), {"memory": memory})

    def after_backward(self, batch: Batch, step: Step) -> None:
        self.memory[gather_rows(batch.index)] = gather_rows(self.logits)

    def predict(self, batch: Batch) -> Answers:
        probability, value = self.scores(batch).double().softmax(-1).max(-1)
        return Answers(value.double(), probability)

    def scores(self, batch: Batch) -> Tensor:
        audio = batch.features["audio"]
        hidden = self.encoder(audio.values.sum(1) / audio.lengths.clamp(min=1)[:, None])
        return self.head(hidden.relu())


@dataclass
class RememberingOptions(ModelOptions):
    """Options of the model above."""

    width: int = option(8, "width of the hidden layer", low=1)


def register() -> None:
    """Makes the model known, once."""
    if "remembering" not in MODELS.names():
        MODELS.register("remembering", f"{__name__}.Remembering")(RememberingOptions)


if __name__ == "__main__":
    from tests.model import remembering  # under the name that is registered

    remembering.register()
    fit(compose("train", TrainConfig, sys.argv[1:]))
