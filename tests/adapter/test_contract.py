"""What every adapter promises: absent modalities, padding, company, gradients, whole runs."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import seed_everything
from torch import Tensor

from msea_lightning.adapter import ADAPTERS, Adapter, AdapterError
from msea_lightning.adapter.options import AblationConfig
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.config.roots import EvaluateConfig, TrainConfig
from msea_lightning.data.utterance import PaddedSequences
from msea_lightning.plugin import attach, load_plugin
from msea_lightning.training.build import build_adapted_lm, build_data
from msea_lightning.training.evaluation import evaluate
from msea_lightning.training.fit import fit
from msea_lightning.training.module import TrainingModule
from tests.rounding import BOUND

Options = Callable[..., TrainConfig]

OWN: dict[str, dict[str, Any]] = {
    "mse": {
        "audio_hidden": 4,
        "vision_hidden": 6,
        "pseudo_tokens": 2,
        "hidden": 16,
        "scales": [2, 8, 4],
        "normalization": "matched",
        "anchored": True,
        "token_rank": 2,
    },
    "mag": {"beta": 0.7, "dropout": 0.3},
    "chfn": {},
}
WIDTH, AUDIO, VISION, TOKENS = 32, 3, 5, 6
CLOSE = {"rtol": BOUND, "atol": BOUND}
"""Sums over a longer batch are rounded otherwise; values are about 1."""

every_adapter = pytest.mark.parametrize("name", OWN)


def build(name: str, **options: Any) -> Adapter:
    """A small adapter in evaluation mode, no weight of which is where it started."""
    torch.manual_seed(0)
    sizes = {"text_dim": WIDTH, "audio_dim": AUDIO, "vision_dim": VISION}
    adapter = ADAPTERS.load(name)(**{**sizes, **OWN[name], **options}).eval()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return adapter


def inputs(
    rows: list[tuple[int, int, int]], *, seed: int = 1, more: int = 0, fill: float = 0.0
) -> dict[str, Any]:
    """Random inputs for utterances of so many tokens, audio and vision frames.

    Args:
        rows: Tokens, audio frames and vision frames of each utterance.
        seed: Each utterance depends on it and on its place alone.
        more: Further padding of text, audio and vision.
        fill: What stands in all padding.
    """
    batch: dict[str, Any] = {}
    sizes = (("text", WIDTH), ("audio", AUDIO), ("vision", VISION))
    for column, (name, width) in enumerate(sizes):
        lengths = [row[column] for row in rows]
        values = torch.full((len(rows), max(lengths) + more, width), fill)
        for row, length in enumerate(lengths):
            generator = torch.Generator().manual_seed(seed * 1000 + row * 10 + column)
            own = torch.randn(length, width, generator=generator)
            if name != "text":
                values[row, :length] = own
            elif length:  # padded on the left
                values[row, -length:] = own
        batch[name] = values
        batch[f"{name}_lengths"] = torch.tensor(lengths)
    tokens = batch.pop("text_lengths")
    batch["text_mask"] = torch.arange(batch["text"].shape[1]).flip(0) < tokens[:, None]
    return batch


def outputs(adapter: Adapter, batch: dict[str, Any]) -> list[Tensor]:
    """What an adapter gives each utterance: pseudo tokens and real text tokens, one below another.

    Padding is left out.
    """
    prefix, text = adapter(**batch)
    rows = []
    for row, real in enumerate(batch["text_mask"].bool()):
        parts = [] if prefix is None else [prefix[row]]
        rows.append(torch.cat([*parts, text[row][real]]))
    return rows


def objective(rows: list[Tensor]) -> Tensor:
    """A number that depends on everything in the outputs."""
    values = torch.cat(rows)
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(values.shape, generator=generator)
    return (values * weights).sum() + (values * weights.flip(0)).square().sum()


def part(batch: dict[str, Any], row: int) -> dict[str, Any]:
    return {name: tensor[row : row + 1] for name, tensor in batch.items()}


@every_adapter
class TestRegistered:
    def test_arguments_are_those_of_the_options(self, name: str) -> None:
        options = ADAPTERS.options(name)()
        sizes = {"text_dim", "audio_dim", "vision_dim"}
        expected = sizes | set(options.arguments()) | set(AblationConfig().arguments(options))
        assert set(inspect.signature(ADAPTERS.load(name)).parameters) == expected
        assert set(OWN[name]) == set(options.arguments())

    def test_an_adapter_knows_its_name(self, name: str) -> None:
        assert ADAPTERS.name_of(build(name)) == name
        assert ADAPTERS.options(name)().name == name


@every_adapter
class TestOptions:
    def test_options_build_it_again(self, name: str) -> None:
        for more in ({}, {"audio_dim": None}, {"use_vision": False}):
            adapter = build(name, **more)
            again = ADAPTERS.load(name)(**json.loads(json.dumps(adapter.options())))
            assert again.options() == adapter.options()
            again.load_state_dict(adapter.state_dict())
            batch = inputs([(4, 3, 2)])
            if "audio_dim" in more:
                batch["audio"], batch["audio_lengths"] = None, torch.tensor([0])
            assert torch.equal(outputs(adapter, batch)[0], outputs(again.eval(), batch)[0])

    def test_either_pseudo_tokens_or_another_text(self, name: str) -> None:
        adapter = build(name)
        batch = inputs([(4, 3, 2), (2, 1, 4)])
        prefix, text = adapter(**batch)
        assert text.shape == batch["text"].shape
        assert (prefix is None) == (adapter.pseudo_tokens == 0)
        assert (text is batch["text"]) == (prefix is not None)
        if prefix is not None:
            assert prefix.shape == (2, adapter.pseudo_tokens, WIDTH)


@every_adapter
class TestGradients:
    def test_every_weight_learns(self, name: str) -> None:
        adapter = build(name)
        objective(outputs(adapter, inputs([(4, 3, 2), (2, 1, 4)]))).backward()
        for key, parameter in adapter.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 0, key

    @pytest.mark.parametrize("form", ["padded", "no frames", "none"])
    def test_all_absent(self, name: str, form: str) -> None:
        """Every weight still has a finite gradient, so that DDP finds all of them."""
        adapter = build(name)
        batch = inputs([(4, 0, 0), (2, 0, 0)], more=2 if form == "padded" else 0, fill=float("nan"))
        if form == "none":
            batch["audio"] = batch["vision"] = None
        rows = outputs(adapter, batch)
        assert all(row.isfinite().all() for row in rows)
        objective(rows).backward()
        for key, parameter in adapter.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            if key.startswith(("audio", "vision")):
                assert not parameter.grad.any(), key

    def test_no_real_token(self, name: str) -> None:
        adapter = build(name)
        rows = outputs(adapter, inputs([(0, 3, 2), (0, 0, 0)], more=1, fill=float("nan")))
        assert all(row.isfinite().all() for row in rows)
        objective(rows).backward()
        assert all(
            parameter.grad is not None and parameter.grad.isfinite().all()
            for parameter in adapter.parameters()
        )


@every_adapter
@pytest.mark.parametrize("modality", ["audio", "vision"])
class TestAbsentModalities:
    def test_contributes_nothing(self, name: str, modality: str) -> None:
        """Length 0 gives what the adapter without that branch gives, biases included."""
        adapter = build(name)
        without = build(name, **{f"use_{modality}": False})
        assert not [key for key in without.state_dict() if key.startswith(modality)]
        without.load_state_dict(
            {k: v for k, v in adapter.state_dict().items() if not k.startswith(f"{modality}.")}
        )
        batch = inputs([(4, 3, 0), (3, 0, 4), (2, 2, 2)])
        expected, found = outputs(without, batch), outputs(adapter, batch)
        alone = outputs(adapter, {**batch, f"{modality}_lengths": torch.zeros(3, dtype=torch.long)})
        row = 1 if modality == "audio" else 0
        torch.testing.assert_close(alone, expected, **CLOSE)
        torch.testing.assert_close(found[row], expected[row], **CLOSE)
        assert not torch.allclose(found[2], expected[2], atol=1e-3)

    def test_a_data_set_without_it_has_no_branch(self, name: str, modality: str) -> None:
        adapter = build(name, **{f"{modality}_dim": None})
        assert not [key for key in adapter.state_dict() if key.startswith(modality)]
        batch = inputs([(4, 2, 2), (2, 1, 1)])
        batch |= {modality: None, f"{modality}_lengths": torch.zeros(2, dtype=torch.long)}
        assert all(row.isfinite().all() for row in outputs(adapter, batch))


ROWS = st.lists(
    st.tuples(st.integers(1, TOKENS), st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=5
)


@every_adapter
class TestPadding:
    @settings(max_examples=25)
    @given(rows=ROWS, more=st.integers(0, 3), seed=st.integers(1, 100))
    def test_no_padding_is_read(
        self, name: str, rows: list[tuple[int, int, int]], more: int, seed: int
    ) -> None:
        """NaN in all padding, and more of it, change neither outputs nor gradients."""
        results = []
        for fill, padding in ((0.0, 0), (float("nan"), more)):
            adapter = build(name)
            batch = inputs(rows, seed=seed, more=padding, fill=fill)
            for modality in ("audio", "vision"):
                batch[modality].requires_grad_()
            found = outputs(adapter, batch)
            objective(found).backward()
            results.append((found, adapter, batch))
        (clean, adapter, batch), (dirty, dirty_adapter, dirty_batch) = results
        torch.testing.assert_close(dirty, clean, **CLOSE)
        pairs = zip(adapter.named_parameters(), dirty_adapter.parameters(), strict=True)
        for (key, one), other in pairs:
            scale = 1 + float(one.grad.abs().max())
            assert float((one.grad - other.grad).abs().max()) <= BOUND * scale, key
        for column, modality in ((1, "audio"), (2, "vision")):
            gradient = dirty_batch[modality].grad
            lengths = torch.tensor([row[column] for row in rows])
            if not lengths.any():
                continue
            beyond = torch.arange(gradient.shape[1]) >= lengths[:, None]
            assert gradient.isfinite().all()
            assert not gradient[beyond].any()

    @pytest.mark.parametrize("poison", [9.0, -9.0])
    def test_numbers_beyond_a_length_do_not_count(self, name: str, poison: float) -> None:
        adapter = build(name)
        rows = [(4, 3, 0), (6, 0, 4), (1, 5, 2)]
        clean = outputs(adapter, inputs(rows, more=2))
        dirty = outputs(adapter, inputs(rows, more=2, fill=poison))
        assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))

    @settings(max_examples=25)
    @given(rows=ROWS, seed=st.integers(1, 100))
    def test_alone_as_in_company(
        self, name: str, rows: list[tuple[int, int, int]], seed: int
    ) -> None:
        """Each utterance by itself gives what it gives among others, in whatever order."""
        adapter = build(name)
        batch = inputs(rows, seed=seed)
        together = outputs(adapter, batch)
        for row in range(len(rows)):
            (alone,) = outputs(adapter, part(batch, row))
            torch.testing.assert_close(alone, together[row], **CLOSE)
        backwards = outputs(adapter, {key: tensor.flip(0) for key, tensor in batch.items()})
        torch.testing.assert_close(backwards[::-1], together, **CLOSE)

    def test_masks_of_any_kind_and_holes(self, name: str) -> None:
        """Real tokens count, wherever they are."""
        adapter = build(name)
        batch = inputs([(4, 3, 2)])
        expected = outputs(adapter, batch)
        with_hole = batch["text"][:, [0, 1, 1, 2, 3]].clone()
        with_hole[:, 2] = float("nan")
        for dtype in (torch.bool, torch.int64, torch.float32):
            mask = torch.tensor([[1, 1, 0, 1, 1]]).to(dtype)
            found = outputs(adapter, {**batch, "text": with_hole, "text_mask": mask})
            torch.testing.assert_close(found, expected, **CLOSE)


@every_adapter
class TestPrecision:
    def test_half_precision_text(self, name: str) -> None:
        adapter = build(name)
        batch = inputs([(4, 3, 2), (2, 1, 4)])
        batch["text"] = batch["text"].to(torch.bfloat16)
        prefix, text = adapter(**batch)
        exact_prefix, exact_text = adapter(**{**batch, "text": batch["text"].float()})
        assert (text.dtype == torch.float32) == (prefix is None)
        assert torch.equal(text.float(), exact_text)
        if prefix is not None:
            assert prefix.dtype == torch.float32
            assert torch.equal(prefix, exact_prefix)

    def test_autocast_changes_nothing(self, name: str) -> None:
        adapter = build(name)
        batch = inputs([(4, 3, 0), (2, 1, 4)])
        expected = outputs(adapter, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = outputs(adapter, batch)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    def test_shapes_and_dtypes_are_as_documented(self, name: str) -> None:
        jaxtyping = pytest.importorskip("jaxtyping")
        batch = inputs([(4, 3, 2), (2, 0, 4), (3, 1, 2)])
        prefix, text = build(name)(**batch)
        documented = {
            "text": (batch["text"], "Float", "B T D"),
            "text_mask": (batch["text_mask"], "Bool", "B T"),
            "audio": (batch["audio"], "Float32", "B La da"),
            "audio_lengths": (batch["audio_lengths"], "Int", "B"),
            "vision": (batch["vision"], "Float32", "B Lv dv"),
            "vision_lengths": (batch["vision_lengths"], "Int", "B"),
            "returned text": (text, "Float", "B T D"),
        }
        if prefix is not None:
            documented["prefix"] = (prefix, "Float32", "B 2 D")
        with jaxtyping.jaxtyped("context"):
            for key, (tensor, dtype, shape) in documented.items():
                assert isinstance(tensor, getattr(jaxtyping, dtype)[Tensor, shape]), key


@every_adapter
class TestErrors:
    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"text": torch.zeros(2, 4, 31)}, r"text has shape \(2, 4, 31\).*width 32"),
            ({"text_mask": torch.ones(2, 3)}, r"text_mask has shape \(2, 3\).*\(2, 4\)"),
            ({"audio": torch.zeros(2, 3, 4)}, r"audio has shape \(2, 3, 4\).*3 audio features"),
            ({"vision": torch.zeros(3, 4, 5)}, r"vision has shape \(3, 4, 5\).*\(2, frames, 5\)"),
            ({"audio_lengths": torch.tensor([3])}, r"audio_lengths has shape \(1,\).*2 utterances"),
            (
                {"audio_lengths": torch.tensor([3, 4])},
                r"ranges from 3 to 4, but audio has 3 frames",
            ),
            ({"vision_lengths": torch.tensor([-1, 4])}, r"vision_lengths ranges from -1 to 4"),
            ({"audio": None}, r"audio_lengths ranges from 1 to 3, but audio has 0 frames"),
        ],
    )
    def test_inputs(self, name: str, change: dict[str, Any], match: str) -> None:
        with pytest.raises(AdapterError, match=match):
            build(name)(**{**inputs([(4, 3, 2), (2, 1, 4)]), **change})

    def test_features_without_a_branch(self, name: str) -> None:
        with pytest.raises(AdapterError, match=r"built for no audio features .* another audio_dim"):
            build(name, audio_dim=None)(**inputs([(4, 3, 2), (2, 1, 4)]))

    @pytest.mark.parametrize("size", ["text_dim", "audio_dim", "vision_dim"])
    def test_sizes(self, name: str, size: str) -> None:
        with pytest.raises(AdapterError, match=rf"{size}=0: sizes of an adapter are 1 or more"):
            build(name, **{size: 0})


@pytest.mark.parametrize("name", ["mag", "chfn"])
@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"use_audio": False, "vision_dim": None},
            r"audio_dim=3 with use_audio=False, vision_dim=None with use_vision=True",
        ),
        ({"use_audio": False, "use_vision": False}, r"or choose adapter=mse"),
    ],
)
def test_nothing_to_change_the_text_with(name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(AdapterError, match=match):
        build(name, **options)


@pytest.mark.parametrize("name", ["mag", "chfn"])
def test_a_run_and_its_plugin(options: Options, backbone: FrozenBackbone, name: str) -> None:
    run = fit(options(f"adapter={name}", "dataset.demo_task=msa"))
    assert run.path.relative_to(options().runs).parts[1] == f"{name}-tiny"
    plugin = load_plugin(run.plugin)
    assert plugin.facts.adapter_name == name
    assert {key.split(".")[0] for key in plugin.weights} == {"adapter", "standardizer"}
    task = attach(plugin, backbone)
    assert ADAPTERS.name_of(task.adapter) == name
    assert task.prompt.pseudo_tokens == 0
    assert f"# demo on tiny: {name.upper()} plugin" in (run.plugin / "README.md").read_text()
    metrics = json.loads(run.metrics.read_text())
    assert evaluate(EvaluateConfig(run=str(run.path))) == metrics["test"]


def test_resuming_draws_the_same_dropout(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout is drawn anew from the seed and the epoch."""
    undisturbed = fit(options("adapter=mag"))
    ordinary = TrainingModule.training_step

    def interrupted(task: TrainingModule, batch: Any, batch_idx: int) -> Tensor:
        if (task.current_epoch, batch_idx) == (1, 1):
            raise InterruptedError
        return ordinary(task, batch, batch_idx)

    runs = f"runs={options().runs}-resumed"
    monkeypatch.setattr(TrainingModule, "training_step", interrupted)
    with pytest.raises(InterruptedError):
        fit(options("adapter=mag", runs))
    monkeypatch.setattr(TrainingModule, "training_step", ordinary)
    resumed = fit(options("adapter=mag", runs, "ckpt=last"))
    first, second = (
        torch.load(run.last, weights_only=True)["state_dict"] for run in (undisturbed, resumed)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["mag", "chfn"])
def test_an_ablated_modality_is_not_read(
    options: Options, backbone: FrozenBackbone, name: str
) -> None:
    config = options(f"adapter={name}", "ablation=no_audio")
    data = build_data(config)
    data.prepare_data()
    data.setup()
    batch = next(iter(data.evaluation_dataloader("valid")))
    task = build_adapted_lm(config, data, backbone)
    assert not [key for key, _ in task.named_parameters() if key.startswith("adapter.audio")]
    values, lengths = batch.features["audio"]
    silence = {"audio": PaddedSequences(torch.zeros_like(values), lengths)}
    silent = dataclasses.replace(batch, features={**batch.features, **silence})
    assert torch.equal(task.eval().answer_logp(batch), task.answer_logp(silent))


@every_adapter
def test_the_sequence_has_room_for_the_pseudo_tokens_and_no_more(
    options: Options, backbone: FrozenBackbone, name: str
) -> None:
    config = options(f"adapter={name}")
    data = build_data(config)
    data.prepare_data()
    data.setup()
    seed_everything(1, verbose=False)
    task = build_adapted_lm(config, data, backbone)
    assert task.prompt.pseudo_tokens == task.adapter.pseudo_tokens == (4 if name == "mse" else 0)
    texts = task.prompt.encode_texts(["a fine day", "no"])
    sequences = task.prompt.assemble(texts, 2)
    assert sequences.pseudo.sum(dim=1).tolist() == [task.adapter.pseudo_tokens] * 2
    assert ("P*" in task.prompt.describe("0", None)) == (name == "mse")
