"""The configuration's schema: types, ranges, and rules between options."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from msea_lightning.adapter.options import AblationConfig, MSEOptions
from msea_lightning.backbone.options import BackboneConfig
from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.config.options import check, legal_range, options, to_typed, type_name
from msea_lightning.config.roots import EvaluateConfig, PrepareConfig, TrainConfig
from msea_lightning.data.options import DatasetConfig, LabelConfig, LabelKind, Reader
from msea_lightning.language.options import Decode, SegmentConfig, SegmentKind, TextConfig
from msea_lightning.training.options import TrainingConfig

LAYOUT = [{"kind": "pseudo"}, {"kind": "text"}, {"kind": "prompt"}]


def composed(values: dict[str, Any] | None = None) -> DictConfig:
    """An untyped container, as from Hydra with the schema switched off."""
    base = OmegaConf.merge(OmegaConf.structured(TrainConfig), {"backbone": {"layout": LAYOUT}})
    plain = OmegaConf.create(OmegaConf.to_container(base))
    for key, value in (values or {}).items():
        OmegaConf.update(plain, key, value, force_add=True)
    assert isinstance(plain, DictConfig)
    return plain


def test_the_result_is_made_of_plain_objects() -> None:
    config = to_typed(composed({"decode": "median", "adapter.scales": [1, 2]}), TrainConfig)
    assert type(config) is TrainConfig
    assert config.decode is Decode.median
    assert type(config.adapter.scales) is list
    assert [segment.kind for segment in config.backbone.layout] == [
        SegmentKind.pseudo,
        SegmentKind.text,
        SegmentKind.prompt,
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lerning_rate", 1, r"option lerning_rate: Key 'lerning_rate' not in 'TrainConfig'"),
        ("group.typo", 1, r"option group: Key 'group' not in 'TrainConfig'"),
        ("dataset.pth", "x", r"option dataset.pth: Key 'pth' not in 'DatasetConfig'"),
        ("decode", "foo", r"option decode: Invalid value 'foo', expected one of \[greedy, median"),
        ("seed", 1.5, r"option seed: Value '1.5' of type 'float' could not be converted"),
        ("seed", True, r"option seed: Value 'True' of type 'bool' could not be converted"),
        ("dataset.name", None, r"option dataset.name"),
        (
            "dataset.path",
            "${nowhere}",
            r"option dataset.path: Interpolation key 'nowhere' not found",
        ),
        ("backbone.layout", [{"kind": "foo"}], r"Invalid value 'foo', expected one of \[token"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        to_typed(composed({key: value}), TrainConfig)


@pytest.mark.parametrize(
    ("key", "value", "legal"),
    [
        ("training.batch_size", 0, "at least 1"),
        ("training.learning_rate", 0.0, "greater than 0"),
        ("training.learning_rate", math.nan, "greater than 0"),
        ("training.weight_decay", math.inf, "at least 0"),
        ("training.warmup_fraction", 1.0, "at least 0 and less than 1"),
        ("training.warmup_fraction", -0.1, "at least 0 and less than 1"),
        ("training.gradient_clip", 0.0, "greater than 0"),
        ("dataset.valid_fraction", 1.0, "greater than 0 and less than 1"),
        ("dataset.labels.step", 0.0, "greater than 0"),
        ("dataset.labels.low", -math.inf, "finite"),
        ("seed", 2**32, "at least 0 and at most 4294967295"),
        ("seed", -1, "at least 0 and at most 4294967295"),
        ("trainer.devices", 0, "at least 1"),
    ],
)
def test_what_is_out_of_range_is_refused(key: str, value: float, legal: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}={value} is out of range: {legal}\.$"):
        to_typed(composed({key: value}), TrainConfig)


def test_the_ends_of_a_range_belong_to_it() -> None:
    values = {"seed": 2**32 - 1, "training.weight_decay": 0.0, "training.warmup_fraction": 0.0}
    assert to_typed(composed(values), TrainConfig).seed == 2**32 - 1


LABELS = "dataset.labels"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LabelConfig(low=1, high=1), r"labels\.low=1 must be less than labels\.high=1"),
        (LabelConfig(names=["joy", "joy", "fear"]), r"labels\.names lists joy more than once"),
        (LabelConfig(LabelKind.emotions, names=["joy"]), r"at least two names in labels\.names"),
        (LabelConfig(LabelKind.scale, low=-1), r"needs labels\.low and .* got -1, None and \[\]"),
        (LabelConfig(LabelKind.scale, -1, 1, names=["x"]), r"no labels\.names, got -1, 1 and"),
    ],
)
def test_labels_that_mean_nothing_are_refused(config: LabelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.check("labels")


def test_a_download_needs_a_place_to_download_from() -> None:
    data = DatasetConfig(name="mosi", reader=Reader.mmsa, download=True, source="the moon")
    with pytest.raises(
        ConfigError, match=r"mosi is not published .* get it from the moon and give"
    ):
        check(data, "dataset")
    check(dataclasses.replace(data, hub_id="someone/mosi"), "dataset")


def segments(*kinds: str) -> list[SegmentConfig]:
    return [SegmentConfig(SegmentKind(kind), token="<s>", en="a", zh="b") for kind in kinds]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([], r"exactly one segment of kind 'pseudo', found 0"),
        (segments("pseudo", "pseudo", "text", "prompt"), r"kind 'pseudo', found 2"),
        (segments("pseudo", "prompt"), r"kind 'text', found 0"),
        (segments("pseudo", "prompt", "text"), r"layout ends with 'text'; the last segment is"),
        ([SegmentConfig(SegmentKind.token)], r"layout\[0\]: .* 'token' names its token"),
        ([SegmentConfig(SegmentKind.literal, en="a")], r"layout\[0\]: .* both 'en' and 'zh'"),
    ],
)
def test_layouts_that_cannot_work_are_refused(layout: list[SegmentConfig], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BackboneConfig(layout=layout).check("backbone")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MSEOptions(scales=[]), r"x\.scales=\[\]: one or more positive numbers"),
        (MSEOptions(scales=[8, 0]), r"x\.scales=\[8, 0\]: one or more positive numbers"),
        (AblationConfig(audio=False, vision=False, text=False), r"nothing is left"),
        (AblationConfig(random_summaries=True, audio=False), r"leave audio and vision true"),
        (TextConfig(attend_padding=True), r"x\.attend_padding=true needs x\.pad_to"),
    ],
)
def test_contradictions_are_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(config, "x")


def test_every_error_is_one_that_the_user_can_mend() -> None:
    assert issubclass(ConfigError, UserError)
    assert UserError.__mro__[1] is Exception, "a broad handler would swallow it"


def test_a_run_folder_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match=r"^run is missing: give run=\.\.\. \(run folder to"):
        to_typed(OmegaConf.create({}), EvaluateConfig)
    assert to_typed(OmegaConf.create({"run": "x"}), EvaluateConfig).decode is None


@pytest.mark.parametrize("root", [TrainConfig, PrepareConfig, EvaluateConfig])
def test_every_option_has_a_type_and_a_help_text(root: type[Any]) -> None:
    found = list(options(root))
    assert found
    for info in found:
        assert info.help
        assert "<" not in info.type
        assert "typing" not in info.type


def test_options_are_described_in_words() -> None:
    found = {info.key: info for info in options(TrainConfig)}
    assert found["decode"].type == "greedy|median|mean"
    assert found["seed"].range == "at least 0 and at most 4294967295"
    assert found["dataset.path"].type == "text or null"
    assert found["backbone.layout"].type == "list of {kind, token, en, zh}"
    assert found["backbone.architecture"].type == "mapping"
    assert found["dataset.download"].type == "true|false"
    assert found["training.learning_rate"].default == TrainingConfig().learning_rate
    assert found["dataset.labels.names"].default == []
    assert type_name(float | None) == "float or null"
    assert legal_range({"low": 1, "below": 2.5}) == "at least 1 and less than 2.5"
    assert legal_range({}) == ""


def test_names_of_others_are_none_of_ours() -> None:
    infos = list(options(TrainConfig))
    called = [name for info in infos for name in info.called]
    assert len(called) == len(set(called))
    assert not {info.key for info in infos} & set(called)
