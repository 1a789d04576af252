"""Whether the texts of a run are kept once they are read, and where."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from msea_lightning.backbone import BackboneError, FrozenBackbone
from msea_lightning.backbone.loading.memory import free_bytes, kept_in_memory, readable_bytes
from msea_lightning.backbone.options import CacheDtype, TextCache
from msea_lightning.backbone.speed.read_once import (
    DiskShelf,
    MemoryShelf,
    ReadOnce,
    Shelf,
    TokenShape,
    model_key,
)
from msea_lightning.config.logging import log_once
from msea_lightning.config.roots import RunConfig
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.prepare import cache_folder
from msea_lightning.language.prompt import Prompt
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.training.ranks import agree

_log = logging.getLogger(__name__)


def keep_texts(config: RunConfig, model: AdaptedLM, data: UtteranceDataModule) -> None:
    """Lets the language model keep what it reads of the texts of all splits, where that fits.

    Either all of them are kept or none. Of joined processes the first decides for all, so that
    they compute the same; each keeps its own.

    Raises:
        BackboneError: the texts cannot be kept, and were to be rounded (``backbone.cache_dtype``):
            a run whose texts are rounded at one time and not at another is not one run. Or the
            folder of texts cannot be written.
    """
    options, backbone = config.backbone, model.backbone
    texts = texts_read_once(model.prompt, model.adapter.use_text, data)
    if not texts:
        _refuse_rounding(config, "the sequences have no text before the pseudo tokens")
        return
    if why := unkept(config) or _unable(backbone):
        _refuse_rounding(config, why)
        whole = "" if backbone.caches_rows else ", as a part of the whole sequence"
        log_once(
            _log,
            f"texts before the pseudo tokens are read for every batch{whole}: {why}",
            level=logging.WARNING if options.cache is TextCache.disk else logging.INFO,
        )
        return
    shape = TokenShape.of(backbone.recorded(None, [[backbone.pad_id]]))
    size = shape.size(sum(map(len, texts)), options.cache_dtype, backbone.dtype)
    limit, where = options.cache_bytes, "on disk"
    if options.cache is TextCache.memory:
        where = "in memory"
        free = free_bytes(torch.device("cpu"))
        limit = agree(partial(kept_in_memory, limit, free, config.trainer.devices))
    text = f"{len(texts):,} different texts before the pseudo tokens: {readable_bytes(size)}"
    if size > limit:
        why = (
            f"{text} is more than the {readable_bytes(limit)} that may be kept {where} "
            "(backbone.cache_limit)"
        )
        _refuse_rounding(config, why)
        log_once(_log, f"{why}; they are read for every batch")
        return
    log_once(_log, f"{text}, read once and kept {where}")
    started = time.perf_counter()
    shared = model.prompt.prefix_ids
    compute = partial(backbone.recorded, backbone.cached_prefix(shared))
    folder = cache_folder(config.dataset) / "texts"
    try:
        shelf: Shelf = MemoryShelf()
        if options.cache is TextCache.disk:
            shelf = DiskShelf(folder / _key(config, backbone), limit)
        backbone.read_once = ReadOnce(shelf, options.cache_dtype, backbone.dtype, shape)
        read = backbone.read_once.fill(shared, texts, compute)
    except OSError as error:
        raise BackboneError(
            f"backbone.cache=disk: {folder} cannot be used ({error}). Free some room, "
            "choose another folder with dataset.cache, or set backbone.cache=memory or none."
        ) from error
    if read:
        _log.info("%s texts read in %.0f s", f"{read:,}", time.perf_counter() - started)


def unkept(config: RunConfig) -> str | None:
    """Why a run with these options keeps no texts; None where it may."""
    options, epochs = config.backbone, config.training.schedule_epochs
    exact = options.cache_dtype is CacheDtype.exact
    reasons = {
        "backbone.cache=none": options.cache is TextCache.none,
        "trainer.fast_dev_run=true tries one batch": config.trainer.fast_dev_run,
        "backbone.checkpoint_activations=true leaves no keys and values": (
            options.checkpoint_activations
        ),
        "backbone.device_map=auto has layers on several devices": options.device_map is not None,
        f"training.schedule_epochs={epochs} reads them once": (
            epochs < 2 and exact and options.cache is TextCache.memory
        ),
        "training.schedule_epochs=0 trains nothing": epochs == 0 and not exact,
    }
    return next((why for why, holds in reasons.items() if holds), None)


def _unable(backbone: FrozenBackbone) -> str | None:
    """Why a language model cannot go on from texts that it has read; None where it can."""
    if backbone.caches_rows:
        return None
    if not backbone.explicit_masks:
        attention = backbone.model.config._attn_implementation
        return f"attention {attention} takes no masks between positions (backbone.attention)"
    return f"{type(backbone.model).__name__} cannot go on from a text that was read before"


def _refuse_rounding(config: RunConfig, why: str) -> None:
    how = config.backbone.cache_dtype
    if how is CacheDtype.exact or config.trainer.fast_dev_run:
        return
    raise BackboneError(
        f"backbone.cache_dtype={how.value} rounds texts that are kept, but none are: {why}. Leave "
        "it out, or change that."
    )


def texts_read_once(
    prompt: Prompt, use_text: bool, data: UtteranceDataModule
) -> set[tuple[int, ...]]:
    """What different sequences have before the pseudo tokens and after their common prefix.

    Of all splits, as token ids; nothing where pseudo tokens come first.
    """
    shared = len(prompt.prefix_ids)
    found: set[tuple[int, ...]] = set()
    for split in data.splits.values():
        assert split.tokens is not None
        texts = prompt.pad_texts(split.tokens, split.contexts) if use_text else None
        found.update(tuple(row[shared:]) for row in prompt.leading(texts, len(split)))
    return found - {()}


def _key(config: RunConfig, backbone: FrozenBackbone) -> str:
    """The key of all that keys and values depend on, besides the token ids."""
    options, device = config.backbone, backbone.device
    architecture: dict[str, Any] = json.loads(backbone.model.config.to_json_string(use_diff=False))
    architecture.pop("_name_or_path", None)  # where it lies
    packages = ["torch", "transformers", *(["bitsandbytes"] if backbone.quantized else [])]
    text = json.dumps(architecture, sort_keys=True)
    return model_key(
        {
            "model": backbone.fingerprint(),
            "architecture": hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(),
            "stored": [options.quantization.value, options.double_quantization],
            "dtype": str(backbone.dtype),
            "kept": options.cache_dtype.value,
            "attention": backbone.model.config._attn_implementation,
            "versions": {name: version(name) for name in packages},
            "device": (
                torch.cuda.get_device_name(device)
                if device.type == "cuda"
                else [device.type, platform.machine(), torch.backends.cpu.get_cpu_capability()]
            ),
        }
    )
