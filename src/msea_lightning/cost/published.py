"""What the cells of the paper take of a device, told before any of their files is here.

A cell is a data set with a backbone, by its recipe. Sizes of the data set, architecture and length
of the sequences are those that were published, so that the numbers do not depend on what is on this
machine. Memory is what a run itself estimates before it loads its backbone; time comes from the
operations that the backbone takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray

from msea_lightning.backbone import load_tokenizer
from msea_lightning.backbone.loading.load import backbone_config, tiny_backbone
from msea_lightning.backbone.loading.memory import (
    HEADROOM,
    Reading,
    Stored,
    activation_bytes,
    smaller,
)
from msea_lightning.backbone.loading.tokenizers import add_special_tokens
from msea_lightning.backbone.options import Weights
from msea_lightning.config.roots import TrainConfig
from msea_lightning.cost.estimate import MemoryEstimate, MemoryEstimator
from msea_lightning.cost.flops import UtteranceFlops, with_layers
from msea_lightning.data.options import DatasetConfig, LabelConfig
from msea_lightning.data.prepare import expected_counts
from msea_lightning.paper import paper_table
from msea_lightning.paper.lengths import SHAPES

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from msea_lightning.data.module import UtteranceDataModule
    from msea_lightning.diagnosis.datasets import Resource
    from msea_lightning.diagnosis.devices import Device

_LONGEST = {
    ("mosei", "llama2"): 100,
    ("mosei", "qwen"): 95,
    ("mosei", "chatglm3"): 105,
    ("simsv2", "llama2"): 125,
    ("simsv2", "qwen"): 99,
    ("simsv2", "chatglm3"): 103,
    ("meld", "llama2"): 140,
    ("meld", "qwen"): 127,
    ("meld", "chatglm3"): 140,
    ("cherma", "llama2"): 196,
    ("cherma", "qwen"): 156,
    ("cherma", "chatglm3"): 153,
}
"""Tokens of a cell's longest sequence, its label not counted, as the published tokenizer has it.
``tests/test_doctor.py`` counts them again where the tokenizers are at hand."""

_FEW, _MORE = 2, 3
"""Layers of the small models that activations are taken from: from two layers on every further one
adds the same."""

ASSUMED_SHARE = 0.5
"""Assumed: the part of a device's rate in products of large matrices that a run reaches."""

_PROBABILITIES = np.linspace(0, 1, 1001)[1:] - 0.0005
"""Of the texts that stand for all of a data set."""


@dataclass(frozen=True)
class Cell:
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
        activations: Bytes of activations at the height of a step.
        adapter: Bytes of the adapter's weights, their gradients and the optimizer's moments.
        needed: Bytes that have to be free.
        free: Bytes that are free.
        fits: Whether the run would be started.
        flops_epoch: Floating point operations of the backbone in an epoch and its validation.
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


def examine_cells(
    configs: Sequence[TrainConfig],
    device: Device,
    datasets: Mapping[str, Resource],
    backbones: Mapping[str, Resource],
    rate: float | None,
) -> tuple[list[Cell], dict[str, dict[str, int]]]:
    """What runs would take of a device, and for each backbone that does not fit, what would.

    Args:
        configs: The runs, of data sets and backbones of the paper.
        device: Where they would go.
        datasets: Where the data sets are, by name.
        backbones: Where the backbones are, by name.
        rate: Operations per second of the device in products of large matrices, where known.

    Returns:
        A cell for each run. And by the name of a backbone that does not fit in all of them the
        options that make its largest run fit, each with the bytes that it needs then.
    """
    found: list[Cell] = []
    largest: dict[str, tuple[Cell, CellEstimator]] = {}
    for config in configs:
        estimator = CellEstimator(config, torch.device(device.name))
        places = datasets[config.dataset.name], backbones[config.backbone.name]
        cell = _cell(config, estimator, device, *places, rate)
        found.append(cell)
        before = largest.get(cell.backbone)
        if not cell.fits and (before is None or before[0].needed < cell.needed):
            largest[cell.backbone] = (cell, estimator)
    return found, {name: estimator.fitting(device) for name, (_, estimator) in largest.items()}


def is_published(config: TrainConfig) -> bool:
    """Whether a run is of a data set and a backbone of the paper, whose sizes are published."""
    resized = config.backbone.hidden_size or config.backbone.num_layers
    return not resized and (config.dataset.name, config.backbone.name) in _LONGEST


def _cell(
    config: TrainConfig,
    estimator: CellEstimator,
    device: Device,
    dataset: Resource,
    backbone: Resource,
    rate: float | None,
) -> Cell:
    estimate = estimator.estimate()
    epoch, test = estimator.flops()
    flops = config.training.schedule_epochs * epoch + test
    command = f"python -m msea_lightning.train dataset={dataset.name} backbone={backbone.name}"
    return Cell(
        dataset=dataset.name,
        backbone=backbone.name,
        recipe=config.recipe,
        device=device.name,
        dtype=estimator.dtype,
        quantization=config.backbone.quantization.value,
        batch_size=config.training.batch_size,
        trainable=estimator.trainable,
        weights=estimate.weights,
        activations=estimate.activations,
        adapter=estimate.adapter + estimate.optimizer,
        needed=estimate.needed,
        free=device.free,
        fits=_fits(estimate, device),
        flops_epoch=epoch,
        hours=None if rate is None else flops / (ASSUMED_SHARE * rate) / 3600,
        dataset_found=dataset.usable,
        backbone_found=backbone.usable,
        command=" ".join(filter(None, [command, dataset.option, backbone.option])),
    )


def _fits(estimate: MemoryEstimate, device: Device) -> bool:
    return estimate.needed * HEADROOM <= device.free


class CellEstimator(MemoryEstimator):
    """The estimate of a run whose data set, tokenizer and weights need not be on this machine.

    Args:
        config: The run: a data set and a backbone of the paper.
        device: Where it would go.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        # The tokenizer of the built-in backbone stands in: what counts is the number of tokens,
        # which is put right below.
        tokenizer = load_tokenizer(str(tiny_backbone()))
        add_special_tokens(tokenizer, config.backbone.special_tokens)
        data = cast("UtteranceDataModule", PublishedData(config.dataset))
        super().__init__(config, data, tokenizer, published_architecture(config), device)
        cell = (config.dataset.name, config.backbone.name)
        self._more_tokens = _LONGEST[cell] - self._prompt.longest

    @property
    def dtype(self) -> str:
        """Compute dtype of the backbone."""
        return str(self._stored.dtype).removeprefix("torch.")

    def fitting(self, device: Device) -> dict[str, int]:
        """The options that, each by itself, make the run fit, with the bytes that it needs then."""
        estimates = {
            option: self.estimate(stored=how) for option, how in smaller(self._stored).items()
        }
        return {
            option: estimate.needed
            for option, estimate in estimates.items()
            if _fits(estimate, device)
        }

    def flops(self) -> tuple[float, float]:
        """Operations of the backbone: of an epoch with its validation, and of the test.

        Every utterance by itself: what batches are padded with is not counted, nor is the adapter,
        which takes less than a thousandth of it. Texts are as long as the data set's are, in tokens
        of LLaMA2's tokenizer, which makes more of Chinese than the others do.
        """
        longest = self._prompt.longest + self._more_tokens
        texts = SHAPES[self._config.dataset.name].text.at(_PROBABILITIES)
        cut = self._prompt.text_tokens
        tokens = longest - cut + np.minimum(texts, cut)
        labels = self._label_tokens
        train = UtteranceFlops(self._language, labels=labels)(tokens + labels - 1).mean()
        evaluate = UtteranceFlops(self._language, nodes=self._nodes)(tokens).mean()
        sizes = {split: len(part) for split, part in self._data.splits.items()}
        epoch = sizes["train"] * train + sizes["valid"] * evaluate
        return float(epoch), float(sizes["test"] * evaluate)

    def _backbone_bytes(self, stored: Stored, reading: Reading) -> int:
        """Activations of the whole model, from two small ones: an estimate takes half a second."""
        key = (stored, reading)
        if key not in self._activations:
            counted = replace(reading, tokens=reading.tokens + self._more_tokens)
            few, more = (self._with_layers(layers, stored, counted) for layers in (_FEW, _MORE))
            further = self._language.num_hidden_layers - _FEW
            self._activations[key] = few + further * (more - few) // (_MORE - _FEW)
        return self._activations[key]

    def _with_layers(self, layers: int, stored: Stored, reading: Reading) -> int:
        backbone = self._config.backbone
        return activation_bytes(
            with_layers(self._language, layers),
            stored,
            backbone.attention,
            self._device,
            reading,
            checkpointed=backbone.checkpoint_activations,
        )


def published_architecture(config: TrainConfig) -> PretrainedConfig:
    """The architecture of a run's backbone as it is published, in half precision."""
    assert config.backbone.path is not None
    language = backbone_config(
        config.backbone.path, weights=Weights.random, architecture=config.backbone.architecture
    )
    language.dtype = torch.float16
    return language


@dataclass(frozen=True)
class PublishedSplit:
    """A split of which only the sizes are known; every utterance is as long as the longest.

    Attributes:
        utterances: Their number N.
        steps: Name of each feature to its frames.
        dims: Name of each feature to its values per frame.
        texts: A text that is longer than any is read.
        tokens: None: the texts have not been tokenised.
    """

    utterances: int
    steps: dict[str, int]
    dims: dict[str, int]
    texts: list[str]
    tokens: None = None

    def __len__(self) -> int:
        return self.utterances

    @property
    def lengths(self) -> dict[str, NDArray[np.int64]]:
        """Name of each feature to (N,) frames."""
        return {name: np.full(self.utterances, self.steps[name]) for name in self.dims}


class PublishedData:
    """What an estimate asks of a data module, from the published sizes of a data set.

    Args:
        config: The data set's options: one of the paper's.
    """

    def __init__(self, config: DatasetConfig) -> None:
        self._config = config
        self.labels: LabelConfig = config.labels
        dims = {"audio": config.audio_dim, "vision": config.vision_dim}
        self.dims = {name: dim for name, dim in dims.items() if dim is not None}

    @cached_property
    def splits(self) -> dict[str, PublishedSplit]:
        """The splits by name."""
        config = self._config
        (row,) = (row for row in paper_table("datasets") if row["dataset"] == config.name)
        return {
            split: PublishedSplit(
                count or 0,
                {name: int(row[f"{name}_steps"]) for name in self.dims},
                self.dims,
                ["word " * config.text_tokens],
            )
            for split, count in expected_counts(config).items()
        }
