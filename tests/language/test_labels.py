"""Label spaces, their answer trees, and decoding."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msea_lightning.data.options import LabelConfig, LabelKind
from msea_lightning.language.answers import AnswerTree, decode
from msea_lightning.language.labels import (
    EmotionSet,
    LabelSpace,
    LabelSpaceError,
    SentimentScale,
    generated_prompt,
)
from msea_lightning.language.options import Decode
from tests.places import VECTORS

SCALE = LabelConfig(kind=LabelKind.scale, low=-1, high=1, step=0.1)
DECODING = json.loads((VECTORS / "decoding.json").read_text(encoding="utf-8"))


def characters(text: str) -> list[int]:
    """One token a character: a tokenizer whose trees look like LLaMA's."""
    return [ord(character) for character in text]


def read(ids: list[int]) -> str:
    """The inverse of :func:`characters`, up to LLaMA's mark of a beginning."""
    return "".join(chr(token) for token in ids).replace(chr(29871), " ")


def grown(space: LabelSpace) -> AnswerTree:
    return AnswerTree(space, characters, read)


def token_logp(tree: AnswerTree, seed: int, batch: int = 3) -> torch.Tensor:
    """Random but consistent log probabilities: answers that share a prefix share its tokens'."""
    generator = torch.Generator().manual_seed(seed)
    logp = torch.randn(batch, 1 + len(tree), 128, generator=generator).log_softmax(-1)
    predictors, ids = tree.predictors.clamp(min=0), tree.answer_ids.clamp(min=0)
    return logp[:, predictors, ids]


@pytest.mark.parametrize(
    ("key", "signed"),
    [("label_text_regression_llama2_chatglm3", False), ("label_text_regression_qwen", True)],
)
def test_labels_are_written_as_the_original_writes_them(key: str, *, signed: bool) -> None:
    scale = SentimentScale(-3, 3, signed=signed)
    for row in DECODING[key]:
        # The original writes "+-0.0" for a label of minus zero; readers turn those into zero.
        if (signed, row["text"]) != (True, "+-0.0"):
            assert scale.text(row["label"]) == row["text"]


def test_minus_zero_is_written_like_zero_with_a_sign() -> None:
    assert SentimentScale(-3, 3, signed=True).text(-0.0) == "+0.0"


@given(st.floats(-3, 3, width=32), st.booleans())
def test_every_label_has_a_legal_answer_near_it(label: float, signed: bool) -> None:
    scale = SentimentScale(-3, 3, signed=signed)
    answer = scale.text(label)
    assert answer in scale.answers
    assert abs(scale.values[scale.answers.index(answer)] - label) <= 0.05 + 1e-6


@pytest.mark.parametrize(
    ("low", "high", "step", "answers"),
    [
        (1, 5, 1, ["1", "2", "3", "4", "5"]),
        (0, 1, 0.25, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (-1, 1, 0.5, ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        (-0.2, 0.1, 0.1, ["-0.2", "-0.1", "-0.0", "0.0", "0.1"]),
    ],
)
def test_scales_of_other_steps(low: float, high: float, step: float, answers: list[str]) -> None:
    scale = SentimentScale(low, high, step)
    assert scale.answers == answers
    assert all(scale.text(value) in answers for value in scale.values)


def test_a_label_that_is_rounded_to_zero_has_the_sign_of_zero() -> None:
    scale = SentimentScale(-1, 1, 0.5, signed=True)
    assert scale.text(-0.1) == "+0.0"
    assert scale.text(-0.1) in scale.answers


def test_scale_refuses_labels_outside() -> None:
    scale = SentimentScale(-1, 1)
    with pytest.raises(LabelSpaceError, match=r"Label 1\.2 is outside the scale from -1 to 1"):
        scale.text(1.2)
    with pytest.raises(LabelSpaceError, match="'joy' is not a number"):
        scale.text("joy")
    with pytest.raises(LabelSpaceError, match="not finite"):
        scale.text(float("nan"))


def test_scale_refuses_ends_off_the_grid() -> None:
    with pytest.raises(LabelSpaceError, match=r"from -1 to 1 in steps of 0\.3"):
        SentimentScale(-1, 1, 0.3)


def test_emotions_are_written_as_numbers_of_one_width() -> None:
    assert EmotionSet(["joy", "anger"]).answers == ["0", "1"]
    many = EmotionSet([f"emotion {index}" for index in range(12)])
    assert many.answers[:2] == ["00", "01"]
    assert many.text("emotion 11") == "11"
    with pytest.raises(LabelSpaceError, match="'hope' is none of the emotions joy, anger"):
        EmotionSet(["joy", "anger"]).text("hope")


def test_label_space_from_config() -> None:
    scale = LabelSpace.from_config(SCALE, signed=True, encode=characters)
    assert "+0.4" in scale.answers
    emotions = LabelSpace.from_config(
        LabelConfig(kind=LabelKind.emotions, names=["a", "b"]), signed=True, encode=characters
    )
    assert (emotions.answers, emotions.signed) == (["0", "1"], False)


@pytest.mark.parametrize(
    ("config", "encode", "signed"),
    [
        (SCALE, characters, True),  # Qwen, LLaMA 3: "-" is a token more than nothing
        (SCALE, lambda text: characters(text.rjust(4)), False),  # LLaMA 2: "▁-" or "▁"
        (LabelConfig(kind=LabelKind.scale, low=1, high=5, step=1), characters, False),
        (SCALE, lambda text: [1] * (len(text) + (text == "-0.4")), False),  # nothing helps
    ],
)
def test_the_tokenizer_decides_about_the_sign(
    config: LabelConfig, encode: Callable[[str], list[int]], *, signed: bool
) -> None:
    space = LabelSpace.from_config(config, signed=None, encode=encode)
    assert space.signed is signed
    assert LabelSpace.from_config(config, signed=signed, encode=encode).answers == space.answers


def test_tree_shares_prefixes_and_attends_to_ancestors_only() -> None:
    tree = AnswerTree(SentimentScale(-1, 1), lambda text: characters(text.rjust(4)), read)
    # " " and "-", each followed by 0 or 1, each followed by the point.
    assert len(tree) == 2 + 4 + 4
    assert tree.attends.diagonal().all()
    assert tree.attends.sum(-1).tolist() == tree.depths.tolist()
    assert not tree.attends.triu(1).any()


def test_tree_is_the_shared_prefix_alone_for_one_token_answers() -> None:
    tree = AnswerTree(EmotionSet(["a", "b", "c"]), lambda text: [29871, *characters(text)], read)
    assert tree.tokens.tolist() == [29871]
    assert tree.predictors.tolist() == [[0, 1]] * 3


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda text: [], "with no token"),
        (lambda text: [5], "the same tokens"),
        (lambda text: [48] * (int(text) + 1), "begin"),
        (lambda text: [int(text) + 65], r"keep the label '0': its tokens \[65\] read back as 'A'"),
    ],
)
def test_tree_refuses_a_tokenizer_that_cannot_write_the_labels(
    encode: Callable[[str], list[int]], message: str
) -> None:
    with pytest.raises(LabelSpaceError, match=message):
        AnswerTree(
            EmotionSet(["a", "b"]),
            encode,
            lambda ids: read(ids) if ids[0] != 48 else str(len(ids) - 1),
        )


@given(st.integers(0, 1000))
def test_distribution_is_the_normalised_product_of_token_probabilities(seed: int) -> None:
    tree = grown(SentimentScale(-1, 1))
    logp = token_logp(tree, seed)
    answers = decode(tree, logp, Decode.greedy)
    lengths = [len(text) for text in tree.space.answers]
    for row in range(len(logp)):
        joint = torch.stack(
            [logp[row, answer, :length].double().sum() for answer, length in enumerate(lengths)]
        ).exp()
        torch.testing.assert_close(answers.distribution[row], joint / joint.sum())


@given(st.integers(0, 1000))
def test_greedy_takes_the_likeliest_legal_token_each_time(seed: int) -> None:
    tree = grown(SentimentScale(-1, 1, signed=True))
    logp = token_logp(tree, seed, batch=1)
    texts = tree.space.answers
    written = ""
    while written not in texts:
        options: dict[str, float] = {}
        for answer, text in enumerate(texts):
            if text.startswith(written):
                options[text[len(written)]] = logp[0, answer, len(written)].item()
        written += max(options, key=options.__getitem__)
    assert decode(tree, logp, Decode.greedy).value.item() == float(written)


@given(st.integers(0, 1000))
def test_median_has_the_least_expected_absolute_error(seed: int) -> None:
    tree = grown(SentimentScale(-1, 1))
    answers = decode(tree, token_logp(tree, seed), Decode.median)
    values = torch.tensor(tree.space.values, dtype=torch.float64)
    error = (answers.distribution[:, None] * (values[:, None] - values).abs()).sum(-1)
    chosen = (answers.distribution * (values - answers.value[:, None]).abs()).sum(-1)
    torch.testing.assert_close(chosen, error.min(-1).values)


def test_mean_and_probability_of_both_zeros() -> None:
    tree = grown(SentimentScale(-0.1, 0.1))
    assert tree.space.answers == ["-0.1", "-0.0", "0.0", "0.1"]
    probabilities = torch.tensor([0.1, 0.3, 0.4, 0.2])
    logp = torch.zeros(1, 4, 4)
    logp[0, :, 0] = probabilities.log()
    answers = decode(tree, logp, Decode.mean)
    assert answers.value.item() == pytest.approx(0.01)
    assert answers.probability.item() == pytest.approx(0.7)
    assert decode(tree, logp, Decode.median).probability.item() == pytest.approx(0.7)


@pytest.mark.parametrize("rule", [Decode.median, Decode.mean])
def test_emotions_have_no_median(rule: Decode) -> None:
    tree = grown(EmotionSet(["a", "b"]))
    with pytest.raises(LabelSpaceError, match="emotions have no order"):
        decode(tree, torch.zeros(1, 2, 1), rule)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("signed", [True, False])
def test_generated_prompts_name_every_answer(language: str, *, signed: bool) -> None:
    scale = generated_prompt(SentimentScale(-1, 1, signed=signed), language)
    assert f"[-1.0, {'+' if signed else ''}1.0]" in scale
    assert "<joy:0, anger:1>" in generated_prompt(EmotionSet(["joy", "anger"]), language)
