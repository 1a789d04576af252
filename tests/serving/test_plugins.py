"""Several plugins by name: which share a language model, and what they are called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from msea_lightning import Plugin
from msea_lightning.backbone.options import Accelerator
from msea_lightning.plugin import PluginError
from msea_lightning.plugin.options import RecordedBackboneConfig
from msea_lightning.serving.plugins import load_plugins, open_plugins

HERE = RecordedBackboneConfig(accelerator=Accelerator.cpu)


def saved(folder: Path, plugins: dict[str, Plugin], *names: str) -> list[str]:
    for name in names:
        plugins[name].save_pretrained(folder / name)
    return [str(folder / name) for name in names]


def test_plugins_of_one_language_model_share_it(tmp_path: Path, plugins: dict[str, Plugin]) -> None:
    loaded = load_plugins(
        open_plugins(saved(tmp_path, plugins, "sentiment", "emotion", "gate"), {}), HERE
    )
    assert list(loaded) == ["demo (sentiment) 1", "demo (emotions)", "demo (sentiment) 2"]
    predictor = loaded["demo (emotions)"]
    assert all(other is predictor for other in loaded.values())
    assert list(predictor.plugins) == list(loaded)


def test_one_of_another_way_to_store_it_has_its_own(
    tmp_path: Path, plugins: dict[str, Plugin]
) -> None:
    other = replace(plugins["emotion"].facts, dataset="other")
    other = replace(other, backbone={**other.backbone, "dtype": "bfloat16"})
    plugins["other"] = replace(plugins["emotion"], facts=other)
    first, second = saved(tmp_path, plugins, "sentiment", "other")
    loaded = load_plugins(open_plugins([first], {"mine": second}), HERE)
    assert list(loaded) == ["demo", "mine"]
    assert loaded["demo"] is not loaded["mine"]
    assert str(loaded["mine"].backbone.dtype) == "torch.bfloat16"


def test_a_folder_without_a_plugin_is_refused_before_anything_loads(
    tmp_path: Path, plugins: dict[str, Plugin]
) -> None:
    places = [*saved(tmp_path, plugins, "emotion"), str(tmp_path)]
    with pytest.raises(PluginError, match="is not a complete plugin"):
        open_plugins(places, {})
