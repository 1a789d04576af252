"""Options of the language model that a plugin is attached to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msea_lightning.backbone.options import Accelerator, Quantization
from msea_lightning.config.options import option


@dataclass
class RecordedBackboneConfig:
    """The language model that a plugin was trained on, as it was then but for what is given."""

    path: str | None = option(None, "Hub id, folder or .gguf file, where it lies elsewhere now")
    tokenizer: str | None = option(None, "place of its tokenizer, where that lies elsewhere now")
    quantization: Quantization | None = option(None, "storage of the linear layers")
    dtype: str | None = option(None, "compute dtype")
    accelerator: Accelerator = option(Accelerator.auto, "hardware")

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of :meth:`~msea_lightning.plugin.Plugin.load`."""
        return {
            "path": self.path,
            "tokenizer": self.tokenizer,
            "quantization": None if self.quantization is None else self.quantization.value,
            "dtype": self.dtype,
            "device": self.accelerator.value,
        }
