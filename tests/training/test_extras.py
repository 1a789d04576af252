"""Callbacks and loggers of Lightning, a trial run, the progress bar."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hydra.utils import get_class
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from rich.console import Console

from msea_lightning.commands.compose import compose
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import TrainConfig
from msea_lightning.metrics import METRICS
from msea_lightning.reporting.options import LoggerConfig
from msea_lightning.training.extras import check_classes, make_callbacks, make_loggers
from msea_lightning.training.fit import fit
from msea_lightning.training.module import TrainingError
from msea_lightning.training.progress import RunProgress
from msea_lightning.training.trial import try_out

Options = Callable[..., TrainConfig]
CSV = "lightning.pytorch.loggers.CSVLogger"
RATE = "lightning.pytorch.callbacks.LearningRateMonitor"


class Counted(Callback):
    """Counts training batches."""

    seen: ClassVar[list[str]] = []

    def __init__(self, word: str) -> None:
        self._word = word

    def on_train_batch_end(self, *args: Any) -> None:
        """Adds its word."""
        self.seen.append(self._word)


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    Counted.seen.clear()


def test_callbacks_and_loggers_take_part_in_a_run(options: Options) -> None:
    run = fit(
        options(
            f"callbacks.mine._target_={__name__}.Counted",
            "callbacks.mine.word=batch",
            f"callbacks.rate._target_={RATE}",
            "callbacks.rate.logging_interval=epoch",
            f"logger.loggers.table._target_={CSV}",
            "logger.loggers.table.name=table",
        )
    )
    assert set(Counted.seen) == {"batch"}
    (file,) = run.path.glob("table/*/metrics.csv")
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    keys = {key for row in rows for key, value in row.items() if value}
    assert {"train/loss", "valid/WF1", "test/WF1", "lr-AdamW"} <= keys
    with run.history.open(newline="") as stream:
        history = [float(row["valid/WF1"]) for row in csv.DictReader(stream)]
    # Nothing but the epochs: the best one is not there once more.
    assert [float(row["valid/WF1"]) for row in rows if row["valid/WF1"]] == pytest.approx(history)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"word": 3}, r"callbacks\.x=\{'word': 3\}: write callbacks\.x\._target_=<class>"),
        ({"_target_": "no.such.Class"}, r"callbacks\.x\._target_=no\.such\.Class: there is no"),
        ({"_target_": CSV}, r"_target_=.*CSVLogger: this is no class of a callback \(.*Callback"),
        ({"_target_": "json.dumps"}, r"_target_=json\.dumps: this is no class of a callback"),
        (
            {"_target_": RATE, "tempo": 1},
            r"callbacks\.x: .*LearningRateMonitor refuses to be made \(TypeError: .*tempo",
        ),
    ],
)
def test_what_is_no_callback_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_callbacks({"x": spec})


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "comet"])
def test_loggers_have_names_on_the_command_line(name: str) -> None:
    (spec,) = compose("train", TrainConfig, [f"logger={name}"]).logger.loggers.values()
    assert issubclass(get_class(spec["_target_"]), Logger)


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="needs TensorBoard to be absent")
def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    specs = compose("train", TrainConfig, ["logger=tensorboard"]).logger.loggers
    with pytest.raises(ConfigError, match=r"TensorBoardLogger refuses to be made .*tensorboard"):
        make_loggers(specs, tmp_path)


def test_what_asks_for_a_logger_is_refused_where_there_is_none(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = {"rate": {"_target_": RATE}}
    with pytest.raises(ConfigError, match=r"callbacks\.rate: LearningRateMonitor writes into"):
        check_classes(rate, LoggerConfig())
    check_classes(rate, LoggerConfig(wandb=True))
    # What a callback asks for that nobody knows of here.
    monkeypatch.setattr("msea_lightning.training.fit.check_classes", lambda *_: None)
    with pytest.raises(TrainingError, match=r"Lightning refuses the run \(Cannot use `Learning"):
        fit(options(f"callbacks.rate._target_={RATE}"))


def test_a_trial_does_everything_once_and_keeps_nothing(
    options: Options, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    config = options(
        f"callbacks.mine._target_={__name__}.Counted",
        "callbacks.mine.word=batch",
        # Asks for a logger, which has nothing to write.
        f"callbacks.rate._target_={RATE}",
        f"logger.loggers.table._target_={CSV}",
    )
    with caplog.at_level("INFO", logger="msea_lightning"):
        try_out(config)
    assert Counted.seen == ["batch"]
    assert "everything works" in caplog.text
    assert not Path(config.runs).exists()
    assert capsys.readouterr().out == ""  # neither results nor what to do with them


def test_a_trial_resumes_nothing(options: Options) -> None:
    with pytest.raises(ConfigError, match=r"ckpt=last has no effect with trainer\.fast_dev_run"):
        try_out(options("ckpt=last"))


@pytest.mark.parametrize("width", [80, 100, 160])
def test_one_bar_for_the_whole_run_fits_the_terminal(
    options: Options, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    terminal, paper = (
        Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
        for _ in range(2)
    )
    shown: list[str] = []

    class Watched(RunProgress):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            with paper.capture() as capture:
                paper.print(self.bar.get_renderable())
            shown.append(capture.get().rstrip("\n"))

    with Watched(terminal, METRICS["wf1"]) as bar:
        monkeypatch.setattr("msea_lightning.training.fit._progress", lambda *_: nullcontext([bar]))
        fit(options())
    assert all(len(line) <= width and "\n" not in line for line in shown)
    assert shown[0].startswith("epoch 0 of 2 ")
    assert " left" in shown[0]
    assert shown[-1].startswith("epoch 1 of 2 ")
    assert "100%" in shown[-1]
    assert "valid/WF1 " in shown[-1]
    assert ", best " in shown[-1]
