"""Several threads use one backbone at the same time and get what one after the other gets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from msea_lightning.backbone import FrozenBackbone, load_backbone
from tests.backbone.test_frozen import CONFIGS, random_model

ROUNDS = 12
Work = Callable[[], list[Tensor]]


def train(backbone: FrozenBackbone, prefix: list[int], last: int | None, seed: int) -> list[Tensor]:
    """Last states of a batch and the gradient of its embeddings."""
    embedded, mask, positions = batch(backbone, prefix, seed)
    embedded.requires_grad_()
    cache = backbone.cached_prefix(prefix)
    states = backbone.hidden(embedded, mask, positions, cache, last=last)[:, -2:]
    (gradient,) = torch.autograd.grad(states.float().square().sum(), embedded)
    return [states.detach(), gradient]


def evaluate(
    backbone: FrozenBackbone, prefix: list[int], last: int | None, seed: int
) -> list[Tensor]:
    """Last states of a batch whose positions attend to themselves and the two before them."""
    embedded, mask, positions = batch(backbone, prefix, seed)
    width = mask.shape[1]
    band = torch.ones(width, width, dtype=torch.bool).tril().triu(-2)
    with torch.no_grad():
        between = band.expand(len(mask), -1, -1)
        cache = backbone.cached_prefix(prefix)
        return [backbone.hidden(embedded, between, positions, cache, last=last)[:, -2:]]


def generate(backbone: FrozenBackbone, seed: int) -> list[Tensor]:
    """What the language model itself writes."""
    ids = torch.tensor([[5, 9, 3, 17 + seed]])
    written = backbone.model.generate(
        ids, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return [written.sequences, *written.logits]


def batch(backbone: FrozenBackbone, prefix: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (3, 6 + seed % 3), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :2] = False
    before = len(prefix) if backbone.caches_prefix else 0
    return backbone.embed(ids), mask, (mask.long().cumsum(-1) - 1).clamp(min=0) + before


def works(backbone: FrozenBackbone) -> list[Work]:
    """All ways to use a backbone: with and without gradients, prefixes, and `last`."""
    prefixes: list[list[int]] = [[], [5, 9], [7, 3, 11]]
    found: list[Work] = [
        partial(way, backbone, prefix, last, seed)
        for seed, (way, prefix, last) in enumerate(
            (way, prefix, last)
            for way in (train, evaluate)
            for prefix in prefixes
            for last in (None, 2, 4)
        )
    ]
    return [*found, partial(generate, backbone, 0), partial(generate, backbone, 1)]


def check(backbone: FrozenBackbone) -> None:
    """Compares four threads that begin at the same moment with one after the other."""
    todo = works(backbone)
    expected = [work() for work in todo]
    together = threading.Barrier(4)

    def run(order: list[int]) -> list[tuple[int, list[Tensor]]]:
        torch.set_num_threads(1)
        together.wait()
        return [(index, todo[index]()) for index in order]

    backbone._prefixes.clear()
    orders = [
        torch.randperm(len(todo), generator=torch.Generator().manual_seed(seed)).tolist()
        for seed in range(4)
    ]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(run, orders):
            for index, tensors in found:
                for one, other in zip(tensors, expected[index], strict=True):
                    assert torch.equal(one, other), todo[index]


@pytest.fixture(autouse=True)
def _one_thread_per_operator() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("checkpoint_activations", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_all_uses_at_once(
    kind: str, checkpoint_activations: bool, backbone: FrozenBackbone
) -> None:
    model = random_model(kind, backbone.tokenizer)
    before = state(model)
    frozen = FrozenBackbone(
        model,
        backbone.tokenizer,
        pad_token="<pad>",
        checkpoint_activations=checkpoint_activations,
    )
    own = [work() for work in works(frozen)[-2:]]
    for _ in range(ROUNDS // 4):
        check(frozen)
    assert state(model) == before
    # It generates what it generated before, bit for bit.
    plain = FrozenBackbone.__new__(FrozenBackbone)
    plain.model = random_model(kind, backbone.tokenizer).eval()
    for seed, found in enumerate(own):
        for one, other in zip(found, generate(plain, seed), strict=True):
            assert torch.equal(one, other)


def test_an_attention_without_masks_between_positions(
    backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As flash attention, which is not here: whatever is neither sdpa nor eager."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "another", sdpa_attention_forward)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "another", sdpa_mask)
    model = random_model("llama", backbone.tokenizer)
    model.set_attn_implementation("another")
    check(FrozenBackbone(model, backbone.tokenizer))
    assert model.config._attn_implementation == "another"


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantised_layers(quantization: str) -> None:
    check(load_backbone(None, quantization=quantization))


def state(model: torch.nn.Module) -> list[tuple[object, ...]]:
    """What could be left behind on each module: its class, mode, attributes and hooks."""
    return [
        (
            name,
            type(module),
            module.training,
            sorted(key for key in vars(module) if not key.startswith("_is_hf")),
            *(len(vars(module)[key]) for key in sorted(vars(module)) if key.endswith("_hooks")),
        )
        for name, module in model.eval().named_modules()
    ]
