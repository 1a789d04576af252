"""Language models in one ``.gguf`` file, as llama.cpp writes and reads them.

transformers reads the config, the tokenizer and the weights of many architectures from such a file.
Weights that it stores quantised are unpacked: what is read back are the numbers that llama.cpp
computes with, in a dense dtype.
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

from msea_lightning.backbone.errors import BackboneError, is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

_MAGIC = b"GGUF"
"""What each such file begins with."""

_ROTARY_FACTORS = ("rope_freqs", "rope_factors")
"""Tensors that change the rotation of queries and keys, which transformers does not read."""


def is_gguf(place: str | Path) -> bool:
    """Whether a place is a ``.gguf`` file, by its name."""
    return str(place).lower().endswith(".gguf")


def gguf_config(path: str) -> PreTrainedConfig:
    """The transformers config that the header of a file describes; no weight is read.

    Args:
        path: The file.

    Raises:
        BackboneError: if it is missing, damaged, one of several parts, or of an architecture that
            transformers does not read from such files.
    """
    return copy.deepcopy(_config(path, *_state(path)))


def gguf_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a file, which pads on the left.

    Args:
        path: The file.

    Raises:
        BackboneError: see :func:`gguf_config`.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        convert_gguf_tokenizer,
        get_gguf_tokenizer,
    )

    _state(path)
    try:
        architecture, vocabulary, options = get_gguf_tokenizer(path)
        converted, more = convert_gguf_tokenizer(architecture, vocabulary)
    except Exception as error:  # what a damaged file raises is not documented
        raise BackboneError(
            f"The tokenizer of {path} could not be read ({_first_line(error)}). Give a folder or "
            "Hub id with tokenizer.json in backbone.tokenizer."
        ) from error
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=converted, padding_side="left", **{**options, **more}
    )
    return tokenizer


def gguf_weights(path: str, config: PreTrainedConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a file by their names in transformers, unpacked on the CPU.

    Args:
        path: The file.
        config: Its config.
        dtype: Dtype that they are unpacked to. The largest matrix is held twice in float32 for a
            moment.

    Raises:
        BackboneError: see :func:`gguf_config`; or if it holds weights that would be left out.
    """
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    _check_rotation(path)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    # A progress bar in a file or a pipe is no progress.
    silent = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    try:
        with silent:
            read = load_gguf_checkpoint(
                path, return_tensors=True, model_to_load=skeleton, torch_dtype=dtype
            )
    except Exception as error:  # as above
        if is_out_of_memory(error):
            raise
        raise _damaged(path, error) from error
    weights: dict[str, Tensor] = read["tensors"]
    unpacked = sum(tensor.nbytes for tensor in weights.values())
    _log.info(
        "%s: weights stored as %s are unpacked to %s (%.1f MiB in the file, %.1f MiB unpacked)",
        Path(path).name,
        _quantization(path),
        str(dtype).removeprefix("torch."),
        Path(path).stat().st_size / 2**20,
        unpacked / 2**20,
    )
    return weights


@lru_cache(maxsize=8)
def _config(path: str, size: int, changed: int) -> PreTrainedConfig:
    """Kept, because reading a large vocabulary takes seconds; a file that changes is read again."""
    from transformers import AutoConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    architecture = _metadata(path)["general.architecture"]
    try:
        fields: dict[str, Any] = load_gguf_checkpoint(path)["config"]
        config: PreTrainedConfig = AutoConfig.for_model(**fields)
    except Exception as error:  # as above
        if "not supported" in str(error) or "Unrecognized model" in str(error):
            raise BackboneError(
                f"{path} holds a {architecture!r} model, which the installed transformers does not "
                "read from a GGUF file. Give the original checkpoint's folder or Hub id as "
                "backbone.path."
            ) from error
        raise _damaged(path, error) from error
    return config


def _state(path: str) -> tuple[int, int]:
    """Size and time of a file that is there and is a GGUF file."""
    file = Path(path)
    if not file.is_file():
        raise BackboneError(
            f"There is no file {path}. Put it there (from the Hugging Face Hub: hf download "
            "<repository> <file>), and give its path as backbone.path."
        )
    with file.open("rb") as stream:
        begins = stream.read(len(_MAGIC))
    if begins != _MAGIC:
        raise BackboneError(
            f"{path} is no GGUF file: it begins with {begins!r} instead of {_MAGIC!r}. It may be a "
            "pointer of Git LFS in place of the file, or not complete: download it again."
        )
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _metadata(path: str) -> dict[str, Any]:
    from transformers.integrations.gguf.reader import read_gguf_metadata

    try:
        metadata, _ = read_gguf_metadata(path)
        metadata["general.architecture"]
    except Exception as error:  # as above
        raise _damaged(path, error) from error
    if int(metadata.get("split.count", 1)) > 1:
        raise BackboneError(
            f"{path} is one of {metadata['split.count']} parts of a model. Join them (llama.cpp: "
            "llama-gguf-split --merge), and give the joined file as backbone.path."
        )
    return dict(metadata)


def _check_rotation(path: str) -> None:
    """Refuses weights that transformers would leave out without a word."""
    from transformers.integrations.gguf.reader import read_gguf_metadata

    _, names = read_gguf_metadata(path)
    lost = [name for name in names if name.startswith(_ROTARY_FACTORS)]
    if lost:
        raise BackboneError(
            f"{path} holds {', '.join(lost)}, which stretch the rotation of its queries and keys "
            "and which transformers does not read from a GGUF file: it would compute something "
            "else. Give the original checkpoint's folder or Hub id as backbone.path."
        )


def _quantization(path: str) -> str:
    from gguf import LlamaFileType

    stored = _metadata(path).get("general.file_type")
    names = [kind.name for kind in LlamaFileType if kind == stored]
    return names[0].removeprefix("MOSTLY_").removeprefix("ALL_") if names else "several types"


def _damaged(path: str, error: Exception) -> BackboneError:
    return BackboneError(
        f"The GGUF file {path} could not be read ({_first_line(error)}). It may be damaged or not "
        "complete: download it again."
    )


def _first_line(error: Exception) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
