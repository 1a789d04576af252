"""The MSE-Adapter against the original's numbers, and its ablations."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from msea_lightning.adapter import AdapterError, MSEAdapter
from msea_lightning.adapter.mse import masked_mean
from tests import places
from tests.adapter.counts import parameter_counts
from tests.adapter.original_names import original_names
from tests.rounding import assert_same

VECTORS = places.VECTORS / "adapter"
SMALL = load_file(VECTORS / "small.safetensors")
COUNTS = json.loads((VECTORS / "parameter_counts.json").read_text(encoding="utf-8"))
CELLS = [(backbone, dataset) for backbone in COUNTS for dataset in COUNTS[backbone]]

ABLATIONS: dict[str, dict[str, bool]] = {
    "none": {},
    "w/o A": {"use_audio": False},
    "w/o V": {"use_vision": False},
    "w/o T": {"use_text": False},
    "w/o A V": {"random_summaries": True},
    "w/o TGM": {"text_guide": False},
    "w/o MSF": {"multi_scale": False},
}

LSTM_KEYS = {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"}
AUDIO_KEYS = {f"audio.{leaf}" for leaf in LSTM_KEYS | {"proj.weight", "proj.bias"}}
VISION_KEYS = {f"vision.{leaf}" for leaf in LSTM_KEYS | {"proj.weight", "proj.bias"}}
TEXT_KEYS = {"text_proj.weight", "text_proj.bias"}
FUSION_KEYS = {"conv.weight", "conv.bias"} | {
    f"scales.{scale}.{layer}.{leaf}"
    for scale in range(3)
    for layer in (0, 2)
    for leaf in ("weight", "bias")
}
PROJECTOR_KEYS = {
    f"{part}.{leaf}" for part in ("proj_up", "proj_tokens") for leaf in ("weight", "bias")
}
ALL_KEYS = AUDIO_KEYS | VISION_KEYS | TEXT_KEYS | FUSION_KEYS | PROJECTOR_KEYS


def build(seed: int = 0, **options: Any) -> MSEAdapter:
    """A small adapter: text width 32, 3 audio and 5 vision features, 2 pseudo tokens."""
    sizes = {
        "text_dim": 32,
        "audio_dim": 3,
        "vision_dim": 5,
        "audio_hidden": 4,
        "vision_hidden": 6,
        "pseudo_tokens": 2,
        "hidden": 16,
        "scales": (2, 8, 4),
    }
    torch.manual_seed(seed)
    return MSEAdapter(**{**sizes, **options})


def inputs(
    audio_lengths: list[int],
    vision_lengths: list[int],
    *,
    seed: int = 1,
) -> dict[str, Tensor]:
    """Random inputs for ``build()``, with zeros beyond every length."""
    generator = torch.Generator().manual_seed(seed)
    batch, tokens = len(audio_lengths), 4
    tensors = {
        "text": torch.randn(batch, tokens, 32, generator=generator),
        "text_mask": torch.ones(batch, tokens, dtype=torch.bool),
    }
    for name, features, lengths in (
        ("audio", 3, audio_lengths),
        ("vision", 5, vision_lengths),
    ):
        values = torch.zeros(batch, max(lengths), features)
        for row, length in enumerate(lengths):
            row_generator = torch.Generator().manual_seed(seed * 1000 + row * 10 + features)
            values[row, :length] = torch.randn(length, features, generator=row_generator)
        tensors[name] = values
        tensors[f"{name}_lengths"] = torch.tensor(lengths)
    return tensors


def record(adapter: MSEAdapter) -> dict[str, tuple[Any, Any]]:
    """Inputs and output of every submodule of the next forward pass."""
    calls: dict[str, tuple[Any, Any]] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, arguments: Any, output: Any) -> None:
            calls[name] = (arguments, output)

        return hook

    for name, module in adapter.named_modules():
        module.register_forward_hook(keep(name))
    return calls


def vector_adapter() -> MSEAdapter:
    return MSEAdapter.from_original(
        {name: tensor for name, tensor in SMALL.items() if name.startswith("weight.")}
    )


def run_vector(adapter: MSEAdapter) -> Tensor:
    text = SMALL["in.text"]
    prefix, same_text = adapter(
        text,
        torch.ones(text.shape[:2], dtype=torch.bool),
        SMALL["in.audio"],
        SMALL["in.audio_lengths"],
        SMALL["in.video"],
        SMALL["in.video_lengths"],
    )
    assert same_text is text
    return prefix


def original_checkpoint() -> dict[str, Tensor]:
    """The golden weights under the names of the original's checkpoints, backbone included."""
    frozen = {"Model.LLM.model.embed_tokens.weight": torch.zeros(3, 64)}
    return frozen | original_names(SMALL)


class TestGoldenVectors:
    """The original computed in float32, too: both are off by rounding."""

    def test_outputs_and_intermediates(self) -> None:
        adapter = vector_adapter()
        calls = record(adapter)
        prefix = run_vector(adapter)
        found = {
            "audio_lstm_last": calls["audio.lstm"][1],
            "video_lstm_last": calls["vision.lstm"][1],
            "audio_h": calls["audio.proj"][1],
            "video_h": calls["vision.proj"][1],
            "text_mean": calls["text_proj"][0][0],
            "text_h": calls["text_proj"][1],
            "mixed": calls["scales.0"][0][0],
            "scale8_out": calls["scales.0"][1],
            "scale32_out": calls["scales.1"][1],
            "scale16_out": calls["scales.2"][1],
            "fused": calls["proj_up"][0][0],
            "up": calls["proj_up"][1],
            "pseudo_tokens": prefix,
            "objective": (prefix * SMALL["in.G"]).sum()[None],
        }
        assert {f"out.{name}" for name in found} == {n for n in SMALL if n.startswith("out.")}
        for name, value in found.items():
            assert_same(value, SMALL[f"out.{name}"])

    def test_gradients(self) -> None:
        adapter = vector_adapter()
        (run_vector(adapter) * SMALL["in.G"]).sum().backward()
        # The golden gradients have the names of weights, so the same reading sorts them.
        golden = MSEAdapter.from_original(
            {n.removeprefix("grad."): t for n, t in SMALL.items() if n.startswith("grad.")}
        ).state_dict()
        for name, parameter in adapter.named_parameters():
            assert_same(
                parameter.grad, golden[name], scale=max(1.0, float(golden[name].abs().max()))
            )

    def test_frames_in_float64_agree(self) -> None:
        """The weights' dtype decides: in float64 the same numbers, only sharper."""
        adapter = vector_adapter().double()
        prefix = run_vector(adapter)
        assert prefix.dtype == torch.float64
        assert_same(prefix, SMALL["out.pseudo_tokens"])


class TestParameterCounts:
    def test_there_are_twelve_cells(self) -> None:
        assert len(CELLS) == 12

    @pytest.mark.parametrize(("backbone", "dataset"), CELLS)
    def test_exact(self, backbone: str, dataset: str) -> None:
        cell = COUNTS[backbone][dataset]
        with torch.device("meta"):
            adapter = MSEAdapter(
                cell["text_dim"],
                cell["audio_dim"],
                cell["video_dim"],
                cell["audio_hidden"],
                cell["video_hidden"],
                cell["pseudo_tokens"],
            )
        counts = parameter_counts(adapter)
        for index, scale in enumerate((8, 32, 16)):
            counts[f"scale{scale}"] = counts.pop(f"scales_{index}_0")
            counts[f"scale{scale}"] += counts.pop(f"scales_{index}_2")
        assert counts == {
            name.replace("video", "vision"): count for name, count in cell["breakdown"].items()
        }
        assert sum(counts.values()) == cell["trainable_parameters"]


class TestAblations:
    @pytest.mark.parametrize(
        ("name", "keys"),
        [
            ("none", ALL_KEYS),
            ("w/o A", ALL_KEYS - AUDIO_KEYS),
            ("w/o V", ALL_KEYS - VISION_KEYS),
            ("w/o T", ALL_KEYS - TEXT_KEYS),
            (
                "w/o A V",
                {key for key in ALL_KEYS if ".lstm." not in key}
                | {"audio.summary", "vision.summary"},
            ),
            ("w/o TGM", ALL_KEYS - TEXT_KEYS),
            ("w/o MSF", ALL_KEYS - FUSION_KEYS),
        ],
    )
    def test_exact_keys(self, name: str, keys: set[str]) -> None:
        adapter = build(**ABLATIONS[name])
        assert set(adapter.state_dict()) == keys
        assert {n for n, _ in adapter.named_parameters()} == {
            key for key in keys if not key.endswith("summary")
        }

    @pytest.mark.parametrize("name", ABLATIONS)
    def test_every_weight_learns(self, name: str) -> None:
        adapter = build(**ABLATIONS[name])
        prefix, _ = adapter(**inputs([3, 1], [2, 4]))
        prefix.square().sum().backward()
        for key, parameter in adapter.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 0, key

    @pytest.mark.parametrize("name", ABLATIONS)
    def test_mixer(self, name: str) -> None:
        """What enters the fusion: the summaries that are left, multiplied with the text or not."""
        adapter = build(**ABLATIONS[name])
        calls = record(adapter)
        batch = inputs([3, 1], [2, 4])
        prefix, text = adapter(**batch)
        summaries = [calls[n][1] for n in ("audio.proj", "vision.proj") if n in calls]
        assert len(summaries) == (1 if name in ("w/o A", "w/o V") else 2)
        expected = sum(summaries)
        if name in ("w/o T", "w/o TGM"):
            assert adapter.text_proj is None
        else:
            mean = batch["text"].mean(dim=1)
            expected = expected * nn.functional.linear(
                mean, adapter.text_proj.weight, adapter.text_proj.bias
            )
        if name == "w/o MSF":
            fused = expected
        else:
            assert_same(calls["scales.0"][0][0], expected)
            outputs = [calls[f"scales.{scale}"][1] for scale in range(3)]
            weight = adapter.conv.weight.flatten()
            fused = sum(w * o for w, o in zip(weight, outputs, strict=True)) + adapter.conv.bias
        up = nn.functional.linear(fused, adapter.proj_up.weight, adapter.proj_up.bias)
        expected_prefix = (
            up[:, None, :] * adapter.proj_tokens.weight + adapter.proj_tokens.bias[:, None]
        )
        assert_same(prefix, expected_prefix)
        assert text.shape == ((2, 0, 32) if name == "w/o T" else (2, 4, 32))

    def test_random_summaries_are_fixed_saved_and_blind(self) -> None:
        adapter = build(seed=3, random_summaries=True)
        first, _ = adapter(**inputs([3, 1], [2, 4], seed=1))
        batch = inputs([2, 0], [0, 1], seed=2)
        batch["text"] = inputs([3, 1], [2, 4], seed=1)["text"]
        assert torch.equal(first, adapter(**batch)[0])
        none = torch.zeros(2, dtype=torch.int64)
        absent = {"audio": None, "audio_lengths": none, "vision": None, "vision_lengths": none}
        assert torch.equal(first, adapter(**{**batch, **absent})[0])
        other = build(seed=4, random_summaries=True)
        assert not torch.equal(adapter.audio.summary, other.audio.summary)
        other.load_state_dict(adapter.state_dict())
        assert torch.equal(first, other(**batch)[0])
        assert not adapter.audio.summary.requires_grad

    def test_without_text_the_text_does_not_matter(self) -> None:
        adapter = build(use_text=False)
        batch = inputs([3, 1], [2, 4])
        first, _ = adapter(**batch)
        batch["text"] = batch["text"] * float("nan")
        assert torch.equal(first, adapter(**batch)[0])

    def test_options_build_the_same_adapter_again(self) -> None:
        for options in ABLATIONS.values():
            adapter = build(**options)
            again = MSEAdapter(**json.loads(json.dumps(adapter.options())))
            assert again.options() == adapter.options()
            again.load_state_dict(adapter.state_dict())

    def test_weights_start_as_the_originals(self) -> None:
        """PyTorch's own initialisation, drawn in the original's order."""
        adapter = build(seed=7)
        torch.manual_seed(7)
        layers = {
            "audio.lstm": nn.LSTM(3, 4),
            "audio.proj": nn.Linear(4, 16),
            "vision.lstm": nn.LSTM(5, 6),
            "vision.proj": nn.Linear(6, 16),
            "text_proj": nn.Linear(32, 16),
            **{
                f"scales.{i}": nn.Sequential(nn.Linear(16, n), nn.GELU(), nn.Linear(n, 16))
                for i, n in enumerate((16, 4, 8))
            },
            "conv": nn.Conv2d(1, 1, (1, 3)),
            "proj_up": nn.Linear(16, 32),
            "proj_tokens": nn.Linear(1, 2),
        }
        expected = {
            f"{name}.{leaf}": tensor
            for name, layer in layers.items()
            for leaf, tensor in layer.state_dict().items()
        }
        found = adapter.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_data_set_of_text_alone_has_a_constant_prefix() -> None:
    adapter = build(audio_dim=None, vision_dim=None)
    assert adapter.text_proj is None
    none = torch.zeros(2, dtype=torch.int64)
    text = torch.randn(2, 4, 32)
    prefix, _ = adapter(text, torch.ones(2, 4), None, none, None, none)
    assert torch.equal(prefix[0], prefix[1])
    prefix.sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())


def test_text_mean_is_over_real_tokens() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]] * 2)
    values[:, 2] = float("nan")
    for dtype in (torch.bool, torch.int64, torch.float32):
        mask = torch.tensor([[1, 1, 0], [0, 0, 0]]).to(dtype)
        assert masked_mean(values, mask).tolist() == [[2.0, 4.0], [0.0, 0.0]]


class TestFromOriginal:
    def test_both_naming_schemes_agree(self) -> None:
        golden = vector_adapter()
        bare = MSEAdapter.from_original(
            {n.removeprefix("weight."): t for n, t in SMALL.items() if n.startswith("weight.")}
        )
        original = MSEAdapter.from_original(original_checkpoint())
        wrapped = MSEAdapter.from_original(
            {f"module.{name}": tensor for name, tensor in original_checkpoint().items()}
        )
        for other in (bare, original, wrapped):
            assert other.options() == golden.options()
            for key, tensor in golden.state_dict().items():
                assert torch.equal(other.state_dict()[key], tensor)
        assert set(golden.state_dict()) == ALL_KEYS

    def test_projectors_are_told_apart_by_shape(self) -> None:
        """Which of the two names is which differs between the original's descriptions."""
        swapped = {}
        for name, tensor in original_checkpoint().items():
            head, leaf = name.rsplit(".", 1)
            if head.endswith("multi_scale_projector"):
                name = f"Model.mutli_scale_fusion.projector.{leaf}"
            elif head.endswith("mutli_scale_fusion.projector"):
                name = f"Model.mutli_scale_fusion.multi_scale_projector.{leaf}"
            swapped[name] = tensor
        assert torch.equal(
            run_vector(MSEAdapter.from_original(swapped)), run_vector(vector_adapter())
        )

    def test_weights_are_copied_trainable_and_float32(self) -> None:
        state = {name: tensor.half() for name, tensor in original_checkpoint().items()}
        before = torch.random.get_rng_state()
        adapter = MSEAdapter.from_original(state)
        assert torch.equal(before, torch.random.get_rng_state())
        assert all(p.dtype == torch.float32 and p.requires_grad for p in adapter.parameters())
        with torch.no_grad():
            adapter.proj_up.weight.zero_()
        assert state["Model.mutli_scale_fusion.multi_scale_projector.weight"].any()

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"Model.audio_LSTM.rnn.bias_hh_l0": None}, r"Missing: 'audio_LSTM.rnn.bias_hh_l0'"),
            (
                {"Model.audio_LSTM.rnn.weight_ih_l1": torch.zeros(32, 8)},
                r"single-layer.*Unknown: 'Model.audio_LSTM.rnn.weight_ih_l1'\.",
            ),
            ({"optimizer": {"step": 1}}, r"Here 'optimizer' is no tensor: dict"),
            (
                {f"Model.cls_head.{layer}.weight": torch.zeros(1) for layer in range(7)},
                r"Unknown: 'Model.cls_head.0.weight', .*'Model.cls_head.4.weight' and 2 more",
            ),
            (
                {"Model.audio_LSTM.linear.weight": torch.zeros(256, 9)},
                r"size mismatch for audio.proj.weight: .*\[256, 9\].*\[256, 8\]",
            ),
            (
                {"Model.text_guide_mixer.text_mlp.weight": torch.zeros(256)},
                r"sizes cannot be read: ValueError",
            ),
            (
                {"Model.text_guide_mixer.text_mlp.weight": None},
                r"Missing: 'text_guide_mixer.text_mlp.weight'",
            ),
        ],
    )
    def test_refuses(self, change: dict[str, Any], match: str) -> None:
        state: dict[str, Any] = {**original_checkpoint(), **change}
        with pytest.raises(AdapterError, match=f"(?s)unchanged original adapter.*{match}"):
            MSEAdapter.from_original({n: t for n, t in state.items() if t is not None})

    def test_two_tensors_of_one_weight_are_refused(self) -> None:
        state = original_checkpoint()
        name = "Model.audio_LSTM.linear.bias"
        state["audio_LSTM.linear.bias"] = state[name] + 1
        with pytest.raises(AdapterError, match=f"'{name}' and 'audio_LSTM.*the same weight"):
            MSEAdapter.from_original(state)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"scales": (8, 64)}, r"scale 64 leaves 32 // 64 = 0 hidden units.*width 32"),
            ({"pseudo_tokens": 0}, r"pseudo_tokens=0: sizes of an adapter are 1 or more"),
            ({"scales": (8, 0)}, r"scales=\[8, 0\]: sizes"),
            (
                {"use_text": False, "use_audio": False, "vision_dim": None},
                r"leaves nothing to read: audio_dim=3 with use_audio=False, vision_dim=None",
            ),
        ],
    )
    def test_options(self, options: dict[str, Any], match: str) -> None:
        with pytest.raises(AdapterError, match=match):
            build(**options)

    def test_scales_do_not_matter_without_fusion(self) -> None:
        build(scales=(8, 64), multi_scale=False)


class TestScales:
    """``normalization=matched`` and ``token_rank``."""

    SIZES: ClassVar[dict[str, int]] = {
        "text_dim": 32,
        "audio_dim": 3,
        "vision_dim": 5,
        "audio_hidden": 4,
        "vision_hidden": 6,
        "pseudo_tokens": 3,
        "hidden": 16,
    }

    def made(self, **options: Any) -> MSEAdapter:
        torch.manual_seed(0)
        return MSEAdapter(**self.SIZES, scales=[2], **options)

    def spoken(self, adapter: MSEAdapter) -> Tensor:
        """Pseudo tokens of a few utterances."""
        torch.manual_seed(1)
        text, audio, vision = (torch.randn(6, 4, size) for size in (32, 3, 5))
        lengths = torch.full((6,), 4)
        pseudo, _ = adapter(0.1 * text, torch.ones(6, 4), audio, lengths, vision, lengths)
        assert pseudo is not None
        return pseudo.detach()

    def test_matching_has_no_parameters_and_leaves_the_weights(self) -> None:
        plain, matched = self.made(), self.made(normalization="matched")
        for (name, weight), (other, same) in zip(
            plain.named_parameters(), matched.named_parameters(), strict=True
        ):
            assert name == other
            assert torch.equal(weight, same)
        assert set(matched.state_dict()) - set(plain.state_dict()) == {"token_scale"}

    def test_matched_tokens_have_the_norm_of_embeddings(self) -> None:
        adapter = self.made(normalization="matched")
        adapter.match_embeddings(2.0, torch.randn(5, 32))
        assert_same(self.spoken(adapter).norm(dim=-1), torch.full((6, 3), 2.0))

    @pytest.mark.parametrize("normalization", ["none", "matched"])
    def test_anchored_tokens_begin_as_the_anchors_and_are_shifted(self, normalization: str) -> None:
        anchored = self.made(normalization=normalization, anchored=True)
        anchors = torch.randn(3, 32)
        anchored.match_embeddings(2.0, anchors)
        assert torch.equal(self.spoken(anchored), anchors.expand(6, -1, -1))
        with torch.no_grad():
            anchored.proj_tokens.weight.copy_(torch.tensor([[1.0], [0.0], [-0.5]]))
        shifts = self.spoken(anchored) - anchors
        assert_same(shifts[:, 2], -0.5 * shifts[:, 0])
        assert not shifts[:, 1].any()
        if normalization == "matched":
            assert_same(shifts[:, 0].norm(dim=-1), torch.full((6,), 2.0))

    def test_matched_tokens_vary_more_between_utterances(self) -> None:
        def variation(adapter: MSEAdapter) -> float:
            pseudo = self.spoken(adapter)
            return float((pseudo - pseudo.mean(0)).norm() / pseudo.norm())

        for options in ({}, {"use_text": False}, {"text_guide": False}):
            matched = self.made(normalization="matched", **options)
            matched.match_embeddings(1.0, torch.randn(3, 32))
            assert variation(matched) > 3 * variation(self.made(**options))

    def test_the_rank_is_that_of_the_tokens_beside_their_shift(self) -> None:
        sizes = {**self.SIZES, "pseudo_tokens": 6}
        for rank in (1, 3):
            torch.manual_seed(0)
            adapter = MSEAdapter(**sizes, scales=[2], token_rank=rank)
            # Differences of tokens are free of the shift, which is the same in all places.
            centred = self.spoken(adapter)
            centred = centred - centred.mean(dim=2, keepdim=True)
            assert int(torch.linalg.matrix_rank(centred[0], atol=1e-5)) == rank

    def test_parameters_of_a_rank(self) -> None:
        def count(rank: int) -> int:
            return sum(weight.numel() for weight in self.made(token_rank=rank).parameters())

        # A further direction is a column of the projector for every unit, and a weight a token.
        assert count(3) - count(1) == 2 * ((16 + 1) * 32 + 3)
