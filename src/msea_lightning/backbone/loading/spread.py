"""A frozen language model over several GPUs, the machine's memory and its disk.

accelerate places the layers, and its hooks bring a layer's weights from the memory or the disk to
where it is computed, whenever it is. What is planned here, before anything is loaded, is what is
loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from msea_lightning.backbone.errors import BackboneError
from msea_lightning.backbone.loading.memory import (
    HEADROOM,
    Stored,
    architecture_on_meta,
    free_bytes,
    quantizable_layers,
    readable_bytes,
)
from msea_lightning.backbone.options import Quantization, memory_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Place = int | str
"""The number of a GPU, ``cpu`` or ``disk``."""

_SPARED = 0.25
"""Part of the free memory that is left to a step, where nobody says how much one takes."""


@dataclass(frozen=True)
class Spread:
    """Where the layers of a language model lie.

    Attributes:
        places: The place of each module, by its name, as accelerate's ``device_map``.
        sizes: Bytes of weights by place.
        visiting: Bytes of the largest layer that is brought to a device for its computation; 0
            where all layers are computed where they lie.
    """

    places: Mapping[str, Place]
    sizes: Mapping[Place, int]
    visiting: int

    def __str__(self) -> str:
        """What lies where, such as ``12.1 GiB on cuda:0, 30.0 GiB on cpu``."""
        return spread_words(self.named_sizes)

    @property
    def named_sizes(self) -> dict[str, int]:
        """Bytes of weights by the name of a device, or ``disk``."""
        return {
            place if isinstance(place, str) else f"cuda:{place}": size
            for place, size in self.sizes.items()
        }

    def on(self, device: torch.device) -> int:
        """Bytes of weights that a device holds at once, those of a visiting layer among them."""
        place = (device.index or 0) if device.type == "cuda" else device.type
        return self.sizes.get(place, 0) + self.visiting


def plan_spread(
    config: PretrainedConfig,
    stored: Stored,
    device: torch.device,
    *,
    max_memory: Mapping[Any, Any] | None = None,
    reserve: int | None = None,
    check_fit: bool = True,
) -> Spread:
    """Places the layers of an architecture; nothing of it is allocated.

    GPUs are filled first, evenly, then the machine's memory, then the disk.

    Args:
        config: The architecture.
        stored: How its weights are kept.
        device: Where the run computes; on a CPU no GPU is used.
        max_memory: Bytes, or texts such as ``20GiB``, of weights that each place may hold; a place
            that is not named holds none, but the disk holds the rest. What is free where not given.
        reserve: Bytes that each device keeps free for a step, where ``max_memory`` is not given;
            a quarter of it where not given either.
        check_fit: Refuse a ``max_memory`` beyond what is free.

    Raises:
        BackboneError: a place that is not there or has not so much, or one that bitsandbytes cannot
            use.
    """
    from accelerate.utils import (
        compute_module_sizes,
        get_balanced_memory,
        get_max_layer_size,
        infer_auto_device_map,
    )

    model = architecture_on_meta(config, stored.dtype)
    if max_memory is None:
        limits = _free(device, reserve)
    else:
        limits = {_place(place): memory_bytes(size) for place, size in max_memory.items()}
        _check_limits(limits, device, check_fit)
    kept = _dtypes(model, stored)
    whole: Any = model._no_split_modules
    options: dict[str, Any] = {"no_split_module_classes": list(whole or []), **kept}
    balanced = get_balanced_memory(model, dict(limits), **options)
    places: dict[str, Place] = dict(infer_auto_device_map(model, balanced, **options))
    of_module = compute_module_sizes(model, **kept)
    sizes: dict[Place, int] = {}
    for place in dict.fromkeys((*limits, "disk")):
        held = int(sum(of_module[name] for name, where in places.items() if where == place))
        if held:
            sizes[place] = held
    computing = [place for place in sizes if place not in ("cpu", "disk")] or ["cpu"]
    largest = int(get_max_layer_size(list(model.named_children()), of_module, list(whole or []))[0])
    spread = Spread(places, sizes, largest if set(sizes) - set(computing) else 0)
    _check(spread, stored, limits, computing)
    return spread


def spread_words(sizes: Mapping[str, int]) -> str:
    """What lies where, of bytes by place."""
    return ", ".join(f"{readable_bytes(size)} on {place}" for place, size in sizes.items())


def offloads(model: nn.Module) -> bool:
    """Whether weights of a loaded model are brought to a device for each computation."""
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    return any(getattr(hook, "offload", False) for hook in hooks)


def is_spread(model: nn.Module) -> bool:
    """Whether a loaded model has its layers at several places."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def computing_device(module: nn.Module) -> torch.device:
    """Where a module with a weight computes, wherever its weight lies meanwhile."""
    hook = getattr(module, "_hf_hook", None)
    weight = module.weight
    assert isinstance(weight, Tensor)
    if hook is None or hook.execution_device is None:
        return weight.device
    place = hook.execution_device
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


def stored_weight(model: PreTrainedModel, name: str, weight: Tensor) -> Tensor:
    """A weight of a loaded model with its numbers, from the memory or the disk where it lies."""
    from transformers.integrations.accelerate import load_offloaded_parameter

    return load_offloaded_parameter(model, name) if weight.is_meta and offloads(model) else weight


def _free(device: torch.device, reserve: int | None) -> dict[Place, int]:
    """What each place has for weights; the disk has the rest."""
    computing = [device]
    if device.type == "cuda":
        computing = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    limits: dict[Place, int] = {}
    for one in (*computing, torch.device("cpu")):
        free = int(free_bytes(one) / HEADROOM)
        spared = int(free * _SPARED) if reserve is None else reserve
        place = one.index if one.type == "cuda" else "cpu"
        limits.setdefault(place, max(0, free - (spared if one in computing else 0)))
    return limits


def _place(name: Any) -> Place:
    return int(name) if str(name).isdigit() else str(name)


def _check_limits(limits: Mapping[Place, int], device: torch.device, check_fit: bool) -> None:
    """Refuses places that the run does not have, and sizes that are not free there."""
    gpus = range(torch.cuda.device_count() if device.type == "cuda" else 0)
    there: dict[Place, torch.device] = {index: torch.device("cuda", index) for index in gpus}
    there["cpu"] = torch.device("cpu")
    for place, size in limits.items():
        if place == "disk":
            continue
        if place not in there:
            raise BackboneError(
                f"backbone.max_memory names {place}, but the run computes on {device} and can use "
                f"{', '.join(map(str, there))} and disk: leave it out, or see trainer.accelerator."
            )
        if check_fit and size > (free := free_bytes(there[place])):
            raise BackboneError(
                f"backbone.max_memory gives {place} {readable_bytes(size)} of weights, but "
                f"{readable_bytes(free)} are free there: give it less. "
                "(backbone.check_memory=false tries all the same.)"
            )


def _dtypes(model: PreTrainedModel, stored: Stored) -> dict[str, Any]:
    """What accelerate has to know of the weights that are not kept in the model's own dtype."""
    from accelerate.utils import CustomDtype

    if stored.quantization is Quantization.none:
        return {}
    layers = set(map(id, quantizable_layers(model)))
    quantized = {f"{name}.weight" for name, module in model.named_modules() if id(module) in layers}
    dense = {name: stored.dtype for name, _ in model.named_parameters() if name not in quantized}
    bits = {Quantization.int8: torch.int8, Quantization.nf4: CustomDtype.INT4}
    return {"dtype": bits[stored.quantization], "special_dtypes": dense}


def _check(
    spread: Spread, stored: Stored, limits: Mapping[Place, int], computing: list[Place]
) -> None:
    """Refuses a spread in which nothing can be computed, or what bitsandbytes cannot keep."""
    if not set(computing) & spread.sizes.keys():
        given = ", ".join(f"{place} {readable_bytes(size)}" for place, size in limits.items())
        raise BackboneError(
            f"No layer of the language model has room where it is computed ({given}): the largest "
            f"takes {readable_bytes(spread.visiting)}, and so much more is kept for a layer that "
            "visits. Give a GPU or cpu more in backbone.max_memory, or free memory."
        )
    if stored.quantization is not Quantization.none and spread.visiting:
        raise BackboneError(
            f"backbone.quantization={stored.quantization.value}: bitsandbytes keeps its layers "
            f"where they are computed, but they do not fit there ({spread}). Leave it at none, or "
            "choose a smaller backbone."
        )
