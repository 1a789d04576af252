"""Views: module trees that share the weights of a model and differ from it in a few modules.

The language model itself is never changed, not even for the time of a call: no hook, no patched
method, no switched mode. What :class:`~msea_lightning.backbone.FrozenBackbone` computes differently
is computed by a view, so that several threads can use one model at the same time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig


def replaced(module: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """A view with what ``replace`` gives for its modules, None where one stays.

    The module itself where nothing is replaced.
    """
    if (new := replace(module)) is not None:
        return new
    children = {name: child and replaced(child, replace) for name, child in module._modules.items()}
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    return _shell(module, children)


def with_attention(body: nn.Module, implementation: str) -> nn.Module:
    """A view that computes its attention by another implementation, such as ``sdpa``."""
    copies: dict[int, Any] = {}  # of the configs, which the modules share

    def view(module: nn.Module) -> nn.Module:
        children = {name: child and view(child) for name, child in module._modules.items()}
        config = getattr(module, "config", None)
        if not children and config is None:
            return module
        shell: Any = _shell(module, children)
        if isinstance(config, PreTrainedConfig):
            shell.config = copy.deepcopy(config, copies)
            shell.config._attn_implementation = implementation
        return cast("nn.Module", shell)

    return view(body)


def checkpointed(layer: nn.Module) -> nn.Module:
    """A view of a layer that keeps its input and computes the rest again in the backward pass.

    A ``GradientCheckpointingLayer`` does so in training mode only; what is inside of it stays in
    evaluation mode.
    """
    view: Any = _shell(layer, layer._modules)
    view.training = view.gradient_checkpointing = True
    view._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    return cast("nn.Module", view)


def _shell(module: nn.Module, children: Mapping[str, nn.Module | None]) -> nn.Module:
    """A module with the same weights, buffers and attributes, and other children."""
    shell: nn.Module = type(module).__new__(type(module))
    shell.__dict__.update(module.__dict__)
    shell.__dict__["_modules"] = dict(children)
    return shell
