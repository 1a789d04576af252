"""The model card of a plugin: its front matter, and what its text says."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from msea_lightning.data.options import DatasetConfig, LabelConfig, LabelKind, Language, Reader
from msea_lightning.metrics import METRICS
from msea_lightning.plugin import Plugin
from msea_lightning.plugin.card import escaped, model_card
from msea_lightning.plugin.facts import PluginFacts, language_of
from msea_lightning.runs.folder import RunFolder
from tests.places import ROOT

RELEASE = ROOT / "tests" / "release" / "run" / "plugin"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
QWEN = {
    **{"name": "qwen2.5-0.5b", "path": "Qwen/Qwen2.5-0.5B", "revision": COMMIT},
    **{"dtype": "bfloat16", "quantization": "nf4"},
}
LOG_MEL = {"name": "log_mel", "version": 1, "settings": {"mels": 64, "rate": 16000}, "dim": 64}


@pytest.fixture
def facts() -> PluginFacts:
    """Those of release 0.1."""
    return Plugin.from_pretrained(RELEASE).facts


@pytest.fixture
def published(facts: PluginFacts) -> PluginFacts:
    """Of a plugin that tells all there is to tell."""
    return replace(
        facts,
        dataset="mosei",
        dataset_id="AZYoung/MOSEI_processed",
        labels=LabelConfig(kind=LabelKind.scale, low=-3.0, high=3.0, step=0.1),
        backbone=QWEN,
        test={"acc2": 0.85, "f1": 0.8512, "mae": 0.523, "corr": 0.77, "f1_non0": None},
        features={"audio": LOG_MEL},
        audio_dim=64,
        vision_dim=None,
        seed=1111,
        language="en",
        license="cc-by-nc-4.0",
    )


def card(facts: PluginFacts, name: str | None = None) -> ModelCard:
    """As somebody reads it who has the file."""
    return ModelCard(str(model_card(facts, 1_234_567, name)))


def test_the_card_of_a_plugin(published: PluginFacts) -> None:
    expected = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    assert str(card(published, "user/mosei-qwen")) == expected


def test_what_a_plugin_does_not_tell_is_left_out(facts: PluginFacts) -> None:
    data = card(facts).data.to_dict()
    assert data.keys() == {"library_name", "pipeline_tag", "tags", "metrics", "model-index"}
    text = card(facts).text
    assert not re.search(r"None|null|nan|seed|\| Language", text)
    assert "| Licence of these weights | not stated;" in text
    assert "| audio | 12 | not recorded: they must be made as those of demo were |" in text


@pytest.mark.parametrize(
    ("backbone", "base", "title"),
    [
        (QWEN, "Qwen/Qwen2.5-0.5B", f"Qwen2.5-0.5B), commit {COMMIT}, bfloat16, nf4 |"),
        ({"name": "tiny", "path": None}, None, "| tiny, which ships with msea\\_lightning |"),
        ({"name": "llama2", "path": "meta-llama/L"}, "meta-llama/L", "co/meta-llama/L) |"),
        ({"name": "llama2", "path": "/secret/weights"}, None, "| llama2 (a local copy) |"),
        ({"name": "llama2", "path": "~/secret/weights"}, None, "| llama2 (a local copy) |"),
        ({"name": "auto", "file": "m.gguf"}, None, "| m.gguf (a local file or folder) |"),
        (
            {"name": "llama2", "path": "meta-llama/L", "weights": "random"},
            None,
            "| meta-llama/L, with random weights |",
        ),
        (
            {"name": "llama2", "path": "meta-llama/L", "tokenizer_file": "words"},
            "meta-llama/L",
            "with the tokenizer words |",
        ),
    ],
)
def test_the_base_model_is_never_a_local_path(
    facts: PluginFacts, backbone: dict[str, Any], base: str | None, title: str
) -> None:
    found = card(replace(facts, backbone=backbone))
    assert title in found.text
    assert not re.search("secret|None", str(found))
    assert found.data.base_model == base
    assert found.data.get("base_model_relation") == ("adapter" if base else None)


def test_a_folder_that_looks_like_a_name_is_no_base_model(
    facts: PluginFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some" / "weights").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = card(replace(facts, backbone={"name": "llama2", "path": "some/weights"}))
    assert found.data.base_model is None
    assert "| llama2 (a local copy) |" in found.text


@pytest.mark.parametrize(
    ("changed", "adapter", "sentence", "task"),
    [
        (
            {},
            {},
            "read audio (12 values per frame) and vision (10 values per frame) beside text, and",
            "text",
        ),
        (
            {"vision_dim": None},
            {},
            "It does not read vision, which its data did not have.",
            "text",
        ),
        ({}, {"use_audio": False}, "It does not read audio, which was left out of it.", "text"),
        ({}, {"use_text": False}, "(10 values per frame), without the text, and", "video"),
        ({}, {"use_text": False, "use_vision": False}, "without the text", "audio"),
        ({}, {"random_summaries": True}, "read no features beside text", "text"),
        ({}, {"use_audio": False, "use_vision": False}, "read no features beside text", "text"),
    ],
)
def test_the_card_says_what_is_read(
    facts: PluginFacts, changed: dict[str, Any], adapter: dict[str, bool], sentence: str, task: str
) -> None:
    found = card(replace(facts, **changed, adapter={**facts.adapter, **adapter}))
    assert sentence in found.text
    assert found.data.pipeline_tag == f"{task}-classification"
    assert "none" not in found.text


def test_every_metric_has_its_name_on_the_hub(facts: PluginFacts) -> None:
    test = dict.fromkeys(METRICS, 0.5)
    found = card(replace(facts, test=test, seed=3)).data.eval_results
    assert found is not None
    types = {result.metric_name: result.metric_type for result in found}
    assert types == {
        **{f"{info.title}, seed 3": "accuracy" for info in METRICS.values() if "acc" in info.name},
        **{f"{title}, seed 3": "f1" for title in ("F1", "F1 (non0)", "WF1")},
        **{"MAE, seed 3": "mae", "Corr, seed 3": "pearsonr"},
    }
    assert all(result.metric_value == 0.5 and result.verified is False for result in found)
    assert {(result.dataset_type, result.dataset_split) for result in found} == {("demo", "test")}


@pytest.mark.parametrize("test", [{}, {"acc": None}, {"acc": math.nan}])
def test_a_plugin_without_scores(facts: PluginFacts, test: dict[str, Any]) -> None:
    found = card(replace(facts, test=test))
    assert "model-index" not in found.data.to_dict()
    assert "model_name" not in found.data.to_dict()
    assert ("| Acc | undefined |" if test else "It was not tested here.") in found.text


@pytest.mark.parametrize(
    "name",
    ["a|b", "`code`", "<script>x</script>", "a: b # c", "no", "*_~[x]", "- x", "{{ 7 }}", "---"],
)
def test_names_of_data_are_shown_as_they_are(facts: PluginFacts, name: str) -> None:
    labels = replace(facts.labels, names=[name, "joy"])
    found = card(replace(facts, dataset=name, labels=labels, dataset_id=name))
    [result] = {(item.dataset_name, item.dataset_type) for item in found.data.eval_results or []}
    assert result == (name, name)
    plain = re.sub(r"\\([\\`*_\[\]<>|~&$])", r"\1", found.text)
    assert f"# {name} on tiny: MSE-Adapter plugin" in plain
    assert f"2 emotions ({name}, joy)" in plain
    assert "<script>" not in found.text
    rows = [line for line in found.text.splitlines() if line.startswith("| Trained on |")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3]


def test_what_a_terminal_would_obey_is_written_out(facts: PluginFacts) -> None:
    labels = replace(facts.labels, names=["a\x1b[31m\u202eb\nc", "joy"])
    text = str(card(replace(facts, labels=labels)))
    assert "a\\\\x1b\\[31m\\\\u202eb c, joy" in text
    assert escaped("\x00") == "\\\\x00"


@pytest.mark.parametrize(
    ("hashed", "extracts"),
    [({"emotion.tflite": "12ab" * 16}, True), ({"path": "12ab" * 16}, False)],
)
def test_clips_are_for_plugins_that_find_their_extractors(
    facts: PluginFacts, hashed: dict[str, str], extracts: bool
) -> None:
    settings = {"path": "hubert", "chunk": 20.0, "mode": "a|b", "fingerprints": hashed}
    encoder = {"name": "audio_encoder", "version": 2, "settings": settings, "dim": 12}
    adapter = {**facts.adapter, "use_vision": False}
    text = card(replace(facts, adapter=adapter, features={"audio": encoder})).text
    [(name, digest)] = hashed.items()
    shown = f"(chunk=20.0, mode=a\\|b, path=hubert, hash of {name}={digest[:12]}) |"
    assert f"| audio\\_encoder, version 2 {shown}" in text
    assert ("from_media" in text) is extracts
    assert ("np.load" in text) is not extracts


@pytest.mark.parametrize(
    ("backbone", "line"),
    [
        ({"name": "llama2", "path": "/gone/weights"}, 'load(path="path/to/the/language/model")'),
        (
            {"name": "auto", "file": "w", "tokenizer_file": "t"},
            'load(path="path/to/the/language/model", tokenizer="path/to/its/tokenizer")',
        ),
        (QWEN, "load()"),
    ],
)
def test_the_card_says_what_loading_needs(
    facts: PluginFacts, backbone: dict[str, Any], line: str
) -> None:
    assert f"predictor = plugin.{line}\n" in card(replace(facts, backbone=backbone)).text


def test_the_lines_of_the_card_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = card(Plugin.from_pretrained(RELEASE).facts).text
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    np.save("audio.npy", np.ones((5, 12), dtype=np.float32))
    np.save("vision.npy", np.ones((4, 10), dtype=np.float32))
    exec(code.replace("path/to/this/folder", str(RELEASE)), {})
    label, probability = capsys.readouterr().out.split()
    assert label in Plugin.from_pretrained(RELEASE).facts.labels.names
    assert 1 / 7 <= float(probability) <= 1


def test_a_plugin_that_reads_text_alone(facts: PluginFacts) -> None:
    adapter = {**facts.adapter, "use_audio": False, "use_vision": False}
    text = card(replace(facts, adapter=adapter)).text
    assert 'utterance = Utterance(\n    text="What is said.",\n)\n' in text
    assert "numpy" not in text
    assert "## Features\n\nNone.\n" in text


def test_a_run_tells_its_plugin_what_the_card_says(finished_run: RunFolder) -> None:
    facts = Plugin.from_pretrained(finished_run.plugin).facts
    assert (facts.seed, facts.language, facts.dataset_id) == (1111, "en", None)
    written = (finished_run.plugin / "README.md").read_text(encoding="utf-8")
    assert "one run (seed 1111)" in written
    data = ModelCard(written).data
    assert (data.language, data.license, data.base_model) == ("en", None, None)


def test_the_language_of_an_own_table_is_not_that_of_its_prompts() -> None:
    assert (
        language_of(DatasetConfig(name="mine", reader=Reader.table, language=Language.en)) is None
    )
    assert language_of(DatasetConfig(name="cherma", language=Language.zh)) == "zh"


def test_plugins_with_random_weights_are_not_to_be_loaded(facts: PluginFacts) -> None:
    text = card(replace(facts, backbone={**QWEN, "weights": "random"})).text
    assert "there is nothing to load it from" in text
    assert "```" not in text


def test_the_card_of_an_imported_plugin(facts: PluginFacts) -> None:
    text = card(replace(facts, test={}, fingerprint={}, imported_from="a|b.pth, SHA-256 12")).text
    assert "a checkpoint of the original implementation: a\\|b.pth, SHA-256 12 |" in text
    assert "is refused" not in text
    assert "It was not tested here" in text
    assert "There are no scores: other speakers" in text
