"""The options of each command, composed of those of the components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from msea_lightning.adapter.options import (
    ABLATIONS,
    ADAPTERS,
    AblationConfig,
    AdapterOptions,
    MSEOptions,
    NoAdapterOptions,
)
from msea_lightning.backbone.options import Accelerator, BackboneConfig, Weights
from msea_lightning.benchmark.options import BenchOptions
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import option
from msea_lightning.data.options import ColumnsConfig, DatasetConfig, LabelKind, Split
from msea_lightning.features.options import (
    AUDIO_EXTRACTORS,
    VISION_EXTRACTORS,
    AudioOptions,
    Engine,
    FaceOptions,
    LogMelOptions,
    VisionOptions,
)
from msea_lightning.language.options import Decode, Loss, Order, PromptConfig, TextConfig
from msea_lightning.model.options import (
    MODELS,
    AdaptedLMOptions,
    ModelOptions,
    ReadoutKind,
)
from msea_lightning.plugin.options import RecordedBackboneConfig
from msea_lightning.reporting.options import LoggerConfig
from msea_lightning.searching.options import SearchOptions
from msea_lightning.training.options import ClassWeights, TrainerConfig, TrainingConfig


@dataclass
class RunConfig:
    """What every run has, to train or to measure: a data set, a model, and how it is trained."""

    dataset: DatasetConfig = option(DatasetConfig, "data set")
    model: ModelOptions = option(AdaptedLMOptions, "what is trained", choices=MODELS)
    backbone: BackboneConfig = option(BackboneConfig, "frozen language model")
    adapter: AdapterOptions = option(MSEOptions, "trainable plugin", choices=ADAPTERS)
    ablation: AblationConfig = option(AblationConfig, "what is left out", presets=ABLATIONS)
    readout: ReadoutKind = option(ReadoutKind.tokens, "what gives the probabilities of answers")
    text: TextConfig = option(TextConfig, "treatment of the text")
    prompt: PromptConfig = option(PromptConfig, "task prompt")
    training: TrainingConfig = option(TrainingConfig, "optimisation")
    trainer: TrainerConfig = option(TrainerConfig, "hardware")
    decode: Decode = option(Decode.greedy, "how an answer is picked")
    recipe: str | None = option(None, "published recipe in use; set by conf/recipe")
    method: str | None = option(None, "set of options of the method in use; set by conf/method")
    seed: int = option(1111, "seed of weights, batches and splits", low=0, high=2**32 - 1)

    def check(self, where: str) -> None:
        """Refuses an ablation of what the adapter does not have, and parts that do not fit."""
        self.ablation.check_adapter("ablation", self.adapter)
        training, linear = self.training, self.readout is ReadoutKind.linear
        wanting = {
            "readout=linear": linear,
            f"training.ordinal={training.ordinal}": training.ordinal > 0,
            "prompt.calibrate=true": self.prompt.calibrate,
        }
        needing = [what for what, needs in wanting.items() if needs]
        if needing and training.loss is not Loss.answers:
            raise ConfigError(
                f"{needing[0]} needs probabilities of the legal answers, but training.loss="
                f"{training.loss.value}: set training.loss=answers, or choose method=published."
            )
        if linear and self.prompt.calibrate:
            raise ConfigError(
                "prompt.calibrate=true has no effect with readout=linear, whose layer is trained: "
                "leave it out."
            )
        if self.adapter.anchored and self.prompt.order is not Order.text_first:
            raise ConfigError(
                "adapter.anchored=true puts pseudo tokens in the places of the task prompt's last "
                f"tokens, but prompt.order={self.prompt.order.value} has them elsewhere: set "
                "prompt.order=text_first, or adapter.anchored=false."
            )
        untrained = training.schedule_epochs == 0
        needing_training = {
            f"model={self.model.name}": not isinstance(self.model, AdaptedLMOptions),
            f"training.ordinal={training.ordinal}": training.ordinal > 0,
            f"training.class_weights={training.class_weights.value}": (
                training.class_weights is not ClassWeights.none
            ),
        }
        for what, needs in needing_training.items():
            if untrained and needs:
                raise ConfigError(
                    f"training.schedule_epochs=0 trains nothing, and {what} means nothing "
                    "untrained: leave one of them out."
                )
        if isinstance(self.adapter, NoAdapterOptions) and not linear and not untrained:
            raise ConfigError(
                "adapter=none with readout=tokens has nothing to train: set "
                "training.schedule_epochs=0 for the zero-shot answers of the language model, or "
                "readout=linear."
            )
        if self.backbone.device_map is not None and self.trainer.devices > 1:
            raise ConfigError(
                f"trainer.devices={self.trainer.devices} gives each process a device, but "
                "backbone.device_map=auto gives one process all of them: leave one of them out."
            )


@dataclass
class TrainConfig(RunConfig):
    """``python -m msea_lightning.train``."""

    logger: LoggerConfig = option(LoggerConfig, "loggers")
    callbacks: dict[str, Any] = option(
        {},
        "more callbacks of Lightning: callbacks.NAME._target_=CLASS callbacks.NAME.ARGUMENT=...",
        called=("trainer.callbacks",),
    )
    experiment: str | None = option(
        None, "table or figure of the paper that the run belongs to; set by conf/experiment"
    )
    size_only: bool = option(False, "count parameters and estimate memory, and train nothing")
    runs: str = option(
        "runs",
        "folder of all run folders",
        called=("trainer.default_root_dir", "default_root_dir", "output_dir", "log_dir"),
    )
    ckpt: str | None = option(
        None,
        "'auto' leaves a finished run of these options alone, resumes an interrupted one, and else "
        "begins one, as a sweep does; 'last' resumes the latest run of these options; or a run "
        "folder to resume",
        called=("ckpt_path", "trainer.ckpt_path", "trainer.resume_from_checkpoint"),
    )


@dataclass
class SearchConfig(TrainConfig):
    """``python -m msea_lightning.search``."""

    search: SearchOptions = option(SearchOptions, "what is tried, and for how long")

    def check(self, where: str) -> None:
        """Refuses what makes no run to be compared, besides what all runs refuse."""
        super().check(where)
        name = "devices" if self.trainer.devices > 1 else "num_nodes"
        spread = f"trainer.{name}={getattr(self.trainer, name)}"
        refused = {
            f"ckpt={self.ckpt}: every trial is resumed where it was interrupted, by itself": (
                self.ckpt is not None
            ),
            "size_only=true trains nothing": self.size_only,
            "trainer.fast_dev_run=true keeps nothing": self.trainer.fast_dev_run,
            f"{spread}: every trial has one device; several trials at a time: search.parallel": (
                self.trainer.ranks > 1
            ),
        }
        for what, holds in refused.items():
            if holds:
                raise ConfigError(f"{what}. Leave it out of a search.")


@dataclass
class BenchConfig(RunConfig):
    """``python -m msea_lightning.bench``."""

    bench: BenchOptions = option(BenchOptions, "what is measured")

    def check(self, where: str) -> None:
        """Refuses data of another shape than the data set's, besides what all runs refuse."""
        super().check(where)
        if self.bench.shape != self.dataset.name:
            raise ConfigError(
                f"bench.shape={self.bench.shape}, but dataset={self.dataset.name}: they are the "
                "same; give one of them."
            )


@dataclass
class PluginsConfig:
    """The plugins that a command answers with, and their language model."""

    plugin: list[str] = option(
        [], "plugin folders, or names on the Hugging Face Hub; one, or several as [a,b]"
    )
    plugins: dict[str, str] = option({}, "the same, called as you like: {mood: a, emotion: b}")
    language_model: RecordedBackboneConfig = option(RecordedBackboneConfig, "frozen language model")

    def check(self, where: str) -> None:
        """Refuses none or both of plugin and plugins."""
        if bool(self.plugin) == bool(self.plugins):
            raise ConfigError(
                "Give either plugin=FOLDER (several: plugin=[FOLDER,OTHER]) or "
                "plugins={NAME: FOLDER, OTHER: FOLDER}: the plugins that answer."
            )


@dataclass
class AppConfig(PluginsConfig):
    """``python -m msea_lightning.app``."""

    host: str = option("127.0.0.1", "address to serve; 0.0.0.0 lets other machines in")
    port: int = option(7860, "port; 0: any that is free", low=0, high=65535)
    max_upload: float = option(100.0, "largest clip, in MB", above=0)
    open_browser: bool = option(True, "open the page in the browser")


@dataclass
class PrepareConfig:
    """``python -m msea_lightning.prepare``."""

    dataset: DatasetConfig = option(DatasetConfig, "data set")


@dataclass
class ExtractConfig:
    """``python -m msea_lightning.extract``."""

    input: str = option("???", "folder of clips, searched with all folders in it; or one clip")
    output: str = option("???", "folder of the table; one that is there already is continued")
    audio: AudioOptions = option(LogMelOptions, "what is heard", choices=AUDIO_EXTRACTORS)
    vision: VisionOptions = option(FaceOptions, "what is seen", choices=VISION_EXTRACTORS)
    features: str | None = option(None, "preset of extractors in use; set by conf/features")
    labels: str | None = option(
        None,
        "CSV file with a row per utterance: file or id, and label, text, split, group, speaker, "
        "start, end (seconds) as there are",
    )
    transcribe: str | None = option(
        None, "model of faster-whisper, a name or a folder, for clips without a transcript"
    )
    language: str | None = option(
        None, "language that is spoken, such as en; recognised where not given"
    )
    test_fraction: float = option(
        0.2, "part to test on where labels have no column split", above=0, below=1
    )
    seed: int = option(1111, "seed of that part", low=0, high=2**32 - 1)
    engine: Engine = option(Engine.local, "where clips are worked on")
    workers: int | None = option(
        None, "processes; as many as cores where not given, 1: this one alone", low=1
    )


@dataclass
class EvaluateConfig:
    """``python -m msea_lightning.evaluate``."""

    run: str = option("???", "run folder to evaluate")
    split: Split = option(Split.test, "part of the data set")
    decode: Decode | None = option(None, "how an answer is picked; the run's own where not given")
    dataset_path: str | None = option(
        None, "where the data set is now, if it has moved; or a table with other utterances"
    )
    columns: ColumnsConfig = option(
        ColumnsConfig, "what the columns of that table are called; as in the run where not given"
    )
    eval_batch_size: int | None = option(
        None, "utterances per batch; as in the run where not given", low=1
    )
    accelerator: Accelerator = option(Accelerator.auto, "hardware")


@dataclass
class PredictConfig:
    """``python -m msea_lightning.predict``."""

    plugin: str = option("???", "plugin folder, or its name on the Hugging Face Hub")
    input: str | None = option(
        None, "a clip, a folder of clips, a table (a .csv file or its folder), or a .jsonl file"
    )
    columns: ColumnsConfig = option(ColumnsConfig, "what the columns of a table are called")
    text: str | None = option(
        None, "what is said in a single clip, or a text alone; as it is, commas too", literal=True
    )
    output: str | None = option(None, "a .csv or .jsonl file; standard output where not given")
    overwrite: bool = option(False, "replace the output, and what an interrupted job left")
    decode: Decode | None = option(None, "how an answer is picked; as in training where not given")
    batch_size: int | None = option(
        None, "most utterances at a time; as in the test of the run where not given", low=1
    )
    language_model: RecordedBackboneConfig = option(RecordedBackboneConfig, "frozen language model")
    engine: Engine = option(Engine.local, "where clips are read and utterances answered")
    workers: int | None = option(
        None, "processes that read clips; as many as cores where not given, 1: this one", low=1
    )


@dataclass
class ServeConfig(PluginsConfig):
    """``python -m msea_lightning.serve``."""

    engine: str = option(
        "local", "what computes the language model: local, or the address of a vLLM server"
    )
    host: str = option("127.0.0.1", "address to listen at; the default is this machine alone")
    port: int = option(8000, "port to listen at; 0 takes any that is free", low=0, high=65535)
    max_upload: float = option(64.0, "largest request, in MB", above=0)
    max_batch: int = option(32, "most utterances computed at a time", low=1)
    max_waiting: int = option(256, "most requests at a time; the next ones get 503", low=1)
    concurrency: int = option(64, "most requests to a vLLM server at a time", low=1)
    timeout: float = option(120.0, "seconds that a request may take", above=0)

    def check(self, where: str) -> None:
        """Refuses an engine that is no address, and what only one in this process can do."""
        super().check(where)
        address = urlsplit(self.engine)
        if self.engine != "local" and not (address.scheme in ("http", "https") and address.netloc):
            raise ConfigError(
                f"engine={self.engine}: give local, or the address of a vLLM server such as "
                "http://127.0.0.1:8399."
            )
        chosen = self.language_model.quantization
        if self.engine != "local" and chosen is not None:
            raise ConfigError(
                f"language_model.quantization={chosen.value}: with engine={self.engine} the "
                "language model is stored there as that server was started. Leave it out."
            )


@dataclass
class DoctorConfig:
    """``python -m msea_lightning.doctor``."""

    datasets: str | None = option(None, "a folder to search for published files of data sets")
    backbones: str | None = option(None, "a folder to search for folders with checkpoints")
    accelerator: Accelerator = option(Accelerator.auto, "hardware that runs would use")
    json: str | None = option(None, "a file for the findings as JSON, besides the tables")


@dataclass
class ReportConfig:
    """``python -m msea_lightning.report``."""

    runs: str = option("runs", "a folder with run folders anywhere beneath it")
    out: str | None = option(None, "folder to write into; the folder of runs where not given")


@dataclass
class GivenDataset(DatasetConfig):
    """A data set without a default."""

    name: str = option("???", "the data set that it was trained on")


@dataclass
class GivenBackbone(BackboneConfig):
    """A frozen language model without a default."""

    name: str = option("???", "the language model that it was trained with")


@dataclass
class ImportOriginalConfig:
    """``python -m msea_lightning.import_original``."""

    checkpoint: str = option("???", "file that the original implementation saved")
    output: str | None = option(
        None, "new folder for the plugin; where not given, one beside the checkpoint"
    )
    dataset: GivenDataset = option(GivenDataset, "data set")
    backbone: GivenBackbone = option(GivenBackbone, "frozen language model")
    prompt: PromptConfig = option(PromptConfig, "task prompt; the original's where not given")
    decode: Decode = option(Decode.greedy, "how an answer is picked")

    def check(self, where: str) -> None:
        """Refuses what the original does not have: random weights, labels yet to be found."""
        if self.backbone.weights is Weights.random:
            raise ConfigError(
                "backbone.weights=random: a plugin works on the weights that it was trained with. "
                "Leave it out."
            )
        if self.dataset.labels.kind is LabelKind.infer:
            raise ConfigError(
                f"dataset={self.dataset.name} takes its labels from the data, which a checkpoint "
                "does not hold: give dataset.labels.kind=scale with .low and .high, or "
                "dataset.labels.kind=emotions with .names in the order of the original's numbers."
            )
        scale = self.dataset.labels.kind is LabelKind.scale
        if scale and self.backbone.signed_labels is None:
            raise ConfigError(
                f"backbone={self.backbone.name} does not say how intensities were written: give "
                "backbone.signed_labels=true where they had a plus sign (+0.4), else false."
            )
