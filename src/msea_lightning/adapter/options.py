"""Options of the adapters, each registered with its class, and what an ablation leaves out."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import option
from msea_lightning.config.registry import Choice, Registry


class Normalization(enum.Enum):
    """Whether the parts of an MSE-Adapter are brought to one scale; neither has parameters."""

    none = "none"
    """The paper's adapter."""
    matched = "matched"
    """Summaries and text are layer-normalised before their Hadamard product, and pseudo tokens have
    the norm of the language model's embeddings."""


@dataclass
class AdapterOptions(Choice):
    """What all adapters have.

    Attributes:
        ablations: The options of :class:`AblationConfig` that the adapter has arguments for.
        pseudo_tokens: Number of pseudo tokens; an option of adapters that make some.
        anchored: Whether they take the places of the task prompt's last tokens; likewise.
    """

    ablations: ClassVar[Sequence[str]] = ("audio", "vision")
    pseudo_tokens = 0
    anchored = False


ADAPTERS: Registry[type[AdapterOptions]] = Registry("adapter")
"""``adapter.name`` to the adapter's options; ``load`` gives its class."""


@ADAPTERS.register("mse", "msea_lightning.adapter.mse.MSEAdapter", title="MSE-Adapter")
@dataclass
class MSEOptions(AdapterOptions):
    """The MSE-Adapter of the paper. Widths and pseudo tokens differ between recipes."""

    ablations = ("audio", "vision", "text", "random_summaries", "text_guide", "multi_scale")

    audio_hidden: int = option(64, "width of the audio LSTM", low=1)
    vision_hidden: int = option(32, "width of the vision LSTM", low=1)
    pseudo_tokens: int = option(4, "number of pseudo tokens", low=1)
    hidden: int = option(256, "width of the text-guided mixer", low=1)
    scales: list[int] = option([8, 32, 16], "hidden sizes of the fusion are text width // scale")
    normalization: Normalization = option(
        Normalization.none, "scale of what the mixer multiplies and of the pseudo tokens"
    )
    anchored: bool = option(
        False,
        "pseudo tokens are shifts of the task prompt's last tokens, in their places",
    )
    token_rank: int = option(
        1, "vectors that pseudo tokens are mixed of; with 1 they are multiples of one", low=1
    )

    def check(self, where: str) -> None:
        """Refuses scales that are none."""
        if not self.scales or min(self.scales) < 1:
            raise ConfigError(f"{where}.scales={self.scales}: one or more positive numbers.")


@ADAPTERS.register("mag", "msea_lightning.adapter.mag.MAGAdapter", title="MAG")
@dataclass
class MAGOptions(AdapterOptions):
    """The Multimodal Adaptation Gate (Rahman et al. 2020), in the paper's Tables 5 and 10.

    Each token's embedding is shifted by the audio and vision of its time.
    """

    beta: float = option(1.0, "longest shift of a token, in multiples of its own norm", above=0)
    dropout: float = option(
        0.1, "share of an embedding's numbers that training drops", low=0, below=1
    )


@ADAPTERS.register("chfn", "msea_lightning.adapter.chfn.CHFNAdapter", title="CHFN")
@dataclass
class CHFNOptions(AdapterOptions):
    """CHFN (Guo et al. 2022), in the paper's Tables 5 and 10.

    Each token's embedding is adjusted by attention to the whole audio-vision sequence.
    """


@ADAPTERS.register("none", "msea_lightning.adapter.absent.NoAdapter", title="no adapter")
@dataclass
class NoAdapterOptions(AdapterOptions):
    """The language model alone, which reads the text and nothing else."""

    ablations = ()


@dataclass
class AblationConfig:
    """What is left out of an adapter (Table 4); of MAG and CHFN, audio or vision alone."""

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

    def check_adapter(self, where: str, adapter: AdapterOptions) -> None:
        """Refuses to leave out what an adapter does not have."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name not in ("name", *adapter.ablations) and value != item.default:
                parts = " and ".join(adapter.ablations)
                remedy = (
                    f"it has {parts}. Choose {where}=none, no_audio or no_vision."
                    if parts
                    else f"Choose {where}=none."
                )
                raise ConfigError(
                    f"{where}.{item.name}={str(value).lower()} ({where}={self.name}): "
                    f"{ADAPTERS.title(adapter.name)} has nothing of that kind to leave out; "
                    f"{remedy}"
                )

    def arguments(self, adapter: AdapterOptions) -> dict[str, bool]:
        """The options that an adapter has, by the names of its arguments."""
        prefixed = ("audio", "vision", "text")
        return {
            f"use_{name}" if name in prefixed else name: getattr(self, name)
            for name in adapter.ablations
        }


ABLATIONS: Registry[AblationConfig] = Registry("ablation")
"""``ablation=...`` to what it leaves out, in the order of Table 4, whose rows are the titles."""

for _title, _ablation in {
    "MSE-Adapter": AblationConfig("none"),
    "w/o A": AblationConfig("no_audio", audio=False),
    "w/o V": AblationConfig("no_vision", vision=False),
    "w/o T": AblationConfig("no_text", text=False),
    "w/o A V": AblationConfig("no_audio_vision", random_summaries=True),
    "w/o TGM": AblationConfig("no_tgm", text_guide=False),
    "w/o MSF": AblationConfig("no_msf", multi_scale=False),
}.items():
    ABLATIONS.register(_ablation.name, title=_title)(_ablation)
