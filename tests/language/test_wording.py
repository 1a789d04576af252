"""How texts are written for the language model."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from msea_lightning import Predictor, Utterance
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import check
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.context import Said
from msea_lightning.data.options import DatasetConfig, Language, TextCase
from msea_lightning.language.encoding import ContextEncoder
from msea_lightning.language.options import (
    CONTEXT_TEMPLATE,
    PromptConfig,
    SegmentConfig,
    SegmentKind,
)
from msea_lightning.language.prompt import encode
from msea_lightning.language.wording import Wording, with_context
from tests.plugin.untrained import untrained


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("UM I LOVED IT", "Um I loved it"),
        ("(UHH) I'M SURE I'LL SEE", "(Uhh) I'm sure I'll see"),
        ("I-I THINK IM FINE, KID", "I-I think im fine, kid"),
        ("ÉCLAIR ’80S", "Éclair ’80s"),
        ("80 PERCENT", "80 percent"),
        ("I", "I"),
        ("Oh, NO", "Oh, NO"),  # not wholly in capitals
        ("so i did", "so i did"),
        ("...?! 12", "...?! 12"),
        ("", ""),
    ],
)
def test_capitals_become_a_sentence_and_nothing_else_changes(text: str, written: str) -> None:
    assert Wording(TextCase.sentence).text(text) == written
    assert Wording().text(text) == text


def test_there_are_no_capitals_in_chinese() -> None:
    with pytest.raises(ConfigError, match=r"text_case=sentence has no effect on texts in zh"):
        check(DatasetConfig(language=Language.zh, text_case=TextCase.sentence), "dataset")


def test_a_run_and_its_plugin_read_capitals_alike(
    options: Callable[..., TrainConfig],
    backbone: FrozenBackbone,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        plugin, _ = untrained(options("dataset.text_case=sentence"), backbone)
    assert "text_case=sentence: 0 of 90 texts are wholly in capitals" in caplog.text
    assert plugin.facts.prompt.text_case is TextCase.sentence
    predictor = Predictor(backbone)
    predictor.add(plugin, "sentence")
    predictor.add(untrained(options(), backbone)[0], "keep")
    loud = Utterance("a", "WHAT A DAY I HAD")
    spoken = predictor.questions([loud, loud], plugin=["sentence", "keep"])
    tokens = [question.tokens.tolist() for question in spoken]
    assert tokens == [
        encode(backbone.tokenizer, text) for text in ("What a day I had", "WHAT A DAY I HAD")
    ]
    assert spoken[0].utterance.text == loud.text  # answers show what was said


@pytest.mark.parametrize(
    ("template", "speaker", "line", "lead"),
    [
        (CONTEXT_TEMPLATE, "Ross", "Ross:\nOH NO\n", "Ross:\n"),
        (CONTEXT_TEMPLATE, None, "OH NO\n", ""),
        (CONTEXT_TEMPLATE, "{text}", "{text}:\nOH NO\n", "{text}:\n"),
        ("- {text} /", "Ross", "- OH NO /", "-"),
        (r"{speaker}: {text}\n\n", "Ross", "Ross: OH NO\n\n", "Ross:"),
    ],
)
def test_what_was_said_before_is_written_by_the_template(
    template: str, speaker: str | None, line: str, lead: str
) -> None:
    wording = Wording(context=2, template=template)
    assert wording.line("OH NO", speaker) == line
    assert wording.lead(speaker) == lead
    sentence = Wording(TextCase.sentence, context=2, template=template)
    assert sentence.line("OH NO", speaker) == line.replace("OH NO", "Oh no")


@pytest.mark.parametrize("template", ["", "{speaker}", "{text}{text}", "{text} ({speaker})"])
def test_templates_that_cannot_be_filled_are_refused(template: str) -> None:
    with pytest.raises(ConfigError, match=r"prompt\.context_template=.* has to have \{text\} once"):
        check(PromptConfig(context_template=template), "prompt")


def test_what_was_said_before_is_cut_on_the_left(backbone: FrozenBackbone) -> None:
    wording = Wording(context=2, context_tokens=9)
    encoder = ContextEncoder(backbone.tokenizer, wording)
    before = [[Said("well done", "A"), Said("oh no")], [], [Said("well done", "A")], []]
    said = [Said("x", "B"), Said("x", "B"), Said("x"), Said("x")]
    found = encoder(said, before)
    whole = [
        token
        for piece in ("A:\nwell done\n", "oh no\n", "B:\n")
        for token in encode(backbone.tokenizer, piece)
    ]
    assert len(whole) > 9
    assert found == [
        whole[-9:],
        encode(backbone.tokenizer, "B:\n"),
        encode(backbone.tokenizer, "A:\nwell done\n"),
        [],
    ]


def test_a_context_stands_before_the_text_unless_the_layout_places_it() -> None:
    layout = [SegmentConfig(kind) for kind in (SegmentKind.pseudo, SegmentKind.text)]
    placed = with_context(layout)
    assert [segment.kind.value for segment in placed] == ["pseudo", "context", "text"]
    own = [SegmentConfig(SegmentKind.context), *layout]
    assert with_context(own) == own
    assert with_context(layout[:1]) == layout[:1]
