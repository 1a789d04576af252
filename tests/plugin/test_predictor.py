"""Predictors: answers, several plugins at once, threads, and the language model left as it is."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from msea_lightning import Answer, Plugin, Predictor, Utterance
from msea_lightning.backbone import BackboneError, FrozenBackbone
from msea_lightning.backbone.loading.load import tiny_backbone
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.utterance import DataError
from msea_lightning.language.labels import LabelSpaceError
from msea_lightning.plugin import PluginError
from msea_lightning.plugin.batching import Question, batches
from msea_lightning.runs.folder import RunFolder
from msea_lightning.training.build import build_data
from tests.plugin.untrained import untrained

Options = Callable[..., TrainConfig]

SENTENCES = ("I never thought that it would end like this", "Oh", "well done , everyone !", "")


@pytest.fixture
def plugins(options: Options, backbone: FrozenBackbone) -> dict[str, Plugin]:
    """Of three data sets: other labels, languages, numbers of pseudo tokens, and adapters."""
    words = {
        "sentiment": ["dataset.demo_task=msa", "adapter.pseudo_tokens=2"],
        "emotion": ["dataset.language=zh", "adapter.pseudo_tokens=5"],
        "gate": ["adapter=mag"],
    }
    return {name: untrained(options(*words[name]), backbone)[0] for name in words}


@pytest.fixture
def predictor(plugins: dict[str, Plugin], backbone: FrozenBackbone) -> Predictor:
    """All three in front of one language model."""
    found = Predictor(backbone)
    for name, plugin in plugins.items():
        assert found.add(plugin, name) == name
    return found


@pytest.fixture
def utterances() -> list[Utterance]:
    """Of all lengths, and with every mix of absent modalities."""
    random = np.random.default_rng(3)
    found = []
    for number in range(24):
        audio = random.normal(size=(1 + number, 12)) if number % 3 else None
        vision = random.normal(size=(40 - number, 10)) if number % 4 else None
        text = SENTENCES[number % 4] if number % 12 else SENTENCES[0]
        found.append(Utterance(f"u{number}", text, audio=audio, vision=vision))
    return found


def probabilities(answers: Sequence[Answer]) -> list[list[float]]:
    return [list(answer.distribution.values()) for answer in answers]


def state_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_answers_of_a_saved_plugin_equal_those_of_the_run_to_the_last_digit(
    finished_run: RunFolder,
) -> None:
    with (finished_run.path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    data = build_data(finished_run.load_config())
    data.setup()
    split = data.splits["test"]
    utterances = [split[index] for index in range(len(split))]
    predictor = Plugin.from_pretrained(finished_run.plugin).load(device="cpu")
    answers = predictor.predict(utterances)
    assert [answer.id for answer in answers] == [row["id"] for row in rows]
    assert [str(answer.label) for answer in answers] == [row["prediction"] for row in rows]
    assert [str(answer.probability) for answer in answers] == [row["probability"] for row in rows]


def test_a_mixed_batch_gives_the_answers_of_separate_calls(
    predictor: Predictor, utterances: list[Utterance]
) -> None:
    names = [list(predictor.plugins)[number % 3] for number in range(len(utterances))]
    together = predictor.predict(utterances, plugin=names, batch_size=len(utterances))
    for name in predictor.plugins:
        asked = [number for number, other in enumerate(names) if other == name]
        alone = predictor.predict([utterances[number] for number in asked], plugin=name)
        mixed = [together[number] for number in asked]
        assert [answer.plugin for answer in mixed] == [name] * len(asked)
        assert [answer.label for answer in mixed] == [answer.label for answer in alone]
        for one, other in zip(probabilities(mixed), probabilities(alone), strict=True):
            assert one == pytest.approx(other, abs=1e-5)


def test_a_mixed_batch_is_one_pass_of_the_language_model(
    predictor: Predictor, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    original = predictor.backbone.hidden
    monkeypatch.setattr(
        predictor.backbone, "hidden", lambda *args, **kw: passes.append(1) or original(*args, **kw)
    )
    names = [list(predictor.plugins)[number % 3] for number in range(len(utterances))]
    predictor.predict(utterances, plugin=names, batch_size=len(utterances))
    assert len(passes) == 1


def test_an_utterance_is_answered_alike_in_any_company(
    predictor: Predictor, utterances: list[Utterance]
) -> None:
    together = predictor.predict(utterances, plugin="sentiment")
    alone = [predictor.predict([utterance], plugin="sentiment")[0] for utterance in utterances]
    for one, other in zip(probabilities(together), probabilities(alone), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_intensities_have_mean_median_and_interval(
    predictor: Predictor, utterances: list[Utterance]
) -> None:
    for answer in predictor.predict(utterances, plugin="sentiment", decode="median"):
        values, masses = zip(*answer.distribution.items(), strict=True)
        below = np.cumsum(masses)
        assert below[-1] == pytest.approx(1)
        assert answer.label == answer.median == values[int(np.searchsorted(below, 0.5))]
        assert answer.mean == pytest.approx(np.dot(values, masses))
        assert answer.interval is not None
        low, high = answer.interval
        assert sum(m for v, m in answer.distribution.items() if v < low) < 0.1  # type: ignore[operator]
        assert sum(m for v, m in answer.distribution.items() if v > high) <= 0.1 + 1e-9  # type: ignore[operator]
        assert low <= answer.median <= high
    emotion = predictor.predict(utterances[:1], plugin="emotion")[0]
    assert isinstance(emotion.label, str)
    assert (emotion.mean, emotion.median, emotion.interval) == (None, None, None)
    assert emotion.probability == max(emotion.distribution.values())


def test_an_explanation_has_the_answer_without_each_modality(predictor: Predictor) -> None:
    whole = Utterance(text="fine", audio=np.ones((3, 12)), vision=np.ones((2, 10)))
    found = predictor.explain(whole, plugin="emotion")
    assert list(found) == ["everything", "without text", "without audio", "without vision"]
    bare = predictor.predict([Utterance(text="fine", vision=np.ones((2, 10)))], plugin="emotion")
    assert probabilities([found["without audio"]])[0] == pytest.approx(
        probabilities(bare)[0], abs=1e-5
    )
    assert found["without audio"].distribution != found["everything"].distribution
    assert list(predictor.explain(Utterance(text="fine"), plugin="emotion")) == ["everything"]


def test_threads_give_the_answers_of_one(
    predictor: Predictor, plugins: dict[str, Plugin], utterances: list[Utterance]
) -> None:
    names = list(plugins)
    jobs = [(utterances[number:], names[number % 3]) for number in range(16)]
    expected = [predictor.predict(some, plugin=name) for some, name in jobs]
    with ThreadPoolExecutor(8) as pool:
        # While plugins come and go.
        coming = pool.submit(lambda: [predictor.add(plugins["gate"], f"g{n}") for n in range(4)])
        found = list(pool.map(lambda job: predictor.predict(job[0], plugin=job[1]), jobs))
        coming.result()
    assert list(map(probabilities, found)) == list(map(probabilities, expected))


@pytest.fixture
def language_model() -> tuple[nn.Module, object]:
    """The tiny language model as a user of transformers loads it, in training mode."""
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone(), dtype=torch.float32)
    model.train()
    return model, AutoTokenizer.from_pretrained(tiny_backbone())


def test_the_language_model_is_left_as_it_was(
    plugins: dict[str, Plugin],
    utterances: list[Utterance],
    language_model: tuple[nn.Module, object],
) -> None:
    model, tokenizer = language_model
    prompts = [tokenizer(f"{number} people said", return_tensors="pt") for number in range(20)]  # type: ignore[operator]

    def generated() -> list[torch.Tensor]:
        found = [
            model.generate(  # type: ignore[operator]
                **prompt, max_new_tokens=8, output_scores=True, return_dict_in_generate=True
            )
            for prompt in prompts
        ]
        return [tensor for one in found for tensor in (one.sequences, *one.scores)]

    def unchanged() -> bool:
        return all(torch.equal(*pair) for pair in zip(generated(), before, strict=True))

    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    before, state = generated(), state_hash(model)
    training = {name: module.training for name, module in model.named_modules()}
    methods = {name: set(vars(module)) for name, module in model.named_modules()}
    predictor = plugins["sentiment"].attach(model, tokenizer)  # type: ignore[arg-type]
    assert unchanged()
    predictor.predict(utterances)
    assert unchanged()
    predictor.add(plugins["gate"], "gate")
    predictor.predict(utterances, plugin="gate")
    predictor.detach()
    assert unchanged()
    assert predictor.plugins == {}
    assert state_hash(model) == state
    assert all(weight.requires_grad for weight in model.parameters())
    assert {name: module.training for name, module in model.named_modules()} == training
    assert {name: set(vars(module)) for name, module in model.named_modules()} == methods
    assert not any(getattr(module, name) for module in model.modules() for name in hooks)


def test_a_refused_plugin_leaves_the_language_model_as_it_was(
    plugins: dict[str, Plugin], language_model: tuple[nn.Module, Any]
) -> None:
    model, tokenizer = language_model
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    with pytest.raises(PluginError, match="was trained on"):
        plugins["sentiment"].attach(model, tokenizer)  # type: ignore[arg-type]
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())


def test_the_last_of_several_predictors_sets_the_language_model_back(
    plugins: dict[str, Plugin], language_model: tuple[nn.Module, Any]
) -> None:
    model, tokenizer = language_model
    first, second = (plugins["sentiment"].attach(model, tokenizer) for _ in range(2))  # type: ignore[arg-type]
    first.detach()
    first.detach()
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    with pytest.raises(PluginError, match="The predictor is detached"):
        first.add(plugins["gate"])
    second.detach()
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_fresh_process_gives_the_same_answers(
    tmp_path: Path, plugins: dict[str, Plugin], predictor: Predictor, utterances: list[Utterance]
) -> None:
    plugins["sentiment"].save_pretrained(tmp_path / "plugin")
    script = (
        "import sys, msea_lightning\n"
        "assert 'torch' not in sys.modules\n"
        "predictor = msea_lightning.Plugin.from_pretrained(sys.argv[1]).load(device='cpu')\n"
        "for text in sys.argv[2:]:\n"
        "    [answer] = predictor.predict([msea_lightning.Utterance(text=text)])\n"
        "    print(answer.label, answer.probability)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "plugin", *SENTENCES[:3]],
        capture_output=True,
        text=True,
        check=True,
    )
    here = [
        predictor.predict([Utterance(text=text)], plugin="sentiment")[0] for text in SENTENCES[:3]
    ]
    assert done.stdout.split("\n")[:3] == [f"{one.label} {one.probability}" for one in here]


@pytest.mark.parametrize(
    ("utterance", "message"),
    [
        (Utterance("u", "a", audio=np.zeros((2, 5))), "5 audio features per frame.*trained on 12"),
        (Utterance("u", "a", audio=np.full((2, 12), np.inf)), "frame 0 of audio has inf"),
        (Utterance("u", "a", audio=np.full((2, 12), 1e37)), r"audio has 1e\+37 .* beyond 1e\+30"),
        (Utterance("u", "a", features={"pose": np.zeros((2, 5))}), "has pose features, but"),
        (Utterance("u", " ", audio=np.zeros((0, 12))), "neither a text nor features"),
    ],
)
def test_what_does_not_fit_is_refused(
    predictor: Predictor, utterance: Utterance, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        predictor.predict([Utterance(text="fine"), utterance], plugin="emotion")


def test_utterances_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"audio has the shape \(1, 2, 3\)"):
        Utterance("u", audio=np.zeros((1, 2, 3)))
    with pytest.raises(DataError, match="audio is no array of numbers"):
        Utterance("u", audio=[["a"]])
    with pytest.raises(DataError, match="audio is given twice"):
        Utterance("u", audio=[[1.0]], features={"audio": [[1.0]]})
    with pytest.raises(DataError, match=r"There is no file .*clip\.mp4"):
        Utterance.from_media(tmp_path / "clip.mp4")
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(DataError, match="from 2 s to 1 s is empty"):
        Utterance.from_media(tmp_path / "clip.mp4", start=2, end=1)
    with pytest.raises(DataError, match="not at 'one'"):
        Utterance.from_media(tmp_path / "clip.mp4", start="one")  # type: ignore[arg-type]
    assert Utterance(audio=torch.ones(3)).features["audio"].shape == (1, 3)


def test_questions_that_cannot_be_answered_are_refused(
    predictor: Predictor, plugins: dict[str, Plugin], backbone: FrozenBackbone
) -> None:
    fine = [Utterance(text="fine")]
    assert predictor.predict([], plugin="gate") == []
    with pytest.raises(PluginError, match=r"Say which plugin.*'sentiment', 'emotion', 'gate'"):
        predictor.predict(fine)
    with pytest.raises(PluginError, match="There is no plugin 'mood'"):
        predictor.predict(fine, plugin="mood")
    with pytest.raises(PluginError, match="2 names for 1 utterances"):
        predictor.predict(fine, plugin=["gate", "gate"])
    with pytest.raises(PluginError, match="There is a plugin 'gate' already"):
        predictor.add(plugins["gate"], "gate")
    with pytest.raises(LabelSpaceError, match="emotions have no order"):
        predictor.predict(fine, plugin="emotion", decode="mean")
    with pytest.raises(BackboneError, match="leave tokenizer out"):
        plugins["gate"].attach(backbone, backbone.tokenizer)
    with pytest.raises(BackboneError, match="needs its tokenizer"):
        plugins["gate"].attach(backbone.model)
    predictor.remove("gate")
    with pytest.raises(PluginError, match="There is no plugin 'gate'"):
        predictor.predict(fine, plugin="gate")


def test_batches_are_divided_by_memory(predictor: Predictor) -> None:
    model = predictor._attached["emotion"].model
    tokens = np.array([1], dtype=np.int32)
    questions = [
        Question(n, model, "emotion", Utterance(text="a"), tokens, {"audio": 2_000_000 * (n % 2)})
        for n in range(20)
    ]
    sizes = [len(batch) for batch in batches(questions, 32)]
    assert sum(sizes) == 20
    assert sizes[0] < 10
    assert [q.number % 2 for batch in batches(questions, 32) for q in batch] == [1] * 10 + [0] * 10


def test_a_plugin_more_takes_its_own_weights_alone(
    predictor: Predictor, plugins: dict[str, Plugin]
) -> None:
    predictor.add(plugins["emotion"], "again")
    weights = {tensor.data_ptr() for tensor in plugins["emotion"].weights.values()}
    model = predictor._attached["again"].model
    assert {tensor.data_ptr() for tensor in model.adapter.state_dict().values()} <= weights
    assert model.backbone is predictor.backbone


def test_probabilities_that_are_no_numbers_are_refused(
    plugins: dict[str, Plugin], backbone: FrozenBackbone
) -> None:
    plugin = plugins["sentiment"]
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in plugin.weights.items()}
    predictor = replace(plugin, weights=broken).attach(backbone)
    with pytest.raises(DataError, match=r"'demo' gives no probabilities for 'u', but NaN"):
        predictor.predict([Utterance("u", "a", audio=np.zeros((2, 12)))])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0: give a whole number of at least 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"decode": "best"}, "decode is 'best': give one of greedy, "),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(
    predictor: Predictor, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        predictor.predict([Utterance(text="a")], plugin="sentiment", **arguments)
