"""The memory of a whole run: its parts, and the refusal of what does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from msea_lightning.backbone import BackboneError, backbone_config, load_backbone
from msea_lightning.backbone.loading.load import tiny_backbone
from msea_lightning.backbone.loading.memory import HEADROOM, Stored
from msea_lightning.backbone.options import Quantization
from msea_lightning.config.roots import TrainConfig
from msea_lightning.cost import estimate as module
from msea_lightning.cost.estimate import MemoryEstimate, MemoryEstimator
from msea_lightning.language.prompt import encode_all
from msea_lightning.model.build import trainable
from msea_lightning.training.build import build_adapted_lm, build_data, data_estimator
from msea_lightning.training.fit import fit

Options = Callable[..., TrainConfig]
CPU = torch.device("cpu")


def estimator(config: TrainConfig, *, device: torch.device = CPU) -> MemoryEstimator:
    """The estimator of a run with the built-in backbone."""
    data = build_data(config)
    data.setup()
    tokenizer = load_backbone(None).tokenizer
    data.tokenize(partial(encode_all, tokenizer))
    language = backbone_config(str(tiny_backbone()))
    return data_estimator(config, data, tokenizer, language, device)


def parts(**sizes: int) -> MemoryEstimate:
    """An estimate with some parts, the others nothing."""
    names = ("process", "weights", "activations", "adapter", "optimizer", "loading", "files")
    return MemoryEstimate(**(dict.fromkeys((*names, "loading_files"), 0) | sizes))


def test_the_peak_is_at_the_height_of_loading_or_of_a_step() -> None:
    step = parts(process=1000, weights=100, activations=30, adapter=2, optimizer=2, loading=20)
    assert step.total == 1000 + 100 + 34
    assert step.needed == 100 + 34
    loading = parts(process=1000, weights=100, activations=30, loading=40, loading_files=5)
    assert loading.total == 1000 + 100 + 45
    assert loading.needed == 100 + 40


def test_one_line_names_what_takes_memory() -> None:
    line = str(parts(process=2**29, weights=2**31, activations=2**30))
    assert line == (
        "about 3.50 GiB at its peak, 3.00 GiB of it for this run: weights 2.00 GiB, "
        "activations 1.00 GiB, process and libraries 0.50 GiB"
    )


def test_adapter_and_optimizer_are_counted_exactly(options: Options) -> None:
    config = options()
    found = estimator(config).estimate()
    data = build_data(config)
    data.setup()
    numbers = trainable(build_adapted_lm(config, data, load_backbone(None)).adapter)
    assert found.adapter == found.optimizer == 2 * 4 * numbers


def test_activations_grow_with_the_batch(options: Options) -> None:
    run = estimator(options("training.batch_size=8", "training.eval_batch_size=1"))
    small, large = run.estimate(), run.estimate(batch_size=16)
    assert 1.5 * small.activations < large.activations < 2.5 * small.activations
    few, many = (run.estimate(batch_size=1, eval_batch_size=size) for size in (1, 8))
    assert many.activations > 2 * few.activations


def test_devices_share_a_batch(options: Options) -> None:
    one = estimator(options("training.batch_size=16", "training.eval_batch_size=1"))
    two = estimator(
        options("training.batch_size=16", "training.eval_batch_size=1", "trainer.devices=2")
    )
    assert two.estimate().activations < 0.7 * one.estimate().activations
    words = ("training.batch_size=16", "training.eval_batch_size=1", "trainer.num_nodes=2")
    machines = estimator(options(*words)).estimate()
    assert machines.activations == two.estimate().activations


def test_parts_of_a_share_take_less(options: Options) -> None:
    words = ("training.batch_size=16", "training.eval_batch_size=1")
    halves = estimator(options(*words, "trainer.accumulate=2")).estimate()
    whole, eight = (
        estimator(options(f"training.batch_size={size}", *words[1:])).estimate() for size in (16, 8)
    )
    assert halves.activations < 0.7 * whole.activations
    # Batches of 90 utterances differ by one at most, and so do their halves.
    assert halves.activations == pytest.approx(eight.activations, rel=0.15)


def test_layers_that_compute_again_are_counted(options: Options) -> None:
    words = ("training.batch_size=64", "training.eval_batch_size=1")
    again = estimator(options(*words, "backbone.checkpoint_activations=true")).estimate()
    assert again.activations < estimator(options(*words)).estimate().activations


def test_the_evaluation_batch_is_the_one_that_is_given(options: Options) -> None:
    config = options("training.eval_batch_size=7")
    assert estimator(config).eval_batch_size() == 7
    assert estimator(config, device=torch.device("cuda")).eval_batch_size() == 7


def test_by_itself_an_evaluation_batch_takes_what_a_step_does(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, in powers of two up to 256; on a CPU, where more is no faster, it is 32."""
    config = options("training.eval_batch_size=null")
    on_cpu, on_gpu = estimator(config), estimator(config, device=torch.device("cuda"))
    assert on_cpu.eval_batch_size() == 32
    monkeypatch.setattr(MemoryEstimator, "_train_bytes", lambda *_: 1024)
    for per_utterance, taken in (
        (0.1, 256),
        (4, 256),
        (4.1, 128),
        (100, 8),
        (512, 2),
        (513, 1),
        (5000, 1),
    ):
        monkeypatch.setattr(
            MemoryEstimator,
            "_evaluation_bytes",
            lambda _, stored, size, each=per_utterance: size * each,
        )
        assert on_gpu.eval_batch_size() == taken


@pytest.mark.parametrize(
    "change", ["ablation=no_audio_vision", "ablation=no_text", "text.pad_to=40"]
)
def test_ablations_and_padding_are_counted(options: Options, change: str) -> None:
    plain, changed = estimator(options()).estimate(), estimator(options(change)).estimate()
    difference = changed.activations - plain.activations
    assert difference > 0 if change == "text.pad_to=40" else difference < 0


def refusal(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, free: int) -> str:
    """What a run is refused with where so much is free."""
    monkeypatch.setattr(module, "free_bytes", lambda _: free)
    run = estimator(config)
    with pytest.raises(BackboneError) as error:
        run.check(run.estimate())
    return str(error.value)


def test_a_run_that_does_not_fit_is_refused_with_a_batch_that_does(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options("training.batch_size=64", "training.eval_batch_size=4")
    run = estimator(config)
    free = int(run.estimate(batch_size=10).needed * HEADROOM) + 1
    text = refusal(monkeypatch, config, free)
    assert "training.batch_size=64) needs" in text
    sizes = named_sizes(text)
    # The evaluation batch, which changes no result, gives way to the training batch.
    assert 10 <= sizes["batch_size"] < 64
    assert run.estimate(**sizes).needed * HEADROOM <= free
    monkeypatch.setattr(module, "free_bytes", lambda _: free)
    run.check(run.estimate(**sizes))


def test_texts_are_kept_where_half_of_the_memory_holds_them(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options("prompt.order=text_first", "training.batch_size=8")
    found = estimator(config).estimate()
    assert found.texts
    both = refusal(monkeypatch, config, int(found.needed * HEADROOM) - 1)
    assert "backbone.cache=none (" in both
    monkeypatch.setattr(module, "free_bytes", lambda _: found.weights + 2 * found.texts + 2)
    assert estimator(config).estimate().texts == found.texts
    config.trainer.devices = 2
    assert estimator(config).estimate().texts == 0
    monkeypatch.setattr(module, "free_bytes", lambda _: found.weights + found.texts)
    config.trainer.devices = 1
    assert estimator(config).estimate().texts == 0


def named_sizes(text: str) -> dict[str, int]:
    """The batches that a refusal names."""
    named = re.search(r"((?:training\.\w+=\d+ ?)+)\(\S+ [MG]iB\)", text)
    assert named is not None, text
    pairs = (word.removeprefix("training.").split("=") for word in named[1].split())
    return {name: int(size) for name, size in pairs}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_a_batch_that_fits_is_found_where_there_is_one(
    options: Options, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    config = options("training.batch_size=32", "training.eval_batch_size=32")
    run = estimator(config)
    most, least = run.estimate(), run.estimate(batch_size=1, eval_batch_size=1)
    free = int((least.needed + share * (most.needed - least.needed)) * HEADROOM) + 1
    text = refusal(monkeypatch, config, free)
    sizes = named_sizes(text)
    assert run.estimate(**sizes).needed * HEADROOM <= free


def test_only_changes_that_would_do_are_named(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options("training.batch_size=64", "training.eval_batch_size=64")
    run = estimator(config)
    bfloat16 = run.estimate(stored=Stored(torch.bfloat16)).needed
    text = refusal(monkeypatch, config, int(bfloat16 * HEADROOM) + 1)
    assert "backbone.dtype=bfloat16" in text
    for how in (Quantization.int8, Quantization.nf4):
        needed = run.estimate(stored=Stored(torch.float32, how)).needed
        assert (f"backbone.quantization={how.value}" in text) == (needed <= bfloat16)


def test_nothing_that_would_do(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    text = refusal(monkeypatch, options(), 1000)
    assert re.search(r"needs \S+ MiB on cpu, but 0\.0 MiB are free", text)
    assert "Choose a smaller backbone or a larger device: none of " in text
    assert "backbone.check_memory=false tries all the same" in text


def test_a_run_says_what_it_estimates_and_measures(
    options: Options, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _: 1000)
    with pytest.raises(BackboneError, match=r"This run \(float32, quantization none"):
        fit(options())
    # The backbone's own check looks at what is free as well, and is switched off with it.
    with caplog.at_level("INFO"):
        run = fit(options("backbone.check_memory=false", "training.schedule_epochs=1"))
    assert "memory: about" in caplog.text
    assert "GiB measured" in caplog.text
    values: dict[str, Any] = json.loads(run.memory.read_text("utf-8"))
    assert set(values) == {
        "trainable_parameters",
        "eval_batch_size",
        "parts",
        "needed",
        "total",
        "measured_peak",
    }
    assert values["trainable_parameters"] == 164_884
    assert values["eval_batch_size"] == run.eval_batch_size == 32
    assert values["parts"]["weights"] > 0
    assert values["measured_peak"] > 0
