"""Small checkpoints in the formats in which the paper's language models are published."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
from torch import Tensor

from tests import places

VECTORS = places.VECTORS / "backbones"

CHATGLM3_6B: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    },
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 8192,
    "torch_dtype": "float16",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""``config.json`` of ChatGLM3-6B, as far as it concerns the architecture."""

QWEN_1_8B: dict[str, Any] = {
    "model_type": "qwen",
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-06,
    "no_bias": True,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "seq_length": 8192,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "vocab_size": 151936,
}
"""``config.json`` of Qwen-1.8B, as far as it concerns the architecture."""

LLAMA2_7B: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""``config.json`` of LLaMA2-7B."""

SMALL: dict[str, dict[str, Any]] = {
    "chatglm3": {
        **CHATGLM3_6B,
        "ffn_hidden_size": 48,
        "hidden_size": 32,
        "kv_channels": 8,
        "num_attention_heads": 4,
        "num_layers": 2,
        "padded_vocab_size": 65024,
    },
    "qwen": {
        **QWEN_1_8B,
        "hidden_size": 32,
        "intermediate_size": 96,
        "kv_channels": 8,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    },
    "llama2": {
        **LLAMA2_7B,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
    },
}
"""The same architectures, small; vocabularies in full, for the real tokenizers."""

WORDS = [
    "The sentiment is +0.4 and the emotion is neutral, or was it -1.3?",
    "Please recognize the emotion of the above multimodal content: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    "I'll be there for you   when the rain  starts to pour",
    "请选择适用于上述多模态内容的情绪标签: 愤怒, 厌恶, 恐惧, 高兴, 平静, 悲伤, 惊奇。助手:",
]
"""What the small vocabularies are made from."""


def original_shapes(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights of a published checkpoint, from its ``config.json``."""
    width = fields["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    if fields["model_type"] == "chatglm":
        vocabulary, inner = fields["padded_vocab_size"], fields["ffn_hidden_size"]
        head, groups = fields["kv_channels"], fields["multi_query_group_num"]
        queries = head * fields["num_attention_heads"]
        fused = queries + 2 * head * groups
        shapes["transformer.embedding.word_embeddings.weight"] = (vocabulary, width)
        shapes["transformer.rotary_pos_emb.inv_freq"] = (head // 4,)
        for layer in range(fields["num_layers"]):
            at = f"transformer.encoder.layers.{layer}"
            shapes |= {
                f"{at}.input_layernorm.weight": (width,),
                f"{at}.self_attention.query_key_value.weight": (fused, width),
                f"{at}.self_attention.query_key_value.bias": (fused,),
                f"{at}.self_attention.dense.weight": (width, queries),
                f"{at}.post_attention_layernorm.weight": (width,),
                f"{at}.mlp.dense_h_to_4h.weight": (2 * inner, width),
                f"{at}.mlp.dense_4h_to_h.weight": (width, inner),
            }
        shapes["transformer.encoder.final_layernorm.weight"] = (width,)
        shapes["transformer.output_layer.weight"] = (vocabulary, width)
    elif fields["model_type"] == "qwen":
        vocabulary, inner = fields["vocab_size"], fields["intermediate_size"] // 2
        shapes["transformer.wte.weight"] = (vocabulary, width)
        for layer in range(fields["num_hidden_layers"]):
            at = f"transformer.h.{layer}"
            shapes |= {
                f"{at}.ln_1.weight": (width,),
                f"{at}.attn.c_attn.weight": (3 * width, width),
                f"{at}.attn.c_attn.bias": (3 * width,),
                f"{at}.attn.c_proj.weight": (width, width),
                f"{at}.ln_2.weight": (width,),
                f"{at}.mlp.w1.weight": (inner, width),
                f"{at}.mlp.w2.weight": (inner, width),
                f"{at}.mlp.c_proj.weight": (width, inner),
            }
        shapes["transformer.ln_f.weight"] = (width,)
        shapes["lm_head.weight"] = (vocabulary, width)
    else:
        vocabulary, inner = fields["vocab_size"], fields["intermediate_size"]
        shapes["model.embed_tokens.weight"] = (vocabulary, width)
        for layer in range(fields["num_hidden_layers"]):
            at = f"model.layers.{layer}"
            shapes |= {f"{at}.self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
            shapes |= {
                f"{at}.mlp.gate_proj.weight": (inner, width),
                f"{at}.mlp.up_proj.weight": (inner, width),
                f"{at}.mlp.down_proj.weight": (width, inner),
                f"{at}.input_layernorm.weight": (width,),
                f"{at}.post_attention_layernorm.weight": (width,),
                # a buffer that the published checkpoint holds all the same
                f"{at}.self_attn.rotary_emb.inv_freq": (
                    width // fields["num_attention_heads"] // 2,
                ),
            }
        shapes["model.norm.weight"] = (width,)
        shapes["lm_head.weight"] = (vocabulary, width)
    return shapes


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Float16 weights that keep activations in range."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        if "norm" in name or "ln_" in name or name.endswith("inv_freq"):
            weights[name] = torch.ones(shape, dtype=torch.float16)
        else:
            weights[name] = (0.2 * torch.randn(shape, generator=generator)).half()
    return weights


def write_weights(
    folder: Path, weights: Mapping[str, Tensor], *, form: str = "safetensors", shards: int = 2
) -> None:
    """Writes weights as they are published: in shards with an index, or in one file.

    Args:
        folder: Where to.
        weights: Tensors by their original names.
        form: ``safetensors`` or ``bin``.
        shards: Number of files.
    """
    stem, index = (
        ("model", "model.safetensors.index.json")
        if form == "safetensors"
        else ("pytorch_model", "pytorch_model.bin.index.json")
    )
    names = list(weights)
    files = {}
    for shard in range(shards):
        part = {name: weights[name].contiguous() for name in names[shard::shards]}
        number = f"-{shard + 1:05d}-of-{shards:05d}" if shards > 1 else ""
        file = f"{stem}{number}.{form}"
        if form == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
        files |= dict.fromkeys(part, file)
    if shards > 1:
        size = sum(tensor.nbytes for tensor in weights.values())
        text = json.dumps({"metadata": {"total_size": size}, "weight_map": files})
        (folder / index).write_text(text)


def write_sentencepiece(folder: Path, **options: Any) -> Path:
    """Trains a small ``tokenizer.model`` with the settings of LLaMA and ChatGLM3.

    Args:
        folder: Where to.
        **options: Other settings of the trainer.
    """
    settings = {
        "model_type": "bpe",
        "vocab_size": 380,
        "hard_vocab_limit": False,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
        "character_coverage": 0.99,
    }
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20), model_writer=written, **settings | options
    )
    path = folder / "tokenizer.model"
    path.write_bytes(written.getvalue())
    return path


def rank_lines(*more: bytes) -> list[bytes]:
    """Lines of a small ``qwen.tiktoken``: all bytes, and more tokens."""
    tokens = [bytes([index]) for index in range(256)] + list(more)
    return [base64.b64encode(token) + f" {rank}".encode() for rank, token in enumerate(tokens)]


def write_ranks(folder: Path, lines: Sequence[bytes]) -> Path:
    """Writes a ``qwen.tiktoken`` and returns its folder."""
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def write_tokenizer(folder: Path, name: str) -> Path:
    """Writes a small tokenizer in the format of a backbone's and returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "qwen":
        return write_ranks(folder, rank_lines(b"Th", b"The", b" is"))
    write_sentencepiece(folder)
    return folder


def write_checkpoint(
    folder: Path,
    fields: Mapping[str, Any],
    *,
    tokenizer: Path | None = None,
    form: str = "safetensors",
    shards: int = 2,
) -> Path:
    """Writes a checkpoint in its published format, with traps in place of its Python code.

    The traps are the files that ``auto_map`` names; executed, they leave a file ``sprung``.

    Args:
        folder: Where to; made if needed.
        fields: Content of ``config.json``.
        tokenizer: Folder with the tokenizer's files.
        form: ``safetensors`` or ``bin``.
        shards: Number of weight files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(fields)))
    write_weights(folder, random_weights(original_shapes(fields)), form=form, shards=shards)
    for target in fields.get("auto_map", {}).values():
        module = folder / f"{target.partition('.')[0]}.py"
        module.write_text(f"open({str(folder / 'sprung')!r}, 'w').close()\n")
    if tokenizer is not None:
        for file in tokenizer.iterdir():
            shutil.copyfile(file, folder / file.name)
    return folder
