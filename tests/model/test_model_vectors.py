"""The whole model against the original implementation: token ids, loss, label logits, answers.

The numbers were made by the original code in float32 with the real Llama-2 tokenizer and a tiny
LLaMA (``tests/vectors/model``; two bos, wrapping strings, pseudo tokens, text, prompt, label).
Both are off by rounding alone, for which ``tests/rounding.py`` has a bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from msea_lightning.adapter import FeatureStandardizer, MSEAdapter
from msea_lightning.backbone import FrozenBackbone, load_tokenizer
from msea_lightning.data.options import Language
from msea_lightning.data.utterance import Batch
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.labels import EmotionSet, SentimentScale
from msea_lightning.language.options import Decode, SegmentConfig, SegmentKind
from msea_lightning.language.prompt import Prompt
from msea_lightning.model.adapted_lm import AdaptedLM
from tests.model.recorded import CASES, RECORDED, RecordedTokenizer, load_case, recorded_batch
from tests.rounding import assert_same

LAYOUT = [
    SegmentConfig(SegmentKind.token, token="<s>"),
    SegmentConfig(SegmentKind.token, token="<s>"),
    SegmentConfig(SegmentKind.literal, en="<Multimodal>", zh="<多模态>"),
    SegmentConfig(SegmentKind.pseudo),
    SegmentConfig(SegmentKind.text),
    SegmentConfig(SegmentKind.literal, en="</Multimodal>", zh="</多模态>"),
    SegmentConfig(SegmentKind.prompt),
]


def build(name: str, tokenizer: Any = None) -> tuple[dict[str, Any], Any, AdaptedLM, Batch]:
    case, tensors = load_case(name)
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
    return case, tensors, task, recorded_batch(case, tensors, labels)


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
