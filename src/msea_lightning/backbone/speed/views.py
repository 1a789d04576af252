"""Views: module trees that share the weights of a model and differ from it in a few modules.

The language model itself is never changed, not even for the time of a call: no hook, no patched
method, no switched mode. What :class:`~msea_lightning.backbone.FrozenBackbone` computes differently
is computed by a view, so that several threads can use one model at the same time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from types import MethodType
from typing import Any, cast

from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
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
    # A hook that has brought weights has to take them away: the second pass must not end early.
    hooked = any("_hf_hook" in module.__dict__ for module in layer.modules())
    once_more = _checkpoint_whole if hooked else checkpoint
    view._gradient_checkpointing_func = partial(once_more, use_reentrant=False)
    return cast("nn.Module", view)


def _checkpoint_whole(*args: Any, **options: Any) -> Any:
    """PyTorch's ``checkpoint``, whose second pass goes to its end."""
    with set_checkpoint_early_stop(False):
        return checkpoint(*args, **options)


def _shell(module: nn.Module, children: Mapping[str, nn.Module | None]) -> nn.Module:
    """A module with the same weights, buffers and attributes, and other children."""
    shell: nn.Module = type(module).__new__(type(module))
    shell.__dict__.update(module.__dict__)
    shell.__dict__["_modules"] = dict(children)
    if "_hf_hook" in module.__dict__:
        # accelerate's hook has the module compute that it was set on, with that one's children.
        shell.__dict__["_old_forward"] = MethodType(type(module).forward, shell)
        shell.__dict__["forward"] = partial(module.__dict__["forward"].func, shell)
    return shell
