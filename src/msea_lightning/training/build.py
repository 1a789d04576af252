"""From the options of a run to its data, its model, and the trainer."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from msea_lightning.adapter import FeatureStandardizer
from msea_lightning.backbone import (
    BackboneError,
    FrozenBackbone,
    backbone_config,
    backbone_tokenizer,
    load_language_model,
    resolve_device,
)
from msea_lightning.backbone.loading.load import backbone_place, compute_dtype
from msea_lightning.backbone.loading.memory import Stored, free_bytes, readable_bytes, reset_peak
from msea_lightning.backbone.loading.resize import resized
from msea_lightning.backbone.loading.spread import Spread, plan_spread
from msea_lightning.backbone.options import BackboneConfig, TextCache, Weights
from msea_lightning.config.logging import log_once
from msea_lightning.config.roots import RunConfig, TrainConfig
from msea_lightning.cost.estimate import (
    MemoryEstimate,
    MemoryEstimator,
    SplitSize,
    build_estimator,
)
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.options import LabelConfig, LabelKind, LabelWords, Split, TextCase
from msea_lightning.data.store import Store, StoreSplit
from msea_lightning.data.utterance import DataError, complete_labels
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.encoding import ContextEncoder
from msea_lightning.language.labels import LabelSpace
from msea_lightning.language.wording import Wording
from msea_lightning.metrics import UtteranceScore
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.build import (
    answer_prior,
    build_adapter,
    build_prompt,
    build_readout,
    build_wording,
)
from msea_lightning.model.contract import DataFacts, Model, ModelError
from msea_lightning.model.options import MODELS
from msea_lightning.model.readout import LinearReadout
from msea_lightning.runs.files import write_json
from msea_lightning.training.module import TrainingModule
from msea_lightning.training.options import ClassWeights, TrainerConfig
from msea_lightning.training.probe import start_as_probe
from msea_lightning.training.ranks import is_first
from msea_lightning.training.texts import keep_texts, texts_read_once, unkept

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """What a run has before it trains; ``estimate`` is None where memory cannot be estimated."""

    module: TrainingModule
    data: UtteranceDataModule
    device: torch.device
    estimate: MemoryEstimate | None


def make_ready(
    config: TrainConfig,
    *,
    store: Store | None = None,
    memory_file: Path | None = None,
    resumed: bool = False,
) -> Ready:
    """Makes everything ready to train; what costs little comes first.

    The memory that the run is expected to take is written to ``memory_file``. The readout of a run
    that is ``resumed`` is left to its checkpoint.
    """
    seed_everything(config.seed, workers=True, verbose=False)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    kind: type[Model] = MODELS.load(config.model.name)
    refuse_split_batches(kind, number=config.trainer.accumulate, ranks=config.trainer.ranks)
    device = resolve_device(config.trainer.accelerator)
    log_once(_log, f"device: {_device_words(device, config.trainer)}")
    data = build_data(config, store=store)
    log_once(_log, f"data: {_data_words(config.dataset.name, data)}")
    language_model, estimate = None, None
    if issubclass(kind, AdaptedLM):
        architecture, tokenizer = read_backbone(config.backbone)
        tokenize(config, data, tokenizer)
        estimator = data_estimator(config, data, tokenizer, architecture, device)
        estimate = _estimate(config, data, estimator, memory_file)
        again = estimator.meter.checkpoint_activations
        language_model = load_config_backbone(
            replace(config.backbone, checkpoint_activations=again),
            device,
            tokenizer,
            spread=estimator.spread(),
        )
    # Weights depend on the seed alone, not on what was drawn while loading.
    seed_everything(config.seed, workers=True, verbose=False)
    model = (
        build_standalone(config, data)
        if language_model is None
        else build_adapted_lm(config, data, language_model)
    )
    if isinstance(model, AdaptedLM):
        model.to(model.device)  # Lightning moves it later than it is first run
        keep_texts(config, model, data)
        fitted = not resumed and not config.trainer.fast_dev_run
        if isinstance(model.readout, LinearReadout) and fitted:
            log_once(_log, "the linear readout begins as a linear probe, which is fitted now")
            start_as_probe(model, data, data.metrics)
    module = TrainingModule(
        model, UtteranceScore(data.metrics), training=config.training, seed=config.seed
    )
    return Ready(module, data, device, estimate)


def _device_words(device: torch.device, options: TrainerConfig) -> str:
    """What a run computes on, such as ``CPU, 2 threads``."""
    if device.type == "cuda":
        name = f"{device}, {torch.cuda.get_device_name(device)}"
    elif device.type == "cpu":
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'s' * (threads > 1)}"
    else:
        name = str(device)
    machines = f" on each of {options.num_nodes} machines" if options.num_nodes > 1 else ""
    several = options.devices > 1
    return (f"{options.devices} processes on {name} each" if several else name) + machines


def _data_words(name: str, data: UtteranceDataModule) -> str:
    """What a run learns from: sizes and features; its labels are said where they are settled."""
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in data.splits.items())
    features = [f"{name} ({dim} values a frame)" for name, dim in data.dims.items()]
    return f"{name}: {sizes} utterances; {', '.join(['text', *features])}"


def refuse_split_batches(model: type[Model], *, number: int, ranks: int) -> None:
    """Refuses to divide the batches of a model whose loss is a statistic of the whole batch."""
    if not model.batch_statistic or (number == 1 and (ranks == 1 or model.gathers)):
        return
    parts = f"trainer.accumulate={number}" if number > 1 else f"a run of {ranks} processes"
    remedy = "trainer.accumulate=1" if number > 1 else "trainer.devices=1 and trainer.num_nodes=1"
    raise ModelError(
        f"The loss of {model.__name__} is a statistic of the whole batch, but {parts} computes it "
        f"on parts of one: set {remedy}."
    )


def check_needs(model: type[Model], data: UtteranceDataModule) -> None:
    """Refuses a data set that lacks what a model needs, before anything large is loaded."""
    needs, train = model.needs, data.splits["train"]
    dialogue = "dialogue (in a table of your own: the column group)"
    for what, needed, found in (
        ("feature ", needs.features, list(data.dims)),
        ("label ", needs.labels, list(train.labels)),
        ("", [dialogue] if needs.dialogues else [], [dialogue] if any(train.groups) else []),
    ):
        missing = [name for name in needed if name not in found]
        if missing:
            raise ModelError(
                f"{model.__name__} needs the {what}{', '.join(missing)} of every training "
                f"utterance, but the data set has {', '.join(found) or 'none'}: choose another "
                "model, or give the data set with it."
            )
    for name in needs.labels:
        complete_labels(train.ids, train.labels, name)


def check_kind(config: RunConfig, labels: LabelConfig) -> None:
    """Refuses options for the other kind of labels, intensities or emotions."""
    training, words = config.training, config.dataset.labels.words
    scale = labels.kind is LabelKind.scale
    misfits = {
        f"training.ordinal={training.ordinal}": training.ordinal > 0 and not scale,
        f"training.class_weights={training.class_weights.value}": (
            scale and training.class_weights is not ClassWeights.none
        ),
        f"dataset.labels.words={words.value}": scale and words is not LabelWords.digits,
    }
    found, needed = ("intensities", "emotions") if scale else ("emotions", "intensities")
    for what, misfit in misfits.items():
        if misfit:
            raise ModelError(
                f"{what} needs {needed}; the labels of {config.dataset.name} are {found}. "
                "Leave it out."
            )


def build_data(
    config: RunConfig, *, store: Store | None = None, evaluated: Split | None = None
) -> UtteranceDataModule:
    """The data module of a run, set up; it has what the model needs, or the evaluated split."""
    kind: type[Model] = MODELS.load(config.model.name)
    data = UtteranceDataModule(
        config.dataset,
        batch_size=config.training.batch_size,
        eval_batch_size=config.training.eval_batch_size,
        seed=config.seed,
        micro_batches=config.trainer.accumulate,
        whole_dialogues=kind.needs.dialogues,
        store=store,
        evaluated=evaluated,
    )
    data.prepare_data()
    data.setup()
    if evaluated is None:
        check_needs(kind, data)
        check_kind(config, data.labels)
    return data


def build_standalone(config: RunConfig, data: UtteranceDataModule) -> Model:
    """The model that the options describe, which is not an adapted language model."""
    facts = DataFacts(
        # Whether intensities have a sign is a matter of language models.
        space=LabelSpace.from_config(data.labels, signed=False, encode=lambda text: [len(text)]),
        dims=data.dims,
        statistics=data.statistics if config.dataset.standardize else None,
        utterances=len(data.splits["train"]),
    )
    model: Model = MODELS.load(config.model.name)(facts, **config.model.arguments())
    return model


def build_adapted_lm(
    config: RunConfig, data: UtteranceDataModule, language_model: FrozenBackbone
) -> AdaptedLM:
    """The adapted language model that the options describe."""
    if unread := [name for name in data.dims if name not in AdaptedLM.reads]:
        log_once(
            _log,
            f"{config.dataset.name} has the features {', '.join(unread)}, which no adapter reads; "
            f"adapters read {' and '.join(AdaptedLM.reads)}",
            level=logging.WARNING,
        )
    prompt, tree = build_prompt(
        language_model.tokenizer,
        data.labels,
        config.dataset,
        config.backbone,
        config.adapter,
        config.text,
        config.prompt,
        readout=config.readout,
        pad_id=language_model.pad_id,
    )
    adapter = build_adapter(
        config.adapter, config.ablation, width=language_model.width, dims=data.dims
    )
    with torch.no_grad():
        anchors = torch.tensor(prompt.anchor_ids, dtype=torch.int64, device=language_model.device)
        adapter.match_embeddings(
            language_model.embedding_norm, language_model.embed(anchors[None])[0].float().cpu()
        )
    loss = config.training.loss
    prior = answer_prior(language_model, prompt, tree) if config.prompt.calibrate else None
    return AdaptedLM(
        language_model,
        adapter,
        standardizer=FeatureStandardizer(data.statistics if config.dataset.standardize else None),
        prompt=prompt,
        tree=tree,
        rule=config.decode,
        readout=build_readout(config.readout, loss, language_model, tree, prior=prior),
        ordinal=config.training.ordinal,
        class_weights=_class_weights(config, data, tree),
    )


def _class_weights(
    config: RunConfig, data: UtteranceDataModule, tree: AnswerTree
) -> torch.Tensor | None:
    """(A,) what an utterance counts in the loss by its answer; one on average."""
    if config.training.class_weights is ClassWeights.none:
        return None
    numbers = torch.tensor([tree.number(label) for label in data.splits["train"].targets])
    counts = torch.bincount(numbers, minlength=len(tree.answer_ids)).float()
    present = int((counts > 0).sum())
    # Of an emotion that training does not have no weight is ever read.
    return len(numbers) / (present * counts.clamp(min=1))


def load_config_backbone(
    config: BackboneConfig,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    spread: Spread | None = None,
) -> FrozenBackbone:
    """The backbone that the options describe, on a device; or spread, as planned before or now."""
    architecture = None
    if tokenizer is None:
        architecture, tokenizer = read_backbone(config)
    if spread is None and config.device_map is not None:
        assert architecture is not None
        stored = Stored(
            compute_dtype(config.dtype, device), config.quantization, config.double_quantization
        )
        spread = plan_spread(
            architecture,
            stored,
            device,
            max_memory=config.max_memory or None,
            check_fit=config.check_memory,
        )
        log_once(_log, f"language model: {spread}")
    language_model = load_language_model(
        backbone_place(config.path),
        weights=config.weights,
        architecture=_architecture(config),
        quantization=config.quantization,
        double_quantization=config.double_quantization,
        dtype=config.dtype,
        attention=config.attention,
        device=device,
        spread=spread,
        offload_folder=config.offload_folder,
        check_fit=config.check_memory,
    )
    return FrozenBackbone(
        language_model,
        tokenizer,
        pad_token=config.pad_token,
        compile=config.compile,
        checkpoint_activations=config.checkpoint_activations,
    )


def _architecture(config: BackboneConfig) -> dict[str, Any]:
    return resized(
        config.architecture, hidden_size=config.hidden_size, num_layers=config.num_layers
    )


def read_backbone(config: BackboneConfig) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Architecture and tokenizer, which say what is wrong before anything large is loaded."""
    architecture = backbone_config(
        backbone_place(config.path), weights=config.weights, architecture=_architecture(config)
    )
    tokenizer = backbone_tokenizer(
        config.path,
        tokenizer=config.tokenizer,
        weights=config.weights,
        special_tokens=config.special_tokens,
    )
    if config.weights is Weights.pretrained:
        _warn_of_another_architecture(config, architecture)
    return architecture, tokenizer


def _warn_of_another_architecture(config: BackboneConfig, found: PretrainedConfig) -> None:
    """Says where a checkpoint is not the one that the preset describes."""
    differing = []
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        own = getattr(found, name, None)
        described = config.architecture.get(name, own)
        if own != described:
            differing.append(f"{name} {own} instead of {described}")
    if differing:
        _log.warning(
            "the checkpoint is not the one that backbone=%s describes (%s); it is used as it is, "
            "backbone.architecture counts with backbone.weights=random alone",
            config.name,
            ", ".join(differing),
        )


def tokenize(
    config: RunConfig, data: UtteranceDataModule, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Tokenises all texts as the run reads them, and says how they are written and what is before.

    Raises:
        DataError: if what was said before is to be read, but no utterance has a group.
    """
    wording = build_wording(config.dataset, config.prompt)
    encoder = ContextEncoder(tokenizer, wording)
    data.tokenize(encoder.texts, encoder if wording.context else None)
    if wording.case is not TextCase.keep:
        texts = [text for split in data.splits.values() for text in split.texts]
        changed = sum(wording.text(text) != text for text in texts)
        log_once(
            _log,
            f"dataset.text_case={wording.case.value}: {changed:,} of {len(texts):,} texts are "
            "wholly in capitals and read as sentences",
            level=logging.INFO if changed else logging.WARNING,
        )
    if wording.context:
        if not any(group for split in data.splits.values() for group in split.groups):
            raise DataError(
                f"prompt.context={wording.context} reads the utterances before each one of the "
                f"same dialogue or video, but no utterance of {config.dataset.name} has a group. "
                "Leave it out, or name the column with dataset.columns.group."
            )
        log_once(_log, _context_words(wording, data.splits))


def _context_words(wording: Wording, splits: Mapping[str, StoreSplit]) -> str:
    """How much is read of what was said before, and whose names there are."""
    lengths = [len(ids) for split in splits.values() for ids in split.contexts or ()]
    named = sum(name is not None for split in splits.values() for name in split.speakers)
    full = sum(length == wording.context_tokens for length in lengths)
    mean = sum(lengths) / len(lengths)
    return (
        f"context: up to {wording.context} utterances before each, {mean:.0f} tokens on average, "
        f"{full:,} of {len(lengths):,} as long as prompt.context_tokens={wording.context_tokens} "
        f"allows; {named:,} of {len(lengths):,} utterances have a speaker's name"
    )


def data_estimator(
    config: RunConfig,
    data: UtteranceDataModule,
    tokenizer: PreTrainedTokenizerBase,
    architecture: PretrainedConfig,
    device: torch.device,
) -> MemoryEstimator:
    """The memory estimator of a run whose data module is set up and tokenised."""
    splits = {
        name: SplitSize.of(split.tokens or [], split.lengths, split.contexts)
        for name, split in data.splits.items()
    }
    estimator = build_estimator(
        config, data.labels, splits, data.dims, tokenizer, architecture, device
    )
    if config.backbone.cache is not TextCache.memory or unkept(config):
        return estimator
    meter = estimator.meter
    texts = texts_read_once(meter.prompt, meter.adapter.use_text, data)
    return replace(estimator, kept_tokens=sum(map(len, texts)))


def _estimate(
    config: TrainConfig,
    data: UtteranceDataModule,
    estimator: MemoryEstimator,
    memory_file: Path | None,
) -> MemoryEstimate | None:
    """Says how much memory the run will take, and refuses one that does not fit.

    None where an architecture cannot be estimated and the user goes on all the same.
    """
    device = estimator.device
    try:
        data.eval_batch_size = estimator.eval_batch_size()
        estimate = estimator.estimate()
    except BackboneError as error:
        if config.backbone.check_memory:
            raise
        _log.warning("%s", error)
        reset_peak(device)
        return None
    # The processes of a DDP run on one CPU share its memory; the first has counted them all.
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        _log.info("memory: %s; %s free on %s", estimate, readable_bytes(free_bytes(device)), device)
        if memory_file is not None and is_first():
            write_json(memory_file, estimate.report(estimator.trainable, data.eval_batch_size))
        if config.backbone.check_memory:
            estimator.check(estimate)
    reset_peak(device)
    return estimate


def make_trainer(
    device: torch.device, *, devices: int = 1, num_nodes: int = 1, **options: Any
) -> Trainer:
    """A trainer as the data module needs it, with devices of a kind on one or several machines.

    Of Lightning's own warnings those that do not concern the user are not shown.
    """
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec")
    warnings.filterwarnings("ignore", message=".* does not have many workers")
    warnings.filterwarnings("ignore", message="The number of training batches")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # A checkpoint of an earlier release calls callbacks by the metrics' earlier names.
    warnings.filterwarnings("ignore", message="Be aware that when using .ckpt_path")
    # Of metrics that every process has computed of all predictions.
    warnings.filterwarnings("ignore", message=".* when logging on epoch level in distributed")
    strategy: Strategy = SingleDeviceStrategy(device)
    if devices * num_nodes > 1:
        backend = "gloo" if device.type == "cpu" else "nccl"
        # Models change their buffers by themselves; see Model.
        strategy = DDPStrategy(
            process_group_backend=backend, find_unused_parameters=False, broadcast_buffers=False
        )
    return Trainer(
        accelerator=device.type,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        use_distributed_sampler=False,
        enable_model_summary=False,
        **options,
    )
