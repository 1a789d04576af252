"""The frozen language model: loading, quantisation, and the narrow interface that the task uses."""

from msea_lightning.backbone.frozen import BackboneError, FrozenBackbone
from msea_lightning.backbone.loading import (
    load_backbone,
    load_language_model,
    load_tokenizer,
    resolve_device,
)

__all__ = [
    "BackboneError",
    "FrozenBackbone",
    "load_backbone",
    "load_language_model",
    "load_tokenizer",
    "resolve_device",
]
