"""The LightningModule: optimisation, logging, gathering, metrics and divergence for every model.

Where things are: the learning rate in :meth:`TrainingModule.configure_optimizers`, the mean over
micro-batches and ranks in :meth:`TrainingModule.on_before_optimizer_step`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from msea_lightning.config.errors import UserError
from msea_lightning.data.utterance import Batch
from msea_lightning.language.answers import Answers
from msea_lightning.metrics import METRICS, UtteranceScore, selection_metric, zero_share
from msea_lightning.model.contract import Model, Prediction, Step
from msea_lightning.training.options import TrainingConfig

_CHECK_EVERY = 10
"""Optimizer steps between two looks, on a GPU, at whether a gradient was not finite."""

_NEVER = 2**62
"""Stands for no step: every gradient was finite so far."""


class TrainingError(UserError):
    """Training that diverged, or a model that cannot be trained as the options say."""


class TrainingModule(LightningModule):
    """Trains and evaluates a model; the same for all models.

    Its state dict is the model's own, so that checkpoints hold ``adapter.*`` and not
    ``model.adapter.*``. ``seed`` is that of dropout.

    Attributes:
        predictions: Of the evaluation that ran last, in the order of its split.
    """

    def __init__(
        self,
        model: Model,
        score: UtteranceScore,
        *,
        training: TrainingConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.score = score
        self.predictions: list[Prediction] = []
        self._training = training or TrainingConfig()
        self._seed = seed
        self._count = 0
        self._current: tuple[Batch, Step] | None = None
        self._decoded: list[tuple[Batch, Answers]] = []
        self._metrics: dict[str, float] = {}
        self._diverged: Tensor | None = None

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """The state dict of the model, without the prefix ``model.``."""
        return self.model.state_dict(*args, **options)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads a state dict of the model."""
        return self.model.load_state_dict(state_dict, strict=strict, assign=assign)

    def setup(self, stage: str) -> None:
        """Moves the frozen language model to the trainer's device."""
        self.model.move_frozen(self.trainer.strategy.root_device)

    # ---- training ----------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a cosine schedule after a linear warm-up, stepped once a batch."""
        from transformers import get_cosine_schedule_with_warmup

        options = self._training
        groups = []
        for group in self.model.parameter_groups():
            rate = group.get("lr", options.learning_rate) * group.get("lr_scale", 1.0)
            groups.append({key: group[key] for key in group if key != "lr_scale"} | {"lr": rate})
        optimizer = torch.optim.AdamW(
            groups,
            lr=options.learning_rate,
            eps=options.eps,
            weight_decay=options.weight_decay,
            fused=True,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_schedule_with_warmup(
            optimizer, int(steps * options.warmup_fraction), steps
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_fit_start(self) -> None:
        """Forgets that an earlier training diverged."""
        self._diverged = None

    def on_train_epoch_start(self) -> None:
        """Seeds dropout with seed, epoch and rank: a resumed run draws what others do."""
        self._count = 0
        earlier = self.current_epoch * self.trainer.world_size + self.global_rank
        torch.manual_seed(self._seed + earlier)
        self.model.start_epoch(self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The summed loss of a micro-batch; see :meth:`on_before_optimizer_step`."""
        batch = self.model.augment(batch)
        step = self.model.step(batch)
        self._current = (batch, step)
        self._count += step.count
        ranks, micro_batches = self.trainer.world_size, self.trainer.accumulate_grad_batches
        for name, total in {"loss": step.loss_sum, **step.terms}.items():
            value = total.detach() / max(1, step.count)
            # One key is the mean of an epoch, in every logger and in history.csv.
            for key, on_step in ((f"train/{name}", False), (f"train/{name}_step", True)):
                self.log(
                    key,
                    value,
                    on_step=on_step,
                    on_epoch=not on_step,
                    batch_size=step.count,
                    sync_dist=ranks > 1,
                )
        # Lightning divides by their number and DDP by that of ranks; they hold different counts.
        return step.loss_sum * (ranks * micro_batches)

    def on_after_backward(self) -> None:
        """Calls :meth:`Model.after_backward`."""
        assert self._current is not None
        (batch, step), self._current = self._current, None
        with torch.no_grad():
            self.model.after_backward(batch, step)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turns the gradient of the sum into that of the mean, before it is clipped.

        Then looks whether training has diverged: on a CPU at once, before the weights are spoilt;
        elsewhere, where looking means to wait for the device, every few steps and before the
        epoch's checkpoint.
        """
        parameters = itertools.chain(*(group["params"] for group in optimizer.param_groups))
        gradients = [weight.grad for weight in parameters if weight.grad is not None]
        torch._foreach_div_(gradients, self._total_count())
        self._count = 0
        broken = ~torch.isfinite(nn.utils.get_total_norm(gradients))
        step = torch.where(broken, self.global_step, _NEVER)
        self._diverged = step if self._diverged is None else self._diverged.minimum(step)
        if self.device.type == "cpu" or self.global_step % _CHECK_EVERY == 0:
            self._refuse_divergence()

    def on_train_epoch_end(self) -> None:
        """Looks once more whether training has diverged."""
        self._refuse_divergence()

    def _total_count(self) -> float | Tensor:
        """What the loss of this optimizer step is averaged over, on all ranks together."""
        if self.trainer.world_size == 1:
            return float(max(1, self._count))
        total = torch.tensor(float(self._count)).to(self.device, non_blocking=True)
        torch.distributed.all_reduce(total)
        return total.clamp(min=1.0)

    def _refuse_divergence(self) -> None:
        if self._diverged is None or (step := int(self._diverged)) == _NEVER:
            return
        raise TrainingError(
            f"The gradient is not finite in epoch {self.current_epoch}, step {step}: training has "
            "diverged. Lower training.learning_rate="
            f"{self._training.learning_rate}, set training.gradient_clip=1, standardise the "
            "features (dataset.standardize=true), or use backbone.dtype=float32."
        )

    # ---- evaluation --------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Empties the collected predictions."""
        self._decoded = []
        self.score.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Predicts a batch; the answers are read at the end, for reading waits for the device."""
        answers = replace(self.model.predict(batch), distribution=None)
        self._decoded.append((replace(batch, features={}), answers))

    def on_validation_epoch_end(self) -> None:
        """Computes the metrics over all ranks and logs them.

        Keys are ``valid/<title>`` or ``test/<title>`` with the titles of :data:`METRICS`, shares in
        percent: ``valid/WF1``.
        """
        own = self._read()
        gathered = [own]
        if self.trainer.world_size > 1:
            gathered = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(gathered, own)
        self.predictions = sorted(itertools.chain(*gathered), key=lambda p: p.index)
        self._metrics = self.score.compute()
        selection = selection_metric(self.score.kind)
        stage = "test" if self.trainer.testing else "valid"
        for name, value in self._metrics.items():
            info = METRICS[name]
            # Every rank has computed the same value from all predictions.
            self.log(f"{stage}/{info.title}", info.unit * value, prog_bar=info is selection)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def metrics(self) -> dict[str, float]:
        """Metrics of the evaluation that ran last; ``zero_share`` among them with intensities."""
        values = dict(self._metrics)
        if self.model.space.ordered and self.predictions:
            values["zero_share"] = zero_share([p.prediction for p in self.predictions])
        return values

    def _read(self) -> list[Prediction]:
        """This rank's predictions, which also go into the metrics."""
        space, decoded = self.model.space, self._decoded
        self._decoded = []
        found = []
        for batch, answers in decoded:
            values = answers.value.tolist()
            self.score.update(values, [space.target(label) for label in batch.targets])
            columns: tuple[Iterable[Any], ...] = (
                batch.index.tolist(),
                batch.ids,
                batch.texts,
                batch.targets,
                map(space.label, values),
                answers.probability.tolist(),
            )
            found += [Prediction(*row) for row in zip(*columns, strict=True)]
        return found
