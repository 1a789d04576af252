"""Plugins on the Hugging Face Hub: published to, and fetched from, a small server that acts it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

from msea_lightning.plugin import Plugin, PluginError
from msea_lightning.plugin.facts import CARD, FACTS, WEIGHTS
from tests.places import ROOT
from tests.plugin.fake_hub import READ, WRITE, FakeHub, Repository, serving

RELEASE = ROOT / "tests" / "release" / "run" / "plugin"
FILES = {CARD, FACTS, WEIGHTS}

# huggingface_hub uploads to Git LFS in a way that its HTTP library has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    hub = FakeHub()
    with serving(hub, monkeypatch):
        yield hub


@pytest.fixture
def plugin() -> Plugin:
    return Plugin.from_pretrained(RELEASE)


def same(one: Plugin, other: Plugin) -> bool:
    weights = one.weights.keys() == other.weights.keys() and all(
        torch.equal(one.weights[name], other.weights[name]) for name in one.weights
    )
    return weights and asdict(one.facts) == asdict(other.facts)


def test_what_is_published_is_fetched_again(tmp_path: Path, hub: FakeHub, plugin: Plugin) -> None:
    address = plugin.push_to_hub("user/demo", token=WRITE, commit_message="First")
    repository = hub.repositories["user/demo"]
    assert address.endswith(f"/user/demo/commit/{repository.branches['main']}")
    assert repository.messages == ["First"]
    assert not repository.private
    files = repository.files() or {}
    assert files.keys() == FILES
    card = ModelCard(files[CARD].decode())
    assert card.data.library_name == "msea_lightning"
    assert 'Plugin.from_pretrained("user/demo")' in card.text
    assert same(Plugin.from_pretrained("user/demo", cache_dir=tmp_path), plugin)
    assert hub.fetched() == {FACTS, WEIGHTS}


def test_the_revision_that_is_asked_for_is_fetched(
    tmp_path: Path, hub: FakeHub, plugin: Plugin
) -> None:
    plugin.push_to_hub("user/demo", token=WRITE)
    repository = hub.repositories["user/demo"]
    repository.branches["next"] = first = repository.branches["main"]
    changed = replace(plugin, facts=replace(plugin.facts, seed=7))
    changed.push_to_hub("user/demo", token=WRITE, branch="next", license="mit", language="en")
    assert repository.branches["main"] == first
    for revision, seed in ((None, None), ("next", 7), (first, None)):
        found = Plugin.from_pretrained("user/demo", revision=revision, cache_dir=tmp_path)
        assert found.facts.seed == seed
    assert Plugin.from_pretrained(
        "user/demo", revision="next", cache_dir=tmp_path, local_files_only=True
    ).facts.license == ("mit")
    with pytest.raises(PluginError, match=r"user/demo on the Hugging Face Hub has no revision v9"):
        Plugin.from_pretrained("user/demo", revision="v9", cache_dir=tmp_path)


def test_a_folder_is_published_under_its_name(tmp_path: Path, hub: FakeHub, plugin: Plugin) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("private")
    plugin.save_pretrained(tmp_path / "mine", push_to_hub=True, token=WRITE, private=True)
    repository = hub.repositories["user/mine"]
    assert repository.private
    files = repository.files() or {}
    assert files.keys() == FILES
    assert b'from_pretrained("user/mine")' in files[CARD]
    pull = plugin.push_to_hub("user/mine", token=WRITE, license="mit", create_pr=True)
    assert hub.pull_requests == 1
    assert pull.endswith("f" * 40)
    assert repository.files() == files


def test_no_local_path_is_published(hub: FakeHub, plugin: Plugin) -> None:
    facts = replace(plugin.facts, backbone={"name": "llama2", "path": "/secret/weights"})
    replace(plugin, facts=facts).push_to_hub("user/demo", token=WRITE)
    files = hub.repositories["user/demo"].files() or {}
    backbone = {"name": "llama2", "path": None, "file": "weights"}
    assert json.loads(files[FACTS])["backbone"] == backbone
    assert not [name for name, content in files.items() if b"secret" in content]


def test_a_private_plugin_is_for_its_account(tmp_path: Path, hub: FakeHub, plugin: Plugin) -> None:
    plugin.push_to_hub("user/demo", token=WRITE, private=True)
    with pytest.raises(PluginError, match=r"or your account may not see it.*hf auth login.*token="):
        Plugin.from_pretrained("user/demo", cache_dir=tmp_path)
    found = Plugin.from_pretrained("user/demo", token=READ, cache_dir=tmp_path)
    assert same(found, plugin)


def test_what_cannot_be_fetched(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PluginError, match=r"user/none is no folder here, and there is no plugin"):
        Plugin.from_pretrained("user/none", cache_dir=tmp_path)
    hub.repositories["user/gated"] = gated = Repository(gated=True)
    gated.commit("main", {FACTS: b"{}", WEIGHTS: b"junk"}, "First")
    with pytest.raises(PluginError, match="given on request alone: ask for access"):
        Plugin.from_pretrained("user/gated", cache_dir=tmp_path)
    hub.repositories["user/other"] = other = Repository()
    other.commit("main", {"config.json": b"{}", "model.safetensors": b"junk"}, "First")
    with pytest.raises(PluginError, match=r"user/other is not a complete plugin: plugin.json is"):
        Plugin.from_pretrained("user/other", cache_dir=tmp_path)
    with pytest.raises(PluginError, match=r"could not be fetched.*Check the connection"):
        Plugin.from_pretrained("user/none", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(PluginError, match="is no name on the Hugging Face Hub either"):
        Plugin.from_pretrained("runs/mistyped/plugin", cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PluginError, match=r"could not be fetched.*Connect.*hf download user/none"):
        Plugin.from_pretrained("user/none", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("user/new", {}, "without a login: run `hf auth login` with a token that may write"),
        ("user/new", {"token": READ}, r"by this account .*rights to create a model"),
        ("other/new", {"token": WRITE}, r"by this account .*name of your own"),
        ("user/new", {"token": WRITE, "branch": "v2"}, "no branch v2: create it .hf repo branch"),
        ("no/such/name", {"token": WRITE}, "is no name on the Hugging Face Hub"),
        ("user/new", {"token": WRITE, "license": "my-own"}, r"refused.*\"license\" must be one of"),
        ("user/new", {"token": WRITE, "license": "My Own"}, "'My Own' is no identifier of a lic"),
        ("user/new", {"token": WRITE, "language": "English"}, "'English' is no ISO 639 code"),
    ],
)
def test_what_cannot_be_published(
    hub: FakeHub, plugin: Plugin, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        plugin.push_to_hub(name, **options)
    assert not any(repository.files() for repository in hub.repositories.values())


def test_publishing_without_a_connection(
    hub: FakeHub, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PluginError, match=r"could not be published .Connect.*check the connection"):
        plugin.push_to_hub("user/new", token=WRITE)


def test_saving_again_replaces_all_of_it(tmp_path: Path, plugin: Plugin) -> None:
    for name in (CARD, "config.json"):
        (tmp_path / name).write_text("of something else")
    assert plugin.save_pretrained(tmp_path, license="cc-by-nc-4.0") is None
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert ModelCard.load(tmp_path / CARD).data.license == "cc-by-nc-4.0"
    again = Plugin.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path, language="de")
    assert {path.name for path in tmp_path.iterdir()} == FILES
    card = ModelCard.load(tmp_path / CARD)
    assert (card.data.license, card.data.language) == ("cc-by-nc-4.0", "de")
    assert str(card) == str(Plugin.from_pretrained(tmp_path).generate_model_card())
    facts = json.loads((tmp_path / FACTS).read_text(encoding="utf-8"))
    assert (facts["license"], facts["language"]) == ("cc-by-nc-4.0", "de")
    with pytest.raises(PluginError, match="Only with push_to_hub=True: licence"):
        plugin.save_pretrained(tmp_path, licence="mit")
