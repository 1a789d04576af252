"""One progress bar for a whole run, with the time that is left of it."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.text import Text

from msea_lightning.metrics import MetricInfo
from msea_lightning.training.module import TrainingModule


class RunProgress(Callback):
    """A bar over all epochs that the run may take, drawn below the log until the block ends.

    Early stopping may end a run before its bar is full. What follows training, the evaluation of
    the best epoch, is named in front of the bar.

    Args:
        console: Where it is drawn; messages that go through the same console stay above it.
        selection: The metric that is shown beside the bar.

    Attributes:
        bar: What is drawn.
    """

    def __init__(self, console: Console, selection: MetricInfo) -> None:
        self._selection = selection
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            _TimeLeft(),
            TextColumn("{task.fields[best]}", markup=False),
            console=console,
            expand=True,
        )
        self._task = self.bar.add_task("start", total=None, best="", begun=0, since=0.0)
        self._best: float | None = None

    def __enter__(self) -> RunProgress:
        """Draws the bar."""
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes the bar away; what it said is in the log."""
        self.bar.update(self._task, visible=False)
        self.bar.stop()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the batches; a resumed run begins where it was interrupted."""
        epochs = trainer.max_epochs or 1
        batches = int(trainer.num_training_batches)
        done = trainer.current_epoch * batches
        self.bar.update(
            self._task,
            total=epochs * batches,
            completed=done,
            begun=done,
            since=time.monotonic(),
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Names the epoch, counted from 0 as in the log."""
        self._describe(f"epoch {trainer.current_epoch} of {trainer.max_epochs}")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Moves the bar."""
        self.bar.advance(self._task)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the validation of the epoch and the best so far."""
        assert isinstance(pl_module, TrainingModule)
        found = pl_module.metrics()[self._selection.name]
        if self._best is None or self._selection.better(found, self._best):
            self._best = found
        text = f"valid/{self._selection.title} {self._selection.format(found)}"
        self.bar.update(self._task, best=f"{text}, best {self._selection.format(self._best)}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Names what follows; nothing is left of the training."""
        self.bar.update(self._task, since=0.0)
        self._describe("testing the best epoch")

    def _describe(self, text: str) -> None:
        self.bar.update(self._task, description=text)


class _TimeLeft(ProgressColumn):
    """The time for what is left, at the speed of the run so far, validation included."""

    def render(self, task: Task) -> Text:
        """The time as hours, minutes and seconds; nothing before the first batch."""
        done = task.completed - task.fields["begun"]
        since = task.fields["since"]
        if not since or done <= 0 or task.total is None:
            return Text("")
        left = round((time.monotonic() - since) / done * (task.total - task.completed))
        minutes, seconds = divmod(left, 60)
        hours, minutes = divmod(minutes, 60)
        shown = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return Text(f"{shown} left", style="progress.remaining")
