"""Tries with a few tokens whether a language model can be a backbone, and what it can do faster."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from msea_lightning.backbone.errors import MODEL_FAILURES, BackboneError, is_out_of_memory
from msea_lightning.backbone.speed.last_layer import positionwise_modules
from msea_lightning.config.errors import first_line

if TYPE_CHECKING:
    from msea_lightning.backbone.frozen import FrozenBackbone

_log = logging.getLogger(__name__)

Found = TypeVar("Found")

_TOKENS, _PREFIX = 5, 2
"""Length of the sequence that is tried, and of its prefix."""


def self_check(backbone: FrozenBackbone) -> None:
    """Refuses a model that cannot be a backbone, and finds out what it can do faster.

    It sets ``caches_prefix``, ``caches_rows`` and ``last_modules``. A model that can do none of
    that gives the same results, only slower; the log says so.
    """
    try:
        with torch.no_grad():
            _check(backbone)
    except (*MODEL_FAILURES, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise BackboneError(
            f"Memory was full before {type(backbone.model).__name__} had read {_TOKENS} tokens on "
            f"{backbone.device} ({first_line(error)}). Free some, or make the backbone smaller: "
            "backbone.quantization=int8 or nf4, backbone.dtype=bfloat16."
        ) from error


def _check(backbone: FrozenBackbone) -> None:
    name = type(backbone.model).__name__
    count = min(_TOKENS, backbone.vocabulary)
    ids = torch.arange(count, device=backbone.device)[None]
    positions, embedded = ids.clone(), backbone.embed(ids)
    everything = torch.ones_like(ids, dtype=torch.bool)
    causal = everything.new_ones(1, count, count).tril()

    def own_logits() -> Tensor:
        if backbone.device.type == "meta":
            # Without numbers, what can be computed counts as right.
            return backbone.logits(backbone.hidden(embedded, causal, positions))
        logits: Tensor = backbone.model(input_ids=ids, use_cache=False).logits
        return logits.float()

    expected = _attempted(name, own_logits)
    # Reduced precision orders sums differently for different masks; wrong parts are far off.
    tolerance = 1e-3 if backbone.dtype.itemsize >= 4 and not backbone.quantized else 0.25
    scale = expected.std().clamp(min=1e-6)

    def difference(states: Tensor, start: int = 0) -> float:
        """Largest difference of the logits from a position on, in standard deviations."""
        found = (backbone.logits(states[:, start - count :]) - expected[:, start:]).abs().max()
        return 0.0 if found.is_meta else float(found / scale)

    def whole_difference(mask: Tensor) -> float:
        return difference(backbone.hidden(embedded, mask, positions))

    for what, mask in (
        ("its own logits", everything),
        ("the same logits under an explicit mask between positions", causal),
    ):
        # As in training, where recomputed layers may turn out to apply dropout.
        with torch.enable_grad():
            found = _attempted(name, partial(whole_difference, mask))
        if not found < tolerance:
            without = ", or backbone.checkpoint_activations=false: its layers apply dropout"
            raise BackboneError(
                f"{name} cannot be a backbone: its embeddings, layers and output head do not give "
                f"{what} (they differ by {found:.3g} standard deviations, at most {tolerance} is "
                "rounding). Choose a causal transformer with ordinary "
                f"attention{without if backbone.checkpoint_activations else ''}."
            )

    def prefix_is_right() -> bool:
        prefix = backbone.cached_prefix(range(_PREFIX))
        after, mask, at = (part[:, _PREFIX:] for part in (embedded, everything, positions))
        states = backbone.hidden(after, mask, at, prefix)
        return difference(states, _PREFIX) < tolerance

    # Recomputed layers drop the cache, and without explicit masks transformers counts positions.
    may_cache = backbone.explicit_masks and not backbone.checkpoint_activations
    backbone.caches_prefix = may_cache and count > _PREFIX
    backbone.caches_prefix = backbone.caches_prefix and _holds(prefix_is_right)

    def rows_are_right() -> bool:
        prefix = backbone.read([0], [[0, 1, 2], [0, 1]])
        after = torch.stack([embedded[0, 3:5], embedded[0, 2:4]])
        at = torch.stack([positions[0, 3:5], positions[0, 2:4]])
        states = backbone.hidden(after, everything[:, :2].expand(2, -1), at, prefix)
        wanted = torch.stack([expected[0, 3:5], expected[0, 2:4]])
        worst = (backbone.logits(states) - wanted).abs().max()
        return worst.is_meta or float(worst / scale) < tolerance

    backbone.last_modules = ()  # none is known yet
    backbone.caches_rows = backbone.caches_prefix and count == _TOKENS
    backbone.caches_rows = backbone.caches_rows and _holds(rows_are_right)

    def last_is_right() -> bool:
        states = backbone.hidden(embedded, everything, positions, last=1)
        return difference(states, count - 1) < tolerance

    layers = backbone.model.config.get_text_config().num_hidden_layers
    for names in (*positionwise_modules(backbone.body, layers), ()):
        backbone.last_modules = names
        if _holds(last_is_right):
            break
    slower = {
        "cache the prefix that all sequences share": may_cache and not backbone.caches_prefix,
        "continue from a text that was read before": (
            backbone.caches_prefix and not backbone.caches_rows
        ),
        "compute its last layer at the read positions only": not backbone.last_modules,
    }
    for what, cannot in slower.items():
        if cannot:
            _log.info("%s does not %s: slower, the same results", name, what)


def _attempted(name: str, compute: Callable[[], Found]) -> Found:
    """What a model of some name computes; its failures become BackboneErrors."""
    try:
        return compute()
    except MODEL_FAILURES as error:
        if is_out_of_memory(error):
            raise
        raise BackboneError(
            f"{name} cannot be a backbone: reading embeddings failed with "
            f"{type(error).__name__}: {error}"
        ) from error


def _holds(compute: Callable[[], bool]) -> bool:
    """Whether a computation succeeds and is right."""
    try:
        return compute()
    except MODEL_FAILURES as error:
        if is_out_of_memory(error):
            raise
        return False
