"""What can be trained, each registered with its class."""

from __future__ import annotations

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


@dataclass
class ReadoutOptions(Choice):
    """What all readouts have."""


READOUTS: Registry[type[ReadoutOptions]] = Registry("readout")
"""``readout.name`` to the readout's options; ``load`` gives its class."""


@READOUTS.register("tokens", "msea_lightning.model.readout.TokenReadout", title="tokens")
@dataclass
class TokenReadoutOptions(ReadoutOptions):
    """The language model writes the label, as in the paper."""


@READOUTS.register("linear", "msea_lightning.model.readout.LinearReadout", title="linear readout")
@dataclass
class LinearReadoutOptions(ReadoutOptions):
    """One trained linear layer on the last state, with an output for each legal answer."""
