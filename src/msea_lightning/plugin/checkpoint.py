"""Reading checkpoints of the original implementation, which may come from anybody."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from msea_lightning.adapter.original import is_frozen
from msea_lightning.plugin.facts import PluginError


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a file; nothing in it is executed, and frozen tensors are not read.

    Raises:
        PluginError: if there is no such file, it cannot be read, or holds something else.
    """
    if not path.is_file():
        raise PluginError(
            f"{path} is no file: give what the original implementation saved, such as "
            "results/models/cmcm-mosei-regression.pth."
        )
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        found = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # in a broken file, a pickle's codes may go wrong in any way
        if unsafe := re.search(r"GLOBAL (\S+)", str(error)):
            raise PluginError(
                f"{path} holds the Python object {unsafe[1]}, which could execute anything and is "
                "not loaded. Save the state dict alone, torch.save(model.state_dict(), path), with "
                "the code that made the file."
            ) from error
        raise PluginError(
            f"{path} cannot be read as a checkpoint of PyTorch: it is damaged, or something else. "
            "Copy it again."
        ) from error
    if not isinstance(found, Mapping):
        raise PluginError(f"{path} holds no state dict but one {type(found).__name__}.")
    return {str(name): tensor for name, tensor in found.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {
            name: torch.empty(file.get_slice(name).get_shape(), device="meta")
            if is_frozen(name)
            else file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 (no mapping)
        }
