"""The frozen language model: loading, quantisation, and the narrow interface that the task uses."""

from msea_lightning.backbone.frozen import BackboneError, FrozenBackbone
from msea_lightning.backbone.loading import (
    backbone_config,
    backbone_tokenizer,
    load_backbone,
    load_language_model,
    resolve_device,
)
from msea_lightning.backbone.tokenizers import load_tokenizer

__all__ = [
    "BackboneError",
    "FrozenBackbone",
    "backbone_config",
    "backbone_tokenizer",
    "load_backbone",
    "load_language_model",
    "load_tokenizer",
    "resolve_device",
]
