"""Sequences: layout, padding, truncation, and tokenizers that do not fit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.normalizers import Normalizer, Replace
from tokenizers.normalizers import Sequence as NormalizerSequence
from tokenizers.processors import TemplateProcessing

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.data.options import Language
from msea_lightning.language.options import Order, SegmentConfig, SegmentKind
from msea_lightning.language.prompt import (
    Prompt,
    PromptError,
    beginning,
    encode_all,
    encode_word,
    ordered,
)
from msea_lightning.language.wording import Wording, with_context

LAYOUT = [
    SegmentConfig(SegmentKind.token, token="<s>"),
    SegmentConfig(SegmentKind.literal, en="<Multimodal>", zh="<多模态>"),
    SegmentConfig(SegmentKind.pseudo),
    SegmentConfig(SegmentKind.text),
    SegmentConfig(SegmentKind.literal, en="</Multimodal>", zh="</多模态>"),
    SegmentConfig(SegmentKind.prompt),
]


def make(backbone: FrozenBackbone, **options: object) -> Prompt:
    arguments = {
        "layout": LAYOUT,
        "tokenizer": backbone.tokenizer,
        "language": Language.en,
        "task": "The emotion is",
        "pseudo_tokens": 3,
        "text_tokens": 8,
        "pad_id": backbone.pad_id,
        **options,
    }
    return Prompt(**arguments)  # type: ignore[arg-type]


def test_segments_are_tokenised_one_by_one(backbone: FrozenBackbone) -> None:
    prompt = make(backbone)
    sequences = prompt.assemble(prompt.encode_texts(["good"]), 1, [[7, 8, 9]])
    expected = [
        backbone.tokenizer.convert_tokens_to_ids("<s>"),
        *prompt.encode("<Multimodal>"),
        *[backbone.pad_id] * 3,
        *prompt.encode("good"),
        *prompt.encode("</Multimodal>"),
        *prompt.encode("The emotion is"),
        7,
        8,
    ]
    assert sequences.ids[0].tolist() == expected
    assert sequences.targets.tolist() == [[7, 8, 9]]


def test_what_was_said_before_stands_where_the_layout_has_it(backbone: FrozenBackbone) -> None:
    layout = with_context(LAYOUT)
    prompt = make(backbone, layout=layout, wording=Wording(context=1, context_tokens=5))
    encoded = encode_all(backbone.tokenizer, ["good", "oh"])
    before = [np.array([7, 8], dtype=np.int32), np.array([], dtype=np.int32)]
    texts = prompt.pad_texts(encoded, before)
    with_it = prompt.assemble(texts, 2)
    plain = make(backbone).assemble(texts, 2)
    ids, mask = with_it.ids.tolist(), with_it.mask
    text = int(with_it.text[0].nonzero()[0])
    assert ids[0][text - 2 : text] == [7, 8]
    assert [*ids[0][: text - 2], *ids[0][text:]] == plain.ids[0].tolist()
    # What is first of its dialogue is read as without context.
    assert with_it.ids[1][mask[1]].tolist() == plain.ids[1][plain.mask[1]].tolist()
    last = make(backbone, layout=[*layout[:2], *layout[3:], layout[2]], wording=prompt.wording)
    whole = last.assemble(texts, 2)
    for row, leading in enumerate(last.leading(texts, 2)):
        assert whole.ids[row][whole.mask[row]].tolist() == [*leading, *[backbone.pad_id] * 3]
    assert prompt.longest == make(backbone).longest + 5
    assert make(backbone, layout=layout).longest == make(backbone).longest
    assert " context text " in prompt.describe("0", [1])
    assert "context" not in make(backbone, layout=layout).describe("0", [1])


def test_anchored_pseudo_tokens_take_the_places_of_the_prompts_last_tokens(
    backbone: FrozenBackbone,
) -> None:
    layout = ordered(LAYOUT, Order.text_first)
    plain = make(backbone, layout=layout, pseudo_tokens=0)
    prompt = make(backbone, layout=layout, pseudo_tokens=2, anchored=True)
    texts = prompt.encode_texts(["good"])
    sequences = prompt.assemble(texts, 1)
    assert prompt.anchor_ids == prompt.encode("The emotion is")[-2:]
    ids = sequences.ids.clone()
    ids[sequences.pseudo] = torch.tensor(prompt.anchor_ids)
    assert torch.equal(ids, plain.assemble(texts, 1).ids)
    assert prompt.leading(texts, 1)[0] == ids[0, :-2].tolist()
    assert prompt.longest == plain.longest
    words = prompt.decode(prompt.anchor_ids)
    assert prompt.describe("0", None).endswith(f"P*2 ({words!r})")
    for options in ({"task": "is", "pseudo_tokens": 9}, {"layout": LAYOUT}):
        with pytest.raises(PromptError, match=r"adapter\.anchored=true"):
            make(backbone, **{"layout": layout, "anchored": True, **options})


def test_a_tokenizer_that_loses_the_template_is_refused(backbone: FrozenBackbone) -> None:
    tokenizer = copy.deepcopy(backbone.tokenizer)
    before = tokenizer.backend_tokenizer.normalizer
    tokenizer.backend_tokenizer.normalizer = NormalizerSequence([Replace("\n", ""), before])
    options = {"tokenizer": tokenizer, "layout": with_context(LAYOUT)}
    make(backbone, **options)
    with pytest.raises(PromptError, match=r"'B:\\na\\n': it reads back as .*context_template"):
        make(backbone, **options, wording=Wording(context=1))


def test_beginning_token_is_the_tokenizers_own(backbone: FrozenBackbone) -> None:
    prompt = make(backbone, layout=[SegmentConfig(SegmentKind.bos), *LAYOUT[1:]])
    assert prompt.assemble(None, 1).ids[0, 0] == backbone.tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("pattern", "token", "expected"),
    [
        (["[gMASK]", "<sop>", "$A"], "<s>", ["[gMASK]", "<sop>"]),  # GLM-4
        (["<s>", "$A", "</s>"], "<s>", ["<s>"]),  # what is behind the text does not count
        (["$A", "</s>"], "<s>", ["<s>"]),
        (["$A"], "<s>", ["<s>"]),  # GPT-2 has such a token, but leaves it to others to write
        (["$A"], None, []),  # Qwen2.5
    ],
)
def test_a_sequence_begins_as_the_tokenizer_begins_a_text(
    backbone: FrozenBackbone, pattern: list[str], token: str | None, expected: list[str]
) -> None:
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.add_tokens(["[gMASK]", "<sop>"], special_tokens=True)
    tokenizer.bos_token = token
    special = {piece: tokenizer.convert_tokens_to_ids(piece) for piece in pattern if piece != "$A"}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join(pattern), special_tokens=list(special.items())
    )
    ids = beginning(tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == expected


def test_the_whole_sequence_can_be_described(backbone: FrozenBackbone) -> None:
    layout = [SegmentConfig(SegmentKind.bos), *LAYOUT[1:]]
    prompt = make(backbone, layout=layout, task="情绪为\n", language=Language.zh)
    label = " ".join(backbone.tokenizer.convert_ids_to_tokens(prompt.encode("-0.4")))
    assert prompt.describe("-0.4", prompt.encode("-0.4")) == (
        f'<s> "<多模态>" P*3 text "</多模态>" "情绪为\\n" label ("-0.4" as {label})'
    )


def test_language_chooses_the_wrapping_strings(backbone: FrozenBackbone) -> None:
    prompt = make(backbone, language=Language.zh, task="情绪为")
    ids = prompt.assemble(prompt.encode_texts(["好"]), 1).ids[0].tolist()
    assert all(part in ids for part in prompt.encode("<多模态>"))


@given(texts=st.lists(st.text("abc ", min_size=1, max_size=40), min_size=1, max_size=5))
def test_padding_is_on_the_left_and_nothing_else_moves(
    backbone: FrozenBackbone, texts: list[str]
) -> None:
    prompt = make(backbone)
    labels = [[5] * (1 + index % 3) for index in range(len(texts))]
    together = prompt.assemble(prompt.encode_texts(texts), len(texts), labels)
    for row, text in enumerate(texts):
        alone = prompt.assemble(prompt.encode_texts([text]), 1, [labels[row]])
        width = alone.ids.shape[1]
        assert torch.equal(together.ids[row, -width:], alone.ids[0])
        assert torch.equal(together.positions[row, -width:], torch.arange(width))
        assert not together.mask[row, :-width].any()
        assert together.mask[row, -width:].all()
        assert together.pseudo[row].sum() == 3
        assert together.targets[row, -len(labels[row]) :].tolist() == labels[row]
        assert (together.targets[row, : -len(labels[row])] == -100).all()


def test_text_is_cut_on_the_right(backbone: FrozenBackbone) -> None:
    prompt = make(backbone, text_tokens=2)
    whole = prompt.encode("one two three four")
    assert prompt.encode_texts(["one two three four"]).ids.tolist() == [whole[:2]]
    assert prompt.assemble(prompt.encode_texts(["one two three"]), 1).text.sum() == 2


def test_no_text_at_all(backbone: FrozenBackbone) -> None:
    prompt = make(backbone)
    sequences = prompt.assemble(None, 2)
    assert not sequences.text.any()
    assert sequences.ids.shape == (2, prompt.longest - 8)


def test_padded_text_is_hidden_or_attended(backbone: FrozenBackbone) -> None:
    hidden = make(backbone, pad_to=8)
    attended = make(backbone, pad_to=8, attend_padding=True)
    length = len(hidden.encode("good"))
    texts = hidden.encode_texts(["good"])
    assert texts.ids.shape == (1, 8)
    assert texts.mask.sum() == length
    assert hidden.assemble(texts, 1).mask.sum() == hidden.longest - 8 + length
    everything = attended.assemble(attended.encode_texts(["good"]), 1)
    assert everything.mask.all()
    assert everything.ids.shape == (1, attended.longest)
    assert torch.equal(everything.ids, hidden.assemble(texts, 1).ids)


@given(texts=st.lists(st.text("abc ", min_size=1, max_size=40), min_size=1, max_size=4))
def test_after_a_cached_prefix_the_rest_is_the_same(
    backbone: FrozenBackbone, texts: list[str]
) -> None:
    prompt = make(backbone)
    prefix = prompt.prefix_ids
    assert prefix == [
        backbone.tokenizer.convert_tokens_to_ids("<s>"),
        *prompt.encode("<Multimodal>"),
    ]
    labels = [[5] * (1 + index % 3) for index in range(len(texts))]
    encoded = prompt.encode_texts(texts)
    whole = prompt.assemble(encoded, len(texts), labels)
    rest = prompt.assemble(encoded, len(texts), labels, after=len(prefix))
    assert whole.ids.shape[1] == rest.ids.shape[1] + len(prefix)
    for row in range(len(texts)):
        read = int(whole.mask[row].sum()) - len(prefix)
        assert whole.ids[row, -read - len(prefix) : -read].tolist() == prefix
        assert int(rest.mask[row].sum()) == read
        for part in ("ids", "positions", "pseudo", "text"):
            assert torch.equal(getattr(rest, part)[row, -read:], getattr(whole, part)[row, -read:])
    assert torch.equal(rest.targets, whole.targets)


def test_the_prefix_ends_where_sequences_begin_to_differ(backbone: FrozenBackbone) -> None:
    assert make(backbone, layout=LAYOUT[2:]).prefix_ids == []
    # Without pseudo tokens their place says nothing, and is still where an adapter would write.
    assert make(backbone, pseudo_tokens=0).prefix_ids == make(backbone).prefix_ids
    shown_first = make(backbone, layout=[*LAYOUT[:2], LAYOUT[5], *LAYOUT[2:5], LAYOUT[5]])
    expected = [*make(backbone).prefix_ids, *shown_first.encode("The emotion is")]
    assert shown_first.prefix_ids == expected


@given(
    texts=st.lists(st.text("abc ", max_size=40), min_size=1, max_size=4),
    text_tokens=st.integers(1, 12),
)
def test_texts_tokenised_all_at_once_are_padded_as_any(
    backbone: FrozenBackbone, texts: list[str], text_tokens: int
) -> None:
    prompt = make(backbone, text_tokens=text_tokens)
    encoded = encode_all(backbone.tokenizer, texts)
    assert encoded == [prompt.encode(text) for text in texts]
    now = prompt.encode_texts(texts)
    before = prompt.pad_texts([np.array(ids, dtype=np.int32) for ids in encoded])
    assert now.ids.dtype == before.ids.dtype == torch.int64
    assert torch.equal(now.ids, before.ids)
    assert torch.equal(now.mask, before.mask)
    assert now.mask.sum(dim=1).tolist() == [min(text_tokens, len(ids)) for ids in encoded]


def test_unknown_special_token_is_refused(backbone: FrozenBackbone) -> None:
    layout = [SegmentConfig(SegmentKind.token, token="[gMASK]"), *LAYOUT[1:]]
    with pytest.raises(PromptError, match=r"special token '\[gMASK\]'.*backbone\.layout"):
        make(backbone, layout=layout)


def test_tokenizer_that_loses_a_string_is_refused(backbone: FrozenBackbone) -> None:
    class Forgetful:
        unk_token_id = None
        unk_token = None

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [1]}

        def decode(self, ids: list[int], **_: object) -> str:
            return "something else"

        def convert_tokens_to_ids(self, token: str) -> int:
            return 1

    with pytest.raises(PromptError, match="does not keep the string '<Multimodal>'"):
        make(backbone, tokenizer=Forgetful())


PROMPTS = [
    "please  choose   one of       two",
    "情绪标签：<愤怒:0, 厌恶:1>。助手: 情绪为",
    "a\n\n b ; c .",
]


@pytest.mark.parametrize("task", PROMPTS)
def test_prompts_are_kept_to_the_letter(backbone: FrozenBackbone, task: str) -> None:
    """Runs of spaces, Chinese that is written byte by byte, line ends, spaces before a stop."""
    assert make(backbone, task=task).decode(make(backbone).encode(task)).strip() == task


@pytest.mark.parametrize(
    ("what", "change", "task"),
    [
        ("joins spaces", Replace(Regex(" +"), " "), PROMPTS[0]),
        ("changes letters", Replace("：", ":"), PROMPTS[1]),
        ("knows no Chinese", Replace(Regex("[\u4e00-\u9fff]"), "<unk>"), PROMPTS[1]),
        ("drops accents", Replace("é", ""), "café"),
    ],
)
def test_tokenizer_that_changes_a_prompt_is_refused(
    backbone: FrozenBackbone, what: str, change: Normalizer, task: str
) -> None:
    tokenizer = copy.deepcopy(backbone.tokenizer)
    before = tokenizer.backend_tokenizer.normalizer
    tokenizer.backend_tokenizer.normalizer = (
        change if before is None else NormalizerSequence([change, before])
    )
    with pytest.raises(PromptError, match=r"does not keep the string .* or change prompt\.task"):
        make(backbone, tokenizer=tokenizer, task=task)


@pytest.mark.parametrize(
    ("order", "kinds"),
    [
        (Order.pseudo_first, "token literal pseudo text literal prompt"),
        (Order.text_first, "token literal text literal prompt pseudo"),
        (Order.prompt_first, "token prompt literal text literal pseudo"),
    ],
)
def test_orders(order: Order, kinds: str) -> None:
    assert [segment.kind.value for segment in ordered(LAYOUT, order)] == kinds.split()
    assert LAYOUT[2].kind is SegmentKind.pseudo  # the layout itself stays


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize(
    ("options", "reads_text_once"),
    [
        ({}, True),
        ({"text_changes": True}, False),
        ({"pad_to": 8}, False),
        ({"pseudo_tokens": 0}, True),
    ],
)
def test_what_never_changes_and_the_rest_are_the_whole(
    backbone: FrozenBackbone, order: Order, options: dict[str, object], reads_text_once: bool
) -> None:
    prompt = make(backbone, layout=ordered(LAYOUT, order), **options)
    texts = prompt.encode_texts(["one two three", "good", ""])
    leading = prompt.leading(texts, 3)
    whole = prompt.assemble(texts, 3, [[7, 8], [9, 4], [5, 6]])
    rest = prompt.assemble(texts, 3, [[7, 8], [9, 4], [5, 6]], after=list(map(len, leading)))
    for row, ids in enumerate(leading):
        assert ids[: len(prompt.prefix_ids)] == prompt.prefix_ids
        kept = rest.mask[row] if prompt.pad_to is None else slice(None)
        both = [*ids, *rest.ids[row][kept].tolist()]
        assert both == whole.ids[row][-len(both) :].tolist()
        real = rest.positions[row][rest.mask[row]].tolist()
        assert real == list(range(real[0], real[0] + len(real)))
        assert rest.mask[row].any()  # the last token is always read
    last = order is not Order.pseudo_first or prompt.pseudo_tokens == 0
    has_text = len(leading[0]) > len(leading[2])
    assert has_text == (reads_text_once and last)


def test_a_word_after_others_has_a_space_before_it(backbone: FrozenBackbone) -> None:
    """The tiny tokenizer begins every piece with one by itself, as that of LLaMA 2 does."""
    tokenizer = copy.deepcopy(backbone.tokenizer)
    ids = encode_word(tokenizer, "joy")
    assert tokenizer.decode(ids).strip() == "joy"
    assert ids == tokenizer("joy", add_special_tokens=False)["input_ids"]
