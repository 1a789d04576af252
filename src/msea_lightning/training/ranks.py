"""The processes of a run that srun or torchrun has started, on one machine or on several.

Without them a run with several devices starts its processes itself, as Lightning does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from msea_lightning.backbone import resolve_device
from msea_lightning.config.errors import UserError, first_line
from msea_lightning.training.module import TrainingError
from msea_lightning.training.options import TrainerConfig

Found = TypeVar("Found")

_PATIENCE = timedelta(minutes=60)
"""How long processes wait for each other: one machine may convert a data set, or load a language
model from a slow disk, that others have already."""


@contextmanager
def in_one_group(options: TrainerConfig) -> Iterator[None]:
    """Joins the processes of a run that a launcher has started, which then can :func:`agree`.

    Does nothing for a run of one process, or one that starts its processes itself.

    Raises:
        TrainingError: several machines without a launcher, or another number of processes than the
            options say.
    """
    number = options.ranks
    ranks: AbstractContextManager[None] = nullcontext()
    if TorchElasticEnvironment.detect():
        _check_started("torchrun", _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE"), options)
    elif number > 1 and SLURMEnvironment.detect():
        tasks = _number("SLURM_NTASKS")
        of_machine = _number("SLURM_NTASKS_PER_NODE", tasks // _number("SLURM_NNODES"))
        _check_started("srun", tasks, of_machine, options)
        ranks = _named_ranks(SLURMEnvironment())
    elif options.num_nodes > 1:
        raise TrainingError(
            f"trainer.num_nodes={options.num_nodes}, but nothing has told this process which of "
            "them it is, and where the first one is: start the command on every machine by srun, "
            f"in a job of Slurm with --nodes={options.num_nodes} --ntasks-per-node="
            f"{options.devices}, or by torchrun --nnodes={options.num_nodes} --nproc-per-node="
            f"{options.devices} --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT -m "
            "msea_lightning.train."
        )
    else:
        number = 1
    if number == 1:
        yield
        return
    with ranks:
        device, backend = resolve_device(options.accelerator), "gloo"
        if device.type == "cuda":
            backend = "nccl"
            torch.cuda.set_device(device)
        # Lightning takes the group that is there.
        torch.distributed.init_process_group(backend, timeout=_PATIENCE)
        yield
        torch.distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this is the only process of a run, or the first of several; it alone writes."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("LOCAL_RANK", "0") == "0"


def agree(compute: Callable[[], Found]) -> Found:
    """What ``compute`` gives in the first process, in all that are joined; it runs in no other.

    What is found has to be picklable. Outside of a group every process computes it by itself.

    Raises:
        TrainingError: in the others, where the first process fails.
    """
    if not torch.distributed.is_initialized():
        return compute()
    told: list[Any] = [None, None]
    if is_first():
        try:
            told[0] = compute()
        except BaseException as error:  # also an interrupt: the others would wait in vain
            told[1] = str(error) if isinstance(error, UserError) else first_line(error)
            torch.distributed.broadcast_object_list(told)
            raise
    torch.distributed.broadcast_object_list(told)
    found, failure = told
    if failure is not None:
        raise TrainingError(f"The first process of the run failed: {failure}")
    return found  # type: ignore[no-any-return]


def _check_started(launcher: str, every: int, of_machine: int, options: TrainerConfig) -> None:
    """Refuses another number of processes than the options say."""
    if (every, of_machine) == (options.ranks, options.devices):
        return
    remedy = f"Have it start {options.devices} on each of {options.num_nodes}"
    if of_machine and every % of_machine == 0:
        nodes = every // of_machine
        remedy = f"Set trainer.num_nodes={nodes} trainer.devices={of_machine}, or: {remedy}"
    raise TrainingError(
        f"Processes that {launcher} has started: {every}, of them on this machine: {of_machine}. "
        f"But trainer.num_nodes={options.num_nodes} and trainer.devices={options.devices} need "
        f"{options.ranks}, and {options.devices} on each machine. {remedy}."
    )


def _number(variable: str, default: int = 1) -> int:
    return int(os.environ.get(variable, default))


@contextmanager
def _named_ranks(slurm: SLURMEnvironment) -> Iterator[None]:
    """Says in torchrun's words what Slurm says in its own, to PyTorch and to all of this project.

    Until the end of the run: another one in this process may be of one process alone, as tasks of
    one job may be runs of their own.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}  # Lightning writes some of them itself
    os.environ |= {
        "RANK": str(slurm.global_rank()),
        "LOCAL_RANK": str(slurm.local_rank()),
        "WORLD_SIZE": str(slurm.world_size()),
        "MASTER_ADDR": slurm.main_address,
        "MASTER_PORT": str(slurm.main_port),
    }
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
