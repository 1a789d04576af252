"""What a frozen language model takes of a device's memory, told before it is loaded.

Weights are counted on the meta device. Activations are not written down as formulas, which every
architecture would need its own of: the architecture itself runs on fake tensors, which have shapes
but no memory, does what the task does with it, and the storages that are alive are added up.

Shape legend: B utterances, S tokens, L label tokens, M nodes of the answer tree, d width,
V vocabulary.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msea_lightning.backbone.errors import BackboneError
from msea_lightning.backbone.frozen import _LOGITS_AT_ONCE, FrozenBackbone
from msea_lightning.backbone.loading.attention import resolve_attention
from msea_lightning.backbone.options import Attention, Quantization, Weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

HEADROOM = 1.1
"""What must be free for every byte of an estimate: estimates have been up to this much too low."""

_MAPPED_ALONE = 32 << 20
"""glibc gives blocks from this size on back to the system as soon as they are free."""

_ALONE_IN_TRAINING = 1.4
"""Resident bytes for every byte of such a block in training, measured, see docs/log.md."""

_HOLES, _HOLES_HALF, _HOLES_INT8 = 1.62, 2.0, 2.2
"""Resident bytes for every byte of a smaller block: glibc keeps what is freed between blocks that
are in use, and seldom finds a hole that fits. Measured with float32, half precision (whose kernels
have buffers of their own) and int8 (whose layers take many steps); see docs/log.md."""

_PAGES_AROUND = 64 << 10
"""Linux reads this much of a mapped file into memory around the byte that is asked for."""

_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class WeightMemory:
    """Bytes that weights take.

    Attributes:
        weights: While they are in use.
        files: Pages of checkpoint files that stay resident beside them, until another use of the
            memory pushes them out.
        loading: Beyond ``weights``, at the height of loading.
        loading_files: Beyond ``files``, at the height of loading; pages of files as well.
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
        """In a few words."""
        return f"{str(self.dtype).removeprefix('torch.')}, quantization {self.quantization.value}"


def weight_memory(
    config: PretrainedConfig, stored: Stored, device: torch.device, *, rows: int | None = None
) -> WeightMemory:
    """Bytes that the weights of an architecture take, and take while they are loaded.

    Args:
        config: The architecture; built without memory for it.
        stored: How the weights are kept.
        device: Where they are to go.
        rows: Different tokens that will be read, where it is known: of a checkpoint that is used
            as it lies on the disk, a CPU reads only what it needs.
    """
    model = _on_meta(config, stored.dtype)
    embedding: nn.Module = model.get_input_embeddings()
    head: nn.Module | None = model.get_output_embeddings()
    linear = [layer.weight for layer in _quantizable(model)]
    numbers = sum(parameter.numel() for parameter in model.parameters())
    itemsize = stored.dtype.itemsize
    dense_linear = quantized_linear = sum(weight.numel() for weight in linear) * itemsize
    quantized = stored.quantization is not Quantization.none
    if quantized:
        quantized_linear = int(sum(map(_quantized_bytes(stored), linear)))
    total = numbers * itemsize - dense_linear + quantized_linear
    if stored.source is Weights.random:
        # They are drawn dense, and quantised while they are there.
        return WeightMemory(total, loading=dense_linear if quantized else 0)
    if device.type != "cpu":
        largest = max((weight.numel() for weight in linear), default=0)
        return WeightMemory(total, loading=largest * itemsize if quantized else 0)
    on_disk = getattr(config, "dtype", None) or stored.dtype
    if on_disk is not stored.dtype:
        # Read, converted, and forgotten.
        return WeightMemory(total, loading_files=numbers * on_disk.itemsize)
    words = cast("Tensor", embedding.weight)
    if rows is not None and (head is None or head.weight is not words):
        whole = words.numel() * itemsize
        total -= whole - min(whole, rows * max(_PAGES_AROUND, words.shape[1] * itemsize))
    return WeightMemory(total, files=dense_linear if quantized else 0)


def parameter_count(config: PretrainedConfig) -> int:
    """Parameters of an architecture; built without memory for it.

    Args:
        config: The architecture.
    """
    return int(_on_meta(config, torch.float32).num_parameters())


@dataclass(frozen=True)
class Reading:
    """What a language model is given at a time.

    Attributes:
        batch: Utterances B.
        tokens: Tokens S of the longest sequence.
        labels: Training: label tokens L that the last positions predict.
        nodes: Evaluation: nodes M of the answer tree, behind the S tokens.
    """

    batch: int
    tokens: int
    labels: int = 0
    nodes: int = 0


def activation_bytes(
    config: PretrainedConfig,
    stored: Stored,
    attention: Attention,
    device: torch.device,
    reading: Reading,
    *,
    checkpointed: bool = False,
) -> int:
    """Bytes that the activations of one step take at their height.

    Args:
        config: The architecture; nothing of its size is allocated.
        stored: How the weights are kept.
        attention: Implementation of the attention.
        device: Where it computes. On a CPU the holes that the allocator leaves are counted.
        reading: What it reads: forward and backward with label tokens, else forward alone.
        checkpointed: Whether activations are computed again in the backward pass.

    Raises:
        BackboneError: if the architecture does not run without numbers.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    resident = _resident_bytes(stored, device, training=bool(reading.labels))
    # flash-attn is none of PyTorch's operators; like sdpa it keeps its result and one sum a row.
    counted = Attention.auto if attention is Attention.flash_attention_2 else attention
    implementation = resolve_attention(config, counted).value
    try:
        with FakeTensorMode():
            model = _architecture(config, stored.dtype, implementation)
            tracker = _LiveBytes(model, resident)
            with tracker:
                shadow = _Shadow(model, checkpoint_activations=checkpointed)
                (_train if reading.labels else _evaluate)(shadow, reading)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise BackboneError(
            f"The memory of a {config.model_type} backbone cannot be estimated: "
            f"{type(error).__name__}: {first} (backbone.check_memory=false does without.)"
        ) from error
    return tracker.peak + _quantized_workspace(model, stored, reading, resident)


def process_bytes(device: torch.device) -> int:
    """Bytes of a device's memory that this process holds: resident on a CPU, allocated on a GPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def reset_peak(device: torch.device) -> None:
    """Starts measuring :func:`peak_bytes` anew, where the system can.

    Only Linux forgets a process's peak; elsewhere the peak is that since the process started.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes(device: torch.device) -> int:
    """Most bytes of a device's memory that this process held since :func:`reset_peak`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    info: Any = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(largest if sys.platform == "darwin" else largest << 10)


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device; on a CPU no more than the process's control group allows."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return min(int(psutil.virtual_memory().available), _allowed_bytes())


def check_memory(
    config: PretrainedConfig,
    dtype: torch.dtype,
    quantization: Quantization,
    device: torch.device,
    *,
    dense_first: bool = False,
) -> None:
    """Refuses a model whose weights alone do not fit.

    Args:
        config: The architecture.
        dtype: Compute dtype.
        quantization: Storage of the linear layers.
        device: Where the model is to go.
        dense_first: Random weights are drawn dense before they are quantised.

    Raises:
        BackboneError: giving what is needed, what is free, and which option would make it fit.
    """
    source = Weights.random if dense_first else Weights.pretrained
    stored = Stored(dtype, quantization, source=source)

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
    """Refuses what does not fit, naming the changes that would make it fit.

    Args:
        what: What needs the memory, as the beginning of a sentence.
        needed: Bytes that it needs.
        free: Bytes that are free.
        device: Where.
        changes: Option to the bytes that would be needed with it.

    Raises:
        BackboneError: if needed bytes and headroom are more than what is free.
    """
    if needed * HEADROOM <= free:
        return
    found = {change: size() for change, size in changes.items()}
    fitting = [
        f"{change} ({readable_bytes(size)})"
        for change, size in found.items()
        if size * HEADROOM <= free
    ]
    if fitting:
        remedy = f"It would fit with {' or '.join(fitting)}."
    else:
        tried = "No option would make it smaller"
        if found:
            tried = f"None of {', '.join(found)} would make it fit by itself"
        remedy = f"{tried}: choose a smaller backbone or a larger device."
    raise BackboneError(
        f"{what} needs {readable_bytes(needed)} on {device}, but {readable_bytes(free)} are free, "
        f"and {HEADROOM} times as much must be. {remedy} (backbone.check_memory=false tries all "
        "the same.)"
    )


def readable_bytes(size: float) -> str:
    """Bytes as a person reads them."""
    if size < 2**30 / 10:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / 2**30:.2f} GiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operators return, as long as they are alive.

    ``torch.distributed._tools.mem_tracker.MemTracker`` does so too, by module and kind; here a
    storage counts with what it takes of the memory, which may be more than its size.

    Args:
        model: Its parameters and buffers are not counted.
        resident: Bytes of memory that a storage of a size takes.
    """

    def __init__(self, model: nn.Module, resident: Callable[[int], int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._resident = resident
        self._known = {
            tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]
        }
        self._live = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known:
                    size = self._resident(storage.nbytes())
                    self._known.add(storage._cdata)
                    self._live += size
                    weakref.finalize(storage, self._free, storage._cdata, size)
        self.peak = max(self.peak, self._live)
        return result

    def _free(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self._live -= size


class _Shadow(FrozenBackbone):
    """The same computation on fake tensors, without a tokenizer and without comparing numbers."""

    def __init__(self, model: PreTrainedModel, *, checkpoint_activations: bool = False) -> None:
        self._take(model, checkpoint_activations=checkpoint_activations)


def _train(backbone: FrozenBackbone, reading: Reading) -> None:
    """What the task does with a training batch, from the embeddings on."""
    batch, tokens = reading.batch, reading.tokens
    # A mask between positions, as sequences of different lengths get from transformers.
    mask = torch.ones(batch, tokens, tokens, dtype=torch.bool)
    embedded = torch.empty(batch, tokens, backbone.width, dtype=backbone.dtype, requires_grad=True)
    positions = torch.arange(tokens).expand(batch, -1)
    hidden = backbone.hidden(embedded, mask, positions, last=reading.labels)
    predicting = hidden[:, -reading.labels :].reshape(-1, backbone.width)
    targets = torch.zeros(len(predicting), dtype=torch.long)
    loss = functional.cross_entropy(backbone.logits(predicting), targets, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]


@torch.no_grad()
def _evaluate(backbone: FrozenBackbone, reading: Reading) -> None:
    """What the task does with an evaluation batch, from the embeddings on."""
    batch, tokens = reading.batch, reading.tokens + reading.nodes
    mask = torch.ones(batch, tokens, tokens, dtype=torch.bool)
    embedded = torch.empty(batch, tokens, backbone.width, dtype=backbone.dtype)
    hidden = backbone.hidden(embedded, mask, torch.arange(tokens).expand(batch, -1))
    places = hidden[:, -1 - reading.nodes :]
    # As FrozenBackbone.token_logp does, whose picking of numbers needs numbers; two rounds are the
    # height of any number of them.
    rows = max(1, _LOGITS_AT_ONCE // (batch * backbone.vocabulary))
    for start in range(0, min(places.shape[1], 2 * rows), rows):
        logp = backbone.logits(places[:, start : start + rows]).log_softmax(-1)
    del logp


def _on_meta(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            return _architecture(config, dtype, Attention.eager.value)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise BackboneError(
            f"transformers cannot build this {config.model_type} backbone: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)} Mend the sizes in its "
            "config.json, or in backbone.architecture."
        ) from error


def _architecture(
    config: PretrainedConfig, dtype: torch.dtype, implementation: str
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    # transformers writes dtype and attention into the config.
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        deepcopy(config), dtype=dtype, attn_implementation=implementation
    )
    model.eval().requires_grad_(requires_grad=False)
    return model


def _quantizable(model: PreTrainedModel) -> list[Any]:
    """The layers that quantisation stores in another way; GPT-2 calls them Conv1D."""
    head = model.get_output_embeddings()
    return [
        module
        for module in model.modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        and module is not head
    ]


def _quantized_bytes(stored: Stored) -> Callable[[Tensor], float]:
    """Bytes of a weight matrix, scales included."""
    if stored.quantization is Quantization.int8:
        return lambda weight: weight.numel() + 4 * weight.shape[0]
    # A scale for 64 weights: 32 bits; or 8, and 32 more for 256 scales.
    scale = 1 + 4 / 256 if stored.double_quantization else 4
    return lambda weight: weight.numel() * (0.5 + scale / 64)


def _quantized_workspace(
    model: PreTrainedModel, stored: Stored, reading: Reading, resident: Callable[[int], int]
) -> int:
    """What a quantised layer needs beside its dense twin while it is multiplied."""
    if stored.quantization is Quantization.none:
        return 0
    # The matrix is written out in the compute dtype, one layer at a time.
    matrices = [layer.weight.numel() * stored.dtype.itemsize for layer in _quantizable(model)]
    rows = reading.batch * (reading.tokens + reading.nodes)
    per_row = [
        # Input in float16 and in int8; product in int32, and twice in float32.
        3 * layer.weight.shape[1] + 12 * layer.weight.shape[0]
        if stored.quantization is Quantization.int8
        else 0
        for layer in _quantizable(model)
    ]
    return resident(max(matrices, default=0)) + resident(rows * max(per_row, default=0))


def _resident_bytes(
    stored: Stored, device: torch.device, *, training: bool
) -> Callable[[int], int]:
    """Bytes of memory that a block of a size takes."""
    if device.type != "cpu" or not _has_glibc():
        return int
    holes = _HOLES if stored.dtype is torch.float32 else _HOLES_HALF
    if stored.quantization is Quantization.int8:
        holes = _HOLES_INT8
    alone = _ALONE_IN_TRAINING if training else 1.0
    return lambda size: int(size * (alone if size >= _MAPPED_ALONE else holes))


def _has_glibc() -> bool:
    return sys.platform == "linux"


def _allowed_bytes() -> int:
    """What the control groups of this process leave, files that they may drop not counted."""
    return min(map(_left_bytes, _own_groups()), default=sys.maxsize)


def _own_groups() -> Iterator[Path]:
    """Folders of the groups, of both versions, that limit this process: its own and those above."""
    try:
        lines = _OWN_GROUPS.read_text("ascii").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CGROUP / "memory" if controllers else _CGROUP
        group = root / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _left_bytes(group: Path) -> int:
    for limit, used, files in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            left = int((group / limit).read_text("ascii")) - int((group / used).read_text("ascii"))
            lines = (group / "memory.stat").read_text("ascii").splitlines()
        except (OSError, ValueError):  # no such file, or "max"
            continue
        counts = dict(line.split() for line in lines)
        return left + int(counts.get(files, 0))
    return sys.maxsize
