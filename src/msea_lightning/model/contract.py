"""The contract of everything that is trained, and the helpers that models share.

Shape legend: B utterances, A legal answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.distributed
from numpy.typing import ArrayLike
from torch import Tensor, nn

from msea_lightning.config.errors import UserError
from msea_lightning.data.utterance import Batch
from msea_lightning.language.answers import Answers
from msea_lightning.language.labels import LabelSpace

Statistics = Mapping[str, tuple[ArrayLike, ArrayLike]]
"""Mean (d,) and standard deviation (d,) of each feature, by name."""


class ModelError(UserError):
    """Parts of a model, or a model and a data set, that do not go together."""


@dataclass(frozen=True, eq=False)
class Step:
    """The loss of a batch, or of the micro-batch that one rank reads at a time.

    An optimizer step minimises the sum of ``loss_sum`` over the sum of ``count``, each summed over
    all micro-batches and ranks, so that neither changes what is trained.

    Attributes:
        loss_sum: Scalar that carries the gradient.
        count: What the loss is averaged over: label tokens, utterances, ...
        terms: Named scalars for the log, as sums; the log has them divided by ``count``.
    """

    loss_sum: Tensor
    count: int
    terms: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """The answer for one utterance, a row of ``predictions.csv``.

    Attributes:
        index: Position in the split.
        probability: Probability of the prediction among all legal answers.
    """

    index: int
    id: str
    text: str
    label: float | str
    prediction: float | str
    probability: float


@dataclass(frozen=True)
class Needs:
    """What a model wants of its data set.

    Attributes:
        features: Names of features without which there is no training.
        labels: Names of labels that every training utterance must have.
        dialogues: Whether batches hold whole dialogues instead of utterances of similar length.
    """

    features: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("M",)
    dialogues: bool = False


@dataclass(frozen=True, eq=False)
class DataFacts:
    """What a model may know of its data set when it is built.

    Attributes:
        space: The labels.
        dims: Values per frame of each feature, by name.
        statistics: Mean (d,) and standard deviation (d,) of each feature over the training part;
            None where features are not to be standardised.
        utterances: Number of training utterances; ``Batch.index`` is below it in training.
    """

    space: LabelSpace
    dims: Mapping[str, int]
    statistics: Statistics | None
    utterances: int


class Model(nn.Module, ABC):
    """Everything that is trained.

    A model is registered with its options in :data:`msea_lightning.model.options.MODELS` and built
    as ``Class(data, **options)`` with a :class:`DataFacts`; the frozen language model with an
    adapter in front, which has more parts, in ``model/build.py``.

    State that must survive an interruption (such as a memory of the training utterances) is kept in
    buffers; then checkpoints hold it and resuming needs nothing else. Buffers are not synchronised
    between ranks: a model that changes them brings together what all ranks have
    (:func:`gather_rows`).

    Attributes:
        space: The labels that the values of :meth:`predict` stand for.
        needs: What it wants of the data set.
        batch_statistic: Whether the loss is a statistic of the whole batch (a covariance,
            similarities between utterances). Such a model is refused where batches are divided
            into micro-batches or among ranks (:func:`refuse_split_batches`).
        gathers: With ``batch_statistic``: it gathers the batch from all ranks itself, so several
            ranks are allowed.
    """

    space: LabelSpace
    needs: ClassVar[Needs] = Needs()
    batch_statistic: ClassVar[bool] = False
    gathers: ClassVar[bool] = False

    @abstractmethod
    def step(self, batch: Batch) -> Step:
        """The loss of a batch, in training."""

    @abstractmethod
    def predict(self, batch: Batch) -> Answers:
        """The answers for a batch, in evaluation."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of an optimizer: ``params``, and what differs from the options of the run.

        ``lr`` and ``weight_decay`` take the place of ``training.learning_rate`` and
        ``training.weight_decay``; ``lr_scale`` multiplies the learning rate.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def move_frozen(self, device: torch.device) -> None:
        """Moves what is no submodule to the device that the model is on."""

    def start_epoch(self, epoch: int) -> None:
        """Called before the first batch of an epoch, counted from 0."""

    def augment(self, batch: Batch) -> Batch:
        """The batch that :meth:`step` gets, in training."""
        return batch

    def after_backward(self, batch: Batch, step: Step) -> None:
        """Called without gradients after each backward pass, with what :meth:`step` returned."""


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, one rank after the other; without gradients.

    Args:
        rows: (N, ...) of this rank; N may differ between ranks, the rest of the shape must not.

    Returns:
        (sum of N, ...); the very same tensor where there is only one rank.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return rows
    world = torch.distributed.get_world_size()
    sizes = [torch.tensor([0], device=rows.device) for _ in range(world)]
    torch.distributed.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = [int(size) for size in sizes]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in range(world)]
    torch.distributed.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
