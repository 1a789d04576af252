"""Options of a data set."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import option
from msea_lightning.config.registry import Registry
from msea_lightning.metrics.options import MetricKind

EVALUATION_BATCH = 32
"""Utterances per evaluation batch where none is given; more are no faster on a CPU."""


class Reader(enum.Enum):
    """Published file layouts, one reader each."""

    mmsa = "mmsa"
    """``{train, valid, test: {raw_text, audio, vision, ...}}`` (MOSEI, MOSI, SIMS, SIMS-V2)."""
    dialogue = "dialogue"
    """``<name>_{train,valid,test}.pkl``: lists of utterances (MELD, CHERMA, IEMOCAP)."""
    meld_csv = "meld_csv"
    """MELD's own ``{train,dev,test}_sent_emo.csv``, beside features or without any."""
    cherma = "cherma"
    """CHERMA as its authors publish it: split JSON beside folders of ``.npy`` files."""
    table = "table"
    """Your own CSV files, known label files too, beside ``features.npz`` or ``.npy`` files."""
    demo = "demo"
    """The built-in, generated corpus."""


READERS: Registry[Reader] = Registry("reader")
"""``dataset.reader`` to the class of its layout; of the demo to the module that makes it."""

for _name, _reader in Reader.__members__.items():
    _place = "demo" if _reader is Reader.demo else f"readers.{_name}.{_name.title()}Layout"
    READERS.register(_name, f"msea_lightning.data.{_place}")(_reader)


SPLIT_VERSION = 2
"""Raised whenever another validation part is held out of the same utterances (release 0.1: 1)."""


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


class TextCase(enum.Enum):
    """How the language model reads texts that are wholly in capitals."""

    keep = "keep"
    """As they are."""
    sentence = "sentence"
    """In small letters, but for the first letter and the pronoun I."""


class LabelWords(enum.Enum):
    """How the language model writes an emotion."""

    digits = "digits"
    """By its number, as in the paper."""
    names = "names"
    """By its name."""


class Repair(enum.Enum):
    """What to do with features that are NaN or infinite."""

    refuse = "refuse"
    zero = "zero"


class EmptyText(enum.Enum):
    """What to do with utterances without words."""

    auto = "auto"
    """Kept in tables that :mod:`msea_lightning.extract` made, whose clips may have none; refused
    in all others."""
    refuse = "refuse"
    keep = "keep"
    drop = "drop"


class DemoTask(enum.Enum):
    """Variants of the built-in demo corpus."""

    erc = "erc"
    msa = "msa"


class Split(enum.Enum):
    """Parts of a data set."""

    train = "train"
    valid = "valid"
    test = "test"


SPLITS: tuple[str, ...] = tuple(split.value for split in Split)


@dataclass
class LabelConfig:
    """The label space of a data set."""

    kind: LabelKind = option(LabelKind.infer, "what a label is")
    low: float | None = option(None, "scale: lowest intensity; inferred where not given")
    high: float | None = option(None, "scale: highest intensity; inferred where not given")
    step: float | None = option(
        None, "scale: distance of the intensities that can be written", above=0
    )
    names: list[str] = option([], "emotions: names in order; name i is number i")
    words: LabelWords = option(LabelWords.digits, "emotions: written by number or by name")

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
        if self.kind is LabelKind.scale and (self.names or None in (self.low, self.high)):
            raise ConfigError(
                f"{where}.kind=scale needs {where}.low and {where}.high and no {where}.names, got "
                f"{self.low}, {self.high} and {self.names}; use {where}.kind=infer to take them "
                "from the data."
            )


@dataclass
class ColumnsConfig:
    """What the columns of an own table are called; several joined by ``+`` become one value.

    Where an option is not given, it is the column of a known label file, or the one called like it.
    """

    id: str | None = option(
        None, "column that names an utterance, such as Dialogue_ID+Utterance_ID"
    )
    text: str | None = option(None, "column with the words")
    label: str | None = option(None, "column with the label")
    split: str | None = option(None, "column with train, valid (dev, val) or test")
    group: str | None = option(
        None, "column with the video or dialogue that is not to be torn apart"
    )
    speaker: str | None = option(None, "column with the one who speaks")

    def check(self, where: str) -> None:
        """Refuses an empty name."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is not None and not value.strip():
                raise ConfigError(f"{where}.{item.name} is empty: name a column, or leave it out.")


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
    columns: ColumnsConfig = option(ColumnsConfig, "own tables: what their columns are called")
    split: Split | None = option(
        None, "own tables: the split of all rows where neither a column nor a file's name says it"
    )
    cache: str | None = option(
        None, "folder of downloads and stores; $MSEA_CACHE or ~/.cache/msea_lightning"
    )
    language: Language = option(Language.en, "language of the wrapping strings and prompts")
    labels: LabelConfig = option(LabelConfig, "label space")
    metrics: MetricKind = option(MetricKind.infer, "metric definitions")
    text_tokens: int = option(64, "text is cut on the right to this many tokens", low=1)
    text_case: TextCase = option(
        TextCase.keep, "texts wholly in capitals, as they are or as a sentence; English alone"
    )
    audio_dim: int | None = option(None, "audio features per frame; taken from the files", low=1)
    vision_dim: int | None = option(None, "vision features per frame; taken from the files", low=1)
    expected_train: int | None = option(None, "utterances in train as published", low=0)
    expected_valid: int | None = option(None, "utterances in valid as published", low=0)
    expected_test: int | None = option(None, "utterances in test as published", low=0)
    valid_fraction: float = option(
        0.15, "part of train held out where there is no valid split", above=0, below=1
    )
    split_version: int = option(
        SPLIT_VERSION,
        "how that part is drawn, so that runs with another one are told apart; do not set",
        low=1,
        high=SPLIT_VERSION,
    )
    train_fraction: float = option(
        1.0,
        "part of the training utterances to train on, stratified by label",
        above=0,
        high=1,
        called=("trainer.limit_train_batches", "trainer.overfit_batches"),
    )
    features: list[str] | None = option(
        None, "features that are read, such as [audio]; all of the data set where not given"
    )
    standardize: bool = option(
        False, "zero mean, unit variance per feature, fitted on the training part"
    )
    repair: Repair = option(Repair.refuse, "features that are NaN or infinite")
    empty_text: EmptyText = option(
        EmptyText.auto,
        "utterances without words; counted and said. auto: keep in tables of extract, else refuse",
    )
    demo_task: DemoTask = option(DemoTask.erc, "variant of the demo corpus")
    demo_utterances: int = option(
        1200, "utterances of the demo corpus, all splits together", low=60
    )
    demo_seed: int = option(0, "seed of the demo corpus (not of the run)", low=0)
    workers: int = option(
        0, "processes that read ahead", low=0, called=("data.num_workers", "dataset.num_workers")
    )

    def check(self, where: str) -> None:
        """Refuses a name that is no folder's, and files to be fetched from nowhere."""
        name = self.name
        if name in ("", ".", "..") or not name.isprintable() or not {"/", "\\"}.isdisjoint(name):
            raise ConfigError(
                f"{where}.name={name!r} cannot be the name of a folder, which runs and stores of "
                "the data set have. Use printable characters without / and \\."
            )
        if self.text_case is not TextCase.keep and self.language is not Language.en:
            raise ConfigError(
                f"{where}.text_case={self.text_case.value} has no effect on texts in "
                f"{self.language.value}, which have no capitals. Leave it out."
            )
        given = {
            item.name: getattr(self.columns, item.name) for item in dataclasses.fields(self.columns)
        }
        given = {f"columns.{name}": value for name, value in given.items()} | {"split": self.split}
        unread = [name for name, value in given.items() if value is not None]
        if unread and self.reader is not Reader.table:
            raise ConfigError(
                f"{where}.{unread[0]} has no effect on {self.name}, which is no table of your own. "
                f"Leave it out, or choose {where}=table."
            )
        if self.reader is Reader.meld_csv and self.download:
            raise ConfigError(
                f"{where}.download=true fetches features of {self.hub_id}, which {where}.reader="
                f"dialogue reads: leave it out, and give the CSV files with {where}.path=FOLDER."
            )
        if self.reader is not Reader.demo and self.download and self.hub_id is None:
            raise ConfigError(
                f"{where}.download=true, but {self.name} is not published on the Hugging Face "
                f"Hub: get it from {self.source or 'its authors'} and give {where}.path."
            )
