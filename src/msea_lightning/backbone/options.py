"""Options of the frozen language model."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Any

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import option
from msea_lightning.language.options import SegmentConfig, SegmentKind


class Quantization(enum.Enum):
    """Storage of the frozen backbone's linear layers."""

    none = "none"
    int8 = "int8"
    nf4 = "nf4"


class Attention(enum.Enum):
    """Implementation of the frozen backbone's attention."""

    auto = "auto"
    """``sdpa`` where the architecture has it, else ``eager``."""
    sdpa = "sdpa"
    """PyTorch's fused attention."""
    eager = "eager"
    """Plain matrix products, as a reference."""
    flash_attention_2 = "flash_attention_2"
    """The package flash-attn, on GPUs and in half precision."""


class Dtype(enum.Enum):
    """Compute dtype of the frozen backbone; ``auto`` is bfloat16 on a GPU, float32 on a CPU."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class TextCache(enum.Enum):
    """Where keys and values of texts that are read once are kept (``prompt.order``)."""

    none = "none"
    """Nowhere: they are computed for every batch."""
    memory = "memory"
    disk = "disk"
    """In the folder of stores, for later runs as well."""


class CacheDtype(enum.Enum):
    """In which type keys and values of texts are kept."""

    exact = "exact"
    """As the language model computes them."""
    bfloat16 = "bfloat16"
    int8 = "int8"
    """With a scale for each head of each token."""


class Weights(enum.Enum):
    """Where the backbone's weights come from."""

    pretrained = "pretrained"
    random = "random"
    """The real architecture with random weights: to measure time and memory, not to learn."""


class DeviceMap(enum.Enum):
    """How a backbone is spread over what a machine has."""

    auto = "auto"
    """GPUs first, evenly, then the machine's memory, then the disk."""


class Accelerator(enum.Enum):
    """Hardware that a run uses."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


@dataclass
class BackboneConfig:
    """The frozen language model."""

    name: str = option("tiny", "name in run folders and reports")
    path: str | None = option(
        None,
        "Hub id, local folder or .gguf file; null takes the backbone that ships with the project",
    )
    tokenizer: str | None = option(None, "Hub id or folder of the tokenizer, where not in path")
    weights: Weights = option(Weights.pretrained, "where the weights come from")
    quantization: Quantization = option(Quantization.none, "storage of the linear layers")
    double_quantization: bool = option(
        True, "quantization=nf4: quantise the scales too, 0.4 bits a weight less"
    )
    dtype: Dtype = option(
        Dtype.auto,
        "compute dtype, also of quantised layers",
        called=("trainer.precision", "precision"),
    )
    attention: Attention = option(Attention.auto, "implementation of the attention")
    cache: TextCache = option(
        TextCache.memory, "where texts that stand before the pseudo tokens are kept once read"
    )
    cache_dtype: CacheDtype = option(CacheDtype.exact, "type in which they are kept")
    cache_limit: float = option(
        8.0, "GiB that they may take; where they do not fit, they are read for every batch", above=0
    )
    device_map: DeviceMap | None = option(
        None,
        "auto: spread it over all GPUs, the machine's memory and its disk, where it is larger than "
        "a device; null: all of it on one",
    )
    max_memory: dict[Any, Any] = option(
        {},
        "device_map=auto: most weights at each place, such as {0: 20GiB, cpu: 30GiB}, the rest on "
        "disk; {}: what is free and not needed by a step",
    )
    offload_folder: str | None = option(
        None, "device_map=auto: folder for weights on disk that no safetensors file holds as used"
    )
    check_memory: bool = option(True, "refuse a backbone that does not fit, before loading")
    compile: bool = option(
        False, "compile its layers: each step is faster, the first ones take a minute longer"
    )
    checkpoint_activations: bool = option(
        False, "compute activations again in the backward pass: a third slower, far less memory"
    )
    signed_labels: bool | None = option(
        None,
        "write intensities of zero and above with a plus sign; null: where the tokenizer needs it "
        "to write all of them alike",
    )
    layout: list[SegmentConfig] = option([], "segments in order")
    pad_token: str | None = option(None, "padding token; the tokenizer's own where not given")
    architecture: dict[str, Any] = option(
        {}, "weights=random: fields of the transformers config, model_type among them"
    )
    hidden_size: int | None = option(
        None, "weights=random: width instead of the architecture's, a multiple of 16", low=16
    )
    num_layers: int | None = option(
        None, "weights=random: layers instead of the architecture's", low=1
    )

    @property
    def cache_bytes(self) -> int:
        """``cache_limit`` in bytes."""
        return int(self.cache_limit * 2**30)

    @property
    def special_tokens(self) -> list[str]:
        """Special tokens that the layout and the padding name."""
        named = [segment.token for segment in self.layout if segment.token]
        return [*named, *([self.pad_token] if self.pad_token else [])]

    def check(self, where: str) -> None:
        """Refuses a layout that does not hold each of pseudo, text and prompt exactly once."""
        if self.path is None and self.name != "tiny":
            raise ConfigError(
                f"{where}={self.name} needs {where}.path: a Hub id such as Qwen/Qwen2.5-0.5B, or "
                "a folder with a checkpoint."
            )
        resizable = self.weights is Weights.random and "model_type" in self.architecture
        for name in ("hidden_size", "num_layers"):
            if (size := getattr(self, name)) is not None and not resizable:
                raise ConfigError(
                    f"{where}.{name}={size} is for measuring, with {where}.weights=random and a "
                    f"backbone whose {where}.architecture is known, such as {where}=llama2; here "
                    f"are {where}.weights={self.weights.value} and {where}={self.name}. Leave it "
                    "out, or change these."
                )
        if self.hidden_size is not None and self.hidden_size % 16:
            raise ConfigError(f"{where}.hidden_size={self.hidden_size} is no multiple of 16.")
        if self.cache is TextCache.none and self.cache_dtype is not CacheDtype.exact:
            raise ConfigError(
                f"{where}.cache_dtype={self.cache_dtype.value} has no effect with {where}.cache="
                "none: leave one of them out."
            )
        self._check_spread(where)
        for index, segment in enumerate(self.layout):
            segment.check(f"{where}.layout[{index}]")
        kinds = [segment.kind for segment in self.layout]
        for kind in (SegmentKind.pseudo, SegmentKind.text, SegmentKind.prompt):
            if (count := kinds.count(kind)) != 1:
                raise ConfigError(
                    f"{where}.layout needs exactly one segment of kind '{kind.value}', "
                    f"found {count}."
                )
        if kinds[-1] is not SegmentKind.prompt:
            raise ConfigError(
                f"{where}.layout ends with '{kinds[-1].value}'; the last segment is the prompt, "
                "because the label follows it."
            )

    def _check_spread(self, where: str) -> None:
        """Refuses what does not go with, or without, layers at several places."""
        if self.device_map is None:
            for name in ("max_memory", "offload_folder"):
                if given := getattr(self, name):
                    raise ConfigError(
                        f"{where}.{name}={given} has no effect without {where}.device_map=auto."
                    )
            return
        for name, why in {
            "weights": "random weights are drawn in memory, on one device",
            "compile": "PyTorch does not compile layers whose weights come and go",
        }.items():
            if (given := getattr(self, name)) not in (Weights.pretrained, False):
                value = given.value if isinstance(given, enum.Enum) else "true"
                raise ConfigError(
                    f"{where}.{name}={value} does not go with {where}.device_map=auto: {why}. "
                    "Leave one of them out."
                )
        if (self.path or "").lower().endswith(".gguf"):
            raise ConfigError(
                f"{where}.device_map=auto: a .gguf file is unpacked in memory as a whole. Give a "
                f"folder or Hub id with safetensors files as {where}.path."
            )
        for place, size in self.max_memory.items():
            if not (str(place).isdigit() or place in ("cpu", "disk")):
                raise ConfigError(
                    f"{where}.max_memory names {place}: a place is the number of a GPU, cpu or "
                    "disk."
                )
            try:
                memory_bytes(size)
            except ValueError:
                raise ConfigError(
                    f"{where}.max_memory gives {place} {size!r}: a size is a number of bytes, or "
                    "a number with its unit, such as 20GiB."
                ) from None


_UNITS = {
    **{f"{prefix}iB": 2 ** (10 * power) for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}B": 10 ** (3 * power) for power, prefix in enumerate("KMGT", 1)},
}


def memory_bytes(size: Any) -> int:
    """Bytes of a number of them, or of a text such as ``20GiB`` or ``1.5 GB``.

    Raises:
        ValueError: it is neither.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]i?B)?\s*", str(size))
    if found is None:
        raise ValueError(f"{size!r} is no size of memory")
    number, unit = found.groups()
    return int(float(number) * _UNITS.get(unit, 1))
