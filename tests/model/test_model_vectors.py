"""The whole model against the original implementation: token ids, loss, label logits, answers.

The numbers were made by the original code in float32 with the real Llama-2 tokenizer and a tiny
LLaMA (``tests/vectors/model``; two bos, wrapping strings, pseudo tokens, text, prompt, label).
Both are off by rounding alone, for which ``tests/rounding.py`` has a bound.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from msea_lightning.adapter import FeatureStandardizer, MSEAdapter
from msea_lightning.backbone import FrozenBackbone, load_tokenizer
from msea_lightning.data.options import Language
from msea_lightning.data.utterance import Batch, PaddedSequences
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.labels import EmotionSet, SentimentScale
from msea_lightning.language.options import Decode, SegmentConfig, SegmentKind
from msea_lightning.language.prompt import Prompt
from msea_lightning.model.adapted_lm import AdaptedLM
from tests.places import VECTORS
from tests.rounding import assert_same

RECORDED = VECTORS / "model"
CASES = ("regression_mosei", "classification_meld", "padded_simsv2")
LAYOUT = [
    SegmentConfig(SegmentKind.token, token="<s>"),
    SegmentConfig(SegmentKind.token, token="<s>"),
    SegmentConfig(SegmentKind.literal, en="<Multimodal>", zh="<多模态>"),
    SegmentConfig(SegmentKind.pseudo),
    SegmentConfig(SegmentKind.text),
    SegmentConfig(SegmentKind.literal, en="</Multimodal>", zh="</多模态>"),
    SegmentConfig(SegmentKind.prompt),
]


class RecordedTokenizer:
    """The real tokenizer's answers for the strings of one case, without the real tokenizer."""

    vocab_size = 32_000
    pad_token_id = None
    unk_token_id = 0
    unk_token = "<unk>"
    eos_token_id = 2

    def __init__(self, case: dict[str, Any]) -> None:
        texts = [
            [token for token, real in zip(ids, mask, strict=True) if real]
            for ids, mask in zip(case["text_ids"], case["text_mask"], strict=True)
        ]
        self._ids: dict[str, list[int]] = {
            case["wrap_before"]: case["prefix_ids"][1:],
            case["wrap_after"]: case["suffix_ids"],
            case["task_prompt"]: case["prompt_ids"],
            **dict(zip(case["texts"], texts, strict=True)),
        }
        # LLaMA's tokens of a number: a space mark or a minus sign, then digit by digit.
        ids = (29900, 29896, 29906, 29941, 29946, 29945, 29953, 29955, 29947, 29929)
        self._number = {".": 29889, **dict(zip("0123456789", ids, strict=True))}

    def __call__(self, text: str | list[str], *, add_special_tokens: bool) -> dict[str, Any]:
        assert not add_special_tokens
        one = [self._encode(item) for item in ([text] if isinstance(text, str) else text)]
        return {"input_ids": one[0] if isinstance(text, str) else one}

    def _encode(self, text: str) -> list[int]:
        if text in self._ids:
            return self._ids[text]
        sign = 448 if text.startswith("-") else 29871
        return [sign, *(self._number[char] for char in text.lstrip("-"))]

    def decode(self, ids: list[int], **_: object) -> str:
        for text, known in self._ids.items():
            if known == ids:
                return text
        pieces = {448: "-", 29871: "", **{token: char for char, token in self._number.items()}}
        return "".join(pieces[token] for token in ids)

    def get_vocab(self) -> dict[str, int]:
        return {"<s>": 1, "<unk>": 0}

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.get_vocab()[token]


def load(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    case = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
    return case, load_file(RECORDED / f"{name}.safetensors")


def build(name: str, tokenizer: Any = None) -> tuple[dict[str, Any], Any, AdaptedLM, Batch]:
    case, tensors = load(name)
    model = LlamaForCausalLM.from_pretrained(RECORDED / "tiny_llama", dtype=torch.float32)
    backbone = FrozenBackbone(model, tokenizer or RecordedTokenizer(case), pad_token="<unk>")
    padded = name.startswith("padded")
    prompt = Prompt(
        LAYOUT,
        backbone.tokenizer,
        language=Language.zh if case["language"] == "cn" else Language.en,
        task=case["task_prompt"],
        pseudo_tokens=case["pseudo_tokens"],
        text_tokens=case["text_length"],
        pad_id=backbone.pad_id,
        pad_to=case["text_length"] if padded else None,
        attend_padding=padded,
    )
    if case["train_mode"] == "regression":
        scale = SentimentScale(-1, 1) if case["dataset"] == "simsv2" else SentimentScale(-3, 3)
        space = scale
        labels = case["labels"]
    else:
        names = ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"]
        space = EmotionSet(names)
        labels = [names[label] for label in case["labels"]]
    weights = {key: value for key, value in tensors.items() if key.startswith("weight.")}
    task = AdaptedLM(
        backbone,
        MSEAdapter.from_original(weights),
        standardizer=FeatureStandardizer(),
        prompt=prompt,
        tree=AnswerTree(space, prompt.encode, prompt.decode),
    )
    batch = Batch(
        index=torch.arange(case["batch"]),
        ids=[str(index) for index in range(case["batch"])],
        texts=case["texts"],
        labels={"M": labels},
        features={
            "audio": PaddedSequences(tensors["in.audio"], tensors["in.audio_lengths"]),
            "vision": PaddedSequences(tensors["in.video"], tensors["in.video_lengths"]),
        },
        groups=[None] * case["batch"],
        speakers=[None] * case["batch"],
        positions=torch.zeros(case["batch"], dtype=torch.int64),
    )
    return case, tensors, task, batch


@pytest.mark.parametrize("name", CASES)
def test_sequences(name: str) -> None:
    case, _, task, batch = build(name)
    labels = [task.tree.ids(label) for label in batch.targets]
    texts = task.prompt.encode_texts(batch.texts)
    sequences = task.prompt.assemble(texts, len(batch), labels)
    ids = sequences.ids.masked_fill(sequences.pseudo, -1)
    assert ids.tolist() == [row[:-1] for row in case["full_sequence"]]
    assert sequences.targets.tolist() == case["label_ids"]
    assert sequences.mask.all()
    assert sequences.positions[0].tolist() == list(range(case["sequence_length"] - 1))
    assert texts.ids.tolist() == case["text_ids"]


@pytest.mark.parametrize("name", CASES)
def test_real_tokenizer_gives_the_same_ids(name: str, shared: Path) -> None:
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "llama2"))
    case, _, task, batch = build(name, tokenizer)
    sequences = task.prompt.assemble(
        task.prompt.encode_texts(batch.texts),
        len(batch),
        [task.tree.ids(label) for label in batch.targets],
    )
    ids = sequences.ids.masked_fill(sequences.pseudo, -1)
    assert ids.tolist() == [row[:-1] for row in case["full_sequence"]]
    assert sequences.targets.tolist() == case["label_ids"]


@pytest.mark.parametrize("name", CASES)
def test_loss(name: str) -> None:
    case, tensors, task, batch = build(name)
    loss, count = task.loss(batch)
    assert count == tensors["out.label_ids"].numel()
    assert_same(loss / count, torch.tensor(case["loss"]))
    logits, targets = task.label_logits(batch)
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert_same(nll, tensors["out.label_nll"].flatten(), scale=float(logits.detach().abs().max()))


@pytest.mark.parametrize("name", CASES)
def test_label_logits(name: str) -> None:
    _, tensors, task, batch = build(name)
    logits, targets = task.label_logits(batch)
    assert targets.tolist() == tensors["out.label_ids"].flatten().tolist()
    for found, expected in (
        (logits[:, tensors["out.logits_vocab_ids"]], tensors["out.logits_subset"].flatten(0, 1)),
        (logits.logsumexp(-1), tensors["out.logits_logsumexp"].flatten()),
        (logits.mean(-1), tensors["out.logits_mean"].flatten()),
        (logits.std(-1, correction=0), tensors["out.logits_std"].flatten()),
    ):
        assert_same(found, expected, scale=float(logits.detach().abs().max()))
    assert logits.argmax(-1).tolist() == tensors["out.logits_argmax"].flatten().tolist()


@pytest.mark.parametrize("name", CASES)
def test_greedy_answers(name: str) -> None:
    case, _, task, batch = build(name)
    answers = task.answers(batch, Decode.greedy)
    assert answers.value.tolist() == case["parsed_values"]


@pytest.mark.parametrize("name", CASES)
def test_pseudo_tokens_and_embeddings(name: str) -> None:
    _, tensors, task, batch = build(name)
    texts, prefix, text = task._adapt(batch)
    assert_same(prefix, tensors["out.pseudo_tokens"])
    labels = [task.tree.ids(label) for label in batch.targets]
    embedded = task._embed(task.prompt.assemble(texts, len(batch), labels), prefix, text)
    expected = tensors["out.inputs_embeds"][:, :-1]
    assert_same(embedded, expected)


def test_padding_is_hidden_unless_asked_for() -> None:
    """The original's attended padding is a switch: masked padding equals no padding."""
    case, _, task, batch = build("padded_simsv2")
    task.prompt.attend_padding = False
    masked = task.loss(batch)[0]
    task.prompt.pad_to = None
    assert_same(masked, task.loss(batch)[0])
    assert abs(masked.item() / 20 - case["loss"]) > 0.1
