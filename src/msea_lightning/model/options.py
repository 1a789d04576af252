"""What can be trained, each registered with its class."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from msea_lightning.config.options import option
from msea_lightning.config.registry import Registry


@dataclass
class ModelOptions:
    """What all models have."""

    name: str = option("", "the model, also in run folders and reports")

    def __post_init__(self) -> None:
        """Fills in the name."""
        self.name = self.name or MODELS.name_of(self)

    def arguments(self) -> dict[str, Any]:
        """The model's own options, by the names of its arguments."""
        return {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name != "name"
        }


MODELS: Registry[type[ModelOptions]] = Registry("model")
"""``model.name`` to the model's options; ``load`` gives its class."""


@MODELS.register("adapted_lm", "msea_lightning.model.adapted_lm.AdaptedLM", title="Adapted LM")
@dataclass
class AdaptedLMOptions(ModelOptions):
    """The frozen language model (``backbone``) with an adapter (``adapter``) in front."""
