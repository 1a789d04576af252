"""LLaMA's SentencePiece file as a tokenizer of transformers, id for id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msea_lightning.backbone.frozen import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def from_sentencepiece(model_file: Path) -> PreTrainedTokenizerFast:
    """Converts a LLaMA ``tokenizer.model`` (BPE with byte fallback).

    A space mark is put before every text and every space becomes one; nothing else is normalised
    and no special token is added, so that leading, doubled and trailing spaces keep their ids.

    Args:
        model_file: The ``tokenizer.model``.

    Raises:
        BackboneError: if the file is not such a model, or the sentencepiece package is missing.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import generate_merges

    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise BackboneError(
            f"Reading {model_file} needs the package sentencepiece: pip install sentencepiece, or "
            "give a folder with tokenizer.json as backbone.tokenizer."
        ) from error
    try:
        pieces = SentencePieceProcessor(model_file=str(model_file))
    except (RuntimeError, OSError) as error:
        raise BackboneError(f"{model_file} is not a SentencePiece model: {error}") from error
    ids = {pieces.id_to_piece(index): index for index in range(len(pieces))}
    # Merges go by score, not by id: LLaMA's runs of spaces have low ids and the lowest score.
    merges = generate_merges(ids, {name: pieces.get_score(index) for name, index in ids.items()})
    tokenizer = Tokenizer(
        models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    specials = [name for name in ("<unk>", "<s>", "</s>") if name in ids]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
