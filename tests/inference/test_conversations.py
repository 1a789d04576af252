"""A plugin that reads what was said before: run, plugin, and predictions for conversations."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msea_lightning import Plugin, Predictor, Utterance
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.config.roots import PredictConfig, TrainConfig
from msea_lightning.data.utterance import DataError
from msea_lightning.inference import predict as module
from msea_lightning.inference.predict import predict
from msea_lightning.plugin import PluginError
from msea_lightning.runs.folder import RunFolder
from msea_lightning.serving.app.asking import ask
from msea_lightning.serving.plugins import open_plugins
from msea_lightning.training.build import (
    build_adapted_lm,
    build_data,
    data_estimator,
    tokenize,
)
from msea_lightning.training.fit import fit
from tests.conftest import SMALL, composed
from tests.plugin.untrained import untrained

CONTEXT = ("prompt.context=2", "prompt.context_tokens=40")


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A short run that reads the two utterances before each."""
    config = copy.deepcopy(composed((*SMALL, *CONTEXT)))
    config.runs, config.dataset.cache = str(tmp_path_factory.mktemp("runs")), str(cache)
    return fit(config)


@pytest.fixture(scope="module")
def said(run: RunFolder) -> list[Utterance]:
    """The test utterances of the run, of several dialogues."""
    return list(build_data(run.load_config()).splits["test"])


@pytest.fixture
def predictor(run: RunFolder) -> Predictor:
    return Plugin.from_pretrained(run.plugin).load(device="cpu")


def probabilities(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["id"]: row["probability"] for row in csv.DictReader(file)}


def write_table(folder: Path, utterances: list[Utterance], *columns: str) -> Path:
    """A table with the features of the utterances, and these columns besides id and text."""
    folder.mkdir()
    with (folder / "utterances.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "text", *columns))
        for one in utterances:
            writer.writerow((one.id, one.text, *(getattr(one, name) for name in columns)))
    arrays = {
        f"{name}/{one.id}": frames for one in utterances for name, frames in one.features.items()
    }
    np.savez(folder / "features.npz", **arrays)
    return folder


def asked(run: RunFolder, place: Path, target: Path, **options: Any) -> dict[str, str]:
    predict(PredictConfig(str(run.plugin), input=str(place), output=str(target), **options))
    return probabilities(target)


def test_a_run_says_what_it_reads_and_its_plugin_reads_the_same(
    run: RunFolder, said: list[Utterance], tmp_path: Path
) -> None:
    log = (run.path / "train.log").read_text(encoding="utf-8")
    assert "context: up to 2 utterances before each, " in log
    assert " context text " in log  # the whole sequence
    prompt = json.loads((run.plugin / "plugin.json").read_text(encoding="utf-8"))["prompt"]
    assert [prompt[name] for name in ("context", "context_tokens")] == [2, 40]
    kinds = [segment["kind"] for segment in prompt["layout"]]
    assert kinds.index("context") == kinds.index("text") - 1
    assert "up to 2 utterances before each" in (run.plugin / "README.md").read_text("utf-8")
    table = write_table(tmp_path / "table", said, "group", "speaker")
    expected = probabilities(run.path / "predictions.csv")
    assert asked(run, table, tmp_path / "all.csv") == expected
    alone = write_table(tmp_path / "alone", said, "speaker")
    assert asked(run, alone, tmp_path / "alone.csv") != expected


def test_a_killed_job_has_the_same_conversations_before_it(
    run: RunFolder, said: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"id": one.id, "text": one.text, "group": one.group, "speaker": one.speaker} for one in said
    ]
    rows[1] |= {"audio": "gone.npy"}  # has no answer, but was said
    file = tmp_path / "said.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = {"batch_size": 3}
    with pytest.raises(module.PredictionError, match="1 of "):
        asked(run, file, tmp_path / "undisturbed.csv", **options)
    original, left = module.Work.note, [2]

    def note(work: module.Work, stage: str, done: dict[int, Any]) -> None:
        original(work, stage, done)
        left[0] -= stage == "answered"
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.Work, "note", note)
        with pytest.raises(KeyboardInterrupt):
            asked(run, file, tmp_path / "killed.csv", **options)
    with pytest.raises(module.PredictionError, match="1 of "):
        asked(run, file, tmp_path / "killed.csv", **options)
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()


def test_a_conversation_in_python(
    run: RunFolder, said: list[Utterance], predictor: Predictor
) -> None:
    first, second, third, *_ = (one for one in said if one.group == said[0].group)
    together = predictor.predict([first, second, third], batch_size=1)
    [given] = predictor.predict([third], before=[[first, second]])
    assert given.distribution == together[2].distribution
    assert predictor.explain(third, before=[first, second])["everything"].distribution == (
        pytest.approx(given.distribution, abs=1e-6)
    )
    # One that is alone, and the copies that explain makes, have nothing before them.
    [alone] = predictor.predict([third])
    assert alone.distribution != given.distribution
    assert predictor.explain(third)["everything"].distribution == (
        pytest.approx(alone.distribution, abs=1e-6)
    )
    with pytest.raises(PluginError, match="before 2 utterances, but there are 1"):
        predictor.predict([third], before=[[], []])


def test_single_questions_are_said_to_be_alone(
    run: RunFolder, predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    note = "trained with up to 2 utterances before each of a conversation; here each is answered"
    with caplog.at_level(logging.INFO):
        open_plugins([str(run.plugin)], {})
        predict(PredictConfig(str(run.plugin), text="well done"))
    assert note in caplog.text
    assert "no utterance has a group, so it reads each alone" in caplog.text
    [shown] = ask(predictor, "demo", "well done", None).notes
    assert note in shown


def test_what_was_said_before_counts_in_the_estimate(
    options: Callable[..., TrainConfig], backbone: FrozenBackbone
) -> None:
    activations = []
    for number in (0, 3):
        config = options(f"prompt.context={number}")
        plugin, data = untrained(config, backbone)
        assert plugin.facts.prompt.context == number
        train = data.splits["train"]
        estimator = data_estimator(
            config, data, backbone.tokenizer, backbone.model.config, torch.device("cpu")
        )
        activations.append(estimator.estimate().activations)
        lengths = np.array([len(ids) for ids in train.contexts or [[]]])
        assert estimator.splits["train"].context == lengths.max()
    # Who speaks stands before the first one of a dialogue too.
    first = train.positions == 0
    assert 0 < lengths[first].max() < lengths[~first].min()
    assert activations[0] < activations[1]


def test_without_the_text_nothing_before_it_is_read(
    options: Callable[..., TrainConfig], backbone: FrozenBackbone
) -> None:
    config = options("prompt.context=3", "ablation=no_text")
    data = build_data(config)
    tokenize(config, data, backbone.tokenizer)
    model = build_adapted_lm(config, data, backbone)
    batch = data.splits["test"].batch([2, 3])
    assert batch.contexts is not None
    assert torch.equal(
        model.answer_logp(batch), model.answer_logp(dataclasses.replace(batch, contexts=None))
    )


def test_a_data_set_without_dialogues_has_nothing_before(
    options: Callable[..., TrainConfig], backbone: FrozenBackbone
) -> None:
    config = options("prompt.context=1")
    data = build_data(config)
    for split in data.splits.values():
        split.groups = [None] * len(split)
    with pytest.raises(DataError, match=r"no utterance of demo has a group\. Leave it out"):
        tokenize(config, data, backbone.tokenizer)


@pytest.mark.parametrize("order", ["text_first", "prompt_first"])
def test_what_was_said_before_is_read_once_with_the_text(
    options: Callable[..., TrainConfig], backbone: FrozenBackbone, order: str
) -> None:
    config = options("prompt.context=2", f"prompt.order={order}")
    data = build_data(config)
    tokenize(config, data, backbone.tokenizer)
    model = build_adapted_lm(config, data, backbone)
    batch = data.splits["test"].batch([0, 2, 3])
    assert batch.contexts is not None
    texts = model.prompt.pad_texts(batch.tokens or [], batch.contexts)
    leading = model.prompt.leading(texts, len(batch))
    for row, before in zip(leading, batch.contexts, strict=True):
        assert before.tolist() == row[row.index(before[0]) :][: len(before)]
    whole = model.answer_inputs(batch, cached_prefix=False)
    hidden = backbone.hidden(whole.embedded, whole.mask, whole.positions, last=whole.read)
    torch.testing.assert_close(
        model.answer_logp(batch), model.read_answers(hidden), atol=1e-5, rtol=0
    )
