"""Language models in one ``.gguf`` file, as llama.cpp writes and reads them.

Weights that it stores quantised are unpacked to the numbers that llama.cpp computes with.
"""

from __future__ import annotations

import copy
import io
import logging
import sys
from contextlib import nullcontext, redirect_stderr
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from msea_lightning.backbone.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

_ROTARY_FACTORS = ("rope_freqs", "rope_factors")
"""Tensors that change the rotation of queries and keys, which transformers does not read."""


def is_gguf(place: str | Path) -> bool:
    """Whether a place is a ``.gguf`` file, by its name."""
    return str(place).lower().endswith(".gguf")


def gguf_config(path: str) -> PreTrainedConfig:
    """The transformers config that the header of a file describes; no weight is read."""
    check_file(path)
    found = Path(path).stat()
    return copy.deepcopy(_config(path, found.st_size, found.st_mtime_ns))


def gguf_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a file, which pads on the left."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        convert_gguf_tokenizer,
        get_gguf_tokenizer,
    )

    check_file(path)
    architecture, vocabulary, options = get_gguf_tokenizer(path)
    converted, more = convert_gguf_tokenizer(architecture, vocabulary)
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=converted, padding_side="left", **{**options, **more}
    )
    return tokenizer


def gguf_weights(path: str, config: PreTrainedConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a file by their names in transformers, unpacked on the CPU to a dtype."""
    from gguf import LlamaFileType
    from transformers import AutoModelForCausalLM
    from transformers.integrations.gguf.reader import read_gguf_metadata
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    metadata, names = read_gguf_metadata(path)
    lost = [name for name in names if name.startswith(_ROTARY_FACTORS)]
    if lost:
        raise BackboneError(
            f"{path} holds {', '.join(lost)}, which stretch the rotation of its queries and keys "
            "and which transformers does not read from a GGUF file: it would compute something "
            "else. Give the original checkpoint's folder or Hub id as backbone.path."
        )
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    # A progress bar in a file or a pipe is no progress.
    silent = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    with silent:
        read = load_gguf_checkpoint(
            path, return_tensors=True, model_to_load=skeleton, torch_dtype=dtype
        )
    weights: dict[str, Tensor] = read["tensors"]
    stored = metadata.get("general.file_type")
    kinds = [kind.name.removeprefix("MOSTLY_") for kind in LlamaFileType if kind == stored]
    _log.info(
        "%s: weights stored as %s are unpacked to %s (%.1f MiB in the file, %.1f MiB unpacked)",
        Path(path).name,
        kinds[0].removeprefix("ALL_") if kinds else "several types",
        str(dtype).removeprefix("torch."),
        Path(path).stat().st_size / 2**20,
        sum(tensor.nbytes for tensor in weights.values()) / 2**20,
    )
    return weights


@lru_cache(maxsize=8)
def _config(path: str, size: int, changed: int) -> PreTrainedConfig:
    """Kept, because reading a large vocabulary takes seconds; a file that changes is read again."""
    from transformers import AutoConfig
    from transformers.integrations.gguf.reader import read_gguf_metadata
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    metadata, _ = read_gguf_metadata(path)
    parts = int(metadata.get("split.count", 1))
    if parts > 1:
        raise BackboneError(
            f"{path} is one of {parts} parts of a model. Join them (llama.cpp: llama-gguf-split "
            "--merge), and give the joined file as backbone.path."
        )
    fields: dict[str, Any] = load_gguf_checkpoint(path)["config"]
    config: PreTrainedConfig = AutoConfig.for_model(**fields)
    return config


def check_file(path: str) -> None:
    """Refuses what is no GGUF file, by its first bytes."""
    file = Path(path)
    if not file.is_file():
        raise BackboneError(
            f"There is no file {path}. Put it there (from the Hugging Face Hub: hf download "
            "<repository> <file>), and give its path as backbone.path."
        )
    with file.open("rb") as stream:
        begins = stream.read(4)
    if begins != b"GGUF":
        raise BackboneError(
            f"{path} is no GGUF file: it begins with {begins!r} instead of b'GGUF'. It may be a "
            "pointer of Git LFS in place of the file, or not complete: download it again."
        )
