"""Processes that srun or torchrun has started; tests/commands runs some."""

from __future__ import annotations

import pytest

from msea_lightning.training.module import TrainingError
from msea_lightning.training.options import TrainerConfig
from msea_lightning.training.ranks import agree, is_first, joined

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_JOB_NAME": "mse", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "3"}


def test_several_machines_need_a_launcher() -> None:
    with (
        pytest.raises(TrainingError, match=r"srun, .* --nodes=2 --ntasks-per-node=3, or by torch"),
        joined(TrainerConfig(num_nodes=2, devices=3)),
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
        joined(TrainerConfig(num_nodes=nodes, devices=devices)),
    ):
        pass


def test_tasks_of_a_job_may_be_runs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in SLURM.items():
        monkeypatch.setenv(key, value)
    with joined(TrainerConfig()):
        assert is_first()
        assert agree(lambda: "its own") == "its own"
