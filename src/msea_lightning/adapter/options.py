"""Options of the adapters and of what is left out of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import option

ADAPTER_OPTIONS: dict[str, tuple[str, ...]] = {
    "mse": ("audio_hidden", "vision_hidden", "pseudo_tokens", "hidden", "scales"),
    "mag": ("beta", "dropout"),
    "chfn": (),
}
"""Which options of :class:`AdapterConfig` an adapter has; all others are null."""


ADAPTER_ABLATIONS: dict[str, tuple[str, ...]] = {
    "mse": ("audio", "vision", "text", "random_summaries", "text_guide", "multi_scale"),
    "mag": ("audio", "vision"),
    "chfn": ("audio", "vision"),
}
"""Which options of :class:`AblationConfig` an adapter has; all others stay as they are."""


@dataclass
class AdapterConfig:
    """The trainable plugin. An option of another adapter than the chosen one is null."""

    name: str = option("mse", "the adapter, also in run folders and reports")
    audio_hidden: int | None = option(64, "mse: width of the audio LSTM", low=1)
    vision_hidden: int | None = option(32, "mse: width of the vision LSTM", low=1)
    pseudo_tokens: int | None = option(4, "mse: number of pseudo tokens", low=1)
    hidden: int | None = option(256, "mse: width of the text-guided mixer", low=1)
    scales: list[int] | None = option(
        [8, 32, 16], "mse: hidden sizes of the fusion are text width // scale"
    )
    beta: float | None = option(
        None, "mag: longest shift of a token, in multiples of its own norm", above=0
    )
    dropout: float | None = option(
        None, "mag: share of an embedding's numbers that training drops", low=0, below=1
    )

    def check(self, where: str) -> None:
        """Refuses an unknown adapter, and options that it lacks or that are another one's."""
        if self.name not in ADAPTER_OPTIONS:
            raise ConfigError(
                f"{where}.name={self.name} is unknown; there are: {', '.join(ADAPTER_OPTIONS)}."
            )
        own = ADAPTER_OPTIONS[self.name]
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in own and value is None:
                raise ConfigError(f"{where}.{item.name}=null: {self.name} needs a value.")
            if item.name not in ("name", *own) and value is not None:
                others = [name for name, names in ADAPTER_OPTIONS.items() if item.name in names]
                raise ConfigError(
                    f"{where}.{item.name}={value} has no effect on {self.name}; it is an option of "
                    f"{', '.join(others)}. Leave it out, or choose {where}={others[0]}."
                )
        if self.scales is not None and (not self.scales or min(self.scales) < 1):
            raise ConfigError(f"{where}.scales={self.scales}: one or more positive numbers.")

    def arguments(self) -> dict[str, Any]:
        """The adapter's own options, by the names of its arguments."""
        return {name: getattr(self, name) for name in ADAPTER_OPTIONS[self.name]}


@dataclass
class AblationConfig:
    """What is left out of the adapter (Table 4); of other adapters than mse, audio or vision."""

    name: str = option("none", "name in run folders and reports")
    audio: bool = option(True, "false: without the audio summary (w/o A)")
    vision: bool = option(True, "false: without the vision summary (w/o V)")
    text: bool = option(True, "false: no text in the sequence nor in the mixer (w/o T)")
    random_summaries: bool = option(False, "fixed random audio and vision summaries (w/o A V)")
    text_guide: bool = option(True, "false: sum without the Hadamard product (w/o TGM)")
    multi_scale: bool = option(True, "false: mixer output straight to the projector (w/o MSF)")

    def check(self, where: str) -> None:
        """Refuses a model that reads nothing."""
        if not (self.audio or self.vision or self.text):
            raise ConfigError(f"{where}: audio, vision and text are all false; nothing is left.")
        if self.random_summaries and not (self.audio and self.vision):
            raise ConfigError(
                f"{where}.random_summaries replaces both summaries; leave audio and vision true."
            )

    def arguments(self, adapter: str) -> dict[str, bool]:
        """The options that an adapter has, by the names of its arguments."""
        prefixed = ("audio", "vision", "text")
        return {
            f"use_{name}" if name in prefixed else name: getattr(self, name)
            for name in ADAPTER_ABLATIONS[adapter]
        }
