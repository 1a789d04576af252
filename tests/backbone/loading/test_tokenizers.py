"""Tokenizers from every format in which the paper's language models bring them."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from msea_lightning.backbone import BackboneError, load_tokenizer
from msea_lightning.backbone.loading.load import tiny_backbone
from msea_lightning.backbone.loading.tokenizers import add_special_tokens, has_tokenizer
from tests.backbone.checkpoints import rank_lines, write_ranks, write_sentencepiece

NAMES = ("chatglm3", "llama2", "qwen")

# ---- the real vocabularies, where they are at hand ---------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def recorded(shared: Path, name: str) -> dict[str, Any]:
    """Encodings by the tokenizers of the original repositories."""
    path = shared / "vectors" / "tokenizers" / f"{name}.json"
    return dict(json.loads(path.read_text("utf-8")))


@pytest.fixture(scope="module", params=["loaded", "saved", "saved, with AutoTokenizer"])
def tokenizer(
    request: pytest.FixtureRequest,
    shared: Path,
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> PreTrainedTokenizerBase:
    loaded = loaded_once(shared / "tokenizers" / name)
    if request.param == "loaded":
        return loaded
    folder = tmp_path_factory.mktemp(name)
    loaded.save_pretrained(folder)
    if request.param == "saved":
        return load_tokenizer(str(folder))
    again: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return again


@cache
def loaded_once(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(folder))


def test_every_recorded_encoding(
    tokenizer: PreTrainedTokenizerBase, recorded: dict[str, Any]
) -> None:
    assert len(recorded["cases"]) == 235
    for case in recorded["cases"]:
        ids = tokenizer(case["text"], add_special_tokens=False)["input_ids"]
        assert ids == case["ids"], case["text"]
        assert tokenizer(case["text"])["input_ids"] == case["ids_special"], case["text"]


def test_every_recorded_decoding(
    tokenizer: PreTrainedTokenizerBase, recorded: dict[str, Any], name: str
) -> None:
    for case in recorded["cases"]:
        assert tokenizer.decode(case["ids"]) == case["decoded"]
        assert tokenizer.decode(case["ids_special"]) == case["decoded_special"]
        # ChatGLM3's own class never leaves special tokens out, unlike every other tokenizer.
        plain = case["decoded" if name == "chatglm3" else "decoded_special_skip"]
        found = tokenizer.decode(case["ids_special"], skip_special_tokens=True)
        assert found == plain


def test_recorded_batches(tokenizer: PreTrainedTokenizerBase, recorded: dict[str, Any]) -> None:
    for batch in recorded["padded_batches"]:
        found = tokenizer(
            batch["texts"], add_special_tokens=batch["add_special_tokens"], padding=True
        )
        assert found["input_ids"] == batch["input_ids"]
        assert found["attention_mask"] == batch["attention_mask"]


def test_special_tokens(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    expected = {
        "chatglm3": {"<unk>": 0, "[gMASK]": 64790, "sop": 64792, "<|observation|>": 64797},
        "llama2": {"<unk>": 0, "<s>": 1, "</s>": 2},
        "qwen": {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|extra_204|>": 151850},
    }[name]
    assert tokenizer.convert_tokens_to_ids(list(expected)) == list(expected.values())
    assert len(tokenizer) == {"chatglm3": 64798, "llama2": 32000, "qwen": 151851}[name]


@pytest.mark.parametrize("model_type", [None, "glm", "llama"])
def test_the_vocabulary_of_chatglm3_is_known_whatever_the_config_says(
    shared: Path, tmp_path: Path, model_type: str | None
) -> None:
    shutil.copy(shared / "tokenizers" / "chatglm3" / "tokenizer.model", tmp_path)
    if model_type is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert load_tokenizer(str(tmp_path)).convert_tokens_to_ids("sop") == 64792


# ---- small vocabularies of the same formats ----------------------------------------------


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentencepiece(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="module")
def llama(pieces: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(pieces.parent))


@pytest.fixture(scope="module")
def reference(pieces: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(pieces))


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_any_text_becomes_what_sentencepiece_makes_of_it(
    llama: PreTrainedTokenizerBase, reference: SentencePieceProcessor, text: str
) -> None:
    assert llama(text, add_special_tokens=False)["input_ids"] == reference.encode(text)


def test_special_tokens_in_a_text_of_llama(
    llama: PreTrainedTokenizerBase, reference: SentencePieceProcessor
) -> None:
    """The mark of the beginning goes before the text alone, not behind a special token."""

    def ids(text: str) -> list[int]:
        return list(llama(text, add_special_tokens=False)["input_ids"])

    begin, end = reference.bos_id(), reference.eos_id()
    assert ids("<s>") == [begin]
    assert ids("it </s> is") == [*reference.encode("it "), end, *reference.encode("is")]
    assert ids(" <s>") == [*reference.encode(" "), begin]
    assert llama("is")["input_ids"] == [begin, *reference.encode("is")]


def test_special_tokens_in_a_text_of_chatglm3_are_text(
    tmp_path: Path, pieces: Path, reference: SentencePieceProcessor
) -> None:
    shutil.copy(pieces, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm"}))
    tokenizer = load_tokenizer(str(tmp_path))
    text = "sop [gMASK] <s>"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == reference.encode(text)
    size = len(reference)
    begin = [size + 1, size + 3]
    assert tokenizer.convert_tokens_to_ids(["[gMASK]", "sop"]) == begin
    assert tokenizer("is")["input_ids"] == [*begin, *reference.encode("is")]


def test_without_a_mark_at_the_beginning(tmp_path: Path) -> None:
    model = write_sentencepiece(tmp_path, add_dummy_prefix=False)
    tokenizer, reference = load_tokenizer(str(tmp_path)), SentencePieceProcessor(str(model))
    for text in ("0.4", " a", "neutral, or"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == reference.encode(text)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "model type UNIGRAM, and only BPE"),
        ({"byte_fallback": False}, "byte fallback False, and only True"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalisation nmt_nfkc, and only identity"),
        ({"remove_extra_whitespaces": True}, "removal of spaces True, and only False"),
        ({"user_defined_symbols": ["<turn>"]}, "user-defined symbols 1, and only 0"),
        ({"bos_id": -1}, "unknown, begin and end False"),
    ],
)
def test_models_that_would_lose_something_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    write_sentencepiece(tmp_path, **options)
    with pytest.raises(BackboneError, match=message):
        load_tokenizer(str(tmp_path))


def test_a_conversion_that_differs_is_refused(
    tmp_path: Path, pieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(pieces, tmp_path)
    monkeypatch.setattr(
        "transformers.tokenization_utils_base.generate_merges", lambda *_: [], raising=True
    )
    with pytest.raises(BackboneError, match="but sentencepiece itself writes"):
        load_tokenizer(str(tmp_path))


def test_file_that_is_no_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(BackboneError, match="is not a SentencePiece model"):
        load_tokenizer(str(tmp_path))


def test_ranks_of_qwen(tmp_path: Path) -> None:
    folder = write_ranks(tmp_path, rank_lines(b"jo", b" is", b"joy"))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer("joy", add_special_tokens=False)["input_ids"] == [258]
    assert tokenizer("jo<|im_start|>")["input_ids"] == [256, 260]
    assert len(tokenizer) == 259 + 208
    assert tokenizer.decode([258, 259]) == "joy<|endoftext|>"
    # No path is remembered: another file under the same name is another tokenizer.
    write_ranks(folder, rank_lines(b"oy"))
    assert load_tokenizer(str(folder))("joy")["input_ids"] == [ord("j"), 256]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*rank_lines(), b"!!! 256"], r"Line 257 of .*qwen\.tiktoken is not a base64-coded token"),
        ([*rank_lines(), b"am95"], "Line 257"),
        ([*rank_lines(), b"am95 300"], "holds 257 tokens, whose ranks are not 0 to 256"),
        (rank_lines()[:200], "holds 200 tokens"),
        ([], "holds 0 tokens"),
        ([*rank_lines(), b"PHxlbmRvZnRleHR8Pg== 256"], "itself holds special"),
    ],
)
def test_damaged_ranks_are_refused(tmp_path: Path, lines: list[bytes], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_tokenizer(str(write_ranks(tmp_path, lines)))


def test_ranks_of_a_published_qwen_are_complete(tmp_path: Path) -> None:
    write_ranks(tmp_path, rank_lines(b"jo"))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 151_936}))
    with pytest.raises(BackboneError, match=r"holds 257 ranks, but .* holds 151643"):
        load_tokenizer(tmp_path)


def test_the_tokenizer_file_counts_and_not_the_class_that_is_named(
    tmp_path: Path, llama: PreTrainedTokenizerBase
) -> None:
    """The class would build the tokenizer anew, with other ids for leading spaces."""
    llama.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "unk_token": "<unk>"})
    )
    for text in ("0.4", " a", "  a  b"):
        expected = llama(text, add_special_tokens=False)["input_ids"]
        found = load_tokenizer(str(tmp_path))(text, add_special_tokens=False)["input_ids"]
        assert found == expected


def test_a_tokenizer_that_loses_labels_is_refused(tmp_path: Path) -> None:
    built_in = json.loads((tiny_backbone() / "tokenizer.json").read_text("utf-8"))
    built_in["normalizer"] = {"type": "Replace", "pattern": {"String": "-"}, "content": ""}
    (tmp_path / "tokenizer.json").write_text(json.dumps(built_in))
    with pytest.raises(BackboneError, match=r"writes '-3\.0' as .* reads back as '3\.0'"):
        load_tokenizer(str(tmp_path))


def test_an_empty_tokenizer_is_refused(tmp_path: Path) -> None:
    empty = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "truncation": None,
        "padding": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(empty))
    with pytest.raises(BackboneError, match="with a vocabulary of 0, writes '0' as"):
        load_tokenizer(str(tmp_path))


def test_no_code_of_a_tokenizer_is_run(tmp_path: Path, pieces: Path) -> None:
    shutil.copy(pieces, tmp_path)
    named = {
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    trap = tmp_path / "tokenization_chatglm.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\n")
    load_tokenizer(str(tmp_path))
    assert not (tmp_path / "sprung").exists()


def test_special_tokens_are_added_once(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_backbone()))
    size = len(tokenizer)
    add_special_tokens(tokenizer, ["<s>", "[gMASK]", "sop"])
    add_special_tokens(tokenizer, ["sop"])
    assert len(tokenizer) == size + 2
    assert tokenizer("[gMASK]", add_special_tokens=False)["input_ids"] == [size]


@pytest.mark.parametrize("file", ["tokenizer.model", "qwen.tiktoken"])
def test_a_name_of_the_hub(
    tmp_path: Path, pieces: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """As it lies in the Hub's cache, without a network."""
    snapshot = tmp_path / "models--some--original" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--some--original" / "refs").mkdir()
    (tmp_path / "models--some--original" / "refs" / "main").write_text("0" * 40)
    if file == "tokenizer.model":
        shutil.copy(pieces, snapshot)
    else:
        write_ranks(snapshot, rank_lines(b"jo"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert has_tokenizer("some/original")
    found = load_tokenizer("some/original")("0.4 joy")["input_ids"]
    assert found == load_tokenizer(str(snapshot))("0.4 joy")["input_ids"]


def test_where_a_tokenizer_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert has_tokenizer(str(tiny_backbone()))
    assert not has_tokenizer(str(tmp_path))
    assert not has_tokenizer("nobody/nothing")
