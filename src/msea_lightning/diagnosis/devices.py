"""Devices with their memory, and the disks that fill up."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from msea_lightning.backbone.options import Accelerator
from msea_lightning.config.errors import UserError
from msea_lightning.data.options import DatasetConfig
from msea_lightning.diagnosis.packages import one_line
from msea_lightning.features.processes import usable_cores

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Device:
    """A CPU or GPU, its memory in bytes.

    Attributes:
        name: ``cpu``, or ``cuda:0`` and so on.
        dtype: Dtype in which a backbone computes there unless ``backbone.dtype`` says otherwise.
        bfloat16: Whether it has bfloat16 in hardware; None where that is not known.
    """

    name: str
    model: str
    total: int
    free: int
    dtype: str
    bfloat16: bool | None = None


@dataclass(frozen=True)
class Disk:
    """A folder that grows, and the bytes that are free on its disk."""

    use: str
    folder: str
    free: int


@dataclass(frozen=True)
class Machine:
    """The CPU, the GPUs that PyTorch sees, and which of them a run would use.

    The flaw says why one cannot be used, though it is there or asked for.
    """

    devices: list[Device]
    chosen: str
    flaw: str = ""
    remedy: str = ""

    @property
    def device(self) -> Device:
        """The device that a run would use."""
        return next(device for device in self.devices if device.name == self.chosen)


def find_machine(accelerator: Accelerator) -> Machine:
    """Devices with their memory, and the one that ``trainer.accelerator`` chooses."""
    memory = psutil.virtual_memory()
    model = f"{usable_cores()} cores, {platform.machine()}"
    cpu = Device("cpu", model, int(memory.total), int(memory.available), "float32")
    devices, chosen, flaw, remedy = [cpu], "cpu", "", ""
    try:
        import torch

        from msea_lightning.backbone import resolve_device
        from msea_lightning.backbone.loading.memory import free_bytes

        devices = [replace(cpu, free=free_bytes(torch.device("cpu")))]
        devices += [_gpu(index) for index in range(torch.cuda.device_count())]
        chosen = str(resolve_device(accelerator))
        if accelerator is not Accelerator.cpu and len(devices) == 1:
            flaw, remedy = _unseen_gpu(torch.version.cuda or torch.version.hip)
    except Exception as error:  # PyTorch itself, or its driver, is broken
        flaw = str(error) if isinstance(error, UserError) else one_line(error)
    return Machine(devices, chosen, flaw, remedy)


def _gpu(index: int) -> Device:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    name = torch.cuda.get_device_name(index)
    return Device(f"cuda:{index}", name, total, free, "bfloat16", bfloat16)


def _unseen_gpu(build: str | None) -> tuple[str, str]:
    """Flaw and remedy where PyTorch sees no GPU although its driver is there."""
    if not _DRIVER.exists() and shutil.which("nvidia-smi") is None:
        return "", ""
    flaw = "an NVIDIA driver is there, but PyTorch "
    if build is None:
        return f"{flaw}is a build for CPUs alone", "pip install --force-reinstall torch"
    hint = "shows whether driver and GPU work; CUDA_VISIBLE_DEVICES may hide the GPU"
    return f"{flaw}(CUDA {build}) sees no GPU", f"nvidia-smi  # {hint}"


def find_disks() -> list[Disk]:
    """The disks that fill up with downloads, stores and checkpoints."""
    from huggingface_hub import constants

    from msea_lightning.data.prepare import cache_folder

    hub = Path(constants.HF_HUB_CACHE)
    disks = []
    for use, folder in (("data sets", cache_folder(DatasetConfig())), ("backbones", hub)):
        absolute = folder.expanduser().absolute()
        existing = next(path for path in (absolute, *absolute.parents) if path.exists())
        disks.append(Disk(use, str(folder), shutil.disk_usage(existing).free))
    return disks
