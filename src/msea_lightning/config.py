"""Every option of the framework: its type, unit, range and the checks between options.

One dataclass per component, composed into one root per entry point (:class:`TrainConfig`,
:class:`BenchConfig`, :class:`PrepareConfig`, :class:`EvaluateConfig`, ...). The
dataclasses are the schema of ``conf/``: Hydra composes the YAML files into them, :func:`to_typed`
turns the result into plain typed objects and refuses whatever the schema does not know or allow.
Modules never receive these objects whole, only the plain values that they need.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class UserError(ValueError):
    """An error that the person at the keyboard can mend.

    Its text says what is wrong, where, both values and what to do; entry points print it as one
    paragraph, without a traceback. Every package of the project derives its errors from it.
    """


class ConfigError(UserError):
    """An option that is unknown, mistyped, out of range, or at odds with another one."""


class Reader(enum.Enum):
    """Published file layouts, one reader each (DESIGN "Data")."""

    mmsa = "mmsa"
    """``{train, valid, test: {raw_text, audio, vision, ...}}`` (MOSEI, MOSI, SIMS, SIMS-V2)."""
    dialogue = "dialogue"
    """``<name>_{train,valid,test}.pkl``: lists of utterances (MELD, CHERMA, IEMOCAP)."""
    cherma = "cherma"
    """CHERMA as its authors publish it: split JSON beside folders of ``.npy`` files."""
    table = "table"
    """Your own: ``utterances.csv`` beside ``features.npz`` or folders of ``.npy`` files."""
    demo = "demo"
    """The built-in, generated corpus."""


class Language(enum.Enum):
    """Language of the wrapping strings and of generated task prompts."""

    en = "en"
    zh = "zh"


class LabelKind(enum.Enum):
    """What a label is."""

    scale = "scale"
    """A sentiment intensity (MSA)."""
    emotions = "emotions"
    """One of a fixed set of names (ERC)."""
    infer = "infer"
    """Decided from the labels found: all numbers make a scale, anything else an emotion set."""


class MetricKind(enum.Enum):
    """Which metric definitions a data set is reported with."""

    mosei = "mosei"
    simsv2 = "simsv2"
    scale = "scale"
    emotion = "emotion"
    infer = "infer"


class Repair(enum.Enum):
    """What to do with features that are NaN or infinite."""

    refuse = "refuse"
    zero = "zero"


class DemoTask(enum.Enum):
    """Variants of the built-in demo corpus."""

    erc = "erc"
    msa = "msa"


class Quantization(enum.Enum):
    """Storage of the frozen backbone's linear layers."""

    none = "none"
    int8 = "int8"
    nf4 = "nf4"


class Attention(enum.Enum):
    """Implementation of the frozen backbone's attention."""

    auto = "auto"
    """``sdpa`` where the architecture has it, else ``eager``."""
    sdpa = "sdpa"
    """PyTorch's fused attention."""
    eager = "eager"
    """Plain matrix products, as a reference."""
    flash_attention_2 = "flash_attention_2"
    """The package flash-attn, on GPUs and in half precision."""


class Dtype(enum.Enum):
    """Compute dtype of the frozen backbone; ``auto`` is bfloat16 on a GPU, float32 on a CPU."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Weights(enum.Enum):
    """Where the backbone's weights come from."""

    pretrained = "pretrained"
    random = "random"
    """The real architecture with random weights: to measure time and memory, not to learn."""


class SegmentKind(enum.Enum):
    """Kinds of segments in a sequence layout (see :class:`SegmentConfig`)."""

    token = "token"
    bos = "bos"
    literal = "literal"
    pseudo = "pseudo"
    text = "text"
    prompt = "prompt"


class Decode(enum.Enum):
    """How an answer is picked from the legal ones."""

    greedy = "greedy"
    median = "median"
    mean = "mean"


class Accelerator(enum.Enum):
    """Hardware that a run uses."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class WandbMode(enum.Enum):
    """W&B modes; ``auto`` is online where an account is configured, offline elsewhere."""

    auto = "auto"
    online = "online"
    offline = "offline"


class Split(enum.Enum):
    """Parts of a data set."""

    train = "train"
    valid = "valid"
    test = "test"


SPLITS: tuple[str, ...] = tuple(split.value for split in Split)


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with its help text and its legal range.

    Args:
        default: The default value; a list, a dict or a dataclass type becomes a factory.
        help: One line, with the unit where there is one.
        low: Smallest legal value (inclusive).
        high: Largest legal value (inclusive).
        above: The value must be greater than this.
        below: The value must be less than this.
    """
    metadata = {"help": help, "low": low, "high": high, "above": above, "below": below}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    if isinstance(default, type) and dataclasses.is_dataclass(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class LabelConfig:
    """The label space of a data set."""

    kind: LabelKind = option(LabelKind.infer, "what a label is")
    low: float | None = option(None, "scale: lowest intensity; inferred where not given")
    high: float | None = option(None, "scale: highest intensity; inferred where not given")
    step: float | None = option(
        None, "scale: distance of the intensities that can be written", above=0
    )
    names: list[str] = option([], "emotions: names in order; name i is written as the number i")

    def check(self, where: str) -> None:
        """Refuses a scale that is empty and a set with double or fewer than two names."""
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ConfigError(f"{where}.low={self.low} must be less than {where}.high={self.high}.")
        doubles = sorted({name for name in self.names if self.names.count(name) > 1})
        if doubles:
            raise ConfigError(f"{where}.names lists {', '.join(doubles)} more than once.")
        if self.kind is LabelKind.emotions and len(self.names) < 2:
            raise ConfigError(
                f"{where}.kind=emotions needs at least two names in {where}.names, "
                f"got {self.names}; use {where}.kind=infer to take them from the data."
            )
        if self.kind is LabelKind.scale and (self.low is None or self.high is None):
            raise ConfigError(
                f"{where}.kind=scale needs {where}.low and {where}.high, got {self.low} and "
                f"{self.high}; use {where}.kind=infer to take them from the data."
            )


@dataclass
class DatasetConfig:
    """One data set: where its files are, how they are laid out, what its labels mean."""

    name: str = option("demo", "name in run folders and reports")
    reader: Reader = option(Reader.demo, "published layout of the files")
    path: str | None = option(None, "file or folder with the published files")
    download: bool = option(False, "fetch the published files first where they are missing")
    hub_id: str | None = option(None, "Hugging Face data set that publishes the files")
    hub_file: str | None = option(None, "the one file of hub_id to read; else the whole folder")
    source: str = option("", "where the files are published, for error messages")
    cache: str | None = option(
        None, "folder of downloads and stores; $MSEA_CACHE or ~/.cache/msea_lightning"
    )
    language: Language = option(Language.en, "language of the wrapping strings and prompts")
    labels: LabelConfig = option(LabelConfig, "label space")
    metrics: MetricKind = option(MetricKind.infer, "metric definitions")
    text_tokens: int = option(64, "text is cut on the right to this many tokens", low=1)
    audio_dim: int | None = option(None, "audio features per frame; taken from the files", low=1)
    vision_dim: int | None = option(None, "vision features per frame; taken from the files", low=1)
    expected_train: int | None = option(None, "utterances in train as published", low=0)
    expected_valid: int | None = option(None, "utterances in valid as published", low=0)
    expected_test: int | None = option(None, "utterances in test as published", low=0)
    valid_fraction: float = option(
        0.15, "part of train held out where there is no valid split", above=0, below=1
    )
    train_fraction: float = option(
        1.0, "part of the training utterances to train on, stratified by label", above=0, high=1
    )
    standardize: bool = option(
        False, "zero mean, unit variance per feature, fitted on the training part"
    )
    repair: Repair = option(Repair.refuse, "features that are NaN or infinite")
    demo_task: DemoTask = option(DemoTask.erc, "variant of the demo corpus")
    demo_utterances: int = option(
        1200, "utterances of the demo corpus, all splits together", low=60
    )
    demo_seed: int = option(0, "seed of the demo corpus (not of the run)", low=0)
    workers: int = option(0, "processes that read ahead", low=0)

    def check(self, where: str) -> None:
        """Refuses a data set without files or without a source for them."""
        if self.reader is not Reader.demo and self.download and self.hub_id is None:
            raise ConfigError(
                f"{where}.download=true, but {self.name} is not published on the Hugging Face "
                f"Hub: get it from {self.source or 'its authors'} and give {where}.path."
            )


@dataclass
class SegmentConfig:
    """One segment of the sequence that the backbone reads.

    ``token`` is one special token; ``bos`` the way in which the tokenizer itself begins a text (the
    special tokens that it puts in front, else its beginning token, else nothing); ``literal`` is
    ordinary text, tokenised by itself without special tokens; ``pseudo`` the pseudo tokens;
    ``text`` the utterance; ``prompt`` the task prompt. The label follows the last segment.
    """

    kind: SegmentKind = option(SegmentKind.literal, "kind of segment")
    token: str = option("", "token: the special token's name, such as <s>")
    en: str = option("", "literal: the string in English data sets")
    zh: str = option("", "literal: the string in Chinese data sets")

    def check(self, where: str) -> None:
        """Refuses a segment whose string is missing."""
        if self.kind is SegmentKind.token and not self.token:
            raise ConfigError(f"{where}: a segment of kind 'token' names its token.")
        if self.kind is SegmentKind.literal and not (self.en and self.zh):
            raise ConfigError(f"{where}: a segment of kind 'literal' has both 'en' and 'zh'.")


@dataclass
class BackboneConfig:
    """The frozen language model."""

    name: str = option("tiny", "name in run folders and reports")
    path: str | None = option(
        None, "Hub id or local folder; null takes the backbone that ships with the project"
    )
    tokenizer: str | None = option(None, "Hub id or folder of the tokenizer, where not in path")
    weights: Weights = option(Weights.pretrained, "where the weights come from")
    quantization: Quantization = option(Quantization.none, "storage of the linear layers")
    double_quantization: bool = option(
        True, "quantization=nf4: quantise the scales too, 0.4 bits a weight less"
    )
    dtype: Dtype = option(Dtype.auto, "compute dtype, also of quantised layers")
    attention: Attention = option(Attention.auto, "implementation of the attention")
    check_memory: bool = option(True, "refuse a backbone that does not fit, before loading")
    compile: bool = option(
        False, "compile its layers: each step is faster, the first ones take a minute longer"
    )
    checkpoint_activations: bool = option(
        False, "compute activations again in the backward pass: a third slower, far less memory"
    )
    signed_labels: bool | None = option(
        None,
        "write intensities of zero and above with a plus sign; null: where the tokenizer needs it "
        "to write all of them alike",
    )
    layout: list[SegmentConfig] = option([], "segments in order")
    pad_token: str | None = option(None, "padding token; the tokenizer's own where not given")
    architecture: dict[str, Any] = option(
        {}, "weights=random: fields of the transformers config, model_type among them"
    )
    hidden_size: int | None = option(
        None, "weights=random: width instead of the architecture's, a multiple of 16", low=16
    )
    num_layers: int | None = option(
        None, "weights=random: layers instead of the architecture's", low=1
    )

    @property
    def special_tokens(self) -> list[str]:
        """Special tokens that the layout and the padding name."""
        named = [segment.token for segment in self.layout if segment.token]
        return [*named, *([self.pad_token] if self.pad_token else [])]

    def check(self, where: str) -> None:
        """Refuses a layout that does not hold each of pseudo, text and prompt exactly once."""
        if self.path is None and self.name != "tiny":
            raise ConfigError(
                f"{where}={self.name} needs {where}.path: a Hub id such as Qwen/Qwen2.5-0.5B, or "
                "a folder with a checkpoint."
            )
        for name in ("hidden_size", "num_layers"):
            size = getattr(self, name)
            if size is None:
                continue
            if self.weights is not Weights.random or "model_type" not in self.architecture:
                raise ConfigError(
                    f"{where}.{name}={size} is for measuring, with {where}.weights=random and a "
                    f"backbone whose {where}.architecture is known, such as {where}=llama2; here "
                    f"are {where}.weights={self.weights.value} and {where}={self.name}. Leave it "
                    "out, or change these."
                )
        if self.hidden_size is not None and self.hidden_size % 16:
            raise ConfigError(f"{where}.hidden_size={self.hidden_size} is no multiple of 16.")
        for index, segment in enumerate(self.layout):
            segment.check(f"{where}.layout[{index}]")
        for kind in (SegmentKind.pseudo, SegmentKind.text, SegmentKind.prompt):
            count = sum(segment.kind is kind for segment in self.layout)
            if count != 1:
                raise ConfigError(
                    f"{where}.layout needs exactly one segment of kind '{kind.value}', "
                    f"found {count}."
                )
        if self.layout[-1].kind is not SegmentKind.prompt:
            raise ConfigError(
                f"{where}.layout ends with '{self.layout[-1].kind.value}'; the last segment is "
                "the prompt, because the label follows it."
            )


ADAPTER_OPTIONS: dict[str, tuple[str, ...]] = {
    "mse": ("audio_hidden", "vision_hidden", "pseudo_tokens", "hidden", "scales"),
    "mag": ("beta", "dropout"),
    "chfn": (),
}
"""Which options of :class:`AdapterConfig` an adapter has; all others are null."""

ADAPTER_ABLATIONS: dict[str, tuple[str, ...]] = {
    "mse": ("audio", "vision", "text", "random_summaries", "text_guide", "multi_scale"),
    "mag": ("audio", "vision"),
    "chfn": ("audio", "vision"),
}
"""Which options of :class:`AblationConfig` an adapter has; all others stay as they are."""


@dataclass
class AdapterConfig:
    """The trainable plugin. An option of another adapter than the chosen one is null."""

    name: str = option("mse", "the adapter, also in run folders and reports")
    audio_hidden: int | None = option(64, "mse: width of the audio LSTM", low=1)
    vision_hidden: int | None = option(32, "mse: width of the vision LSTM", low=1)
    pseudo_tokens: int | None = option(4, "mse: number of pseudo tokens", low=1)
    hidden: int | None = option(256, "mse: width of the text-guided mixer", low=1)
    scales: list[int] | None = option(
        [8, 32, 16], "mse: hidden sizes of the fusion are text width // scale"
    )
    beta: float | None = option(
        None, "mag: longest shift of a token, in multiples of its own norm", above=0
    )
    dropout: float | None = option(
        None, "mag: share of an embedding's numbers that training drops", low=0, below=1
    )

    def check(self, where: str) -> None:
        """Refuses an unknown adapter, and options that it lacks or that are another one's."""
        if self.name not in ADAPTER_OPTIONS:
            raise ConfigError(
                f"{where}.name={self.name} is unknown; there are: {', '.join(ADAPTER_OPTIONS)}."
            )
        own = ADAPTER_OPTIONS[self.name]
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in own and value is None:
                raise ConfigError(f"{where}.{item.name}=null: {self.name} needs a value.")
            if item.name not in ("name", *own) and value is not None:
                others = [name for name, names in ADAPTER_OPTIONS.items() if item.name in names]
                raise ConfigError(
                    f"{where}.{item.name}={value} has no effect on {self.name}; it is an option of "
                    f"{', '.join(others)}. Leave it out, or choose {where}={others[0]}."
                )
        if self.scales is not None and (not self.scales or min(self.scales) < 1):
            raise ConfigError(f"{where}.scales={self.scales}: one or more positive numbers.")

    def arguments(self) -> dict[str, Any]:
        """The adapter's own options, by the names of its arguments."""
        return {name: getattr(self, name) for name in ADAPTER_OPTIONS[self.name]}


@dataclass
class AblationConfig:
    """What is left out of the adapter (Table 4); of other adapters than mse, audio or vision."""

    name: str = option("none", "name in run folders and reports")
    audio: bool = option(True, "false: without the audio summary (w/o A)")
    vision: bool = option(True, "false: without the vision summary (w/o V)")
    text: bool = option(True, "false: no text in the sequence nor in the mixer (w/o T)")
    random_summaries: bool = option(False, "fixed random audio and vision summaries (w/o A V)")
    text_guide: bool = option(True, "false: sum without the Hadamard product (w/o TGM)")
    multi_scale: bool = option(True, "false: mixer output straight to the projector (w/o MSF)")

    def check(self, where: str) -> None:
        """Refuses a model that reads nothing."""
        if not (self.audio or self.vision or self.text):
            raise ConfigError(f"{where}: audio, vision and text are all false; nothing is left.")
        if self.random_summaries and not (self.audio and self.vision):
            raise ConfigError(
                f"{where}.random_summaries replaces both summaries; leave audio and vision true."
            )

    def arguments(self, adapter: str) -> dict[str, bool]:
        """The options that an adapter has, by the names of its arguments."""
        prefixed = ("audio", "vision", "text")
        return {
            f"use_{name}" if name in prefixed else name: getattr(self, name)
            for name in ADAPTER_ABLATIONS[adapter]
        }


@dataclass
class TextConfig:
    """Treatment of the utterance's text; the defaults are right, the rest is for comparison."""

    pad_to: int | None = option(
        None, "pad every text on the left to this many tokens, as the original does", low=1
    )
    attend_padding: bool = option(
        False, "attend to padding and average it into the text mean, as the original does"
    )

    def check(self, where: str) -> None:
        """Refuses attention to padding that is not there."""
        if self.attend_padding and self.pad_to is None:
            raise ConfigError(
                f"{where}.attend_padding=true needs {where}.pad_to, the length that texts are "
                "padded to."
            )


@dataclass
class PromptConfig:
    """The task prompt."""

    task: str | None = option(
        None, "the prompt itself; made from the label space and language where not given"
    )


@dataclass
class TrainingConfig:
    """Optimisation (paper, Tables 7-9)."""

    batch_size: int = option(16, "utterances per optimizer step, all devices together", low=1)
    eval_batch_size: int | None = option(
        None,
        "utterances per evaluation batch and device; null: 32 on a CPU, on a GPU as many as take "
        "no more memory than a training step, at most 256",
        low=1,
    )
    learning_rate: float = option(5e-4, "peak learning rate of AdamW", above=0)
    weight_decay: float = option(0.01, "weight decay of AdamW", low=0)
    eps: float = option(1e-4, "epsilon of AdamW", above=0)
    warmup_fraction: float = option(0.1, "part of the schedule with a rising rate", low=0, below=1)
    schedule_epochs: int = option(
        30, "length of the cosine schedule and most epochs of a run", low=1
    )
    patience: int = option(10, "epochs without a better validation metric before a stop", low=1)
    gradient_clip: float | None = option(None, "largest gradient norm; none clips nothing", above=0)


@dataclass
class TrainerConfig:
    """Hardware and progress."""

    accelerator: Accelerator = option(Accelerator.auto, "hardware")
    devices: int = option(1, "number of devices; more than one trains with DDP", low=1)
    accumulate: int = option(
        1,
        "parts in which a device takes its share of a batch, one after another: less memory, the "
        "same results",
        low=1,
    )
    threads: int | None = option(
        None, "CPU threads of this process; null leaves the default", low=1
    )
    progress_bar: bool = option(True, "show progress")


@dataclass
class LoggerConfig:
    """Loggers besides ``history.csv``, which every run writes."""

    wandb: bool = option(False, "log to Weights & Biases")
    wandb_mode: WandbMode = option(WandbMode.auto, "where W&B runs go")
    wandb_project: str = option("msea_lightning", "W&B project")
    wandb_entity: str | None = option(None, "W&B team or user")
    wandb_group: str | None = option(
        None, "W&B group; [experiment/]dataset/adapter-backbone where not given"
    )


@dataclass
class CellConfig:
    """What every run has, to train or to measure: a data set, a model, and how it is trained."""

    dataset: DatasetConfig = option(DatasetConfig, "data set")
    backbone: BackboneConfig = option(BackboneConfig, "frozen language model")
    adapter: AdapterConfig = option(AdapterConfig, "trainable plugin")
    ablation: AblationConfig = option(AblationConfig, "what is left out")
    text: TextConfig = option(TextConfig, "treatment of the text")
    prompt: PromptConfig = option(PromptConfig, "task prompt")
    training: TrainingConfig = option(TrainingConfig, "optimisation")
    trainer: TrainerConfig = option(TrainerConfig, "hardware")
    decode: Decode = option(Decode.greedy, "how an answer is picked")
    recipe: str | None = option(None, "published recipe in use; set by conf/recipe")
    seed: int = option(1111, "seed of weights, batches and splits", low=0, high=2**32 - 1)

    def check(self, where: str) -> None:
        """Refuses an ablation of what the adapter does not have."""
        own = ADAPTER_ABLATIONS[self.adapter.name]
        for item in dataclasses.fields(self.ablation):
            value = getattr(self.ablation, item.name)
            if item.name not in ("name", *own) and value != item.default:
                raise ConfigError(
                    f"ablation.{item.name}={str(value).lower()} (ablation={self.ablation.name}): "
                    f"{self.adapter.name} has nothing of that kind to leave out; it has "
                    f"{' and '.join(own)}. Choose ablation=none, no_audio or no_vision."
                )


@dataclass
class TrainConfig(CellConfig):
    """``python -m msea_lightning.train``."""

    logger: LoggerConfig = option(LoggerConfig, "loggers")
    experiment: str | None = option(
        None, "table or figure of the paper that the run belongs to; set by conf/experiment"
    )
    size_only: bool = option(False, "count parameters and estimate memory, and train nothing")
    runs: str = option("runs", "folder of all run folders")
    ckpt: str | None = option(
        None,
        "'auto' does nothing where a run of these very options is finished, resumes it where it "
        "is not, and else begins it, as every run of a sweep does; 'last' resumes this cell's "
        "latest run; or a run folder to resume",
    )


class Measured(enum.Enum):
    """What a benchmark measures."""

    everything = "everything"
    start = "start"
    """From the start of the process to the end of the first step."""
    train = "train"
    """The start and training."""
    evaluate = "evaluate"
    """The start and evaluation."""


@dataclass
class BenchOptions:
    """What is measured, and against what."""

    shape: str = option(
        "meld",
        "data set whose sizes and lengths the generated data has: mosei, simsv2, meld or cherma; "
        "the same as dataset",
    )
    compare: list[str] = option(
        ["original", "ours"],
        "variants, the first of which the others are compared with: original (written to the "
        "original implementation's behaviour), ours (the options as they are), or options that "
        "differ from ours, several of them joined by '+': "
        "'bench.compare=[ours,\"backbone.dtype=bfloat16\"]'",
    )
    measure: Measured = option(Measured.everything, "what is measured")
    utterances: int | None = option(
        1024, "training utterances that there are; null: as many as published", low=1
    )
    eval_utterances: int | None = option(
        512, "test utterances that there are; null: as many as published", low=1
    )
    steps: int = option(
        16,
        "training batches of a round, at most all; its evaluation has as many utterances. Where "
        "batches go by length, some of every length are taken",
        low=1,
    )
    rounds: int = option(3, "rounds, after two steps that are not counted", low=1)
    together: bool = option(
        True,
        "variants are in memory together and take turns, so that a machine that gets slower slows "
        "all of them; false: one after another",
    )
    json: str | None = option(None, "a file for all numbers as JSON, besides the table")

    def check(self, where: str) -> None:
        """Refuses a comparison of nothing, or of a variant with itself."""
        doubles = sorted({name for name in self.compare if self.compare.count(name) > 1})
        if not self.compare or doubles:
            raise ConfigError(
                f"{where}.compare={self.compare}: give one or more different variants, such as "
                "[original,ours]."
            )


@dataclass
class BenchConfig(CellConfig):
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
class PrepareConfig:
    """``python -m msea_lightning.prepare``."""

    dataset: DatasetConfig = option(DatasetConfig, "data set")


@dataclass
class EvaluateConfig:
    """``python -m msea_lightning.evaluate``."""

    run: str = option("???", "run folder to evaluate")
    split: Split = option(Split.test, "part of the data set")
    decode: Decode | None = option(None, "how an answer is picked; the run's own where not given")
    dataset_path: str | None = option(None, "the data set's place here, where it has moved")
    eval_batch_size: int | None = option(
        None, "utterances per batch; as in the run where not given", low=1
    )
    accelerator: Accelerator = option(Accelerator.auto, "hardware")


@dataclass
class DoctorConfig:
    """``python -m msea_lightning.doctor``."""

    datasets: str | None = option(None, "a folder to search for published files of data sets")
    backbones: str | None = option(None, "a folder to search for folders with checkpoints")
    accelerator: Accelerator = option(Accelerator.auto, "hardware that the cells would run on")
    json: str | None = option(None, "a file for the findings as JSON, besides the tables")


@dataclass
class ReportConfig:
    """``python -m msea_lightning.report``."""

    runs: str = option("runs", "a folder with run folders anywhere beneath it")
    out: str | None = option(None, "folder to write into; the folder of runs where not given")


Root = TypeVar("Root")


def to_typed(config: DictConfig, root: type[Root]) -> Root:
    """Turns a composed config into checked, plain, typed objects.

    The plain container is merged once more into a fresh structured config, because keys added
    on the command line with ``+`` pass the schema that Hydra merged into.

    Args:
        config: What Hydra composed.
        root: The dataclass of the entry point, such as :class:`TrainConfig`.

    Raises:
        ConfigError: naming the option, the value and what is legal.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        merged = OmegaConf.merge(OmegaConf.structured(root), plain)
        missing = OmegaConf.missing_keys(merged)
        for info in options(root):
            if info.key in missing:
                raise ConfigError(f"{info.key} is missing: give {info.key}=... ({info.help}).")
        typed = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        key = getattr(error, "full_key", None)
        raise ConfigError(f"option {key}: {reason}" if key else reason) from error
    assert isinstance(typed, root)
    check(typed)
    return typed


def check(config: Any, where: str = "") -> None:
    """Checks ranges and cross-field rules of a config object and of all objects inside it.

    Raises:
        ConfigError: naming the option, the value and what is legal.
    """
    for item in dataclasses.fields(config):
        key = f"{where}.{item.name}" if where else item.name
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            check(value, key)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _check_range(key, value, item.metadata)
    rule = getattr(config, "check", None)
    if rule is not None:
        rule(where)


def legal_range(metadata: typing.Mapping[str, Any]) -> str:
    """The range in a field's metadata (see :func:`option`) in words; empty where there is none."""
    words = {"low": "at least", "above": "greater than", "high": "at most", "below": "less than"}
    return " and ".join(
        f"{word} {metadata[name]}" for name, word in words.items() if metadata.get(name) is not None
    )


def _check_range(key: str, value: float, metadata: typing.Mapping[str, Any]) -> None:
    low, high = metadata.get("low"), metadata.get("high")
    above, below = metadata.get("above"), metadata.get("below")
    fits = (
        (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
        and (below is None or value < below)
        and math.isfinite(value)
    )
    if not fits:
        raise ConfigError(f"{key}={value} is out of range: {legal_range(metadata) or 'finite'}.")


@dataclass(frozen=True)
class OptionInfo:
    """One option as shown in ``--help`` and in error messages."""

    key: str
    type: str
    range: str
    default: Any
    help: str


def options(root: type[Any], where: str = "") -> Iterator[OptionInfo]:
    """Walks over all options below a config dataclass, in the order of their definition."""
    hints = typing.get_type_hints(root)
    for item in dataclasses.fields(root):
        key = f"{where}.{item.name}" if where else item.name
        hint = hints[item.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from options(hint, key)
            continue
        default = (
            item.default
            if item.default is not dataclasses.MISSING
            else typing.cast("Any", item.default_factory)()
        )
        yield OptionInfo(
            key=key,
            type=type_name(hint),
            range=legal_range(item.metadata),
            default=default,
            help=item.metadata.get("help", ""),
        )


def type_name(hint: Any) -> str:
    """A type as a user reads it: ``int``, ``greedy|median|mean``, ``text or null``."""
    if isinstance(hint, types.UnionType):
        return " or ".join(type_name(part) for part in hint.__args__)
    if hint is type(None):
        return "null"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "|".join(member.name for member in hint)
    if dataclasses.is_dataclass(hint):
        return f"{{{', '.join(item.name for item in dataclasses.fields(hint))}}}"
    names = {str: "text", bool: "true|false", int: "int", float: "float"}
    origin = typing.get_origin(hint)
    if origin is list:
        return f"list of {type_name(hint.__args__[0])}"
    if origin is dict:
        return "mapping"
    return names.get(hint, getattr(hint, "__name__", str(hint)))
