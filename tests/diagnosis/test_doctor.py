"""``python -m msea_lightning.doctor``: what it finds, what it says, and what it leaves alone."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from rich.console import Console
from safetensors.numpy import save_file

from msea_lightning.backbone import load_tokenizer
from msea_lightning.backbone.loading.memory import HEADROOM, parameter_count
from msea_lightning.backbone.options import Accelerator, BackboneConfig
from msea_lightning.commands.command_line import compose, launch
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import options
from msea_lightning.config.roots import DoctorConfig, TrainConfig
from msea_lightning.cost.estimate import MemoryEstimator
from msea_lightning.cost.published import (
    ASSUMED_SHARE,
    configuration_costs,
    fitting,
    published_estimator,
    published_flops,
)
from msea_lightning.data.options import DatasetConfig
from msea_lightning.data.prepare import download_folder, prepare_store
from msea_lightning.diagnosis import devices, packages
from msea_lightning.diagnosis import findings as findings_module
from msea_lightning.diagnosis.backbones import find_backbone, find_backbones
from msea_lightning.diagnosis.datasets import Resource, find_dataset, find_datasets
from msea_lightning.diagnosis.devices import Device, Machine, find_machine
from msea_lightning.diagnosis.findings import (
    DoctorError,
    Findings,
    choices,
    diagnose,
    paper_configurations,
)
from msea_lightning.diagnosis.packages import Package, find_packages
from msea_lightning.diagnosis.show import show
from msea_lightning.doctor import doctor
from msea_lightning.model.build import build_prompt
from msea_lightning.paper.lengths import SHAPES
from msea_lightning.training.size import measure_size
from tests.data.published import table_rows, write_dialogue, write_mmsa, write_table
from tests.places import VECTORS

GIB = 2**30
COUNTS = VECTORS / "adapter" / "parameter_counts.json"
ORIGINAL_NAMES = {"llama2": "LLaMA2-7B", "qwen": "Qwen-1.8B", "chatglm3": "ChatGLM3-6B"}
LLAMA2 = "meta-llama/Llama-2-7b-hf"
RATE = 4e13
"""Operations per second that every device is said to have."""
MATRIX_RATE = "msea_lightning.cost.rate.matrix_rate"


def refuse_connections(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("the doctor opened a connection")


@pytest.fixture(scope="module", autouse=True)
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Empty caches of the project and of the Hub, nobody logged in, no network, and no clock."""
    folder = tmp_path_factory.mktemp("doctor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSEA_CACHE", str(folder / "cache"))
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr(huggingface_hub, "get_token", lambda: None)
        patch.setattr(socket.socket, "connect", refuse_connections)
        patch.setattr(socket, "getaddrinfo", refuse_connections)
        patch.setattr(MATRIX_RATE, lambda dtype, device: RATE)
        yield folder


PAIRS = [("mosei", "qwen"), ("cherma", "chatglm3")]
"""Configurations of the paper whose cost is estimated; all twelve would take long."""


@pytest.fixture(scope="module")
def findings(places: Path) -> Findings:
    """What is found where nothing is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings_module, "paper_configurations", lambda: [cell(*p) for p in PAIRS])
        return diagnose(DoctorConfig(accelerator=Accelerator.cpu))


@pytest.fixture(scope="module")
def estimators(places: Path) -> list[tuple[TrainConfig, MemoryEstimator]]:
    """The estimators of all twelve configurations, which have measured nothing yet."""
    cpu = torch.device("cpu")
    return [(config, published_estimator(config, cpu)) for config in paper_configurations()]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the project for one test."""
    monkeypatch.setenv("MSEA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub for one test."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def dataset(name: str, **changes: Any) -> DatasetConfig:
    config = compose("train", TrainConfig, [f"dataset={name}"]).dataset
    return replace(config, **changes)


def language(name: str) -> BackboneConfig:
    return compose("train", TrainConfig, [f"backbone={name}"]).backbone


def cell(name: str, backbone: str) -> TrainConfig:
    return compose("train", TrainConfig, [f"dataset={name}", f"backbone={backbone}"])


def printed(findings: Findings, width: int = 80) -> str:
    target = io.StringIO()
    show(findings, Console(file=target, width=width))
    return target.getvalue()


# ---- packages ----------------------------------------------------------------------------------


def by_name(packages: list[Package]) -> dict[str, Package]:
    return {package.name: package for package in packages}


def requiring(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Lets the project require something else."""
    real = packages.metadata.requires

    def requires(name: str) -> list[str] | None:
        return list(lines) if name == "msea_lightning" else real(name)

    monkeypatch.setattr(packages.metadata, "requires", requires)


def test_everything_that_the_project_requires_is_checked(findings: Findings) -> None:
    found = by_name(findings.packages)
    assert {"python", "msea_lightning", "torch", "hydra-core", "pyyaml", "flash-attn"} <= set(found)
    assert "pytest" not in found
    assert not [package for package in findings.packages if package.flaw and not package.optional]
    assert found["torch"].version == torch.__version__
    assert found["python"].needed == ">=3.10"


def test_missing_packages_and_wrong_versions_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    requiring(monkeypatch, "no-such-package>=2", "wandb>=99,!=99.1", "scipy>=1; extra == 'dev'")
    monkeypatch.setattr(packages.importlib, "import_module", refuse_connections)
    found = by_name(find_packages("cpu"))
    assert "scipy" not in found
    missing, old = found["no-such-package"], found["wandb"]
    assert (missing.version, missing.flaw) == (None, "missing")
    assert missing.remedy == "pip install 'no-such-package>=2'"
    assert old.flaw == "not in range"  # and not imported: some releases do harm
    assert old.remedy == "pip install 'wandb!=99.1,>=99'"


def test_a_broken_package_is_reported_and_what_needs_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requiring(monkeypatch, "torchmetrics>=1", "torch>=2.6", "filelock")

    def import_module(name: str) -> object:
        if name == "torch":
            raise OSError("libcudart.so.12: cannot open shared object file\nmore")
        return object()

    monkeypatch.setattr(packages.importlib, "import_module", import_module)
    found = by_name(find_packages("cpu"))
    assert found["torch"].flaw == "OSError: libcudart.so.12: cannot open shared object file"
    assert found["torch"].remedy == "pip install --force-reinstall --no-deps 'torch>=2.6'"
    assert (found["torchmetrics"].flaw, found["torchmetrics"].remedy) == ("waits for torch", "")
    assert found["filelock"].flaw == ""


def test_a_project_that_is_not_installed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def metadata(name: str) -> NoReturn:
        raise packages.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "metadata", metadata)
    (own,) = find_packages("cpu")
    assert own.flaw.startswith("runs from its folder, not installed")
    assert own.remedy == "pip install -e ."


def test_bitsandbytes_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    requiring(monkeypatch, "bitsandbytes>=0.46.1")
    assert by_name(find_packages("cpu"))["bitsandbytes"].flaw == ""
    monkeypatch.setattr(
        "bitsandbytes.functional.quantize_4bit", lambda *_, **__: exec("raise RuntimeError('no')")
    )
    tried = by_name(find_packages("cpu"))["bitsandbytes"]
    assert tried.flaw == "RuntimeError: no"
    assert tried.remedy == "pip install --force-reinstall --no-deps 'bitsandbytes>=0.46.1'"


# ---- the machine -------------------------------------------------------------------------------


def test_without_a_gpu_the_cpu_is_taken(
    findings: Findings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = findings.machine
    assert machine.chosen == machine.device.name == "cpu"
    assert machine.device.dtype == "float32"
    assert 0 < machine.device.free <= machine.device.total
    assert [disk.use for disk in findings.disks] == ["data sets", "backbones"]
    assert all(disk.free > 0 for disk in findings.disks)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "PyTorch sees no GPU" in find_machine(Accelerator.gpu).flaw
    # A GPU that PyTorch does not see
    (tmp_path / "version").write_text("NVRM version: ...")
    monkeypatch.setattr(devices, "_DRIVER", tmp_path / "version")
    for build, remedy in {
        None: "pip install --force-reinstall torch",
        "12.8": "nvidia-smi",
    }.items():
        monkeypatch.setattr(torch.version, "cuda", build)
        monkeypatch.setattr(torch.version, "hip", None)
        found = find_machine(Accelerator.auto)
        assert (found.chosen, found.remedy.split("  ")[0]) == ("cpu", remedy)
        assert "an NVIDIA driver is there" in found.flaw
    assert find_machine(Accelerator.cpu).flaw == ""


def fake_gpu(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool) -> None:
    for name, value in {
        "device_count": lambda: 1,
        "is_available": lambda: True,
        "mem_get_info": lambda index: (20 * GIB, 24 * GIB),
        "get_device_name": lambda index: "A GPU",
        "is_bf16_supported": lambda including_emulation: bfloat16,
        "device": lambda index: io.StringIO(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_a_gpu_is_taken(monkeypatch: pytest.MonkeyPatch, bfloat16: bool) -> None:
    fake_gpu(monkeypatch, bfloat16=bfloat16)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    machine = find_machine(Accelerator.auto)
    assert machine.device == Device("cuda:0", "A GPU", 24 * GIB, 20 * GIB, "bfloat16", bfloat16)
    assert find_machine(Accelerator.cpu).chosen == "cpu"
    text = printed(Findings([], machine))
    assert "cuda:0 (chosen)" in text
    assert ("float16" in text.replace("bfloat16", "")) is not bfloat16


def test_a_broken_driver_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(index: int) -> NoReturn:
        raise RuntimeError("CUDA driver initialization failed\nand more")

    fake_gpu(monkeypatch, bfloat16=True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    machine = find_machine(Accelerator.auto)
    assert machine.device.name == "cpu"
    assert machine.flaw == "RuntimeError: CUDA driver initialization failed"


# ---- data sets ---------------------------------------------------------------------------------


def test_every_data_set_has_the_line_that_gets_it(findings: Findings) -> None:
    found = {place.name: place for place in findings.datasets}
    assert {name: place.state for name, place in found.items()} == {
        **dict.fromkeys(
            ["mosei", "simsv2", "meld", "meld_text", "cherma", "mosi", "sims", "iemocap"], "missing"
        ),
        "demo": "built in",
        **dict.fromkeys(["table", "mosi_utterance"], "yours"),
    }
    command = "python -m msea_lightning.prepare"
    assert found["mosei"].remedy == f"{command} dataset=mosei dataset.download=true"
    assert found["mosi"].remedy.startswith(f"{command} dataset=mosi dataset.path=PATH  # from http")
    assert "dataset.path=FOLDER" in found["table"].remedy
    assert found["demo"].usable
    assert not found["table"].usable


def test_downloads_are_found_and_then_prepared(cache: Path) -> None:
    config = dataset("mosei")
    write_mmsa(download_folder(config), "mosei")
    place = find_dataset(config)
    assert place == Resource("mosei", "found", str(download_folder(config)))
    prepare_store(config)
    assert find_dataset(config) == replace(place, state="prepared")


def test_an_interrupted_download_is_reported(cache: Path) -> None:
    config = dataset("mosei")
    part = cache / "downloads" / "mosei.partial" / "unaligned_50.pkl.0123"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    place = find_dataset(config)
    assert place.state == "incomplete"
    assert place.flaw == "a download broke off; the same command goes on"
    assert place.remedy.endswith("dataset.download=true")


def test_files_of_an_earlier_store_are_found_again(cache: Path, tmp_path: Path) -> None:
    files = write_dialogue(tmp_path / "my files", "meld")
    prepare_store(dataset("meld", path=str(files)))
    place = find_dataset(dataset("meld"))
    assert (place.state, place.place) == ("prepared", str(files))
    assert place.option == f"'dataset.path={files}'"  # ready for the shell
    for file in files.iterdir():
        file.unlink()
    assert find_dataset(dataset("meld")).state == "incomplete"
    files.rmdir()
    assert find_dataset(dataset("meld")).state == "missing"


def test_a_folder_is_searched_for_published_files(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_mmsa(folder, "mosei")
    write_dialogue(folder, "meld")
    write_mmsa(folder / "MOSI" / "Processed", "mosi")
    write_mmsa(folder / "sims", "sims")
    (folder / "sims" / "aligned.pkl").write_bytes(b"")
    write_dialogue(folder / "cherma", "cherma", {"valid": []})
    configs = [choice.dataset for choice in choices("dataset")]
    found = {place.name: place for place in find_datasets(configs, folder)}
    assert {name: place.option for name, place in found.items() if place.option} == {
        "mosei": f"dataset.path={folder / 'unaligned_50.pkl'}",
        "meld": f"dataset.path={folder}",
        "mosi": f"dataset.path={folder / 'MOSI'}",
    }
    assert "holds 2 pickles" in found["sims"].flaw  # which of them is meant?
    assert "holds no cherma_train.pkl" in found["cherma"].flaw
    assert {name for name, place in found.items() if place.state == "missing"} == {
        "iemocap",
        "meld_text",
        "simsv2",
    }


def test_files_of_another_data_set_are_not_taken(cache: Path, tmp_path: Path) -> None:
    # Both data sets are published in files of this name.
    write_mmsa(tmp_path / "data" / "mosi", "mosei")
    config = dataset("mosei")
    assert find_dataset(config, folder=tmp_path / "data").state == "found"
    assert find_dataset(config, folder=tmp_path / "data", others={"mosi"}).state == "missing"
    # And a folder with one other data set is not this one.
    write_dialogue(tmp_path / "more", "meld")
    assert find_dataset(dataset("iemocap"), folder=tmp_path / "more").state == "missing"
    assert find_dataset(dataset("mosi"), folder=tmp_path / "more").state == "missing"


def test_a_table_is_found_in_a_folder(cache: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "mine", table_rows())
    place = find_dataset(dataset("table"), folder=tmp_path / "mine")
    assert (place.state, place.option) == ("found", f"dataset.path={tmp_path / 'mine'}")


def test_own_tables_and_label_files_are_found_below_a_folder(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_table(folder / "a" / "mine", table_rows(), form="files")
    meld = folder / "meld csvs"
    meld.mkdir()
    for name in ("train", "test"):
        lines = "Utterance,Emotion,Dialogue_ID,Utterance_ID\nHi,joy,0,0\n"
        (meld / f"{name}_sent_emo.csv").write_text(lines)
    (folder / "answers").mkdir()
    (folder / "answers" / "predictions.csv").write_text("id,text,label,prediction\n1,x,joy,joy\n")
    found = find_datasets([dataset("table")], folder)
    assert [(place.name, place.state, place.option) for place in found] == [
        (
            "table",
            "found",
            f"dataset=table dataset.path={folder}/a/mine dataset.name=mine",
        ),
        (
            "table",
            "found",
            f"dataset=table 'dataset.path={meld}' 'dataset.name=meld csvs'  # a label file of MELD",
        ),
    ]


# ---- backbones ---------------------------------------------------------------------------------


def snapshot(hub: Path, identity: str) -> Path:
    """An empty snapshot of a repository in the layout of the Hub's cache."""
    repository = hub / f"models--{identity.replace('/', '--')}"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "0123.incomplete").write_bytes(b"half")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    folder = repository / "snapshots" / "abc"
    folder.mkdir(parents=True)
    return folder


def write_config(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(language(name).architecture))


def write_rest(folder: Path) -> None:
    """A tokenizer by name, and two small weight files with their index."""
    (folder / "tokenizer.json").write_text("{}")
    names = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        save_file({name: np.zeros(4, np.float32)}, folder / name)
    index = {"weight_map": {name: name for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_every_backbone_has_the_line_that_gets_it(findings: Findings) -> None:
    found = {place.name: place for place in findings.backbones}
    assert set(found) == {choice.backbone.name for choice in choices("backbone")}
    assert found["tiny"] == Resource("tiny", "built in", "part of the package")
    assert {place.state for name, place in found.items() if name != "tiny"} == {"missing"}
    assert found["qwen"].remedy == "hf download Qwen/Qwen-1_8B"
    assert found["llama2"].remedy == f"hf auth login && hf download {LLAMA2}"


def test_who_is_logged_in_needs_no_login(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    assert find_backbone(language("llama2")).remedy == f"hf download {LLAMA2}"


def test_checkpoints_in_the_cache_of_the_hub(hub: Path) -> None:
    config = language("llama2")

    def state() -> tuple[str, str]:
        place = find_backbone(config)
        assert place.usable is not bool(place.remedy)
        return place.state, place.flaw

    assert state() == ("missing", "")
    folder = snapshot(hub, LLAMA2)
    assert state() == ("incomplete", "lacks config.json, the tokenizer, the weights")
    write_config(folder, "llama2")
    assert state() == ("incomplete", "lacks the tokenizer, the weights")
    write_rest(folder)
    assert state() == ("complete", "")
    assert find_backbone(config).place == str(folder)
    assert find_backbone(config).option == ""
    shard = folder / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    assert state() == ("incomplete", "lacks 1 of 2 weight files")
    shard.write_bytes(content[:-1])
    assert state() == ("incomplete", f"lacks a whole {shard.name} (it is damaged)")
    (folder / "pytorch_model.bin").write_bytes(b"weights")  # another format, and whole
    assert state() == ("complete", "")
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors.index.json").write_text("{")
    assert state()[0] == "incomplete"


def test_checkpoints_in_a_folder_are_known_by_their_sizes(
    hub: Path, places: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    for name in ("A-chat", "llama-2-7b-hf", "half"):
        write_config(folder / name, "llama2")
    for name in ("A-chat", "llama-2-7b-hf"):
        write_rest(folder / name)
    write_config(folder / "org" / "half-of-qwen2.5", "qwen2.5-0.5b")
    write_config(folder / "other", "qwen3-0.6b")
    write_rest(folder / "other")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text('{"model_type": "nothing-known"}')
    configs = [language(name) for name in ("llama2", "qwen2.5-0.5b", "qwen2.5-1.5b")]
    found = find_backbones(configs, folder)
    llama2, small, missing, broken, other = found
    assert llama2.state == "complete"
    assert llama2.option == f"backbone.path={folder / 'llama-2-7b-hf'}"
    assert (small.state, small.flaw) == ("incomplete", "lacks the tokenizer, the weights")
    assert small.remedy == "hf download Qwen/Qwen2.5-0.5B"
    assert missing.state == "missing"
    assert (broken.name, broken.state) == ("auto", "incomplete")
    assert "nothing-known" in broken.flaw
    assert other.option == f"backbone=auto backbone.path={folder / 'other'}"
    assert other.state == "complete"


def test_original_checkpoints_are_known(tmp_path: Path) -> None:
    """A first-generation Qwen: its config.json has other names, its vocabulary is a tiktoken."""
    folder = tmp_path / "models" / "Qwen-1_8B"
    folder.mkdir(parents=True)
    fields = {
        **{"model_type": "qwen", "architectures": ["QWenLMHeadModel"], "vocab_size": 151936},
        **{"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 24},
        **{"num_attention_heads": 16, "kv_channels": 128, "seq_length": 8192, "no_bias": True},
        **{"layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000, "tie_word_embeddings": False},
        "max_position_embeddings": 8192,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "qwen.tiktoken").write_text("")
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    (place,) = find_backbones([language("qwen")], tmp_path / "models")
    assert (place.state, place.option) == ("complete", f"backbone.path={folder}")


# ---- configurations ----------------------------------------------------------------------------


def test_the_twelve_configurations_have_the_papers_adapters(
    estimators: list[tuple[TrainConfig, MemoryEstimator]],
) -> None:
    counts = json.loads(COUNTS.read_text(encoding="utf-8"))
    assert len({(config.dataset.name, config.backbone.name) for config, _ in estimators}) == 12
    numbers = {"llama2": 6_738_415_616, "qwen": 1_836_828_672, "chatglm3": 6_243_584_000}
    for config, estimator in estimators:
        dataset, backbone = config.dataset.name, config.backbone.name
        expected = counts[ORIGINAL_NAMES[backbone]][dataset]
        assert estimator.trainable == expected["trainable_parameters"]
        settings = expected["settings_in_original_config"]
        assert config.training.batch_size == settings["batch_size"]
        assert config.recipe == f"{dataset}_{backbone}"
        assert parameter_count(estimator.meter.language) == numbers[backbone]


def test_what_a_configuration_needs_is_the_sum_of_its_parts(findings: Findings) -> None:
    assert [(found.dataset, found.backbone) for found in findings.configurations] == PAIRS
    for found in findings.configurations:
        # Weights, gradients and two moments, in float32
        assert found.adapter == 4 * 4 * found.trainable
        assert found.needed == found.weights + found.activations + found.adapter
        assert found.fits == (found.needed * HEADROOM <= findings.machine.device.free)
        assert not found.ready
    assert [found.weights for found in findings.configurations] == [
        4 * 1_836_828_672,
        4 * 6_243_584_000,
    ]


@pytest.fixture(scope="module")
def on_a_gpu(places: Path) -> MemoryEstimator:
    return published_estimator(cell("mosei", "llama2"), torch.device("cuda:0"))


def test_llama2_takes_what_is_known_on_a_gpu(on_a_gpu: MemoryEstimator) -> None:
    estimate = on_a_gpu.estimate()
    assert round(estimate.weights / GIB, 1) == 12.6
    assert on_a_gpu.stored.dtype is torch.bfloat16
    # Each by itself: a byte, or half a byte and scales, for 6.5 billion weights of linear layers
    sizes = fitting(on_a_gpu, 24 * GIB)
    assert set(sizes) == {"backbone.quantization=int8", "backbone.quantization=nf4"}
    int8, nf4 = sizes.values()
    assert nf4 < int8 < estimate.needed
    assert 2.9 * GIB < int8 - nf4 < 3.3 * GIB
    assert list(fitting(on_a_gpu, int(nf4 * HEADROOM) + 1)) == ["backbone.quantization=nf4"]


def test_sequences_are_as_long_as_the_real_tokenizers_write_them(
    shared: Path, estimators: list[tuple[TrainConfig, MemoryEstimator]]
) -> None:
    folder = shared / "tokenizers"
    tokenizers = {name: load_tokenizer(str(folder / name)) for name in ORIGINAL_NAMES}
    for config, estimator in estimators:
        prompt, _ = build_prompt(
            tokenizers[config.backbone.name],
            config.dataset.labels,
            config.dataset,
            config.backbone,
            config.adapter,
            config.text,
            config.prompt,
        )
        assert estimator.meter.prompt.longest == prompt.longest


def test_the_hours_are_those_of_the_backbones_operations(findings: Findings) -> None:
    assert findings.rate == RATE
    config, found = cell(*PAIRS[0]), findings.configurations[0]
    estimator = published_estimator(config, torch.device("cpu"))
    test = published_flops(config.dataset, estimator)[1]
    flops = found.flops_epoch * config.training.schedule_epochs + test
    assert found.hours == flops / (RATE * ASSUMED_SHARE) / 3600
    # By hand: 24 layers, in training each weight forward and again backward, attention thrice.
    # Texts are a little shorter than their distribution's mean, because long ones are cut.
    # What all sequences begin with is cached.
    prefix = len(estimator.meter.prompt.prefix_ids)
    fixed, text = 95 - 50, 22.6
    assert text < SHAPES["mosei"].text.mean
    keys_and_values, others = 2 * 2048**2, 2 * 2048**2 + 3 * 2048 * 5504
    attention = 24 * 4 * 2048

    def mean(tokens: float, products: int, mixing: int, predicted: int) -> float:
        head = 2048 * 151936 * predicted
        # Of the last layer, all but its keys and values is there for what predicts something.
        new = tokens - prefix
        matrices = 24 * keys_and_values * new + others * (23 * new + predicted)
        return products * (matrices + head) + mixing * attention * tokens * new

    train = 16326 * mean(fixed + text + 3, 4, 3, 4)
    valid = 1871 * mean(fixed + text + 18, 2, 1, 19)
    assert found.flops_epoch == pytest.approx(train + valid, rel=0.005)


def test_without_a_rate_there_are_no_hours(findings: Findings) -> None:
    device = findings.machine.device
    configs, cpu = [cell("simsv2", "qwen")], torch.device("cpu")
    (found,), _ = configuration_costs(configs, cpu, device.free, {}, None)
    assert found.hours is None
    # The cached prefix is read once, not for each utterance.
    assert found.flops_epoch == pytest.approx(1.07e15, rel=0.01)
    text = printed(replace(findings, rate=None, configurations=[found], fitting={}))
    assert re.search(rf"simsv2 .* {found.flops_epoch / 1e15:.1f} +- (yes|no) ", text)
    assert "hours: the speed of cpu cannot be measured; is its memory full?\n" in text


def test_table_1_says_the_same_memory(findings: Findings, tmp_path: Path) -> None:
    """Pages of CHERMA's feature files, which the system drops, are not what a run needs."""
    name, backbone = PAIRS[1]
    words = ["experiment=table1", f"dataset={name}", f"backbone={backbone}", "adapter=mse"]
    place = [f"runs={tmp_path}", "trainer.accelerator=cpu"]
    run = measure_size(compose("train", TrainConfig, [*words, *place]))
    size = json.loads(run.metrics.read_text())["size"]
    assert size["memory_bytes"] == findings.configurations[1].needed
    assert json.loads(run.memory.read_text())["total"] > 2 * size["memory_bytes"]


def test_what_is_looked_at_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(findings_module, "find_packages", lambda device: [])
    monkeypatch.setattr(findings_module, "paper_configurations", lambda: [])
    monkeypatch.setattr(findings_module, "find_backbones", lambda configs, folder: [])
    monkeypatch.setattr(findings_module, "find_datasets", lambda configs, folder: [])
    diagnose(DoctorConfig(accelerator=Accelerator.cpu), said.append)
    assert said[:4] == ["devices", "packages", "disks", "data sets"]
    assert said[4:-1] == ["language models", "the speed of the device"]
    assert said[-1] == "what a large language model needs"


def test_what_is_here_is_ready(findings: Findings) -> None:
    configs, cpu = [cell("mosei", "qwen")], torch.device("cpu")
    here = {"mosei": "dataset.path=x", "qwen": "backbone.path=y"}
    (ready,), fitting = configuration_costs(configs, cpu, 100 * GIB, here, RATE)
    assert ready.ready
    assert fitting == {}
    assert ready.command == (
        "python -m msea_lightning.train dataset=mosei backbone=qwen dataset.path=x backbone.path=y"
    )
    text = printed(replace(findings, configurations=[ready], fitting={}))
    assert f"1 of 1 configurations can be run as they are.\n  {ready.command}\n" in text
    (cramped,), fitting = configuration_costs(configs, cpu, GIB, here, RATE)
    assert not cramped.fits
    assert fitting == {"qwen": {}}
    assert "qwen: its largest configuration fits neither" in printed(
        replace(findings, configurations=[cramped], fitting=fitting)
    )


# ---- what is printed and written ---------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 140])
def test_what_is_printed_can_be_read_and_copied(findings: Findings, width: int) -> None:
    sizes = {"backbone.quantization=int8": 15 * GIB, "backbone.quantization=nf4": 10 * GIB}
    text = printed(replace(findings, fitting={"llama2": sizes}), width)
    assert "…" not in text
    for place in (*findings.datasets, *findings.backbones):
        assert f"\n{place.name} " in text
        assert f"  {place.remedy or place.place}\n" in text
    for found in findings.configurations:
        assert f"{found.trainable:,}" in text
    assert "google and meta-llama: accept the licence" in text
    assert "\nPFLOP: operations of the language model in an epoch and its validation.\n" in text
    assert "\nhours: the whole schedule at 50% (assumed) of the measured 40.00 TFLOP/s.\n" in text
    assert "0 of 2 configurations can be run as they are." in text
    assert (
        "\nllama2: all its configurations fit with backbone.quantization=int8 (15.0 GiB) or "
        "backbone.quantization=nf4 (10.0 GiB).\n"
    ) in text
    # Only lines with a command, a path or options may be longer.
    lines = text.splitlines()
    long = [line for line in lines if len(line.rstrip()) > 80]
    parts = (" -m msea_lightning", "/", "llama2: ", "backbone.device_map=auto")
    assert [line for line in long if not any(part in line for part in parts)] == []
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("The paper's")) :]
    assert max(len(line.rstrip()) for line in table if not any(p in line for p in parts)) <= 80
    assert len(lines) < 90


def test_flaws_are_printed(findings: Findings) -> None:
    flawed = [
        Package("torch", "2.1", ">=2.6", "not in range", "pip install 'torch>=2.6'"),
        Package("flash-attn", None, ">=2", "missing", "pip install flash-attn", True, "for GPUs"),
        Package("optuna", None, ">=5", "missing", "pip install optuna", True, "for msea search"),
    ]
    text = printed(replace(findings, packages=flawed, unchecked={"configurations": "OSError: no"}))
    assert "torch: pip install 'torch>=2.6'\n" in text
    assert "pip install flash-attn" not in text  # without a GPU it is of no use
    assert "optional, for msea search" in text
    assert "optuna: pip install optuna" in text
    assert "configurations: not checked (OSError: no)\n" in text
    incomplete = Resource("qwen", "incomplete", flaw="lacks x", remedy="hf download Q/q")
    lines = printed(Findings([], findings.machine, backbones=[incomplete])).splitlines()
    start = lines.index("qwen  incomplete  lacks x")
    assert lines[start + 1] == "                  hf download Q/q"


def test_findings_are_written_as_json(
    findings: Findings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(findings_module, "diagnose", lambda config, say: findings)
    target = tmp_path / "findings.json"
    doctor(DoctorConfig(json=str(target)))
    assert json.loads(target.read_text(encoding="utf-8")) == asdict(findings)
    assert f"findings: {target}\n" in capsys.readouterr().out
    for place, flaw in ((tmp_path / "none" / "x.json", "does not exist"), (tmp_path, "a folder")):
        with pytest.raises(ConfigError, match=rf"json={place} is .*{flaw}: give a new file"):
            doctor(DoctorConfig(json=str(place)))
    with pytest.raises(DoctorError, match=r"json=/proc/findings\.json: .* cannot be written"):
        doctor(DoctorConfig(json="/proc/findings.json"))


@pytest.mark.parametrize("name", ["datasets", "backbones"])
def test_a_folder_to_search_has_to_be_there(tmp_path: Path, name: str) -> None:
    config = DoctorConfig(**{name: str(tmp_path / "none")})
    with pytest.raises(DoctorError, match=rf"{name}=.*none: there is no such folder"):
        diagnose(config)


def test_an_error_of_the_project_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> NoReturn:
        raise KeyError("a bug")

    machine = Machine([Device("cpu", "", GIB, GIB, "float32")], "cpu")
    monkeypatch.setattr(findings_module, "find_machine", lambda accelerator: machine)
    monkeypatch.setattr(findings_module, "find_packages", lambda device: [])
    monkeypatch.setattr(findings_module, "find_disks", broken)
    with pytest.raises(KeyError, match="a bug"):
        diagnose(DoctorConfig())


# ---- the command -------------------------------------------------------------------------------


def test_a_wrong_command_line_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in {
        ("jsn=x",): "there is no option jsn. Did you mean json?",
        ("accelerator=tpu",): "expected auto|cpu|gpu",
        ("dataset=mosei",): "there is no option dataset",
    }.items():
        with pytest.raises(SystemExit) as stop:
            launch(doctor, config_name="doctor", root=DoctorConfig, arguments=words)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_help_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    launch(doctor, config_name="doctor", root=DoctorConfig, arguments=["--help"])
    text = capsys.readouterr().out
    assert "python -m msea_lightning.doctor datasets=/data backbones=/models" in text
    for info in options(DoctorConfig):
        assert f"  {info.key}=" in text
        assert info.help in text


def test_a_broken_pytorch_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so is missing')")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "msea_lightning.doctor", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "MSEA_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "OSError: libcudart.so is missing" in done.stdout
    assert "torch: pip install --force-reinstall --no-deps 'torch>=2.6'\n" in done.stdout
    assert "waits for torch" in done.stdout
    assert "configurations: not checked (" in done.stdout
    assert "Correct the packages above" in done.stdout


def test_the_largest_language_model_is_laid_out(findings: Findings) -> None:
    largest = findings.largest
    assert largest is not None
    assert largest.parameters == 70_553_706_496
    assert largest.stored["bfloat16"] == 2 * largest.parameters
    text = " ".join(printed(findings).split())
    assert (
        "llama3.1-70b, 70,553,706,496 parameters: 131.4 GiB in bfloat16, 67.7 GiB in int8" in text
    )
    assert largest.places or largest.flaw
    small = replace(largest, places={}, flaw="No layer has room")
    assert "backbone.dtype=bfloat16: No layer has room" in printed(replace(findings, largest=small))
    beside = replace(largest, places={"cuda:0": 30 * 2**30, "disk": 101 * 2**30}, visiting=2**31)
    shown = printed(replace(findings, largest=beside))
    assert "30.0 GiB on cuda:0, 101.0 GiB on disk; layers that lie elsewhere" in shown
