"""What the paper's configurations cost, estimated before any of their files is here.

A configuration is a data set with a backbone, by its recipe. Sizes of the data set, architecture
and lengths of the sequences are those that were published, so that the numbers do not depend on
what is on this machine; whatever an option changes of them counts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from msea_lightning.backbone import backbone_config, load_tokenizer
from msea_lightning.backbone.loading.load import backbone_place, tiny_backbone
from msea_lightning.backbone.loading.memory import HEADROOM, smaller
from msea_lightning.backbone.loading.tokenizers import add_special_tokens, has_tokenizer
from msea_lightning.backbone.options import Weights
from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import TrainConfig
from msea_lightning.cost.estimate import DataSize, MemoryEstimate, MemoryEstimator, SplitSize
from msea_lightning.cost.flops import UtteranceFlops
from msea_lightning.language.prompt import Prompt
from msea_lightning.model.build import build_prompt
from msea_lightning.paper import paper_table
from msea_lightning.paper.lengths import LONGEST, SHAPES

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

ASSUMED_SHARE = 0.5
"""Assumed: the part of a device's rate in products of large matrices that a run reaches."""

_PROBABILITIES = np.linspace(0, 1, 1001)[1:] - 0.0005
"""Of the texts that stand for all of a data set."""


class Found(Protocol):
    """Where a data set or a backbone was found, if it was."""

    @property
    def usable(self) -> bool:
        """Whether it is complete."""

    @property
    def option(self) -> str:
        """The option that names the place, if one is needed."""


@dataclass(frozen=True)
class ConfigurationCost:
    """What a data set with a backbone takes, by its recipe.

    Attributes:
        dataset: Name of the data set.
        backbone: Name of the backbone.
        recipe: The recipe in use; None where there is none for the pair.
        device: Where it would run.
        dtype: Compute dtype of the backbone there.
        quantization: Storage of the backbone's linear layers.
        batch_size: Utterances per training batch.
        trainable: Parameters of the adapter.
        weights: Bytes of the backbone's weights.
        activations: Bytes of activations at the peak of a step.
        adapter: Bytes of the adapter's weights, their gradients and the optimizer's moments.
        needed: Bytes that have to be free.
        free: Bytes that are free.
        fits: Whether the run would be started.
        flops_epoch: Floating point operations of an epoch and its validation.
        hours: Expected for the whole schedule, if nothing stops it early, and the test; None where
            the device's rate is not known.
        dataset_found: Whether the data set is on this machine.
        backbone_found: Whether the backbone is.
        command: The command that runs it here.
    """

    dataset: str
    backbone: str
    recipe: str | None
    device: str
    dtype: str
    quantization: str
    batch_size: int
    trainable: int
    weights: int
    activations: int
    adapter: int
    needed: int
    free: int
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
    found: Mapping[str, Found],
    rate: float | None,
) -> tuple[list[ConfigurationCost], dict[str, dict[str, int]]]:
    """What runs would take of a device, and for each backbone that does not fit, what would.

    Args:
        configs: The runs, of data sets and backbones of the paper.
        device: Where they would go.
        free: Bytes that are free there.
        found: Where data sets and backbones are, by name.
        rate: Operations per second of the device in products of large matrices, where known.

    Returns:
        The cost of each run. And by the name of a backbone that does not fit in all of them the
        options that make its largest run fit, each with the bytes that it needs then.
    """
    costs: list[ConfigurationCost] = []
    largest: dict[str, tuple[int, PublishedEstimator]] = {}
    for config in configs:
        estimator = PublishedEstimator(config, device)
        cost = _cost(config, estimator, estimator.estimate(), device, free, found, rate)
        costs.append(cost)
        if not cost.fits and cost.needed > largest.get(cost.backbone, (0, None))[0]:
            largest[cost.backbone] = (cost.needed, estimator)
    return costs, {name: estimator.fitting(free) for name, (_, estimator) in largest.items()}


def _cost(
    config: TrainConfig,
    estimator: PublishedEstimator,
    estimate: MemoryEstimate,
    device: torch.device,
    free: int,
    found: Mapping[str, Found],
    rate: float | None,
) -> ConfigurationCost:
    epoch, test = estimator.flops()
    flops = config.training.schedule_epochs * epoch + test
    dataset, backbone = found[config.dataset.name], found[config.backbone.name]
    command = (
        f"python -m msea_lightning.train dataset={config.dataset.name} "
        f"backbone={config.backbone.name}"
    )
    return ConfigurationCost(
        dataset=config.dataset.name,
        backbone=config.backbone.name,
        recipe=config.recipe,
        device=str(device),
        dtype=estimator.dtype,
        quantization=config.backbone.quantization.value,
        batch_size=config.training.batch_size,
        trainable=estimator.trainable,
        weights=estimate.weights,
        activations=estimate.activations,
        adapter=estimate.adapter + estimate.optimizer,
        needed=estimate.needed,
        free=free,
        fits=estimate.needed * HEADROOM <= free,
        flops_epoch=epoch,
        hours=None if rate is None else flops / (ASSUMED_SHARE * rate) / 3600,
        dataset_found=dataset.usable,
        backbone_found=backbone.usable,
        command=" ".join(filter(None, [command, dataset.option, backbone.option])),
    )


def is_published(config: TrainConfig) -> bool:
    """Whether a run is of a data set and a backbone of the paper, whose sizes are published."""
    resized = config.backbone.hidden_size or config.backbone.num_layers
    return not resized and (config.dataset.name, config.backbone.name) in LONGEST


class PublishedEstimator(MemoryEstimator):
    """The estimate of a run whose data set, tokenizer and weights need not be on this machine.

    A language model or a tokenizer is read only where the options name another one than the paper
    has. Without a tokenizer, the task prompt has as many tokens as in the published one: counted
    for the paper's prompt; for another prompt the built-in tokenizer counts the difference.

    Args:
        config: The run: a data set and a backbone of the paper.
        device: Where it would go.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        language = _architecture(config)  # refuses a place that is not there
        tokenizer, is_own = _tokenizer(config)
        if not is_own:
            task = _stand_in_task(config, tokenizer)
            config = replace(config, prompt=replace(config.prompt, task=task))
        super().__init__(config, published_size(config), tokenizer, language, device)

    @property
    def dtype(self) -> str:
        """Compute dtype of the backbone."""
        return str(self._stored.dtype).removeprefix("torch.")

    def fitting(self, free: int) -> dict[str, int]:
        """The options that each make the run fit into free bytes, with the bytes it needs then."""
        needed = {
            option: self.estimate(stored=how).needed
            for option, how in smaller(self._stored).items()
        }
        return {option: size for option, size in needed.items() if size * HEADROOM <= free}

    def flops(self) -> tuple[float, float]:
        """Operations of an epoch with its validation, and of the test.

        Every utterance by itself: what batches are padded with is not counted, nor is the reading
        of features, which takes less than a thousandth. Texts are as long as the data set's are,
        in tokens of LLaMA2's tokenizer, which makes more of Chinese than the others do.
        """
        texts = SHAPES[self._config.dataset.name].text.at(_PROBABILITIES)
        cut = np.minimum(texts, self._config.dataset.text_tokens)
        meter = self.meter(self._stored.dtype)
        train, evaluate = (
            float(UtteranceFlops(meter, training=training)(cut).mean())
            for training in (True, False)
        )
        sizes = {name: split.utterances for name, split in self._data.splits.items()}
        return sizes["train"] * train + sizes["valid"] * evaluate, sizes["test"] * evaluate


def published_size(config: TrainConfig) -> DataSize:
    """The sizes of a data set of the paper; every utterance is as long as the longest."""
    dataset = config.dataset
    (row,) = (row for row in paper_table("datasets") if row["dataset"] == dataset.name)
    counts = {
        "train": dataset.expected_train or int(row["train"]),
        "valid": dataset.expected_valid or int(row["valid"]),
        "test": dataset.expected_test or int(row["test"]),
    }
    dims = {
        "audio": dataset.audio_dim or int(row["audio_dim"]),
        "vision": dataset.vision_dim or int(row["vision_dim"]),
    }
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
    return DataSize(splits, dims, dataset.labels)


@cache
def _as_published(dataset: str, backbone: str) -> TrainConfig:
    return compose("train", TrainConfig, [f"dataset={dataset}", f"backbone={backbone}"])


def _is_own_path(config: TrainConfig) -> bool:
    """Whether the options name another language model than the paper's."""
    published = _as_published(config.dataset.name, config.backbone.name)
    return config.backbone.path != published.backbone.path


def _architecture(config: TrainConfig) -> PretrainedConfig:
    backbone = config.backbone
    own = _is_own_path(config)
    language = backbone_config(
        backbone_place(backbone.path),
        weights=backbone.weights if own else Weights.random,
        architecture=backbone.architecture,
    )
    if not own:
        language.dtype = torch.float16
    return language


def _tokenizer(config: TrainConfig) -> tuple[PreTrainedTokenizerBase, bool]:
    """A tokenizer, and whether it is the one that the options name."""
    backbone = config.backbone
    named = backbone.tokenizer or (backbone.path if _is_own_path(config) else None)
    if named is not None:
        place = backbone_place(named)
        if backbone.tokenizer is not None or has_tokenizer(place):
            return load_tokenizer(place), True
        _log.warning("%s has no tokenizer: lengths are those of the paper's", place)
    tokenizer = load_tokenizer(str(tiny_backbone()))
    add_special_tokens(tokenizer, backbone.special_tokens)
    return tokenizer, False


def _stand_in_task(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """A task prompt with which sequences have the published length in a stand-in's tokens."""
    pair = (config.dataset.name, config.backbone.name)
    published, chosen = (_prompt(each, tokenizer) for each in (_as_published(*pair), config))
    if chosen.task != published.task:
        _log.info("the task prompt is not the paper's: the built-in tokenizer counts its tokens")
    more = LONGEST[pair] - published.longest
    wanted = max(1, len(chosen.encode(chosen.task)) + more)
    words = ["the"]
    while len(chosen.encode(" ".join(words))) < wanted:
        words.append("the")
    return " ".join(words)


def _prompt(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    prompt, _ = build_prompt(
        tokenizer,
        config.dataset.labels,
        config.dataset,
        config.backbone,
        config.adapter,
        config.text,
        config.prompt,
    )
    return prompt
