"""Plugin metadata: ``plugin.json``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msea_lightning.adapter.options import ADAPTERS
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.loading.gguf import is_gguf
from msea_lightning.backbone.options import BackboneConfig
from msea_lightning.config.errors import UserError
from msea_lightning.data.options import (
    EVALUATION_BATCH,
    DatasetConfig,
    LabelConfig,
    Language,
    Reader,
    TextCase,
)
from msea_lightning.language.options import CONTEXT_TEMPLATE, Decode, Loss, SegmentConfig
from msea_lightning.metrics.options import MetricKind
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.options import ReadoutKind

WEIGHTS = "adapter.safetensors"
FACTS = "plugin.json"
CARD = "README.md"
FORMAT = 1


class PluginError(UserError):
    """A plugin folder that is incomplete, or a language model that it was not trained on."""


@dataclass
class PromptFacts:
    """How the plugin's sequences are laid out: arguments of ``Prompt``."""

    layout: list[SegmentConfig]
    language: Language
    task: str
    text_tokens: int
    pad_token: str | None
    pad_to: int | None
    attend_padding: bool
    text_case: TextCase = TextCase.keep
    context: int = 0
    context_tokens: int = 128
    context_template: str = CONTEXT_TEMPLATE


@dataclass
class PluginFacts:
    """What ``plugin.json`` says.

    Attributes:
        format: Version of the format.
        dataset: Data set that the plugin was trained on, and of whose kind its features must be.
        adapter: Arguments of the adapter.
        signed_labels: Whether intensities of zero and above have a plus sign.
        decode: How an answer is picked.
        audio_dim: Values per audio frame; None where there was no audio.
        vision_dim: Values per vision frame; None where there was no vision.
        backbone: See :func:`backbone_facts`; release 0.1 wrote ``name`` and ``path`` alone.
        fingerprint: The language model's fingerprint, by part; empty where it was never seen.
        test: Metrics on the test split.
        adapter_name: ``adapter.name``; plugins from before there were several do not say it.
        features: Name of each feature that it reads to what extracted it
            (``features/contract.py``); those of unknown origin are missing.
        eval_batch_size: Utterances per batch of the test; the same batches give the same digits.
        imported_from: Name and SHA-256 of the original implementation's checkpoint, where the
            plugin comes from one.
        seed: Seed of the run; None where it is not known.
        dataset_id: Hugging Face data set that publishes the data; None where none does.
        language: ISO 639 code of the data's language, which may not be that of the prompt; None
            where it is not known.
        license: Licence of the weights; None until someone gives them one.
        readout: What gives the probabilities; plugins from before there were several do not say it.
        loss: What the probabilities of its answers are normalised over; likewise.
        calibrated: Whether the prompt's own prior, which is among the weights, is subtracted.
    """

    format: int
    dataset: str
    adapter: dict[str, Any]
    labels: LabelConfig
    signed_labels: bool
    metrics: MetricKind
    decode: Decode
    prompt: PromptFacts
    audio_dim: int | None
    vision_dim: int | None
    backbone: dict[str, Any]
    fingerprint: dict[str, str]
    test: dict[str, Any]
    adapter_name: str = "mse"
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    eval_batch_size: int = EVALUATION_BATCH
    imported_from: str | None = None
    seed: int | None = None
    dataset_id: str | None = None
    language: str | None = None
    license: str | None = None
    readout: ReadoutKind = ReadoutKind.tokens
    loss: Loss = Loss.vocabulary
    calibrated: bool = False

    def __post_init__(self) -> None:
        """Leaves out extractors of features that the training data did not have after all."""
        dims = {"audio": self.audio_dim, "vision": self.vision_dim}
        self.features = {
            name: found for name, found in self.features.items() if dims.get(name, 0) is not None
        }


def backbone_facts(config: BackboneConfig, backbone: FrozenBackbone | None) -> dict[str, Any]:
    """What it takes to load the same language model again, which was loaded once, or never (None).

    ``path`` is a Hub id and ``revision`` the commit that was loaded; both are None for the built-in
    model and for local files, of which ``file`` is the last part of the path and ``sha256`` that of
    a GGUF file; so are ``tokenizer`` and ``tokenizer_file``, both None where the tokenizer is that
    of the model.
    """
    path, file = _hub_id_or_file(config.path)
    tokenizer, tokenizer_file = _hub_id_or_file(config.tokenizer)
    return {
        "name": config.name,
        "path": path,
        "revision": backbone.revision if backbone and path else None,
        "file": file,
        "sha256": sha256(Path(str(config.path))) if file and is_gguf(file) else None,
        "tokenizer": tokenizer,
        "tokenizer_file": tokenizer_file,
        "weights": config.weights.value,
        "dtype": str(backbone.dtype).removeprefix("torch.") if backbone else config.dtype.value,
        "quantization": config.quantization.value,
        "double_quantization": config.double_quantization,
    }


def _hub_id_or_file(place: str | None) -> tuple[str | None, str | None]:
    """A place as a Hub id, or else as the last part of a local path."""
    if place is None or not is_local(place):
        return place, None
    return None, Path(place).name


def is_local(place: str) -> bool:
    """Whether a place is on this machine, not on the Hub."""
    path = Path(place).expanduser()
    return path.is_absolute() or place.startswith(".") or path.exists()


def sha256(file: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with file.expanduser().open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def backbone_title(backbone: Mapping[str, Any]) -> str:
    """What to call the language model of :func:`backbone_facts`, never by a local path."""
    name, path = backbone.get("name"), backbone.get("path")
    file = backbone.get("file") or (Path(path).name if path and is_local(path) else None)
    if file is not None:
        return f"{file} (a local file or folder)" if name == "auto" else f"{name} (a local copy)"
    return str(path) if path else f"{name}, which ships with msea_lightning"


def portable(facts: PluginFacts) -> PluginFacts:
    """The facts without the place on this machine that release 0.1 wrote down."""
    path = facts.backbone.get("path")
    if path is None or not is_local(path):
        return facts
    backbone = {**facts.backbone, "path": None, "file": Path(path).name}
    return replace(facts, backbone=backbone)


def language_of(dataset: DatasetConfig) -> str | None:
    """Language of a data set; None of an own table, whose prompts may be in another one."""
    return None if dataset.reader is Reader.table else dataset.language.value


def describe(
    model: AdaptedLM,
    *,
    metrics: MetricKind,
    dataset: str,
    labels: LabelConfig,
    pad_token: str | None,
    backbone: dict[str, Any],
    test: dict[str, Any],
    features: dict[str, dict[str, Any]] | None = None,
    eval_batch_size: int = EVALUATION_BATCH,
    seed: int | None = None,
    dataset_id: str | None = None,
    language: str | None = None,
) -> PluginFacts:
    """The facts of a trained model, with those of :class:`PluginFacts` that it does not know."""
    options, wording = model.adapter.options(), model.prompt.wording
    return PluginFacts(
        format=FORMAT,
        dataset=dataset,
        adapter=options,
        labels=labels,
        signed_labels=model.tree.space.signed,
        metrics=metrics,
        decode=model.rule,
        prompt=PromptFacts(
            layout=list(model.prompt.layout),
            language=model.prompt.language,
            task=model.prompt.task,
            text_tokens=model.prompt.text_tokens,
            pad_token=pad_token,
            pad_to=model.prompt.pad_to,
            attend_padding=model.prompt.attend_padding,
            text_case=wording.case,
            context=wording.context,
            context_tokens=wording.context_tokens,
            context_template=wording.template,
        ),
        audio_dim=options["audio_dim"],
        vision_dim=options["vision_dim"],
        backbone=backbone,
        fingerprint=model.backbone.fingerprint(),
        test=test,
        adapter_name=ADAPTERS.name_of(model.adapter),
        features=features or {},
        eval_batch_size=eval_batch_size,
        seed=seed,
        dataset_id=dataset_id,
        language=language,
        readout=model.readout.kind,
        loss=model.readout.loss,
        calibrated="prior" in model.readout.state_dict(),
    )
