"""What the weights of a language model take of the memory, before they are loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from msea_lightning.backbone import BackboneError, load_language_model
from msea_lightning.backbone.loading import memory
from msea_lightning.backbone.loading.memory import Stored, weight_memory
from msea_lightning.backbone.options import Quantization, Weights

CPU = torch.device("cpu")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 300,
}
SEVEN_BILLION = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


def weight_bytes(config: PretrainedConfig, dtype: torch.dtype, how: Quantization) -> int:
    """Bytes of random weights."""
    stored = Stored(dtype, how, source=Weights.random)
    return weight_memory(config, stored, torch.device("meta")).weights


def architecture(fields: dict[str, Any], **changes: Any) -> PretrainedConfig:
    """A config of transformers."""
    return AutoConfig.for_model(**(fields | changes))


def test_dense_weights_are_counted_exactly() -> None:
    config = architecture(LLAMA)
    model = load_language_model("x/y", weights=Weights.random, architecture=LLAMA)
    expected = sum(p.numel() * p.element_size() for p in model.parameters())
    assert weight_bytes(config, torch.float32, Quantization.none) == expected
    assert weight_bytes(config, torch.bfloat16, Quantization.none) == expected // 2


@pytest.mark.parametrize("quantization", [Quantization.int8, Quantization.nf4])
@pytest.mark.parametrize("double", [True, False])
def test_quantised_weights_are_counted_with_their_scales(
    quantization: Quantization, double: bool
) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    stored = Stored(torch.float32, quantization, double_quantization=double)
    model = load_language_model(
        "x/y",
        weights=Weights.random,
        architecture=LLAMA | sizes,
        quantization=quantization,
        double_quantization=double,
    )
    tensors: list[torch.Tensor] = list(model.parameters())
    for parameter in model.parameters():
        tensors += [t for t in (getattr(parameter, "SCB", None),) if t is not None]
        if (state := getattr(parameter, "quant_state", None)) is not None:
            nested = [state.state2.absmax] if double else []
            tensors += [state.absmax, *nested]
    expected = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    found = weight_memory(architecture(LLAMA, **sizes), stored, torch.device("meta")).weights
    assert found == pytest.approx(expected, rel=0.01)


def test_random_weights_are_dense_before_they_are_quantised() -> None:
    config = architecture(LLAMA)
    dense = weight_memory(config, Stored(torch.float32), CPU)
    stored = Stored(torch.float32, Quantization.nf4, source=Weights.random)
    quantised = weight_memory(config, stored, CPU)
    assert quantised.weights < dense.weights
    assert quantised.weights + quantised.loading > dense.weights


def test_a_checkpoint_of_another_dtype_is_read_beside_its_conversion() -> None:
    config = architecture(LLAMA)
    config.dtype = torch.float32
    same = weight_memory(config, Stored(torch.float32), CPU)
    converted = weight_memory(config, Stored(torch.bfloat16), CPU)
    assert same.loading_files == 0
    assert converted.loading_files == same.weights


def test_seven_billion_weights_are_estimated_without_memory_for_them() -> None:
    config = architecture(SEVEN_BILLION)
    weight_bytes(architecture(LLAMA), torch.bfloat16, Quantization.none)  # imports
    before = memory.process_bytes(CPU)
    memory.reset_peak(CPU)
    assert weight_bytes(config, torch.bfloat16, Quantization.none) > 13 * 10**9
    assert memory.peak_bytes(CPU) - before < 100 << 20


def test_a_model_that_does_not_fit_is_refused_with_what_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = architecture(LLAMA)
    need = weight_bytes(config, torch.float32, Quantization.none)
    arguments = (config, Stored(torch.float32), CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda _: int(need * 0.9))
    with pytest.raises(BackboneError, match=r"bfloat16 .*backbone\.quantization=int8"):
        memory.check_memory(*arguments)
    # Random weights are dense at first, so storing them in 8 bits is no way out.
    with pytest.raises(
        BackboneError, match=r"would fit with backbone\.dtype=bfloat16 \(\S+ MiB\)\."
    ):
        load_language_model("x/y", weights=Weights.random, architecture=LLAMA)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1000)
    with pytest.raises(
        BackboneError,
        match=r"needs 0\.\d MiB on cpu, but 0\.0 MiB are free.*none of backbone\.dtype=bfloat16, "
        r"backbone\.quantization=int8, backbone\.quantization=nf4 would make it fit",
    ):
        memory.check_memory(*arguments)
    load_language_model("x/y", weights=Weights.random, architecture=LLAMA, check_fit=False)


def test_a_tenth_is_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    config = architecture(LLAMA)
    need = weight_bytes(config, torch.float32, Quantization.none)
    monkeypatch.setattr(memory, "free_bytes", lambda _: int(need * 1.05))
    with pytest.raises(BackboneError, match=r"and 1\.1 times as much must be"):
        memory.check_memory(config, Stored(torch.float32), CPU)


@pytest.mark.parametrize(
    ("own", "folder", "files"),
    [
        ("0::/", "", ("memory.max", "memory.current", "inactive_file")),
        ("0::/job/step", "job", ("memory.max", "memory.current", "inactive_file")),
        (
            "9:name=systemd:/\n4:cpu,memory:/job",
            "memory/job",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_a_control_group_limits_what_is_free(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: str,
    folder: str,
    files: tuple[str, str, str],
) -> None:
    limit, used, idle = files
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "groups")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    unlimited = memory.free_bytes(CPU)
    group = tmp_path / "groups" / folder
    group.mkdir(parents=True)
    (group / limit).write_text("3000\n")
    (group / used).write_text("2500\n")
    (group / "memory.stat").write_text(f"anon 2000\n{idle} 400\n")
    assert memory.free_bytes(CPU) == 900
    (group / limit).write_text("max\n")
    assert memory.free_bytes(CPU) == pytest.approx(unlimited, rel=0.5)


def test_the_peak_is_that_since_it_was_reset() -> None:
    memory.reset_peak(CPU)
    before = memory.peak_bytes(CPU)
    held = bytearray(64 << 20)
    held[::4096] = b"x" * len(held[::4096])
    del held
    assert memory.peak_bytes(CPU) - before >= 60 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc")
def test_the_estimate_of_a_run_is_what_is_measured(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    words = [
        *("dataset=demo", "dataset.demo_utterances=60", f"dataset.cache={tmp_path / 'cache'}"),
        *("backbone=llama2", "backbone.weights=random", "training.schedule_epochs=1"),
        *("trainer.accelerator=cpu", f"runs={tmp_path / 'runs'}"),
        *(f"backbone.architecture.{name}={size}" for name, size in sizes.items()),
    ]
    command = [sys.executable, "-m", "msea_lightning.train", *words]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = tmp_path.glob("runs/**/memory.json")
    values = json.loads(found.read_text("utf-8"))
    assert values["total"] == pytest.approx(values["measured_peak"], rel=0.2)
