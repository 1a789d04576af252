"""Processes that srun or torchrun has started; tests/commands runs some."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch.distributed

from msea_lightning.backbone.options import Accelerator
from msea_lightning.training.module import TrainingError
from msea_lightning.training.options import TrainerConfig
from msea_lightning.training.ranks import agree, in_one_group, is_first

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_JOB_NAME": "mse", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "3"}


def test_several_machines_need_a_launcher() -> None:
    with (
        pytest.raises(TrainingError, match=r"srun, .* --nodes=2 --ntasks-per-node=3, or by torch"),
        in_one_group(TrainerConfig(num_nodes=2, devices=3)),
    ):
        pass


@pytest.mark.parametrize(("name", "variables"), [("torchrun", TORCHRUN), ("srun", SLURM)])
@pytest.mark.parametrize(
    ("nodes", "devices", "needed"), [(2, 1, "2, and 1"), (1, 4, "4, and 4"), (4, 1, "4, and 1")]
)
def test_as_many_processes_as_the_options_say(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    variables: dict[str, str],
    nodes: int,
    devices: int,
    needed: str,
) -> None:
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    found = f"that {name} has started: 4, of them on this machine: 2. .* need {needed} on each"
    with (
        pytest.raises(TrainingError, match=f"{found} .* trainer.num_nodes=2 trainer.devices=2, or"),
        in_one_group(TrainerConfig(num_nodes=nodes, devices=devices)),
    ):
        pass


def test_ranks_are_named_until_the_end_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "127.0.0.1", "SLURM_LOCALID": "1"}
    for key, value in {**SLURM, **place, "MASTER_PORT": "1234"}.items():
        monkeypatch.setenv(key, value)
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: None)
    before = dict(os.environ)
    with in_one_group(TrainerConfig(accelerator=Accelerator.cpu, num_nodes=2, devices=2)):
        assert os.environ["RANK"] == "3"
    assert dict(os.environ) == before


def test_others_are_told_of_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", told.extend)
    with pytest.raises(KeyboardInterrupt):
        agree(interrupt)
    assert told == [None, "KeyboardInterrupt"]


def test_tasks_of_a_job_may_be_runs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in SLURM.items():
        monkeypatch.setenv(key, value)
    with in_one_group(TrainerConfig()):
        assert is_first()
        assert agree(lambda: "its own") == "its own"
