"""What a search tries: ranges and lists, and what is neither."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from msea_lightning.commands.compose import Composer, opened
from msea_lightning.config.roots import TrainConfig
from msea_lightning.searching.space import Range, SpaceError, Values, read_space

OTHERS = {"adapter": {"hidden": [64, 128], "pseudo_tokens": "1..8"}}


@pytest.fixture(scope="module")
def composer() -> Iterator[Composer[TrainConfig]]:
    """Composes runs of the demo with a weight decay that is given."""
    words = ["training.weight_decay=0.1"]
    with opened("train", TrainConfig, words, multirun=True, launches=True) as found:
        yield found


def test_ranges_and_lists_are_read(composer: Composer[TrainConfig]) -> None:
    space = {
        **OTHERS,
        "training": {"learning_rate": "1e-5..1e-2:log", "gradient_clip": [None, 1.0], "eps": None},
        "ablation": ["none", "no_audio"],
    }
    found, left_out = read_space(space, [], composer)
    assert found == [
        Values("ablation", ("none", "no_audio")),
        Values("adapter.hidden", ("64", "128")),
        Range("adapter.pseudo_tokens", 1, 8, log=False, whole=True),
        Values("training.gradient_clip", ("null", "1.0")),
        Range("training.learning_rate", 1e-5, 1e-2, log=True, whole=False),
    ]
    assert left_out == {}
    assert [str(one) for one in found][2:4] == ["1..8", "[null,1.0]"]


def test_a_default_gives_way(composer: Composer[TrainConfig]) -> None:
    space = {"training": {"weight_decay": "0..0.1"}, "adapter": {"beta": "0..1", "hidden": [1, 2]}}
    found, left_out = read_space(space, [], composer)
    assert [one.key for one in found] == ["adapter.hidden"]
    assert left_out == {
        "training.weight_decay": "it is given",
        "adapter.beta": "what was chosen has no such option",
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.learing_rate", "0..1", "no option training.learing_rate. Did you mean training"),
        ("training.learning_rate", "-1..1", "training.learning_rate=-1.0 is out of range: greater"),
        ("training.learning_rate", "1..0.1", "the first number has to be below the second"),
        ("training.learning_rate", "0..1:log", "a logarithmic scale begins above 0"),
        ("training.learning_rate", "low..high", "the ends of a range are numbers"),
        ("training.learning_rate", 0.1, "neither a range nor a list of values. Write LOW..HIGH"),
        ("training.learning_rate", [0.1], "there is nothing to choose"),
        ("training.weight_decay", "0..1", "0..1 and training.weight_decay=... are both given"),
        ("adapter.pseudo_tokens", "0..4", "adapter.pseudo_tokens=0 is out of range: at least 1"),
        ("adapter.pseudo_tokens", "1..4.5", "adapter.pseudo_tokens takes whole numbers alone"),
        ("adapter.hidden", [64, "wide"], "adapter.hidden=wide: this is not a possible value"),
        ("adapter.beta", "0.1..1", "adapter.beta=0.1 has no effect on mse"),
        ("decode", "1..2", "a range is for numbers, and decode is greedy|median|mean"),
        ("decode", ["greedy", "meen"], "decode=meen: this is not a possible value"),
        ("backbone", ["tiny", "tony"], "backbone=tony: there is no such choice"),
        ("seed", "1..5", "the best of several seeds is luck"),
        ("dataset", ["demo", "mosei"], "validated on other utterances"),
        ("dataset.labels.low", "-3..-1", "validated on other utterances"),
        ("dataset.empty_text", ["keep", "drop"], "validated on other utterances"),
        (
            "trainer.threads",
            [1, 2],
            "trainer.threads=2 changes no result, beside",
        ),
        ("trainer", ["default", "ddp"], "trainer=ddp changes no result, beside trainer=default"),
    ],
)
def test_what_cannot_be_tried_is_refused(
    composer: Composer[TrainConfig], key: str, value: Any, message: str
) -> None:
    # Beside others, which are not blamed
    with pytest.raises(SpaceError, match=rf"search\.space\.{key}=.*{re.escape(message)}"):
        read_space({**OTHERS, key: value}, [f"search.space.{key}={value}"], composer)


def test_nothing_to_try_is_refused(composer: Composer[TrainConfig]) -> None:
    with pytest.raises(SpaceError, match=r"search\.space is empty"):
        read_space({"training": {"learning_rate": None}}, [], composer)


def test_values_that_do_not_go_together_are_named(composer: Composer[TrainConfig]) -> None:
    space = {"ablation": ["no_tgm", "none"], "adapter": ["mse", "mag"]}
    with pytest.raises(SpaceError, match=r"ablation=no_tgm adapter=mag do not go together"):
        read_space(space, ["search.space.adapter=[mse,mag]"], composer)
