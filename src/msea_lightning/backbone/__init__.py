"""The frozen language model: loading, quantisation, and the interface that adapters use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msea_lightning.config.lazy import lazy

if TYPE_CHECKING:
    from msea_lightning.backbone.errors import BackboneError as BackboneError
    from msea_lightning.backbone.frozen import FrozenBackbone as FrozenBackbone
    from msea_lightning.backbone.loading.load import backbone_config as backbone_config
    from msea_lightning.backbone.loading.load import backbone_tokenizer as backbone_tokenizer
    from msea_lightning.backbone.loading.load import load_backbone as load_backbone
    from msea_lightning.backbone.loading.load import load_language_model as load_language_model
    from msea_lightning.backbone.loading.load import resolve_device as resolve_device
    from msea_lightning.backbone.loading.tokenizers import load_tokenizer as load_tokenizer

__getattr__ = lazy(
    __name__,
    {
        "BackboneError": "errors",
        "FrozenBackbone": "frozen",
        "backbone_config": "loading.load",
        "backbone_tokenizer": "loading.load",
        "load_backbone": "loading.load",
        "load_language_model": "loading.load",
        "load_tokenizer": "loading.tokenizers",
        "resolve_device": "loading.load",
    },
)
