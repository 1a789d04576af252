"""Whether the texts of a run are kept once they are read, and where."""

from __future__ import annotations

import logging
import time
from functools import partial

import torch

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.loading.memory import free_bytes, readable_bytes
from msea_lightning.backbone.options import TextCache
from msea_lightning.backbone.speed.read_once import (
    DiskShelf,
    Layers,
    MemoryShelf,
    ReadOnce,
    Shelf,
    model_key,
)
from msea_lightning.config.logging import log_once
from msea_lightning.config.roots import RunConfig
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.prepare import cache_folder
from msea_lightning.language.prompt import Prompt
from msea_lightning.model.adapted_lm import AdaptedLM

_log = logging.getLogger(__name__)

_GIB = 2**30

_PART_OF_MEMORY = 0.5
"""Of the memory that is free: the rest is for training."""


def keep_texts(config: RunConfig, model: AdaptedLM, data: UtteranceDataModule) -> None:
    """Lets the language model keep what it reads of the texts of all splits, where that fits.

    Either all of them are kept or none, so that a run that is resumed computes the same.
    """
    options, backbone = config.backbone, model.backbone
    texts = texts_read_once(model.prompt, model.adapter.use_text, data)
    tokens = sum(map(len, texts))
    # A trial of one batch would spend its time on reading all texts.
    wanted = options.cache is not TextCache.none and not config.trainer.fast_dev_run
    if not tokens or not wanted or not backbone.caches_rows:
        return
    one = Layers.of(backbone.recorded(None, [[backbone.pad_id]]))
    size = one.bytes(tokens, options.cache_dtype, backbone.dtype)
    limit = int(options.cache_limit * _GIB)
    where = options.cache.value
    if options.cache is TextCache.memory:
        limit = min(limit, int(_PART_OF_MEMORY * free_bytes(torch.device("cpu"))))
    text = f"{len(texts):,} different texts before the pseudo tokens: {readable_bytes(size)}"
    if size > limit:
        log_once(
            _log,
            f"{text} is more than the {readable_bytes(limit)} that may be kept in {where} "
            "(backbone.cache_limit); they are read for every batch",
        )
        return
    backbone.read_once = ReadOnce(
        _shelf(config, backbone, limit), options.cache_dtype, backbone.dtype, backbone.device, one
    )
    log_once(_log, f"{text}, read once and kept in {where}")
    started = time.perf_counter()
    shared = model.prompt.prefix_ids
    compute = partial(backbone.recorded, backbone.cached_prefix(shared))
    if read := backbone.read_once.fill(shared, texts, compute):
        _log.info("%s texts read in %.0f s", f"{read:,}", time.perf_counter() - started)


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


def _shelf(config: RunConfig, backbone: FrozenBackbone, limit: int) -> Shelf:
    if config.backbone.cache is TextCache.memory:
        return MemoryShelf()
    key = model_key(
        {
            "model": backbone.fingerprint(),
            "dtype": str(backbone.dtype),
            "kept": config.backbone.cache_dtype.value,
            "attention": backbone.model.config._attn_implementation,
            "device": backbone.device.type,
        }
    )
    return DiskShelf(cache_folder(config.dataset) / "texts" / key, limit)
