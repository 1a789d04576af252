"""Plugins with random weights."""

from __future__ import annotations

import torch

from msea_lightning import Plugin
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.plugin.facts import backbone_facts, describe
from msea_lightning.plugin.saving import plugin_weights
from msea_lightning.training.build import build_adapted_lm, build_data, tokenize


def untrained(config: TrainConfig, backbone: FrozenBackbone) -> tuple[Plugin, UtteranceDataModule]:
    """A plugin with random weights, large enough that what is heard and seen shows."""
    data = build_data(config)
    tokenize(config, data, backbone.tokenizer)
    torch.manual_seed(1)
    model = build_adapted_lm(config, data, backbone)
    with torch.no_grad():
        for weight in model.adapter.parameters():
            weight.mul_(3)
    facts = describe(
        model,
        metrics=data.metrics,
        dataset=config.dataset.name,
        labels=data.labels,
        pad_token=config.backbone.pad_token,
        backbone=backbone_facts(config.backbone, backbone),
        test={},
    )
    return Plugin(facts, plugin_weights(model)), data
