"""The original implementation's way of computing: the same numbers as ours where it is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from msea_lightning.benchmark.original import Original
from msea_lightning.benchmark.ours import Ours
from msea_lightning.benchmark.shapes import generate, write_published
from msea_lightning.benchmark.subject import Material, StageClock
from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import BenchConfig, RunConfig, TrainConfig
from msea_lightning.data.sampler import Share
from msea_lightning.data.store import StoreSplit, write_store
from msea_lightning.data.utterance import Batch
from msea_lightning.paper.lengths import SHAPES
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
def subjects(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ours, Original]:
    """Both, started on the same data; ours attends to padding as the original does."""
    folder = tmp_path_factory.mktemp(request.param)
    config = options(request.param)
    backbone = load_config_backbone(config.backbone, torch.device("cpu"))
    shape = SHAPES[request.param]
    utterances = generate(shape, config.dataset, backbone.tokenizer, COUNTS, seed=3)
    write_store(folder / "store", utterances, info={})
    (folder / "published").mkdir()
    place = write_published(
        config.dataset, shape, backbone.tokenizer, COUNTS, folder / "published", seed=3
    )
    material = Material(folder / "store", place)
    width = config.dataset.text_tokens
    padding = (f"text.pad_to={width}", "text.attend_padding=true")
    both = Ours(options(request.param, *padding), material), Original(config, material)
    for subject in both:
        subject.start(StageClock(torch.device("cpu")))
    ours, original = both
    task = ours._model
    weights = {
        name.removeprefix("adapter."): value
        for name, value in task.state_dict().items()
        if name.startswith("adapter.")
    }
    original._adapter.load_state_dict(weights)
    return ours, original


def pair(subjects: tuple[Ours, Original], split: str) -> tuple[Batch, dict[str, torch.Tensor]]:
    """The first four utterances of a split, as each of them reads them."""
    ours, original = subjects
    data = ours._parts.data
    indices = list(range(4))
    loader = data.train_dataloader() if split == "train" else data.test_dataloader()
    batch = loader.dataset[(indices, indices)]
    part = original._splits[split]
    fields = ("ids", "audio", "vision", "audio_lengths", "vision_lengths")
    return batch, {
        "index": torch.arange(4),
        **{name: getattr(part, name)[:4] for name in fields},
    }


def test_the_loss_is_the_same(subjects: tuple[Ours, Original]) -> None:
    ours, original = subjects
    batch, theirs = pair(subjects, "train")
    loss, count = ours._model.loss(batch)
    assert original._loss(theirs).item() == pytest.approx(loss.item() / count, rel=1e-5)


def test_the_gradient_is_the_same(subjects: tuple[Ours, Original]) -> None:
    ours, original = subjects
    batch, theirs = pair(subjects, "train")
    task = ours._model
    task.zero_grad()
    loss, count = task.loss(batch)
    (loss / count).backward()
    original._optimizer.zero_grad()
    original._loss(theirs).backward()
    mine = dict(task.adapter.named_parameters())
    for name, parameter in original._adapter.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, mine[name].grad, rtol=1e-3, atol=1e-6)


def test_what_it_writes_first_is_what_ours_finds_likeliest(
    subjects: tuple[Ours, Original],
) -> None:
    """Its first token is the likeliest of the whole vocabulary at the end of the prompt."""
    ours, original = subjects
    batch, theirs = pair(subjects, "test")
    task = ours._model
    texts, prefix, text = task._adapt(batch)
    sequences = task.prompt.assemble(texts, len(batch))
    embedded = task._embed(sequences, prefix, text)
    hidden = task.backbone.hidden(embedded, sequences.mask, sequences.positions)
    expected = task.backbone.logits(hidden[:, -1]).argmax(-1)
    assert original._generate(theirs)[:, 0].tolist() == expected.tolist()


def test_the_shapes_of_what_it_writes(subjects: tuple[Ours, Original]) -> None:
    _, original = subjects
    _, theirs = pair(subjects, "test")
    tokens = {"meld": 2, "simsv2": 4}[original.config.dataset.name]
    assert original._generate(theirs).shape == (4, tokens)


def test_both_have_the_same_work(subjects: tuple[Ours, Original]) -> None:
    ours, original = (subject.workload() for subject in subjects)
    assert (ours.labels, ours.nodes, ours.opening) == (
        original.labels,
        original.nodes,
        original.opening,
    )
    assert sorted(ours.train) == sorted(original.train)
    assert sorted(ours.test) == sorted(original.test)


def test_a_round_reads_as_much_as_it_is_told(subjects: tuple[Ours, Original]) -> None:
    for subject in subjects:
        part = subject.train(1)
        assert 3 <= part.utterances <= 4
        work = subject.workload()
        train, evaluation = subject.train(9), subject.evaluate(9)
        assert (train.utterances, evaluation.utterances) == (6, 5)
        assert (train.tokens, evaluation.tokens) == (work.train.sum(), work.test.sum())
        assert min(train.seconds, evaluation.seconds) > 0


def test_rounds_of_the_original_have_batches_of_their_own(
    subjects: tuple[Ours, Original], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, original = subjects
    read = []
    monkeypatch.setattr(original, "_step", lambda batch: read.append(sorted(batch["index"])))
    for _ in range(10):
        original.train(1)
    assert len({tuple(map(int, batch)) for batch in read}) > 1


def test_the_parts_of_a_step_stay_together(
    subjects: tuple[Ours, Original], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = subjects
    data = ours._parts.data
    monkeypatch.setattr(ours.config.trainer, "accumulate", 2)
    monkeypatch.setattr(data, "_parts", 2)
    read: list[list[Share]] = []
    loader = data.loader

    def watched(split: StoreSplit, shares: Sequence[Share]) -> object:
        if split is data.splits["train"]:
            read.append(list(shares))
        return loader(split, shares)

    monkeypatch.setattr(data, "loader", watched)
    found = ours.train(1)
    everything, (one, other) = read
    assert len(everything) == 4
    assert list(one.step) == list(other.step) == [*one.indices, *other.indices]
    assert found.utterances == len(one.step)


def test_stages_are_parts_of_a_step(subjects: tuple[Ours, Original]) -> None:
    for subject in subjects:
        training, evaluation = subject.stages()
        assert set(training) == {"data", "adapter", "backbone", "head", "optimizer"}
        assert set(evaluation) == {"data", "adapter", "backbone", "head", "decode"}
        assert all(seconds >= 0 for seconds in [*training.values(), *evaluation.values()])
        assert training["backbone"] > 0
    ours, original = subjects
    # What was watched is as it was.
    assert "hidden" not in vars(ours._model.backbone)
    assert "_hidden" not in vars(original)


def test_without_text_there_is_no_original(
    tmp_path: Path, monkeypatch: Callable[..., None]
) -> None:
    from msea_lightning.benchmark.comparison import BenchError, compare

    config = compose("bench", BenchConfig, ["ablation=no_text"])
    with pytest.raises(BenchError, match=r"'original' has the adapter mse with its text.*no_text"):
        compare(config)
