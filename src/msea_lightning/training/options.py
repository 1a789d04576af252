"""Options of training."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from msea_lightning.backbone.options import Accelerator
from msea_lightning.config.options import option
from msea_lightning.language.options import Loss


class ClassWeights(enum.Enum):
    """What an utterance counts in the loss by its emotion."""

    none = "none"
    """All count the same."""
    balanced = "balanced"
    """Inversely to how frequent its emotion is in the training part; one on average."""


@dataclass
class TrainingConfig:
    """Optimisation (paper, Tables 7-9)."""

    batch_size: int = option(
        16,
        "utterances per optimizer step, all devices together",
        low=1,
        called=("data.batch_size", "datamodule.batch_size", "dataset.batch_size"),
    )
    eval_batch_size: int | None = option(
        None,
        "utterances per evaluation batch and device; null: 32 on a CPU, on a GPU as many as take "
        "no more memory than a training step, at most 256",
        low=1,
    )
    learning_rate: float = option(
        5e-4, "peak learning rate of AdamW", above=0, called=("lr", "training.lr", "optimizer.lr")
    )
    weight_decay: float = option(
        0.01, "weight decay of AdamW", low=0, called=("optimizer.weight_decay",)
    )
    eps: float = option(1e-4, "epsilon of AdamW", above=0)
    warmup_fraction: float = option(0.1, "part of the schedule with a rising rate", low=0, below=1)
    schedule_epochs: int = option(
        30,
        "length of the cosine schedule and most epochs of a run; 0 trains nothing (zero-shot)",
        low=0,
        called=("trainer.max_epochs", "trainer.max_steps", "training.max_epochs", "epochs"),
    )
    patience: int = option(
        10,
        "epochs without a better validation metric before a stop",
        low=1,
        called=("early_stopping.patience", "trainer.patience"),
    )
    loss: Loss = option(
        Loss.vocabulary, "what the probability of a label is normalised over", called=("loss",)
    )
    ordinal: float = option(
        0.0,
        "weight in the loss of the expected absolute error over intensities; needs loss=answers",
        low=0,
    )
    class_weights: ClassWeights = option(
        ClassWeights.none, "what an utterance counts in the loss by its emotion"
    )
    gradient_clip: float | None = option(
        None,
        "largest gradient norm; none clips nothing",
        above=0,
        called=("trainer.gradient_clip_val",),
    )


@dataclass
class TrainerConfig:
    """Hardware and progress."""

    accelerator: Accelerator = option(Accelerator.auto, "hardware")
    devices: int = option(
        1,
        "number of devices of a machine; more than one trains with DDP",
        low=1,
        called=("trainer.strategy", "trainer.num_devices", "trainer.gpus"),
    )
    num_nodes: int = option(
        1,
        "number of machines, each with so many devices; more than one need srun or torchrun",
        low=1,
        called=("trainer.nodes",),
    )
    accumulate: int = option(
        1,
        "micro-batches in which a device takes its share of a batch: less memory, the same results",
        low=1,
        called=("trainer.accumulate_grad_batches",),
    )
    threads: int | None = option(
        None, "CPU threads of this process; null leaves the default", low=1
    )
    progress_bar: bool = option(True, "show progress", called=("trainer.enable_progress_bar",))
    fast_dev_run: bool = option(
        False, "try everything with one batch of each split, and keep nothing"
    )

    @property
    def ranks(self) -> int:
        """Processes that share a batch, of all machines together."""
        return self.num_nodes * self.devices
