"""Small GGUF files, written as llama.cpp's converter writes them; and the real ones, if any."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.places import ROOT

SPECIALS = ["<|unk|>", "<|start|>", "<|end|>"]
MERGES = ["t h", "th e", "Ġ the"]
TOKENS = [*SPECIALS, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES)]


def real_model(name: str) -> Path:
    """A real language model in ``models/``, or the folder MSEA_REAL_LM; skips where it is not."""
    path = Path(os.environ.get("MSEA_REAL_LM", ROOT / "models")) / name
    if not path.is_file():
        pytest.skip(f"needs {path} (make real-lm)")
    return path


def small_llama() -> LlamaForCausalLM:
    """A random model with grouped queries, whose queries and keys llama.cpp reorders."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(TOKENS),
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(requires_grad=False)


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    architecture: str = "llama",
    more: dict[str, Any] | None = None,
) -> Path:
    """Writes a model and a byte-level tokenizer.

    Args:
        path: Where to.
        model: The model.
        kind: Storage of the matrices.
        architecture: What the header calls it.
        more: Further tensors, by name.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)))
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in {**model.state_dict(), **(more or {})}.items():
        stem, _, suffix = name.rpartition(".")
        data = tensor.numpy()
        for part, count in heads.items():
            if part in name:
                halves = data.reshape(count, 2, -1, data.shape[1])
                data = halves.swapaxes(1, 2).reshape(data.shape)
        data = np.ascontiguousarray(data)
        stored = kind if data.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(
            f"{names.get_name(stem) or stem}.{suffix}",
            gguf.quants.quantize(data, stored),
            raw_dtype=stored,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
