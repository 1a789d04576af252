"""A language model over several places: devices, memory and disk."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from msea_lightning.backbone import (
    BackboneError,
    FrozenBackbone,
    backbone_config,
    load_language_model,
    load_tokenizer,
)
from msea_lightning.backbone.loading import spread as module
from msea_lightning.backbone.loading.load import tiny_backbone
from msea_lightning.backbone.loading.memory import Stored, peak_bytes, process_bytes, reset_peak
from msea_lightning.backbone.loading.spread import Spread, plan_spread
from msea_lightning.backbone.options import Quantization
from msea_lightning.config.roots import TrainConfig
from msea_lightning.training.fit import fit

CPU = torch.device("cpu")
GIB = 2**30
TIGHT = {"cpu": "3MiB"}
"""Of the 3.4 MiB of the tiny language model, with room for its largest layer."""


def planned(
    folder: Path, max_memory: Mapping[Any, Any], dtype: torch.dtype = torch.float32
) -> Spread:
    config = backbone_config(str(folder))
    return plan_spread(config, Stored(dtype), CPU, max_memory=max_memory)


def loaded(folder: Path, spread: Spread | None) -> FrozenBackbone:
    model = load_language_model(folder, dtype="float32", spread=spread)
    return FrozenBackbone(model, load_tokenizer(str(tiny_backbone())))


def step(backbone: FrozenBackbone) -> tuple[Tensor, Tensor]:
    """A loss, and its gradient at what the language model reads."""
    ids = torch.randint(0, 1000, (4, 24), generator=torch.Generator().manual_seed(0))
    mask, positions = torch.ones(4, 24, dtype=torch.bool), torch.arange(24).expand(4, -1)
    mask[1, :9] = False
    read = backbone.embed(ids).clone().requires_grad_()
    states = backbone.hidden(read, mask, positions, last=2)[:, -2:]
    loss = backbone.logits(states).log_softmax(-1)[..., 7].sum()
    loss.backward()
    assert read.grad is not None
    return loss.detach(), read.grad


@pytest.fixture(scope="module")
def spread_tiny() -> FrozenBackbone:
    spread = planned(tiny_backbone(), TIGHT)
    assert set(spread.sizes) == {"cpu", "disk"}
    assert spread.sizes["cpu"] <= 3 * 2**20
    assert sum(spread.sizes.values()) == pytest.approx(4 * 883_392, rel=1e-4)  # and buffers
    return loaded(tiny_backbone(), spread)


def test_loss_and_gradients_are_those_of_one_device(spread_tiny: FrozenBackbone) -> None:
    one = loaded(tiny_backbone(), None)
    for expected, found in zip(step(one), step(spread_tiny), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert any(weight.is_meta for weight in spread_tiny.model.parameters())
    assert spread_tiny.device == CPU
    assert spread_tiny.fingerprint() == one.fingerprint()
    assert spread_tiny.last_modules == one.last_modules


def test_it_generates_what_it_generated(spread_tiny: FrozenBackbone) -> None:
    ids = torch.tensor([[1, 70, 71]])
    told = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 3}
    one: Any = load_language_model(tiny_backbone())
    spread: Any = spread_tiny.model
    assert torch.equal(spread.generate(ids, **told), one.generate(ids, **told))


def test_threads_take_turns(spread_tiny: FrozenBackbone) -> None:
    expected = step(spread_tiny)[0]
    ids = torch.arange(24).expand(4, -1)

    def states(_: int) -> Tensor:
        with torch.no_grad():
            mask = torch.ones_like(ids, dtype=torch.bool)
            return spread_tiny.hidden(spread_tiny.embed(ids), mask, ids)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(states, range(8)))
    assert all(torch.equal(one, found[0]) for one in found)
    assert step(spread_tiny)[0] == expected


def test_it_stays_where_it_is(spread_tiny: FrozenBackbone) -> None:
    assert spread_tiny.to(CPU) is spread_tiny
    with pytest.raises(BackboneError, match="spread backbone was loaded on cpu"):
        spread_tiny.to(torch.device("meta"))


def test_weights_beyond_the_memory_they_may_take(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=backbone_config(str(tiny_backbone())).vocab_size,
        **{"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4},
        num_hidden_layers=24,
    )
    published = LlamaForCausalLM(config).to(torch.bfloat16)
    weights = 4 * sum(weight.numel() for weight in published.parameters())
    published.save_pretrained(tmp_path)
    del published
    gc.collect()
    allowed = weights // 6
    backbone = loaded(tmp_path, planned(tmp_path, {"cpu": allowed}))

    def held() -> int:
        weights = backbone.model.parameters()
        return 4 * sum(weight.numel() for weight in weights if not weight.is_meta)

    in_memory = held()
    assert 0 < in_memory <= allowed
    gc.collect()
    before = process_bytes(CPU)
    reset_peak(CPU)
    step(backbone)
    # A layer at a time, and the activations: 5 to 31 MiB, where all layers would be 75.
    assert peak_bytes(CPU) - before < weights // 2
    assert held() == in_memory
    assert all(weight.grad is None for weight in backbone.model.parameters())


def test_a_run_on_it_is_the_run_on_one_device(options: Callable[..., TrainConfig]) -> None:
    small = ("training.schedule_epochs=1", "dataset.demo_utterances=60")
    one = fit(options(*small))
    spread = ["backbone.device_map=auto", "backbone.max_memory={cpu: 3MiB}"]
    other = fit(options(*small, *spread, f"runs={options().runs}-spread"))
    assert other.metrics.read_bytes() == one.metrics.read_bytes()
    places = other.memory.read_text(encoding="utf-8")
    assert '"places": {\n      "cpu": ' in places


def test_gpus_come_first_then_memory_then_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cuda": 40 * GIB, "cpu": 64 * GIB}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(module, "free_bytes", lambda device: free[device.type])
    config = LlamaConfig(
        **{"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64},
        **{"num_hidden_layers": 80, "num_key_value_heads": 8, "vocab_size": 128256},
    )
    stored = Stored(torch.bfloat16)
    gpu = torch.device("cuda", 0)
    spread = plan_spread(config, stored, gpu, reserve=2 * GIB)
    assert set(spread.sizes) == {0, 1, "cpu", "disk"}
    assert max(spread.sizes[0], spread.sizes[1]) + 2 * GIB <= 40 * GIB / 1.1
    assert sum(spread.sizes.values()) == pytest.approx(2 * 70_553_706_496, rel=1e-6)
    assert spread.on(gpu) == spread.sizes[0] + spread.visiting
    assert str(spread).startswith("3")
    # What bitsandbytes stores it does not bring from elsewhere; nf4 fits on the two.
    with pytest.raises(BackboneError, match=r"quantization=int8: bitsandbytes keeps .* on cpu"):
        plan_spread(config, Stored(torch.bfloat16, Quantization.int8), gpu, reserve=GIB)
    fits = plan_spread(config, Stored(torch.bfloat16, Quantization.nf4), gpu, reserve=GIB)
    assert set(fits.sizes) == {0, 1}
    assert fits.visiting == 0


@pytest.mark.parametrize(
    ("max_memory", "match"),
    [
        ({0: "1GiB"}, "names 0, but the run computes on cpu and can use cpu and disk"),
        ({"cpu": "4TiB"}, r"gives cpu 4096\.0 GiB of weights, but .* free there"),
        ({"cpu": "1MiB"}, r"has room .* \(cpu 1\.0 MiB\): the largest takes 2\.1 MiB"),
    ],
)
def test_places_without_room(max_memory: dict[Any, Any], match: str) -> None:
    with pytest.raises(BackboneError, match=match):
        planned(tiny_backbone(), max_memory)
