"""The tokenizer of a checkpoint, id for id, compared where a reference is at hand.

transformers 5 reads some vocabulary files as another tokenizer without a word: from a
``tokenizer.model`` alone, texts with leading or doubled spaces get other ids, and a class named in
``tokenizer_config.json`` may build another tokenizer than ``tokenizer.json`` describes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msea_lightning.backbone.errors import BackboneError
from msea_lightning.backbone.loading.gguf import gguf_tokenizer, is_gguf
from msea_lightning.backbone.loading.hub import expanded, explained, find_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_CHATGLM3_SPECIALS = (
    *("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)
"""ChatGLM3's own special tokens, whose ids follow those of the vocabulary."""

_QWEN_SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(f"<|extra_{index}|>" for index in range(205)),
)
"""Special tokens of the first Qwen, whose ids follow those of the vocabulary."""

_LABELS = ("0", "6", "11", "-3.0", "+0.4", "0.4")
"""Texts that every tokenizer must give back as they were."""

_PROBES = (
    *_LABELS,
    *(" a", "a ", " a  b   c ", "\n", "a\n b\tc"),
    *("<Multimodal>", "</Multimodal>", "<多模态>", "{问题}\n\n <多模态>", "情绪为", "¿qué? naïve"),
    *("The sentiment is", "neutral:  0, joy: 4", "I'll be THERE!!", "😀", "龘", "\u00a0x", "▁y"),
)
"""Texts whose ids are compared with the reference implementation of a vocabulary format."""


def load_tokenizer(path_or_name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hub id, folder or ``.gguf`` file, which pads on the left.

    ``tokenizer.json`` is taken as it is written; else ``qwen.tiktoken`` (first Qwen) and
    ``tokenizer.model`` (ChatGLM3, LLaMA) are converted; else transformers decides. One that does
    not write labels is refused.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = expanded(path_or_name)

    def load() -> Any:
        if is_gguf(place):
            return gguf_tokenizer(place)
        if find_file(place, "tokenizer.json") is not None:
            return PreTrainedTokenizerFast.from_pretrained(place, padding_side="left")
        if (ranks := find_file(place, "qwen.tiktoken")) is not None:
            return _from_tiktoken(ranks)
        if (pieces := find_file(place, "tokenizer.model")) is not None:
            return _from_sentencepiece(pieces)
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, padding_side="left")

    tokenizer: PreTrainedTokenizerBase = explained(place, load)
    for text in _LABELS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        written = "".join(str(tokenizer.decode(ids)).split())
        if len(tokenizer) < 2 or written != text:
            raise BackboneError(
                f"The tokenizer of {place}, with a vocabulary of {len(tokenizer)}, writes "
                f"{text!r} as {list(ids)}, which reads back as {written!r}: its files are missing, "
                "damaged or in a format that transformers does not read. Give a folder with "
                "tokenizer.json in backbone.tokenizer."
            )
    return tokenizer


def has_tokenizer(path_or_name: str | Path) -> bool:
    """Whether a tokenizer is on this machine: in a folder, or fetched from the Hub before."""
    place = expanded(path_or_name)
    if is_gguf(place):
        return Path(place).is_file()
    names = ("tokenizer.json", "qwen.tiktoken", "tokenizer.model", "vocab.json", "tekken.json")
    return any(find_file(place, name, offline=True) is not None for name in names)


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> None:
    """Adds special tokens that a tokenizer does not have yet, in place."""
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    tokenizer.add_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names if name not in known]
    )


def _from_tiktoken(ranks_file: Path) -> PreTrainedTokenizerFast:
    """Converts the ``qwen.tiktoken`` of the first Qwen (byte-level BPE, NFC)."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = _read_ranks(ranks_file)
    converter: Any = TikTokenConverter()
    # tiktoken's own reader remembers what lay under a path, also where another file lies there now.
    converter.load_tiktoken_bpe = lambda _: ranks
    vocabulary, merges = converter.extract_vocab_merges_from_model(str(ranks_file))
    tokenizer = Qwen2Tokenizer(vocabulary, merges, padding_side="left")
    add_special_tokens(tokenizer, _QWEN_SPECIALS)
    if tokenizer.convert_tokens_to_ids(_QWEN_SPECIALS[0]) != len(ranks):
        raise BackboneError(
            f"{ranks_file} itself holds special tokens, where the first Qwen's begin after its "
            f"{len(ranks)} ranks. Give the original file."
        )
    return tokenizer


def _read_ranks(ranks_file: Path) -> dict[bytes, int]:
    """The lines of a ``qwen.tiktoken``: tokens in base64, and their ranks."""
    again = "the file is damaged or not complete. Copy the original file again."
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(ranks_file.read_bytes().splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise BackboneError(
                f"Line {number} of {ranks_file} is not a base64-coded token and its rank: "
                f"{line[:40]!r}; {again}"
            ) from error
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise BackboneError(
            f"{ranks_file} holds {len(ranks)} tokens, whose ranks are not 0 to "
            f"{len(ranks) - 1} with at least all 256 bytes: {again}"
        )
    embeddings = _beside(ranks_file, "config.json").get("vocab_size")
    if embeddings == 151_936 and len(ranks) != 151_643:  # as published
        raise BackboneError(
            f"{ranks_file} holds {len(ranks)} ranks, but the one that goes with a language model "
            f"of {embeddings} embeddings holds 151643: {again}"
        )
    return ranks


def _from_sentencepiece(model_file: Path) -> PreTrainedTokenizerFast:
    """Converts a ``tokenizer.model`` (BPE with byte fallback) of ChatGLM3, LLaMA and their like.

    LLaMA's special tokens in a text are encoded as such, and ``<s>`` begins a text; ChatGLM3's are
    ordinary text, and ``[gMASK] sop`` begin one. A conversion that writes other ids than the
    sentencepiece library does is refused.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as splitters
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import SentencePieceExtractor
    from transformers.tokenization_utils_base import generate_merges

    try:
        reference = SentencePieceProcessor(model_file=str(model_file))
        proto = SentencePieceExtractor(str(model_file)).proto
    except Exception as error:  # protobuf and sentencepiece share no class of errors
        raise BackboneError(
            f"{model_file} is not a SentencePiece model: {error}. If it is in tiktoken's format "
            "(Llama 3, GLM-4), give a folder with tokenizer.json in backbone.tokenizer."
        ) from error
    _check_kind(model_file, proto)
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    # Merges go by score, not by id: LLaMA's runs of spaces have low ids and the lowest score.
    merges = generate_merges(vocabulary, {piece.piece: piece.score for piece in proto.pieces})
    unknown, begin, end = (
        proto.pieces[index].piece
        for index in (reference.unk_id(), reference.bos_id(), reference.eos_id())
    )
    own = (unknown, begin, end)
    chatglm = _is_chatglm3(model_file, len(vocabulary))
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
            ignore_merges=not chatglm,
        )
    )
    marked = proto.normalizer_spec.add_dummy_prefix
    mark, strip = ([normalizers.Prepend("▁")], [decoders.Strip(" ", 1, 0)]) if marked else ([], [])
    tokenizer.normalizer = normalizers.Sequence([*mark, normalizers.Replace(" ", "▁")])
    if not chatglm:
        # Special tokens are cut out after the spaces were marked, so that only the beginning of a
        # text gets the extra mark, and not what follows a special token; being whole entries of the
        # vocabulary, they need no merges.
        names = "|".join(map(re.escape, own))
        tokenizer.pre_tokenizer = splitters.Sequence(
            [
                splitters.Split(Regex(f"^▁(?={names})"), "removed"),
                splitters.Split(Regex(names), "isolated"),
            ]
        )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    specials = (*own, *_CHATGLM3_SPECIALS) if chatglm else own
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    prefix = ("[gMASK]", "sop") if chatglm else (begin,)
    tokenizer.post_processor = TemplateProcessing(
        single=[*prefix, "$A"],
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in prefix],
    )
    converted = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        pad_token=unknown,
        padding_side="left",
        split_special_tokens=True,
    )
    for text in _PROBES:
        found = converted(text, add_special_tokens=False)["input_ids"]
        expected = reference.encode(text)
        if found != expected:
            raise BackboneError(
                f"{model_file} cannot be converted without loss: {text!r} would become {found}, "
                f"but sentencepiece itself writes {expected}. Give a folder with tokenizer.json in "
                "backbone.tokenizer."
            )
    return converted


def _check_kind(model_file: Path, proto: Any) -> None:
    """Refuses a SentencePiece model that the conversion would not be faithful to."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kind = trainer.ModelType.Name(trainer.model_type)
    special_ids = (trainer.unk_id, trainer.bos_id, trainer.eos_id)
    # Those of a user would be cut out of a text before its spaces are marked.
    symbols = sum(piece.type == piece.USER_DEFINED for piece in proto.pieces)
    found = {
        "model type": (kind, "BPE"),
        "byte fallback": (trainer.byte_fallback, True),
        "tokens for unknown, begin and end": (min(special_ids) >= 0, True),
        "user-defined symbols": (symbols, 0),
        "normalisation": (normalizer.name, "identity"),
        "removal of spaces": (normalizer.remove_extra_whitespaces, False),
    }
    for what, (value, expected) in found.items():
        if value != expected:
            raise BackboneError(
                f"{model_file} is a SentencePiece model with {what} {value}, and only {expected} "
                "can be converted without loss. Give a folder with tokenizer.json in "
                "backbone.tokenizer."
            )


def _is_chatglm3(model_file: Path, pieces: int) -> bool:
    """Whether files beside the vocabulary say so, or it has the size of the published one."""
    tokenizer = _beside(model_file, "tokenizer_config.json").get("tokenizer_class")
    model = _beside(model_file, "config.json").get("model_type")
    return pieces == 64_789 or "chatglm" in f"{tokenizer} {model}".lower()


def _beside(file: Path, name: str) -> dict[str, Any]:
    """Content of a JSON file in the folder of another file; nothing where there is none."""
    path = file.with_name(name)
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
