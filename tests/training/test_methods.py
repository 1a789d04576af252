"""Runs that differ from the published method: zero-shot, linear readouts, texts read once."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from msea_lightning import Plugin
from msea_lightning.backbone import BackboneError, FrozenBackbone
from msea_lightning.commands.command_line import compose
from msea_lightning.commands.compose import set_by_method
from msea_lightning.config.registry import Choice
from msea_lightning.config.roots import EvaluateConfig, TrainConfig
from msea_lightning.data.utterance import DataError
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.readout import LinearReadout
from msea_lightning.runs.folder import RunFolder
from msea_lightning.runs.identity import METHOD_OPTIONS, settled
from msea_lightning.training import build
from msea_lightning.training.build import build_adapted_lm, build_data, make_ready, tokenize
from msea_lightning.training.evaluation import evaluate
from msea_lightning.training.fit import fit
from msea_lightning.training.listening import Listening, log_listening
from msea_lightning.training.probe import last_states, start_as_probe
from msea_lightning.training.texts import _key, unkept

Options = Callable[..., TrainConfig]
ALL = (
    *("adapter.normalization=matched", "adapter.anchored=true", "training.loss=answers"),
    *("readout=linear", "prompt.order=text_first"),
)


def result(run: RunFolder) -> dict[str, object]:
    found: dict[str, object] = json.loads(run.metrics.read_text())
    return found


def plugin_answers(run: RunFolder, config: TrainConfig) -> list[str]:
    """What the plugin of a run answers to the test utterances."""
    data = build_data(config)
    predictor = Plugin.from_pretrained(run.plugin).load(device="cpu")
    return [answer.label for answer in predictor.predict(list(data.splits["test"]))]


def predictions(run: RunFolder) -> list[str]:
    with run.predictions.open(encoding="utf-8") as file:
        return [row["prediction"] for row in csv.DictReader(file)]


def test_a_zero_shot_run_trains_nothing_and_has_a_linear_probe_beside_it(
    options: Options,
) -> None:
    config = options("training.schedule_epochs=0")
    run = fit(config)
    found = result(run)
    names = [reference["name"] for reference in found["references"]]  # type: ignore[attr-defined]
    assert names[-1] == "linear probe"
    assert run.load_config().adapter.name == "none"
    assert not run.history.exists()
    assert not list(run.checkpoints.iterdir())
    assert plugin_answers(run, config) == predictions(run)


def test_all_options_together_make_a_plugin_that_answers_as_the_run(options: Options) -> None:
    config = options(*ALL)
    run = fit(config)
    facts = Plugin.from_pretrained(run.plugin).facts
    assert facts.adapter["normalization"] == "matched"
    assert [segment.kind.value for segment in facts.prompt.layout][-1] == "pseudo"
    assert plugin_answers(run, config) == predictions(run)


def test_where_texts_are_kept_changes_no_result(options: Options, tmp_path: object) -> None:
    words = ("prompt.order=prompt_first", f"dataset.cache={tmp_path}")
    found = [
        fit(options(*words, f"backbone.cache={where}")) for where in ("none", "memory", "disk")
    ]
    loss = [float(run.history.read_text().splitlines()[1].split(",")[4]) for run in found]
    assert loss == pytest.approx([loss[0]] * 3, rel=1e-4)
    again = fit(options(*words, "backbone.cache=disk"))
    assert (
        again.history.read_text().splitlines()[1].split(",")[4]
        == (found[2].history.read_text().splitlines()[1].split(",")[4])
    )


def test_texts_beyond_the_limit_are_read_for_every_batch(
    options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        ready = make_ready(options("prompt.order=text_first", "backbone.cache_limit=1e-6"))
    assert "backbone.cache_limit); they are read for every batch" in caplog.text
    assert ready.module.model.backbone.read_once is None  # type: ignore[union-attr]
    assert ready.estimate is not None
    assert ready.estimate.texts == 0


def test_memory_that_texts_take_is_estimated(options: Options) -> None:
    ready = make_ready(options("prompt.order=text_first"))
    assert ready.estimate is not None
    shelf = ready.module.model.backbone.read_once._shelf  # type: ignore[union-attr]
    assert ready.estimate.texts == sum(len(kept) for kept in shelf._kept.values())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("prompt.order=text_first", "backbone.cache_limit=1e-6"), "more than the 0.0 MiB that"),
        (("prompt.order=text_first", "training.schedule_epochs=0"), "trains nothing"),
    ],
)
def test_texts_are_not_rounded_where_they_are_not_kept(
    options: Options, words: tuple[str, ...], why: str
) -> None:
    with pytest.raises(BackboneError, match=rf"cache_dtype=int8 rounds .* none are: .*{why}"):
        make_ready(settled(options(*words, "backbone.cache_dtype=int8")))


def test_a_run_reports_what_its_plugin_computes_of_texts_that_were_rounded(
    options: Options,
) -> None:
    run = fit(options("prompt.order=text_first", "backbone.cache_dtype=int8"))
    found = evaluate(EvaluateConfig(run=str(run.path)))
    assert found == pytest.approx(result(run)["test"], rel=1e-6)


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("backbone.checkpoint_activations=true", "leaves no keys and values"),
        ("backbone.device_map=auto", "several devices"),
        ("training.schedule_epochs=1", "reads them once"),
        ("trainer.fast_dev_run=true", "one batch"),
        ("backbone.cache=none", "backbone.cache=none"),
    ],
)
def test_options_with_which_no_texts_are_kept(options: Options, word: str, why: str) -> None:
    assert why in (unkept(options(word)) or "")
    assert unkept(options()) is None


def test_why_texts_are_not_kept_is_said(options: Options, caplog: pytest.LogCaptureFixture) -> None:
    words = ("prompt.order=text_first", "backbone.checkpoint_activations=true")
    with caplog.at_level(logging.INFO):
        ready = make_ready(options(*words))
    assert "every batch, as a part of the whole sequence: backbone.checkpoint" in caplog.text
    assert ready.estimate is not None
    assert ready.estimate.texts == 0


def test_texts_on_the_disk_belong_to_one_way_to_compute_them(
    options: Options, backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [_key(options(), backbone)]
    keys.append(_key(options("backbone.double_quantization=false"), backbone))
    monkeypatch.setattr(backbone.model.config, "_name_or_path", "elsewhere")
    assert _key(options(), backbone) == keys[0]
    monkeypatch.setattr(backbone.model.config, "max_position_embeddings", 77)
    keys.append(_key(options(), backbone))
    assert len(set(keys)) == 3


def test_a_folder_of_texts_that_cannot_be_written_is_named(
    options: Options, tmp_path: Path
) -> None:
    config = options("prompt.order=text_first", "backbone.cache=disk", f"dataset.cache={tmp_path}")
    (tmp_path / "texts").touch()
    with pytest.raises(
        BackboneError, match=r"cache=disk: .*texts cannot be used .*Not a directory"
    ):
        make_ready(config)


def test_all_of_a_model_is_where_its_language_model_is(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Lightning moves it, and after Lightning has moved it back."""

    def elsewhere(*args: object) -> AdaptedLM:
        made = build_adapted_lm(*args)  # type: ignore[arg-type]
        made.backbone.to(torch.device("meta"))
        return made

    monkeypatch.setattr(build, "build_adapted_lm", elsewhere)
    ready = make_ready(options("adapter.normalization=matched"))
    model = ready.module.model
    assert isinstance(model, AdaptedLM)
    assert places(model) == {"meta"}
    model.to_empty(device="cpu")
    seen: list[set[str]] = []

    def noted(batch: list[object]) -> torch.Tensor:
        seen.append(places(model))
        return torch.zeros(len(batch), model.backbone.width)

    monkeypatch.setattr(model, "last_states", noted)
    last_states(model, ready.data.splits["test"], 64)
    assert seen[0] == {"meta"}


def places(model: AdaptedLM) -> set[str]:
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


@pytest.mark.parametrize("resumed", [True, False])
def test_a_resumed_run_has_its_readout_from_the_checkpoint(
    options: Options, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    fitted: list[object] = []
    monkeypatch.setattr(build, "start_as_probe", lambda model, data, kind: fitted.append(model))
    make_ready(options("training.loss=answers", "readout=linear"), resumed=resumed)
    assert len(fitted) == (not resumed)


@pytest.mark.parametrize("task", ["erc", "msa"])
def test_a_linear_readout_begins_as_a_linear_probe(
    options: Options, backbone: FrozenBackbone, task: str
) -> None:
    """Not worse on the training part than the answer that is most frequent there."""
    config = options(f"dataset.demo_task={task}", "training.loss=answers", "readout=linear")
    data = build_data(config)
    tokenize(config, data, backbone.tokenizer)
    model = build_adapted_lm(config, data, backbone)
    assert isinstance(model.readout, LinearReadout)
    start_as_probe(model, data, data.metrics)
    train = data.splits["train"]
    states = torch.tensor(last_states(model, train, 16))
    with torch.no_grad():
        logits = model.readout.linear(states)
    targets = np.array([model.space.target(label) for label in train.targets])
    values = np.asarray(model.space.values)
    if task == "erc":
        found = values[logits.argmax(1).numpy()]
        assert (found == targets).mean() > 0.3  # of seven emotions
    else:
        mean = logits.double().softmax(1).numpy() @ values
        assert np.abs(mean - targets).mean() < np.abs(targets - np.median(targets)).mean()


@pytest.mark.parametrize(("normalization", "warned"), [("none", True), ("matched", False)])
def test_pseudo_tokens_that_hardly_vary_are_warned_of(
    options: Options,
    backbone: FrozenBackbone,
    caplog: pytest.LogCaptureFixture,
    normalization: str,
    warned: bool,
) -> None:
    config = options(f"adapter.normalization={normalization}")
    data = build_data(config)
    tokenize(config, data, backbone.tokenizer)
    model = build_adapted_lm(config, data, backbone)
    with caplog.at_level(logging.INFO):
        log_listening(model, data.splits["train"])
    assert ("can hardly tell by them" in caplog.text) == warned
    assert "pseudo tokens have a norm of" in caplog.text


def test_what_is_said_of_pseudo_tokens() -> None:
    pseudo = torch.tensor([[[3.0, 4.0]], [[3.0, -4.0]]])
    found = Listening.of(pseudo, torch.tensor([[0.0, 2.0], [0.0, 4.0]]))
    assert (found.norm, found.text_norm, found.variation) == (5.0, 3.0, 0.8)


def test_features_that_are_left_out_are_not_there(options: Options) -> None:
    data = build_data(options("dataset.features=[audio]"))
    assert list(data.dims) == ["audio"]
    batch = next(iter(data.evaluation_dataloader("valid")))
    assert list(batch.features) == ["audio"]
    with pytest.raises(DataError, match="names sound, but 'demo' has audio, vision"):
        build_data(options("dataset.features=[sound]"))


def test_an_option_of_the_command_line_makes_another_method() -> None:
    def method(*words: str) -> str | None:
        return compose("train", TrainConfig, words).method

    assert method("method=all", "training.learning_rate=0.1") == "all"
    assert method("method=all", "readout=tokens") is None
    assert method("dataset=meld", "backbone=qwen") == "published"
    assert method("dataset=meld", "backbone=qwen", "training.loss=answers") is None


def test_emotions_are_written_by_name(options: Options, backbone: FrozenBackbone) -> None:
    config = options("dataset.labels.words=names")
    data = build_data(config)
    model = build_adapted_lm(config, data, backbone)
    label = data.labels.names[-1]
    assert model.prompt.decode(model.tree.ids(label)).strip() == label


def test_states_that_are_all_alike_are_no_start(options: Options, backbone: FrozenBackbone) -> None:
    """Without text nothing tells utterances apart before the pseudo tokens are trained."""
    config = options("method=all", "ablation=no_text")
    data = build_data(config)
    tokenize(config, data, backbone.tokenizer)
    model = build_adapted_lm(config, data, backbone)
    before = {name: weight.clone() for name, weight in model.readout.state_dict().items()}
    start_as_probe(model, data, data.metrics)
    for name, weight in model.readout.state_dict().items():
        assert torch.equal(weight, before[name])


def test_methods_differ_from_the_published_one_as_they_say() -> None:
    def plain(method: str) -> dict[str, object]:
        config = compose("train", TrainConfig, [f"method={method}"])
        flat: dict[str, object] = {}

        def walk(section: object, where: str) -> None:
            for item in dataclasses.fields(section):  # type: ignore[arg-type]
                value = getattr(section, item.name)
                if dataclasses.is_dataclass(value) or isinstance(value, Choice):
                    walk(value, f"{where}{item.name}.")
                else:
                    flat[f"{where}{item.name}"] = value

        walk(config, "")
        return flat

    published = plain("published")
    expected = {
        "matched": {"adapter.normalization"},
        "answers": {"training.loss"},
        "linear": {"readout", "training.loss"},
        "text_first": {"prompt.order"},
        "words": {"dataset.labels.words"},
        "sentence": {"dataset.text_case"},
        "zero_shot": {"training.schedule_epochs"},
        "all": {
            *("adapter.normalization", "adapter.anchored", "readout"),
            *("training.loss", "prompt.order"),
        },
    }
    for method, changed in expected.items():
        found = plain(method)
        differing = {key for key in published if found[key] != published[key]}
        assert differing == changed | {"method"}, method
        assert not set_by_method(method) - {*METHOD_OPTIONS}
