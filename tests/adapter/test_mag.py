"""MAG: its formulas, its alignment, its size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from msea_lightning.adapter import MAGAdapter
from msea_lightning.adapter.mag import align
from msea_lightning.paper import paper_table
from tests.adapter.counts import parameter_counts
from tests.rounding import BOUND, assert_same

WIDTH, AUDIO, VISION = 16, 3, 5
COUNTS = {"mosei": 34_471_936, "simsv2": 35_233_792, "meld": 34_627_584, "cherma": 58_744_832}
"""For a text width of 4096; of MOSEI, it is in Table 5."""


def build(**options: Any) -> MAGAdapter:
    """An adapter in evaluation mode with weights as after some training."""
    torch.manual_seed(0)
    sizes = {"text_dim": WIDTH, "audio_dim": AUDIO, "vision_dim": VISION}
    adapter = MAGAdapter(**{**sizes, **options}).eval()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return adapter


def aligned_batch(tokens: int = 4, scale: float = 1.0) -> dict[str, Tensor]:
    """One utterance with as many frames as tokens."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([tokens])
    return {
        "text": scale * torch.randn(1, tokens, WIDTH, generator=generator),
        "text_mask": torch.ones(1, tokens, dtype=torch.bool),
        "audio": torch.randn(1, tokens, AUDIO, generator=generator),
        "audio_lengths": lengths,
        "vision": torch.randn(1, tokens, VISION, generator=generator),
        "vision_lengths": lengths,
    }


@pytest.mark.parametrize("row", paper_table("datasets"), ids=lambda row: row["dataset"])
def test_parameters(row: dict[str, str]) -> None:
    audio, vision = int(row["audio_dim"]), int(row["vision_dim"])
    with torch.device("meta"):
        counts = parameter_counts(MAGAdapter(4096, audio, vision))
    assert counts == {
        "audio_gate": 4096 * (audio + 4096) + 4096,
        "audio_map": 4096 * audio + 4096,
        "vision_gate": 4096 * (vision + 4096) + 4096,
        "vision_map": 4096 * vision + 4096,
        "norm": 2 * 4096,
    }
    assert sum(counts.values()) == COUNTS[row["dataset"]]


def test_parameters_are_those_of_table_5() -> None:
    (row,) = (r for r in paper_table("trainable_parameters") if r["model"] == "MAG-ChatGLM3-6B")
    assert f"{COUNTS['mosei'] / 1e6:.2f}" == row["mosei"]


class TestFormula:
    def test_token_by_token(self) -> None:
        adapter = build(beta=0.7).double()
        batch = {
            name: values.double() if values.is_floating_point() else values
            for name, values in aligned_batch().items()
        }
        prefix, found = adapter(**batch)
        assert prefix is None
        weights = adapter.state_dict()
        limited = 0
        for token in range(4):
            z = batch["text"][0, token]
            h = torch.zeros(WIDTH, dtype=torch.float64)
            for name in ("audio", "vision"):
                x = batch[name][0, token]
                gate = weights[f"{name}.gate.weight"] @ torch.cat([x, z])
                gate = (gate + weights[f"{name}.gate.bias"]).clamp(min=0)
                h += gate * (weights[f"{name}.map.weight"] @ x + weights[f"{name}.map.bias"])
            alpha = min(float(z.square().sum().sqrt() / h.square().sum().sqrt()) * 0.7, 1.0)
            limited += alpha < 1
            shifted = z + alpha * h
            centred = shifted - shifted.mean()
            normed = centred / (centred.square().mean() + 1e-5).sqrt()
            expected = normed * weights["norm.weight"] + weights["norm.bias"]
            assert_same(found[0, token], expected, dtype=torch.float64)
        assert limited > 0

    @pytest.mark.parametrize("beta", [0.1, 1.0])
    def test_the_shift_is_no_longer_than_beta_allows(self, beta: float) -> None:
        adapter = build(beta=beta)
        shifted: list[Tensor] = []
        adapter.norm.register_forward_hook(lambda _, given, __: shifted.append(given[0]))
        for scale in (1e-3, 1.0, 1e3):
            batch = aligned_batch(scale=scale)
            adapter(**batch)
            ratio = (shifted.pop() - batch["text"]).norm(dim=-1) / batch["text"].norm(dim=-1)
            assert ratio.max() <= beta * (1 + BOUND)

    def test_dropout_is_of_training_alone(self) -> None:
        adapter = build(dropout=0.5)
        batch = aligned_batch()
        _, expected = adapter(**batch)
        _, dropped = adapter.train()(**batch)
        kept = dropped != 0
        assert 0.2 < kept.float().mean() < 0.8
        assert_same(dropped[kept], 2 * expected[kept])


class TestAlign:
    def test_as_many_frames_as_tokens_are_left_as_they_are(self) -> None:
        frames = torch.randn(1, 5, 3)
        real = torch.ones(1, 5, dtype=torch.bool)
        assert_same(align(frames, torch.tensor([5]), real), frames)

    @pytest.mark.parametrize(
        ("frames", "tokens", "expected"),
        [
            ([1.0, 3.0, 5.0, 9.0], 2, [2.0, 7.0]),
            ([1.0, 4.0], 4, [1.0, 1.0, 4.0, 4.0]),
            ([3.0, 6.0, 9.0], 2, [4.0, 8.0]),  # the middle frame lasts through half of each
            ([3.0, 9.0], 3, [3.0, 6.0, 9.0]),
            ([7.0], 3, [7.0, 7.0, 7.0]),
            ([1.0, 2.0, 6.0], 1, [3.0]),
            ([], 2, [0.0, 0.0]),
        ],
    )
    def test_by_hand(self, frames: list[float], tokens: int, expected: list[float]) -> None:
        """Each token has the mean of its share of the time, with padding of text and frames."""
        padded = torch.tensor([[*frames, 0.0, 0.0]])[:, :, None]
        real = torch.tensor([[False] * 3 + [True] * tokens])
        found = align(padded, torch.tensor([len(frames)]), real)
        assert_same(found[0, 3:, 0], torch.tensor(expected))

    @given(frames=st.integers(1, 40), tokens=st.integers(1, 40))
    def test_shares_of_a_token_add_up(self, frames: int, tokens: int) -> None:
        """A constant stays, and the mean over all tokens is that over all frames."""
        values = torch.stack([torch.ones(frames), torch.arange(frames).float()], dim=1)[None]
        real = torch.ones(1, tokens, dtype=torch.bool)
        found = align(values, torch.tensor([frames]), real)[0]
        assert_same(found[:, 0], torch.ones(tokens))
        assert_same(found[:, 1].mean(), torch.tensor((frames - 1) / 2), scale=frames)
        assert (found[:, 1].diff() >= -BOUND * frames).all()
