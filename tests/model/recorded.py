"""Batches that the original implementation computed, and what stands in for its tokenizer."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load_file

from msea_lightning.data.utterance import Batch, Label, PaddedSequences
from tests.places import VECTORS

RECORDED = VECTORS / "model"
CASES = ("regression_mosei", "classification_meld", "padded_simsv2")


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

    def __call__(
        self, text: str | list[str], *, add_special_tokens: bool, **_: object
    ) -> dict[str, Any]:
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


def load_case(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What was recorded of a case, and its tensors."""
    case = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
    return case, load_file(RECORDED / f"{name}.safetensors")


def recorded_batch(
    case: dict[str, Any], tensors: dict[str, torch.Tensor], labels: list[Label]
) -> Batch:
    """The batch of a case."""
    return Batch(
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
