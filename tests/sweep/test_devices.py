"""GPUs of a sweep: each run has one of its own, and says what it waits for."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from msea_lightning.sweep import devices
from msea_lightning.sweep.devices import gpu_of_its_own, visible_gpus


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two GPUs as a machine without nvidia-smi knows them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.usefixtures("two_gpus")
def test_each_run_has_a_gpu_of_its_own() -> None:
    said: list[str] = []
    with gpu_of_its_own(said.append) as one, gpu_of_its_own(said.append) as two:
        assert [one, two] == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    with gpu_of_its_own(said.append) as again:
        assert again == one
    assert said == []


@pytest.mark.usefixtures("two_gpus")
def test_a_run_waits_for_a_gpu_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_POLL", 0.01)
    got: list[dict[str, str]] = []
    said: list[str] = []

    def third() -> None:
        with gpu_of_its_own(said.append) as gpu:
            got.append(gpu)

    with gpu_of_its_own(said.append):
        with gpu_of_its_own(said.append):
            waiting = threading.Thread(target=third)
            waiting.start()
            waiting.join(0.3)
            assert got == []
        waiting.join(10)
        assert got == [{"CUDA_VISIBLE_DEVICES": "5"}]
    assert said == ["waiting for a GPU: other runs use all that are visible (3, 5)"]


@pytest.mark.usefixtures("two_gpus")
def test_locks_are_each_users_own_also_where_users_have_no_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "getuid")
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    with gpu_of_its_own(print):
        assert [path.name for path in tmp_path.iterdir()] == ["msea_lightning-ann"]


@pytest.mark.parametrize("listed", ["", "-1"])
def test_no_gpu_is_taken_where_none_may_be_used(
    monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    with gpu_of_its_own(print) as environment:
        assert environment == {}


def test_gpus_are_told_apart_by_their_hardware(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Two jobs of a cluster on one machine call different GPUs 0.
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-aaa'\necho '1, GPU-bbb'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == {"0": "GPU-aaa", "1": "GPU-bbb"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,MIG-ccc")
    assert visible_gpus() == {"1": "GPU-bbb", "MIG-ccc": "MIG-ccc"}
