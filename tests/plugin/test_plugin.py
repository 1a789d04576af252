"""Plugin folders: what they say, what they attach to, and what their language model is."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from msea_lightning.backbone import BackboneError, FrozenBackbone, load_backbone
from msea_lightning.backbone.loading.load import tiny_backbone
from msea_lightning.backbone.options import BackboneConfig, Quantization
from msea_lightning.language.options import Loss
from msea_lightning.model.options import ReadoutKind
from msea_lightning.plugin import (
    Plugin,
    PluginError,
    attach,
    load_plugin,
    load_plugin_backbone,
    save_plugin,
)
from msea_lightning.plugin.facts import backbone_facts
from tests.places import ROOT

RELEASE = ROOT / "tests" / "release" / "run" / "plugin"


@pytest.fixture
def plugin() -> Plugin:
    """One of release 0.1, on the built-in language model."""
    return load_plugin(RELEASE)


def on(plugin: Plugin, **backbone: Any) -> Plugin:
    """The plugin with other facts of its language model."""
    return replace(plugin, facts=replace(plugin.facts, backbone=backbone))


@pytest.mark.parametrize("place", ["folder", "weights.gguf"])
def test_facts_of_local_files_hold_no_path(
    tmp_path: Path, backbone: FrozenBackbone, place: str
) -> None:
    path = tmp_path / place
    path.write_bytes(b"weights")
    config = BackboneConfig(name="auto", path=str(path), tokenizer=str(tmp_path))
    facts = backbone_facts(config, backbone)
    assert str(tmp_path) not in json.dumps(facts)
    digest = hashlib.sha256(b"weights").hexdigest() if place.endswith("gguf") else None
    assert (facts["file"], facts["path"], facts["sha256"]) == (place, None, digest)
    assert (facts["tokenizer_file"], facts["tokenizer"]) == (tmp_path.name, None)


def test_the_language_model_is_loaded_again_from_the_plugin_alone(
    tmp_path: Path, plugin: Plugin
) -> None:
    config = BackboneConfig(quantization=Quantization.none)
    facts = backbone_facts(config, load_backbone(None, dtype="bfloat16"))
    model = attach(plugin, load_backbone(None))
    save_plugin(tmp_path, model, on(plugin, **facts).facts)
    again = load_plugin(tmp_path)
    backbone = load_plugin_backbone(again)
    assert backbone.dtype is torch.bfloat16
    assert attach(again, backbone).backbone is backbone
    # One of release 0.1 says less.
    assert load_plugin_backbone(plugin).dtype is torch.float32


def test_a_local_language_model_is_loaded_from_the_place_that_is_given(
    tmp_path: Path, plugin: Plugin
) -> None:
    shutil.copytree(tiny_backbone(), tmp_path / "copy")
    local = on(plugin, name="auto", path=None, file="copy", sha256="12ab", dtype="float32")
    with pytest.raises(PluginError, match=r"a local file or folder.*SHA-256 12ab.*where it is her"):
        load_plugin_backbone(local)
    assert load_plugin_backbone(local, tmp_path / "copy").width == 96
    gone = on(plugin, name="llama2", path=str(tmp_path / "gone"))
    with pytest.raises(PluginError, match=r"llama2 .a local copy.\. Say where it is here") as up:
        load_plugin_backbone(gone)
    assert str(tmp_path) not in str(up.value)
    with pytest.raises(PluginError, match="random weights"):
        load_plugin_backbone(on(plugin, name="llama2", path="a/b", weights="random"))


def cached(cache: Path, name: str, commit: str) -> None:
    """Puts the built-in language model into a cache of the Hub."""
    folder = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(tiny_backbone(), folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)


def test_a_language_model_of_the_hub_is_named_with_its_commit(
    tmp_path: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached(tmp_path, "some/model", commit)
    backbone = load_backbone("some/model")
    facts = backbone_facts(BackboneConfig(name="auto", path="some/model"), backbone)
    assert (facts["path"], facts["revision"]) == ("some/model", commit)
    moved = on(plugin, **facts)
    assert load_plugin_backbone(moved).revision == commit
    other = {**plugin.facts.fingerprint, "tokenizer": "0" * 16}
    changed = replace(moved, facts=replace(moved.facts, fingerprint=other))
    with pytest.raises(PluginError, match=rf"hf download some/model --revision {commit}, and give"):
        attach(changed, backbone)
    with pytest.raises(BackboneError, match=r"give the folder as path\."):
        load_plugin_backbone(on(plugin, name="auto", path="some/other"))
    folder = tmp_path / "models--some--model" / "snapshots" / commit
    local = load_backbone(folder)
    assert local.revision is None
    shutil.copytree(folder, tmp_path / "some" / "model")
    monkeypatch.chdir(tmp_path)
    assert load_backbone("some/model").revision is None
    assert backbone_facts(BackboneConfig(path=str(folder)), local)["revision"] is None


def test_the_tokenizer_is_the_one_of_training(
    tmp_path: Path, plugin: Plugin, backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def load(path: str | Path | None, *, tokenizer: str | None, **_: Any) -> FrozenBackbone:
        asked.append(tokenizer)
        return backbone

    monkeypatch.setattr("msea_lightning.plugin.loading.load_backbone", load)
    for words, expected in (("some/tokenizer", "some/tokenizer"), (None, None)):
        config = BackboneConfig(path=str(tmp_path), tokenizer=words)
        facts = backbone_facts(config, backbone)
        load_plugin_backbone(on(plugin, **facts), tmp_path)
        assert asked.pop() == expected
    (tmp_path / "words").mkdir()
    config = BackboneConfig(path="some/model", tokenizer=str(tmp_path / "words"))
    local = on(plugin, **backbone_facts(config, backbone))
    for path in (None, tmp_path):
        with pytest.raises(PluginError, match=r"the tokenizer words .*tokenizer=\.\.\."):
            load_plugin_backbone(local, path)
    load_plugin_backbone(local, tokenizer="here/words")
    assert asked == ["here/words"]


def test_another_storage_of_the_same_language_model_is_said(
    plugin: Plugin, backbone: FrozenBackbone, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    attach(plugin, backbone)
    assert caplog.text == ""
    # As in int8 or nf4, whose matrices cannot be compared with dense ones.
    other = {part: value for part, value in plugin.facts.fingerprint.items() if part != "linear"}
    other["linear-bitsandbytes"] = "0" * 16
    trained = replace(plugin.facts, fingerprint=other, backbone={"name": "tiny", "path": None})
    attach(replace(plugin, facts=replace(trained, backbone={"quantization": "nf4"})), backbone)
    assert "with quantization=nf4, and here it has quantization=none" in caplog.text


def test_a_dense_plugin_attaches_to_an_nf4_model_with_a_warning(
    plugin: Plugin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    nf4 = load_backbone(None, quantization="nf4")
    assert attach(plugin, nf4).backbone is nf4
    assert "with quantization=none, and here it has quantization=nf4" in caplog.text


def test_another_language_model_is_refused(plugin: Plugin, backbone: FrozenBackbone) -> None:
    other = {**plugin.facts.fingerprint, "embeddings": "0" * 16}
    changed = replace(plugin, facts=replace(plugin.facts, fingerprint=other))
    with pytest.raises(PluginError, match=r"trained on tiny.*embeddings 0{16}.*but this language"):
        attach(changed, backbone)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("plugin.json", None, "plugin.json is missing"),
        ("adapter.safetensors", None, "adapter.safetensors is missing"),
        ("plugin.json", b"{", "cannot be read"),
        ("plugin.json", b"[]", "cannot be read"),
        ("plugin.json", b"\xff", "cannot be read"),
        ("plugin.json", b'{"format": 2}', "has format version 2, this release reads 1"),
        ("plugin.json", b'{"format": 1, "zeal": 2}', "says zeal, which this release does not know"),
        ("adapter.safetensors", b"junk", "cannot be read"),
    ],
)
def test_what_is_no_plugin_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    folder = Path(shutil.copytree(RELEASE, tmp_path / "plugin"))
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(PluginError, match=message):
        load_plugin(folder)


def test_a_file_in_place_of_its_folder_is_named() -> None:
    with pytest.raises(PluginError, match=r"plugin\.json is a file: give the folder that it is in"):
        load_plugin(RELEASE / "plugin.json")


def test_a_local_path_of_release_0_1_is_not_written_again(tmp_path: Path, plugin: Plugin) -> None:
    on(plugin, name="llama2", path="/home/me/secret/llama").save_pretrained(tmp_path)
    assert "secret" not in (tmp_path / "plugin.json").read_text(encoding="utf-8")
    assert Plugin.from_pretrained(tmp_path).facts.backbone["file"] == "llama"


def test_extractors_of_features_that_it_does_not_read_are_left_out(
    tmp_path: Path, plugin: Plugin
) -> None:
    found = {"name": "face", "version": 1, "settings": {}, "dim": 34}
    features = {"audio": {**found, "name": "log_mel"}, "vision": found}
    facts = replace(plugin.facts, vision_dim=None, features=features)
    assert list(facts.features) == ["audio"]
    replace(plugin, facts=facts).save_pretrained(tmp_path)
    assert list(Plugin.from_pretrained(tmp_path).facts.features) == ["audio"]


def test_weights_that_nothing_knows_are_refused(plugin: Plugin, backbone: FrozenBackbone) -> None:
    weights = {**plugin.weights, "head.weight": torch.zeros(1)}
    with pytest.raises(PluginError, match="holds weights of head, which this release does not"):
        attach(replace(plugin, weights=weights), backbone)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("context", -1, r"prompt\.context=-1 is out of range: at least 0"),
        ("context_tokens", 0, r"prompt\.context_tokens=0 is out of range: at least 1"),
        ("context_template", "{speaker}", "has to have {text} once"),
    ],
)
def test_a_prompt_that_is_none_is_refused(
    tmp_path: Path, plugin: Plugin, name: str, value: int | str, message: str
) -> None:
    prompt = replace(plugin.facts.prompt, **{name: value})
    replace(plugin, facts=replace(plugin.facts, prompt=prompt)).save_pretrained(tmp_path)
    with pytest.raises(PluginError, match=rf"plugin\.json cannot be right: .*{message}"):
        load_plugin(tmp_path)


@pytest.mark.parametrize(
    ("facts", "shape", "message"),
    [
        ({"calibrated": True}, None, r"the shape None, but calibrated=true .* need \(2, 8\)"),
        ({"calibrated": True}, (1, 1), r"the shape \(1, 1\), but calibrated=true .* need \(2, 8\)"),
        ({}, (2, 8), r"the shape \(2, 8\), but calibrated=false .* need None"),
        ({"calibrated": True, "loss": Loss.vocabulary}, None, "calibrated=true, .* loss=vocabu"),
        ({"readout": ReadoutKind.linear, "loss": Loss.vocabulary}, None, "readout=linear, which"),
    ],
)
def test_a_readout_that_is_not_as_the_facts_say_is_refused(
    plugin: Plugin,
    backbone: FrozenBackbone,
    facts: dict[str, Any],
    shape: tuple[int, ...] | None,
    message: str,
) -> None:
    prior = {} if shape is None else {"readout.prior": torch.zeros(shape)}
    said = replace(plugin.facts, **{"loss": Loss.answers, **facts})
    with pytest.raises(PluginError, match=message):
        attach(replace(plugin, facts=said, weights={**plugin.weights, **prior}), backbone)


def test_anchored_pseudo_tokens_come_last(plugin: Plugin, backbone: FrozenBackbone) -> None:
    facts = replace(plugin.facts, adapter={**plugin.facts.adapter, "anchored": True})
    with pytest.raises(PluginError, match=r"anchored=true, .* but prompt is last in its prompt\.l"):
        attach(replace(plugin, facts=facts), backbone)


@pytest.mark.parametrize("device", ["meteor", "cuda:99"])
def test_a_device_that_is_not_there_is_named(plugin: Plugin, device: str) -> None:
    with pytest.raises(BackboneError, match=f"device={device}: PyTorch has no such device here"):
        plugin.load(device=device)
