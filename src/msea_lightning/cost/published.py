"""What the paper's configurations cost, estimated before any of their files is here.

Sizes, architecture and lengths are those that were published, whatever is on this machine, but for
what an option changes of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from msea_lightning.backbone import backbone_config, load_tokenizer
from msea_lightning.backbone.loading.load import backbone_place, tiny_backbone
from msea_lightning.backbone.loading.memory import HEADROOM, smaller
from msea_lightning.backbone.loading.tokenizers import add_special_tokens, has_tokenizer
from msea_lightning.backbone.options import Weights
from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import RunConfig, TrainConfig
from msea_lightning.cost.estimate import MemoryEstimator, SplitSize, build_estimator, run_prompt
from msea_lightning.data.options import DatasetConfig, Reader
from msea_lightning.data.prepare import expected_counts
from msea_lightning.paper import paper_table
from msea_lightning.paper.lengths import LONGEST, SHAPES

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

ASSUMED_SHARE = 0.5
"""Assumed: the part of a device's rate in products of large matrices that a run reaches."""

_PROBABILITIES = np.linspace(0, 1, 1001)[1:] - 0.0005
"""Of the texts that stand for all of a data set."""


@dataclass(frozen=True)
class ConfigurationCost:
    """What a data set with a backbone takes, by its recipe; memory in bytes.

    Attributes:
        trainable: Parameters of the adapter.
        activations: At the peak of a step.
        adapter: The adapter's weights, their gradients and the optimizer's moments.
        needed: What has to be free.
        fits: Whether the run would be started.
        flops_epoch: Floating point operations of an epoch and its validation.
        hours: Expected for the whole schedule, if nothing stops it early, and the test; None where
            the device's rate is not known.
    """

    dataset: str
    backbone: str
    batch_size: int
    trainable: int
    weights: int
    activations: int
    adapter: int
    needed: int
    fits: bool
    flops_epoch: float
    hours: float | None
    dataset_found: bool
    backbone_found: bool
    command: str

    @property
    def ready(self) -> bool:
        """Whether it can be run here and now."""
        return self.fits and self.dataset_found and self.backbone_found


def configuration_costs(
    configs: Sequence[TrainConfig],
    device: torch.device,
    free: int,
    places: Mapping[str, str],
    rate: float | None,
    say: Callable[[str], object] = lambda text: None,
) -> tuple[list[ConfigurationCost], dict[str, dict[str, int]]]:
    """What runs would take of a device, and for each backbone that does not fit, what would.

    Args:
        configs: The runs, of data sets and backbones of the paper.
        device: Where they would go.
        free: Bytes that are free there.
        places: Name of every data set and backbone that is on this machine to the option that
            says where, which is empty where a run finds it by itself.
        rate: Operations per second of the device in products of large matrices, where known.
        say: Is told which run is looked at.
    """
    costs: list[ConfigurationCost] = []
    largest: dict[str, tuple[int, MemoryEstimator]] = {}
    for number, config in enumerate(configs, start=1):
        pair = f"{config.dataset.name} with {config.backbone.name}"
        say(f"what the paper's runs need: {pair} ({number} of {len(configs)})")
        estimator = published_estimator(config, device)
        estimate = estimator.estimate()
        epoch, test = published_flops(config.dataset, estimator)
        flops = config.training.schedule_epochs * epoch + test
        dataset, backbone = config.dataset.name, config.backbone.name
        words = [f"python -m msea_lightning.train dataset={dataset} backbone={backbone}"]
        words += [option for name in (dataset, backbone) if (option := places.get(name))]
        cost = ConfigurationCost(
            dataset=dataset,
            backbone=backbone,
            batch_size=config.training.batch_size,
            trainable=estimator.trainable,
            weights=estimate.weights,
            activations=estimate.activations,
            adapter=estimate.adapter + estimate.optimizer,
            needed=estimate.needed,
            fits=estimate.needed * HEADROOM <= free,
            flops_epoch=epoch,
            hours=None if rate is None else flops / (ASSUMED_SHARE * rate) / 3600,
            dataset_found=dataset in places,
            backbone_found=backbone in places,
            command=" ".join(words),
        )
        costs.append(cost)
        if not cost.fits and cost.needed > largest.get(backbone, (0, None))[0]:
            largest[backbone] = (cost.needed, estimator)
    return costs, {name: fitting(estimator, free) for name, (_, estimator) in largest.items()}


def fitting(estimator: MemoryEstimator, free: int) -> dict[str, int]:
    """The options that each make a run fit into free bytes, with the bytes it needs then."""
    needed = {
        option: estimator.estimate(stored=how).needed
        for option, how in smaller(estimator.stored).items()
    }
    return {option: size for option, size in needed.items() if size * HEADROOM <= free}


def published_flops(dataset: DatasetConfig, estimator: MemoryEstimator) -> tuple[float, float]:
    """Operations of an epoch with its validation, and of the test.

    Every utterance by itself: what batches are padded with is not counted, nor is the reading of
    features, which takes less than a thousandth. Texts are as long as the data set's are, in tokens
    of LLaMA2's tokenizer, which makes more of Chinese than the others do.
    """
    texts = np.minimum(SHAPES[dataset.name].text.at(_PROBABILITIES), dataset.text_tokens)
    train = float(estimator.meter.flops(texts, training=True).mean())
    evaluate = float(estimator.meter.flops(texts, training=False).mean())
    sizes = {name: split.utterances for name, split in estimator.splits.items()}
    return sizes["train"] * train + sizes["valid"] * evaluate, sizes["test"] * evaluate


def is_published(config: RunConfig) -> bool:
    """Whether a run is of a data set and a backbone of the paper, whose sizes are published.

    How much was said before an utterance is not, nor are features apart: the files are read.
    """
    resized = config.backbone.hidden_size or config.backbone.num_layers
    own = config.dataset.reader in (Reader.table, Reader.meld_csv) or config.prompt.context > 0
    part = config.dataset.features is not None
    return not (resized or own or part) and (config.dataset.name, config.backbone.name) in LONGEST


def published_estimator(config: RunConfig, device: torch.device) -> MemoryEstimator:
    """The estimator of a run whose data set, tokenizer and weights need not be on this machine.

    A language model or a tokenizer is read only where the options name another one than the paper
    has. Without a tokenizer, the task prompt has as many tokens as in the published one: counted
    for the paper's prompt; for another prompt the built-in tokenizer counts the difference.
    """
    published = published_run(config.dataset.name, config.backbone.name)
    own_path = config.backbone.path != published.backbone.path
    language = _architecture(config, own_path=own_path)
    tokenizer = _named_tokenizer(config, own_path=own_path)
    if tokenizer is None:
        tokenizer = load_tokenizer(str(tiny_backbone()))
        add_special_tokens(tokenizer, config.backbone.special_tokens)
        task = _stand_in_task(config, published, tokenizer)
        config = replace(config, prompt=replace(config.prompt, task=task))
    splits, dims = _published_sizes(config.dataset)
    labels = config.dataset.labels
    return build_estimator(config, labels, splits, dims, tokenizer, language, device)


def _published_sizes(dataset: DatasetConfig) -> tuple[dict[str, SplitSize], dict[str, int]]:
    """Sizes of the splits, and values per frame; every utterance is as long as the longest."""
    (row,) = (row for row in paper_table("datasets") if row["dataset"] == dataset.name)
    counts = {
        split: expected or int(row[split]) for split, expected in expected_counts(dataset).items()
    }
    given = {"audio": dataset.audio_dim, "vision": dataset.vision_dim}
    dims = {name: dim or int(row[f"{name}_dim"]) for name, dim in given.items()}
    frames = {name: int(row[f"{name}_steps"]) for name in dims}
    splits = {
        split: SplitSize(
            count,
            # The longest texts are longer than any text is read.
            dataset.text_tokens,
            frames,
            {name: count * steps for name, steps in frames.items()},
        )
        for split, count in counts.items()
    }
    return splits, dims


@cache
def published_run(dataset: str, backbone: str) -> TrainConfig:
    """A configuration of the paper, as training composes it."""
    return compose("train", TrainConfig, [f"dataset={dataset}", f"backbone={backbone}"])


def _architecture(config: RunConfig, *, own_path: bool) -> PretrainedConfig:
    backbone = config.backbone
    language = backbone_config(
        backbone_place(backbone.path),
        weights=backbone.weights if own_path else Weights.random,
        architecture=backbone.architecture,
    )
    if not own_path:
        language.dtype = torch.float16
    return language


def _named_tokenizer(config: RunConfig, *, own_path: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer that the options name; None where that is the published one."""
    backbone = config.backbone
    named = backbone.tokenizer or (backbone.path if own_path else None)
    if named is None:
        return None
    place = backbone_place(named)
    if backbone.tokenizer is None and not has_tokenizer(place):
        _log.warning("%s has no tokenizer: lengths are those of the paper's", place)
        return None
    return load_tokenizer(place)


def _stand_in_task(
    config: RunConfig, published: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> str:
    """A task prompt with which sequences have the published length in a stand-in's tokens."""
    expected, chosen = (
        run_prompt(each, each.dataset.labels, tokenizer)[0] for each in (published, config)
    )
    if chosen.task != expected.task:
        _log.info("the task prompt is not the paper's: the built-in tokenizer counts its tokens")
    more = LONGEST[config.dataset.name, config.backbone.name] - expected.longest
    wanted = max(1, len(chosen.encode(chosen.task)) + more)
    task = "the"
    while len(chosen.encode(task)) < wanted:
        task += " the"
    return task
