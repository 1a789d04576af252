"""``backbone.compile``: layers that ``torch.compile`` has made faster compute what they did."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from functools import partial

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.utterance import Batch
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.training.build import build_adapted_lm, build_data, load_config_backbone
from tests.model.test_adapted_lm import part

# The compiler warns of what it does itself.
pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = ([0, 1, 2], [5, 6, 7, 8, 9])
"""Batches of different length, the longer one first, and of different size."""

Make = Callable[[FrozenBackbone], tuple[AdaptedLM, list[Batch]]]


@pytest.fixture
def make(options: Callable[..., TrainConfig]) -> Make:
    """Builds a task on a backbone, and batches for it."""

    def build(backbone: FrozenBackbone) -> tuple[AdaptedLM, list[Batch]]:
        config = options("dataset.demo_task=msa")
        data = build_data(config)
        data.prepare_data()
        data.setup()
        seed_everything(1, verbose=False)
        task = build_adapted_lm(config, data, backbone).double()
        batch = next(iter(data.evaluation_dataloader("valid")))
        return task, [part(batch, rows) for rows in ROWS]

    return build


def step(task: AdaptedLM, batch: Batch) -> list[Tensor]:
    """Mean loss of a batch and its gradient in every weight."""
    loss, count = task.loss(batch)
    return [loss.detach(), *torch.autograd.grad(loss / count, list(task.adapter.parameters()))]


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    """In float64 the norms and logits alone are rounded to float32: by 6e-8, each in its way."""
    for one, other in zip(found, expected, strict=True):
        scale = 1 + float(other.abs().max())
        assert float((one - other).abs().max()) < 1e-5 * scale


@pytest.fixture(scope="module")
def one_layer(backbone: FrozenBackbone) -> FrozenBackbone:
    """A model of one layer, because each takes a while; in float64, see `close`."""
    config = copy.deepcopy(backbone.model.config)
    config.num_hidden_layers = 1
    torch.manual_seed(0)
    return FrozenBackbone(AutoModelForCausalLM.from_config(config).double(), backbone.tokenizer)


def test_a_model_is_traced_whole_and_once_for_all_lengths(
    make: Make, one_layer: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is traced is run as it is here, which needs no compiler."""
    torch.compiler.reset()
    counters.clear()
    # A break in the graph, where Python goes on for a while, is an error.
    whole = partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", whole)
    compiled = FrozenBackbone(one_layer.model, one_layer.tokenizer, compile=True)
    (task, batches), (own, _) = make(one_layer), make(compiled)
    lengths = {task.prompt.encode_texts(batch.texts).ids.shape[1] for batch in batches}
    assert len(lengths) == len(batches)
    for batch in batches:
        close(step(own, batch), step(task, batch))
        close([own.answer_logp(batch)], [task.answer_logp(batch)])
    # One graph for training and one for evaluation.
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="without vector instructions PyTorch 2.13 writes C++ that no compiler takes",
)
def test_a_compiled_step_is_the_same(make: Make, one_layer: FrozenBackbone) -> None:
    """With the compiler itself."""
    torch.compiler.reset()
    compiled = FrozenBackbone(one_layer.model, one_layer.tokenizer, compile=True)
    (task, batches), (own, _) = make(one_layer), make(compiled)
    ids, generate = torch.tensor([[5, 9, 3, 17]]), {"max_new_tokens": 4, "do_sample": False}
    written = one_layer.model.generate(ids, **generate)
    for batch in batches:
        close(step(own, batch), step(task, batch))
    assert torch.equal(one_layer.model.generate(ids, **generate), written)


def test_options_reach_the_backbone(
    options: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []

    def noted(module: torch.nn.Module, **_: object) -> torch.nn.Module:
        compiled.append(module)
        return module

    monkeypatch.setattr(torch, "compile", noted)
    cpu = torch.device("cpu")
    plain = load_config_backbone(options().backbone, cpu)
    assert not compiled
    assert plain.cached_prefix([5, 9, 3]) is not None
    words = ("backbone.compile=true", "backbone.checkpoint_activations=true")
    chosen = load_config_backbone(options(*words).backbone, cpu)
    assert len(compiled) == 2  # for training, and for evaluation
    assert chosen.cached_prefix([5, 9, 3]) is None
