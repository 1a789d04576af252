"""The backbone that ships with the project: small, loadable, able to read and write anything."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from msea_lightning.backbone.loading.load import tiny_backbone
from msea_lightning.data.demo import demo_utterances
from msea_lightning.data.options import DemoTask
from tests.places import ROOT

SCRIPT = ROOT / "scripts" / "fit_tiny_backbone.py"
EN_PROMPT = (
    "Please recognize the emotion of the above multimodal content from the target set "
    "<neutral:0, surprise:1, fear:2, sadness:3, joy:4, disgust:5, anger:6>. Assistant: "
    "The emotion is"
)
ZH_PROMPT = "请对上述多模态内容的情感强度进行预测，范围在[-1.0, 1.0]之间。响应: 情感为"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_backbone())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fit_tiny_backbone", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_folder_is_at_most_two_megabytes() -> None:
    sizes = {path.name: path.stat().st_size for path in tiny_backbone().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(
        sizes
    )
    assert "Apache-2.0" in (tiny_backbone() / "README.md").read_text(encoding="utf-8")
    assert sum(sizes.values()) <= 2_000_000


def test_loads_as_float32_with_tied_embeddings() -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_eager_and_sdpa_attention_agree(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = torch.tensor([tokenizer.encode(EN_PROMPT, add_special_tokens=False)])
    one, two = (
        AutoModelForCausalLM.from_pretrained(tiny_backbone(), attn_implementation=kind).eval()
        for kind in ("eager", "sdpa")
    )
    with torch.no_grad():
        torch.testing.assert_close(one(ids).logits, two(ids).logits, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        *("+0.4", "-1.3", "-0.0", "0", "12", "00", EN_PROMPT, ZH_PROMPT),
        *("<Multimodal>", "</Multimodal>", "<多模态>", "</多模态>"),
        *("KIDS ARE GONNA LOVE THE FILM", " blanks  everywhere ", "line\nbreak\ttab"),
        *("龘靐齉", "naïve café", "😀 and 2025!"),
    ],
)
def test_any_text_survives(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_digits_are_tokens_of_their_own(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("1.2") == ["▁", "1", ".", "2"]
    assert tokenizer.tokenize("-0.4") == ["▁-", "0", ".", "4"]
    assert tokenizer.tokenize("+0.4") == ["▁+", "0", ".", "4"]
    assert tokenizer.tokenize("12") == ["▁", "1", "2"]


def test_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    names = ["<unk>", "<s>", "</s>", "<pad>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3]
    assert tokenizer.pad_token_id == 3


def test_script_builds_the_tokenizer_that_ships(
    script: ModuleType, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert script.build_tokenizer(script.read_lexicon()).get_vocab() == tokenizer.get_vocab()


def test_fitting_text_does_not_overlap_the_demo(script: ModuleType) -> None:
    def plain(text: str) -> str:
        return "".join(letter for letter in text.casefold() if letter.isalnum())

    fitted = {plain(line.text) for line in script.fitting_lines()}
    assert len(fitted) > 50_000
    for task in DemoTask:
        for seed in (0, 1, 1111):
            corpus = demo_utterances(task, utterances=600, seed=seed)
            texts = {plain(utterance.text) for part in corpus.values() for utterance in part}
            assert not texts & fitted


def test_fitting_text_is_the_same_every_time(script: ModuleType) -> None:
    assert script.fitting_lines(200) == script.fitting_lines(200)
    assert script.fitting_lines(200, seed=1) != script.fitting_lines(200, seed=2)


def test_reads_sentiment_and_finds_it_in_the_list(tokenizer: PreTrainedTokenizerBase) -> None:
    """Easy words, both orders of the names: much better than chance."""
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone()).eval()

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def answer(text: str, names: tuple[str, str]) -> str:
        prompt = (
            "Please recognize the emotion of the above multimodal content from the target set "
            f"<{names[0]}:0, {names[1]}:1>. Assistant: The emotion is"
        )
        pieces = ("<Multimodal>", text, "</Multimodal>", prompt, "0")
        ids = [1, 1, *(token for piece in pieces for token in encode(piece))][:-1]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        digits = tokenizer.convert_tokens_to_ids(["0", "1"])
        return names[int(logits[digits].argmax())]

    good = ("the film was wonderful", "I LOVED THIS MOVIE", "what a great story", "it is amazing")
    bad = ("the film was terrible", "I HATED THIS MOVIE", "what a boring story", "it is awful")
    hits = [
        answer(text, names) == truth
        for truth, texts in (("positive", good), ("negative", bad))
        for text in texts
        for names in (("positive", "negative"), ("negative", "positive"))
    ]
    assert sum(hits) >= 14
