"""CHFN: its attention, its start, its size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from msea_lightning.adapter import CHFNAdapter
from msea_lightning.paper import paper_table
from tests.adapter.counts import parameter_counts
from tests.rounding import assert_same

WIDTH, AUDIO, VISION = 16, 3, 5
COUNTS = {"mosei": 50_786_304, "simsv2": 51_167_232, "meld": 50_864_128, "cherma": 62_922_752}
"""For a text width of 4096; of MOSEI, it is in Table 5."""


def trained() -> CHFNAdapter:
    """An adapter with weights as after some training."""
    torch.manual_seed(0)
    adapter = CHFNAdapter(WIDTH, AUDIO, VISION)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return adapter


def inputs(audio: int = 4, vision: int = 2) -> dict[str, Tensor]:
    """One utterance of three tokens."""
    generator = torch.Generator().manual_seed(2)
    return {
        "text": torch.randn(1, 3, WIDTH, generator=generator),
        "text_mask": torch.ones(1, 3, dtype=torch.bool),
        "audio": torch.randn(1, audio, AUDIO, generator=generator),
        "audio_lengths": torch.tensor([audio]),
        "vision": torch.randn(1, vision, VISION, generator=generator),
        "vision_lengths": torch.tensor([vision]),
    }


@pytest.mark.parametrize("row", paper_table("datasets"), ids=lambda row: row["dataset"])
def test_parameters(row: dict[str, str]) -> None:
    audio, vision = int(row["audio_dim"]), int(row["vision_dim"])
    with torch.device("meta"):
        counts = parameter_counts(CHFNAdapter(4096, audio, vision))
    assert counts == {
        "audio": 4096 * audio + 4096,
        "vision": 4096 * vision + 4096,
        **dict.fromkeys(("query", "key", "value"), 4096 * 4096),
    }
    assert sum(counts.values()) == COUNTS[row["dataset"]]


def test_parameters_are_those_of_table_5() -> None:
    (row,) = (r for r in paper_table("trainable_parameters") if r["model"] == "CHFN-ChatGLM3-6B")
    assert f"{COUNTS['mosei'] / 1e6:.2f}" == row["mosei"]


def test_attention_frame_by_frame() -> None:
    adapter = trained().double()
    batch = {
        name: values.double() if values.is_floating_point() else values
        for name, values in inputs().items()
    }
    prefix, found = adapter(**batch)
    assert prefix is None
    weights = adapter.state_dict()
    frames = [
        weights[f"{name}.weight"] @ frame + weights[f"{name}.bias"]
        for name in ("audio", "vision")
        for frame in batch[name][0]
    ]
    for token in range(3):
        z = batch["text"][0, token]
        query = weights["query.weight"] @ z
        scores = [float(query @ (weights["key.weight"] @ s)) / math.sqrt(WIDTH) for s in frames]
        exponents = [math.exp(score) for score in scores]
        adjusted = z.clone()
        for exponent, s in zip(exponents, frames, strict=True):
            adjusted += exponent / sum(exponents) * (weights["value.weight"] @ s)
        assert_same(found[0, token], adjusted, dtype=torch.float64)
    assert (found - batch["text"]).abs().min() > 0


def test_it_starts_with_the_text_as_it_is() -> None:
    torch.manual_seed(0)
    adapter = CHFNAdapter(WIDTH, AUDIO, VISION)
    batch = inputs()
    _, text = adapter(**batch)
    assert torch.equal(text, batch["text"])
    text.square().sum().backward()
    assert adapter.value.weight.grad.any()


def test_the_order_of_frames_is_not_read() -> None:
    adapter = trained()
    batch = inputs()
    _, expected = adapter(**batch)
    _, found = adapter(**{**batch, "audio": batch["audio"].flip(1)})
    assert_same(found, expected)
