"""What can be trained, each registered with its class."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from msea_lightning.config.registry import Choice, Registry


@dataclass
class ModelOptions(Choice):
    """What all models have."""


MODELS: Registry[type[ModelOptions]] = Registry("model")
"""``model.name`` to the model's options; ``load`` gives its class."""


@MODELS.register("adapted_lm", "msea_lightning.model.adapted_lm.AdaptedLM", title="Adapted LM")
@dataclass
class AdaptedLMOptions(ModelOptions):
    """The frozen language model (``backbone``) with an adapter (``adapter``) in front."""


class ReadoutKind(enum.Enum):
    """What gives the probabilities of the legal answers."""

    tokens = "tokens"
    """The language model writes the label, as in the paper."""
    linear = "linear"
    """A trained linear layer on the last state, with an output for each legal answer."""
