"""A step waits for no device: a host that asks a GPU for a number stands still until it is there.

Steps run on the ``meta`` device, which has shapes and no numbers, and everything that PyTorch is
asked for is looked at. What waits for a GPU is: reading a number of it, what has as many results as
it finds (``nonzero``, a mask as an index), and copying to or from it in a blocking way. The CPU's
own tensors may be looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msea_lightning.adapter import lstm
from msea_lightning.backbone import load_backbone
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.utterance import Batch
from msea_lightning.language.prompt import encode_all
from msea_lightning.metrics import UtteranceScore
from msea_lightning.training.build import build_adapted_lm, build_data
from msea_lightning.training.module import TrainingModule

aten = torch.ops.aten
META = torch.device("meta")
NUMBERS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.unique_dim,
    aten._unique2,
}
"""What gives a number to the host, or has as many results as it finds."""
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
LENGTHS_ON_CPU = {aten._pack_padded_sequence, aten.lstm}
"""Take lengths that they want on the CPU, and copy nothing."""


class Waits(AssertionError):
    """Something for which the host waits."""


def far(tensor: Tensor) -> bool:
    """Whether a tensor is on the device, as it were."""
    return tensor.device.type == "meta"


class Operators(TorchDispatchMode):
    """Looks at every operator, of the backward pass and of the optimizer as well."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        remote = [tensor for tensor in tensors if far(tensor)]
        local = [tensor for tensor in tensors if not far(tensor) and tensor.dim()]
        if packet is aten._to_copy:
            goes = torch.device(kwargs.get("device") or args[0].device)
            if (goes.type == "meta") != far(args[0]) and not kwargs.get("non_blocking"):
                raise Waits(f"a blocking copy from {args[0].device} to {goes}")
            if far(args[0]) and goes.type != "meta":
                raise Waits(f"a copy from {args[0].device} to {goes}")
        elif packet is aten.copy_:
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            if far(args[1]) and not far(args[0]):
                raise Waits(f"a copy from {args[1].device}")
            if far(args[0]) and not far(args[1]) and args[1].dim() and not non_blocking:
                raise Waits("a blocking copy into a tensor of the device")
        elif remote and packet in NUMBERS:
            raise Waits(f"{packet} of a tensor of the device")
        elif packet in INDEXED and any(
            far(index) and index.dtype in (torch.bool, torch.uint8)
            for index in tree_leaves(args[1])
            if isinstance(index, Tensor)
        ):
            raise Waits("a mask of the device as an index")
        elif remote and local and packet not in LENGTHS_ON_CPU:
            raise Waits(f"{packet} with a tensor that is still on the CPU")
        return func(*args, **kwargs)


class Uploads(TorchFunctionMode):
    """Looks at what makes a tensor of a list, which no operator shows on this device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        made_of_numbers = func in (torch.tensor, torch.as_tensor, Tensor.new_tensor)
        if made_of_numbers and torch.device(kwargs.get("device") or "cpu").type == "meta":
            raise Waits("a tensor of the device made of numbers of the host")
        return func(*args, **kwargs)


@contextmanager
def waiting_for_nothing() -> Iterator[None]:
    with Uploads(), Operators():
        yield


class LooksBackwards(torch.autograd.Function):
    """Asks for a number in the backward pass."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient[gradient > 0]


NUMBER, ROW, MASK = (
    torch.zeros((), device=META),
    torch.zeros(3, device=META),
    torch.zeros(3, dtype=torch.bool, device=META),
)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: NUMBER.item(),
        lambda: bool(MASK.any()),
        lambda: float(NUMBER),
        lambda: ROW[MASK],
        lambda: MASK.nonzero(),
        lambda: torch.where(MASK),
        lambda: torch.masked_select(ROW, MASK),
        lambda: ROW.index_put((MASK,), NUMBER),
        lambda: torch.equal(ROW, ROW),
        lambda: torch.ones(3).to(META),
        lambda: ROW.copy_(torch.ones(3)),
        lambda: ROW.cpu(),
        lambda: torch.zeros(3).copy_(ROW),
        lambda: ROW[torch.tensor([0, 2])],
        lambda: torch.tensor([1.0, 2.0], device=META),
        lambda: LooksBackwards.apply(ROW.clone().requires_grad_()).sum().backward(),
    ],
)
def test_what_waits_is_noticed(ask: Callable[[], object]) -> None:
    with pytest.raises(Waits), waiting_for_nothing():
        ask()


def test_what_does_not_wait_is_let_through() -> None:
    with waiting_for_nothing():
        index = torch.tensor([0, 2]).to(META, non_blocking=True)
        assert ROW.index_select(0, index).shape == (2,)
        assert ROW.copy_(torch.ones(3), non_blocking=True).shape == (3,)
        assert bool(torch.ones(3)[torch.ones(3) > 0].all())
        assert (ROW * 2 + torch.tensor(1.0)).masked_fill(MASK, 0.0).shape == (3,)


@pytest.fixture
def make(options: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds a task on the device; a batch on the CPU, of which some have no audio or vision."""

    def build(*words: str) -> tuple[TrainingModule, Batch]:
        config = options("dataset.standardize=true", *words)
        data = build_data(config)
        data.prepare_data()
        data.setup()
        backbone = load_backbone(None)
        data.tokenize(lambda texts: encode_all(backbone.tokenizer, texts))
        seed_everything(1, verbose=False)
        model = build_adapted_lm(config, data, backbone)
        task = TrainingModule(model, UtteranceScore(data.metrics), training=config.training)
        batch = next(iter(data.train_dataloader()))
        absent = torch.tensor([1, 4])
        batch.features["audio"].lengths.index_fill_(0, absent, 0)
        batch.features["vision"].lengths.index_fill_(0, absent[:1], 0)
        task.to(META)
        backbone.to(META)
        task._trainer = SimpleNamespace(
            world_size=1,
            accumulate_grad_batches=1,
            global_step=3,  # none at which it is asked whether training has diverged
            estimated_stepping_batches=10,
        )
        monkeypatch.setattr(TrainingModule, "log", lambda *_, **__: None)
        # The device stands for a GPU, where LSTMs read packed sequences.
        monkeypatch.setattr(lstm, "_WITH_KERNEL", {"meta"})
        # What this device has not: autocast, which adapters switch off, and a name that the fused
        # optimizer knows.
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
        adam = sys.modules[torch.optim.Adam.__module__]
        monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_: None)
        return task, batch

    return build


def moved(task: TrainingModule, batch: Batch) -> Batch:
    """The batch as Lightning hands it to a step."""
    there: Batch = task.transfer_batch_to_device(batch, META, 0)
    assert far(there.features["audio"].values)
    return there


@pytest.mark.parametrize(
    ("adapter", "variant"), [("mse", "erc"), ("mag", "erc"), ("chfn", "erc"), ("mse", "msa")]
)
def test_a_training_step_waits_for_nothing(make: Any, adapter: str, variant: str) -> None:
    task, batch = make(f"adapter={adapter}", f"dataset.demo_task={variant}")
    made = task.configure_optimizers()
    optimizer = made["optimizer"]
    assert task.device == task.model.device == META

    def step() -> None:
        optimizer.zero_grad()
        task.training_step(moved(task, batch), 0).backward()
        task.on_after_backward()
        task.on_before_optimizer_step(optimizer)
        optimizer.step()
        made["lr_scheduler"]["scheduler"].step()

    step()  # the first reads the prefix, and the optimizer makes its state
    with waiting_for_nothing():
        step()
    assert all(parameter.grad is not None for parameter in task.parameters())


@pytest.mark.parametrize(
    ("variant", "rule"),
    [("erc", "greedy"), ("msa", "greedy"), ("msa", "median"), ("msa", "mean")],
)
def test_a_batch_of_an_evaluation_waits_for_nothing(make: Any, variant: str, rule: str) -> None:
    task, batch = make(f"dataset.demo_task={variant}", f"decode={rule}")
    task.eval()
    with torch.no_grad():
        task.validation_step(moved(task, batch), 0)
        with waiting_for_nothing():
            task.validation_step(moved(task, batch), 1)
    assert len(task._decoded) == 2
