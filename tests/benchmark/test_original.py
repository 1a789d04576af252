"""The original implementation's way of computing: the same numbers as ours where it is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from msea_lightning.benchmark.generate import generate, write_published
from msea_lightning.benchmark.original import Original, load_original
from msea_lightning.benchmark.ours import Ours, load_ours
from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import BenchConfig, RunConfig, TrainConfig
from msea_lightning.data.store import Store, StoreSplit, write_store
from msea_lightning.data.utterance import Batch
from msea_lightning.training.build import load_config_backbone

COUNTS = {"train": 6, "valid": 2, "test": 5}


def options(shape: str, *overrides: str) -> TrainConfig:
    """A narrow backbone of two layers, on data of few features."""
    small = [
        f"dataset={shape}",
        "dataset.audio_dim=5",
        "dataset.vision_dim=4",
        "backbone.hidden_size=64",
        "backbone.num_layers=2",
        "backbone.architecture.vocab_size=6000",
        "backbone.check_memory=false",
        "training.batch_size=4",
        "trainer.accelerator=cpu",
    ]
    config = compose("bench", BenchConfig, [*small, *overrides])
    return TrainConfig(**{name: getattr(config, name) for name in RunConfig.__annotations__})


@pytest.fixture(scope="module", params=["meld", "simsv2"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ours, Original]:
    """Both, started on the same data; ours attends to padding as the original does."""
    folder = tmp_path_factory.mktemp(request.param)
    config = options(request.param)
    backbone = load_config_backbone(config.backbone, torch.device("cpu"))
    utterances = generate(config.dataset, backbone.tokenizer, COUNTS, seed=3)
    write_store(folder / "store", utterances, info={})
    (folder / "published").mkdir()
    published = write_published(Store.open(folder / "store"), config.dataset, folder / "published")
    padding = (f"text.pad_to={config.dataset.text_tokens}", "text.attend_padding=true")
    ours = load_ours(options(request.param, *padding), folder / "store")
    original = load_original(config, published)
    for variant in (ours, original):
        variant.first_step()
    original.adapter.load_state_dict(ours.adapter.state_dict())
    return ours, original


def first_four(both: tuple[Ours, Original], split: str) -> tuple[Batch, dict[str, Any]]:
    """The first four utterances of a split, as each of them reads them."""
    ours, original = both
    indices = list(range(4))
    data = ours.data
    loader = data.train_dataloader() if split == "train" else data.test_dataloader()
    tensors = {name: values[:4] for name, values in original.splits[split].tensors.items()}
    batch: Batch = loader.dataset[indices]
    return batch, {"index": torch.arange(4), **tensors}


def test_the_loss_is_the_same(both: tuple[Ours, Original]) -> None:
    ours, original = both
    batch, theirs = first_four(both, "train")
    loss, count = ours.model.loss(batch)
    # A mean of logarithms of sums of 6,000 float32 exponentials, added up in another order.
    tolerance = 100 * torch.finfo(torch.float32).eps
    assert original._mean_loss(theirs).item() == pytest.approx(loss.item() / count, rel=tolerance)


def test_the_gradient_is_the_same(both: tuple[Ours, Original]) -> None:
    ours, original = both
    batch, theirs = first_four(both, "train")
    task = ours.model
    task.zero_grad()
    loss, count = task.loss(batch)
    (loss / count).backward()
    original.optimizer.zero_grad()
    original._mean_loss(theirs).backward()
    mine = {name: parameter.grad for name, parameter in task.adapter.named_parameters()}
    # Sums of at most a thousand products, in float32 and in another order.
    largest = max(float(grad.abs().max()) for grad in mine.values() if grad is not None)
    tolerance = 1000 * torch.finfo(torch.float32).eps * largest
    for name, parameter in original.adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, mine[name], rtol=0, atol=tolerance)


def test_what_it_writes_first_is_what_ours_finds_likeliest(
    both: tuple[Ours, Original],
) -> None:
    """Its first token is the likeliest of the whole vocabulary at the end of the prompt."""
    ours, original = both
    batch, theirs = first_four(both, "test")
    task = ours.model
    texts, prefix, text = task._adapt(batch)
    sequences = task.prompt.assemble(texts, len(batch))
    embedded = task._embed(sequences, prefix, text)
    hidden = task.backbone.hidden(embedded, sequences.mask, sequences.positions)
    expected = task.backbone.logits(hidden[:, -1]).argmax(-1)
    assert original._generate(theirs)[:, 0].tolist() == expected.tolist()


def test_the_shapes_of_what_it_writes(both: tuple[Ours, Original]) -> None:
    _, original = both
    _, theirs = first_four(both, "test")
    tokens = 4 if original.tree.space.ordered else 2
    assert original._generate(theirs).shape == (4, tokens)


def test_both_have_the_same_work(both: tuple[Ours, Original]) -> None:
    ours, original = both
    assert ours.prompt.prefix_ids == original.prompt.prefix_ids
    assert len(ours.tree) == len(original.tree)
    mine, theirs = (one.backbone.model.get_memory_footprint() for one in both)
    assert mine == theirs
    for split in ("train", "test"):
        assert sorted(ours.lengths(split)) == sorted(original.lengths(split))


def test_a_round_has_as_many_batches_as_wanted(both: tuple[Ours, Original]) -> None:
    for variant in both:
        part = variant.train(1)
        assert 3 <= part.utterances <= 4
        train, evaluation = variant.train(9), variant.evaluate(9)
        assert (train.utterances, evaluation.utterances) == (6, 5)
        assert train.tokens == variant.lengths("train").sum()
        assert evaluation.tokens == variant.lengths("test").sum()
        assert min(train.seconds, evaluation.seconds) > 0


def test_rounds_of_the_original_have_batches_of_their_own(
    both: tuple[Ours, Original], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, original = both
    read = []
    monkeypatch.setattr(original, "_step", lambda batch: read.append(sorted(batch["index"])))
    for _ in range(10):
        original.train(1)
    assert len({tuple(map(int, batch)) for batch in read}) > 1


def test_the_parts_of_a_step_stay_together(
    both: tuple[Ours, Original], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = both
    data = ours.data
    monkeypatch.setattr(ours, "accumulate", 2)
    monkeypatch.setattr(data, "_micro_batches", 2)
    read: list[list[list[int]]] = []
    loader = data.loader

    def watched(split: StoreSplit, shares: Sequence[list[int]]) -> object:
        if split is data.splits["train"]:
            read.append(list(shares))
        return loader(split, shares)

    monkeypatch.setattr(data, "loader", watched)
    found = ours.train(1)
    everything, (one, other) = read
    assert len(everything) == 4
    assert [*one, *other] in data.train_dataloader().sampler.global_batches(0)
    assert found.utterances == len(one) + len(other)


def test_stages_are_parts_of_a_step(both: tuple[Ours, Original]) -> None:
    for variant in both:
        stages = variant.stages()
        training, evaluation = stages["train"], stages["evaluate"]
        assert set(training) == {"data", "adapter", "backbone", "head", "optimizer"}
        assert set(evaluation) == {"data", "adapter", "backbone", "head", "decode"}
        assert all(seconds >= 0 for seconds in [*training.values(), *evaluation.values()])
        assert training["backbone"] > 0
    ours, original = both
    # What was watched is as it was.
    assert "hidden" not in vars(ours.model.backbone)
    assert "_hidden" not in vars(original)
