"""What the weights of a language model take of a device's memory, and how much is free there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from msea_lightning.backbone.errors import MODEL_FAILURES, BackboneError
from msea_lightning.backbone.options import Attention, Quantization, Weights
from msea_lightning.config.errors import first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

HEADROOM = 1.1
"""What must be free for every byte of an estimate."""

_PART_FOR_TEXTS = 0.5
"""Of the memory that is free once the weights are loaded: the rest is for training."""

_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
"""Limit and use of a control group, and what of its use can be dropped (``memory.stat``)."""


@dataclass(frozen=True)
class WeightMemory:
    """Bytes that weights take.

    Attributes:
        weights: While they are in use.
        files: Pages of checkpoint files that stay resident beside them until the memory is needed.
        loading: Beyond ``weights``, at the peak of loading.
        loading_files: Beyond ``files``, at the peak of loading; pages of files as well.
    """

    weights: int
    files: int = 0
    loading: int = 0
    loading_files: int = 0


@dataclass(frozen=True)
class Stored:
    """How weights are kept while they are in use, and where they come from.

    Attributes:
        dtype: Compute dtype.
        quantization: Storage of the linear layers.
        double_quantization: With nf4: whether the scales are quantised too.
        source: From a checkpoint, or drawn at random.
    """

    dtype: torch.dtype
    quantization: Quantization = Quantization.none
    double_quantization: bool = True
    source: Weights = Weights.pretrained

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}, quantization {self.quantization.value}"


def weight_memory(config: PretrainedConfig, stored: Stored, device: torch.device) -> WeightMemory:
    """Bytes that the weights of an architecture take on a device; nothing of it is allocated."""
    model = architecture_on_meta(config, stored.dtype)
    linear = [layer.weight.shape for layer in quantizable_layers(model)]
    numbers = sum(parameter.numel() for parameter in model.parameters())
    itemsize = stored.dtype.itemsize
    dense_linear = sum(shape.numel() for shape in linear) * itemsize
    if stored.quantization is Quantization.none:
        on_disk = getattr(config, "dtype", None) or stored.dtype
        converted = stored.source is Weights.pretrained and on_disk is not stored.dtype
        # On a CPU a checkpoint of another dtype is read, converted, and forgotten.
        pages = numbers * on_disk.itemsize if converted and device.type == "cpu" else 0
        return WeightMemory(numbers * itemsize, loading_files=pages)
    quantized_linear = int(sum(_quantized_bytes(stored, shape) for shape in linear))
    total = numbers * itemsize - dense_linear + quantized_linear
    if stored.source is Weights.random:
        # They are drawn dense, and quantised while they are there.
        return WeightMemory(total, loading=dense_linear)
    if device.type == "cpu":
        return WeightMemory(total, files=dense_linear)
    return WeightMemory(total, loading=max(map(torch.Size.numel, linear), default=0) * itemsize)


def parameter_count(config: PretrainedConfig) -> int:
    """Parameters of an architecture; nothing of its size is allocated."""
    return int(architecture_on_meta(config, torch.float32).num_parameters())


def architecture_on_meta(
    config: PretrainedConfig, dtype: torch.dtype, attention: Attention = Attention.eager
) -> PreTrainedModel:
    """A language model on PyTorch's meta device, whose tensors have shapes but no numbers."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            # transformers writes dtype and attention into the config.
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                deepcopy(config), dtype=dtype, attn_implementation=attention.value
            )
    except MODEL_FAILURES as error:
        raise BackboneError(
            f"transformers cannot build this {config.model_type} backbone: {first_line(error)} "
            "Correct the sizes in its config.json, or in backbone.architecture."
        ) from error
    return model


def quantizable_layers(model: PreTrainedModel) -> list[Any]:
    """The layers that quantisation stores in another way; GPT-2 calls them Conv1D."""
    head = model.get_output_embeddings()
    return [
        module
        for module in model.modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        and module is not head
    ]


def _quantized_bytes(stored: Stored, shape: torch.Size) -> float:
    """Bytes of a weight matrix, scales included."""
    if stored.quantization is Quantization.int8:
        return shape.numel() + 4 * shape[0]
    # A scale for 64 weights: 32 bits; or 8, and 32 more for 256 scales.
    scale = 1 + 4 / 256 if stored.double_quantization else 4
    return shape.numel() * (0.5 + scale / 64)


def process_bytes(device: torch.device) -> int:
    """Bytes of a device's memory that this process holds: resident on a CPU, allocated on a GPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def reset_peak(device: torch.device) -> None:
    """Starts measuring :func:`peak_bytes` anew; on a CPU only Linux forgets a process's peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Most bytes of a device's memory that this process held since :func:`reset_peak`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    info: Any = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(largest if sys.platform == "darwin" else largest << 10)


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device; on a CPU no more than the process's control group allows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(int(psutil.virtual_memory().available), _allowed_bytes())


def kept_in_memory(limit: int, free: int, processes: int) -> int:
    """Bytes of texts that each process of a machine may keep (``backbone.cache``).

    Args:
        limit: Bytes that all of them may keep.
        free: Bytes of memory that are free beside the weights.
        processes: How many share them.
    """
    return min(limit, int(_PART_FOR_TEXTS * free)) // processes


def check_memory(config: PretrainedConfig, stored: Stored, device: torch.device) -> None:
    """Refuses a model whose weights alone do not fit on a device, with the options that would."""

    def size(how: Stored) -> int:
        memory = weight_memory(config, how, device)
        return memory.weights + memory.loading

    refuse_unless_fits(
        f"This {config.model_type} backbone ({stored})",
        size(stored),
        free_bytes(device),
        device,
        {option: partial(size, how) for option, how in smaller(stored).items()},
    )


def smaller(stored: Stored) -> dict[str, Stored]:
    """Ways of keeping weights that take less memory, by the option that chooses them."""
    ways = {
        f"backbone.quantization={how.value}": replace(stored, quantization=how)
        for how in (Quantization.int8, Quantization.nf4)
        if stored.quantization not in (how, Quantization.nf4)
    }
    if stored.dtype is torch.float32:
        ways = {"backbone.dtype=bfloat16": replace(stored, dtype=torch.bfloat16), **ways}
    return ways


def refuse_unless_fits(
    what: str,
    needed: int,
    free: int,
    device: torch.device,
    changes: dict[str, Callable[[], int]],
) -> None:
    """Refuses what does not fit, naming what would: an option and the bytes needed with it."""
    if needed * HEADROOM <= free:
        return
    sizes = {change: size() for change, size in changes.items()}
    fitting = [
        f"{change} ({readable_bytes(size)})"
        for change, size in sizes.items()
        if size * HEADROOM <= free
    ]
    remedy = "Choose a smaller backbone or a larger device"
    if fitting:
        remedy = f"It would fit with {' or '.join(fitting)}"
    elif sizes:
        remedy += f": none of {', '.join(sizes)} would make it fit by itself"
    raise BackboneError(
        f"{what} needs {readable_bytes(needed)} on {device}, but {readable_bytes(free)} are free, "
        f"and {HEADROOM} times as much must be. {remedy}. (backbone.check_memory=false tries all "
        "the same.)"
    )


def readable_bytes(size: float) -> str:
    """Bytes as a person reads them."""
    if size < 2**30 / 10:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / 2**30:.2f} GiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"


def _allowed_bytes() -> int:
    """What the control groups of this process leave, files that they may drop not counted."""
    try:
        lines = _OWN_GROUPS.read_text("ascii").splitlines()
    except OSError:
        return sys.maxsize
    left = [sys.maxsize]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        # Version 2 names no controllers, and has one tree for all of them.
        root, files = (_CGROUP / "memory", _VERSION_1) if controllers else (_CGROUP, _VERSION_2)
        group = root / path.lstrip("/")
        parents = (folder for folder in group.parents if folder.is_relative_to(root))
        left += [_left_bytes(folder, *files) for folder in (group, *parents)]
    return min(left)


def _left_bytes(group: Path, limit: str, used: str, idle: str) -> int:
    try:
        left = int((group / limit).read_text("ascii")) - int((group / used).read_text("ascii"))
        lines = (group / "memory.stat").read_text("ascii").splitlines()
    except (OSError, ValueError):  # no such file, or "max"
        return sys.maxsize
    return left + int(dict(line.split() for line in lines).get(idle, 0))
