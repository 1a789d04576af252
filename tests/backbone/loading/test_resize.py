"""Architectures in another width and depth."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from msea_lightning.backbone.loading.resize import resized
from msea_lightning.commands.command_line import compose, conf_folder
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import TrainConfig

ARCHITECTURES = {
    name: compose("train", TrainConfig, [f"backbone={name}"]).backbone.architecture
    for name in sorted(path.stem for path in (conf_folder() / "backbone").glob("*.yaml"))
    if name not in ("auto", "tiny")
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("hidden_size", "num_layers"), [(64, 2), (96, 3), (None, 1)])
def test_every_preset_in_other_sizes(name: str, hidden_size: int | None, num_layers: int) -> None:
    import torch

    before = dict(ARCHITECTURES[name])
    fields = resized(before, hidden_size=hidden_size, num_layers=num_layers)
    assert before == ARCHITECTURES[name]
    kind = fields.pop("model_type")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields))
    config = model.config
    assert config.hidden_size == (hidden_size or before["hidden_size"])
    assert config.num_hidden_layers == num_layers
    assert config.vocab_size == before["vocab_size"]


def test_heads_and_inner_width_keep_their_ratio() -> None:
    fields = resized(ARCHITECTURES["llama2"], hidden_size=256, num_layers=None)
    assert fields["num_attention_heads"] == fields["num_key_value_heads"] == 2  # 128 wide each
    assert fields["intermediate_size"] == 688
    assert fields["num_hidden_layers"] == 32
    shared = resized(ARCHITECTURES["chatglm3"], hidden_size=2048, num_layers=4)
    assert (shared["num_attention_heads"], shared["num_key_value_heads"]) == (16, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["backbone=llama2", "backbone.hidden_size=64"],
            "hidden_size=64 is for measuring.*weights=pretrained",
        ),
        (["backbone.num_layers=2", "backbone=tiny"], "num_layers=2 is for measuring"),
        (
            ["backbone=llama2", "backbone.hidden_size=72", "backbone.weights=random"],
            "is no multiple of 16",
        ),
    ],
)
def test_sizes_for_measuring_only(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose("train", TrainConfig, overrides)
