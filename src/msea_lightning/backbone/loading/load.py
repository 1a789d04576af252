"""Loading a causal language model and its tokenizer; no code from a checkpoint ever runs."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from msea_lightning.backbone.embeddings_only import EmbeddingsOnly
from msea_lightning.backbone.errors import BackboneError
from msea_lightning.backbone.frozen import FrozenBackbone, freeze
from msea_lightning.backbone.loading.gguf import gguf_config, gguf_weights, is_gguf
from msea_lightning.backbone.loading.hub import expanded, explained
from msea_lightning.backbone.loading.memory import Stored, check_memory
from msea_lightning.backbone.loading.original import (
    IGNORED_WEIGHTS,
    native_config,
    original_family,
    original_weights,
)
from msea_lightning.backbone.loading.spread import Spread
from msea_lightning.backbone.loading.tokenizers import (
    add_special_tokens,
    has_tokenizer,
    load_tokenizer,
)
from msea_lightning.backbone.options import Accelerator, Attention, Dtype, Quantization, Weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Choice = TypeVar("Choice", Attention, Dtype, Quantization, Weights)

_log = logging.getLogger(__name__)

_LAYER = r"\.\d+\."
"""The number of a layer in the name of a weight."""

# They warn for every layer of every step, of an optional kernel, of weights left on the disk.
for _noisy in (
    "bitsandbytes.autograd._functions",
    "bitsandbytes.backends.cpu.ops",
    "accelerate.big_modeling",
):
    logging.getLogger(_noisy).setLevel(logging.ERROR)


def tiny_backbone() -> Path:
    """Folder of the language model that ships with the project."""
    return Path(__file__).parents[1] / "assets" / "tiny"


def resolve_device(accelerator: Accelerator) -> torch.device:
    """The device of this process; with several GPUs, the one of its local rank."""
    if accelerator is not Accelerator.cpu and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if accelerator is Accelerator.gpu:
        raise BackboneError(
            "accelerator=gpu, but PyTorch sees no GPU: set that option to cpu or auto, or install "
            "a PyTorch build for your GPU."
        )
    return torch.device("cpu")


def load_backbone(
    path: str | Path | None,
    *,
    tokenizer: str | None = None,
    weights: Weights | str = Weights.pretrained,
    architecture: Mapping[str, Any] | None = None,
    pad_token: str | None = None,
    special_tokens: Sequence[str] = (),
    embeddings_only: bool = False,
    **options: Any,
) -> FrozenBackbone:
    """Loads a language model with its tokenizer as a frozen backbone.

    Args:
        path: Hub id, folder or ``.gguf`` file; None takes the model that ships with the project.
        tokenizer: Hub id or folder of the tokenizer, where it is not in ``path``.
        weights: See :func:`load_language_model`.
        architecture: See :func:`load_language_model`.
        pad_token: Token that fills up sequences.
        special_tokens: Those that a tokenizer which stands in (:func:`backbone_tokenizer`) gets.
        embeddings_only: Keep nothing of the model in memory but its input embeddings; see
            :class:`EmbeddingsOnly`.
        **options: Further options of :func:`load_language_model`.

    Raises:
        BackboneError: for a model or tokenizer that cannot be loaded, or cannot serve.
    """
    place = backbone_place(path)
    # First, because its errors say best what is wrong with the place.
    backbone_config(place, weights=weights, architecture=architecture)
    loaded_tokenizer = backbone_tokenizer(
        path,
        tokenizer=tokenizer,
        weights=weights,
        special_tokens=[*special_tokens, *([pad_token] if pad_token else [])],
    )
    language_model = load_language_model(
        place, weights=weights, architecture=architecture, **options
    )
    kind = EmbeddingsOnly if embeddings_only else FrozenBackbone
    return kind(language_model, loaded_tokenizer, pad_token=pad_token)


def backbone_place(path: str | Path | None) -> str:
    """Hub id, folder or file of a language model; the folder of the built-in one for None."""
    return expanded(tiny_backbone() if path is None else path)


def backbone_tokenizer(
    path: str | Path | None,
    *,
    tokenizer: str | None = None,
    weights: Weights | str = Weights.pretrained,
    special_tokens: Sequence[str] = (),
) -> PreTrainedTokenizerBase:
    """The tokenizer of a language model, from ``path`` where ``tokenizer`` names no other place.

    With random weights, which are for measuring, that of the built-in language model stands in for
    one that is not on this machine, with the special tokens of layout and padding added.
    """
    place = expanded(tokenizer or backbone_place(path))
    random = _choice(Weights, weights) is Weights.random
    if tokenizer is None and random and not has_tokenizer(place):
        _log.warning(
            "random weights: the tokenizer of the built-in backbone stands in for that of %s, "
            "which is not on this machine; backbone.tokenizer=%s fetches it",
            place,
            place,
        )
        stand_in = load_tokenizer(str(tiny_backbone()))
        add_special_tokens(stand_in, special_tokens)
        return stand_in
    return load_tokenizer(place)


def load_language_model(
    path_or_name: str | Path,
    *,
    weights: Weights | str = Weights.pretrained,
    architecture: Mapping[str, Any] | None = None,
    quantization: Quantization | str = Quantization.none,
    double_quantization: bool = True,
    dtype: Dtype | str | torch.dtype = Dtype.auto,
    attention: Attention | str = Attention.auto,
    device: torch.device | str = "cpu",
    spread: Spread | None = None,
    offload_folder: str | Path | None = None,
    check_fit: bool = True,
) -> PreTrainedModel:
    """Loads a causal language model of transformers, frozen and in evaluation mode.

    ChatGLM3 becomes a ``GlmForCausalLM`` and the first Qwen a ``Qwen2ForCausalLM``, from the
    checkpoints as they are published; anything else is the class that transformers has for it.
    Weights may be safetensors or ``.bin`` files, in one piece or several, in any dtype, or a
    ``.gguf`` file. The model is that of transformers as it is: it reads sequences of any length,
    where :class:`FrozenBackbone` refuses those beyond the trained length.

    Args:
        path_or_name: Hub id, folder or ``.gguf`` file.
        weights: Pretrained, or random for measuring.
        architecture: With random weights: fields of the transformers config, ``model_type``
            among them; those of ``path_or_name`` where not given.
        quantization: Storage of the linear layers.
        double_quantization: With nf4: whether the scales are quantised too.
        dtype: Compute dtype; ``auto`` is bfloat16 on a GPU and float32 on a CPU.
        attention: Implementation of the attention; ``auto`` is sdpa where the architecture has it,
            else eager.
        device: Where to put it.
        spread: Where to put its layers instead (:func:`~.spread.plan_spread`), on devices, in
            memory and on disk. accelerate's hooks are on the model then. Not with random weights or
            a ``.gguf`` file.
        offload_folder: For weights on disk that no safetensors file holds as they are used.
        check_fit: Refuse a model whose weights do not fit into the memory that is free.

    Raises:
        BackboneError: no such model, no access, an architecture that transformers does not know,
            or not enough memory.
    """
    from transformers import BitsAndBytesConfig

    quantization = _choice(Quantization, quantization)
    device = torch.device(device)
    torch_dtype = compute_dtype(dtype, device)
    weights, path_or_name = _choice(Weights, weights), expanded(path_or_name)
    config = backbone_config(path_or_name, weights=weights, architecture=architecture)
    attention = resolve_attention(config, _choice(Attention, attention))
    if attention is Attention.flash_attention_2:
        _check_flash_attention(device, torch_dtype)
    if quantization is Quantization.int8 and torch_dtype is not torch.float16:
        _log.info("int8: the inputs of linear layers are rounded to float16")
    if check_fit and spread is None:
        # Weights of a GGUF file are dense before they are quantised, as random ones are.
        source = Weights.random if is_gguf(path_or_name) else weights
        stored = Stored(torch_dtype, quantization, double_quantization, source)
        check_memory(config, stored, device)
    options: dict[str, Any] = {"dtype": torch_dtype, "attn_implementation": attention.value}
    if quantization is not Quantization.none:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=quantization is Quantization.int8,
            load_in_4bit=quantization is Quantization.nf4,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double_quantization,
            bnb_4bit_compute_dtype=torch_dtype,
        )
        options["device_map"] = {"": str(device)}
    if spread is not None:
        options |= {"device_map": dict(spread.places), "offload_folder": offload_folder}
    # The built-in one is there before a bar could be read.
    with _quiet(bars=path_or_name != backbone_place(None)):
        if weights is Weights.random:
            model = explained(path_or_name, lambda: _random(config, device, options))
        else:
            model = explained(path_or_name, lambda: _pretrained(path_or_name, config, options))
    if quantization is Quantization.none and spread is None:
        model.to(device)
    freeze(model)
    loaded: PreTrainedModel = model
    return loaded


def backbone_config(
    path_or_name: str | Path,
    *,
    weights: Weights | str = Weights.pretrained,
    architecture: Mapping[str, Any] | None = None,
) -> PretrainedConfig:
    """The config that :func:`load_language_model` builds from; it takes the same arguments."""
    from transformers import AutoModelForCausalLM

    if _choice(Weights, weights) is Weights.random and architecture:
        what, config = "backbone.architecture", _described_config(architecture)
    else:
        what = expanded(path_or_name)
        config = explained(what, lambda: _stored_config(what))
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise BackboneError(
            f"{what} is a {config.model_type!r} model, which transformers knows, but not "
            "as a causal language model; an MSE-Adapter needs one that writes text."
        )
    return config


def _described_config(architecture: Mapping[str, Any]) -> PretrainedConfig:
    from transformers import AutoConfig

    if "model_type" not in architecture:
        raise BackboneError(
            f"backbone.architecture names {', '.join(architecture)}, but no model_type: add one "
            "that transformers knows, such as llama."
        )
    try:
        return AutoConfig.for_model(**architecture)
    except Exception as error:  # each config has checks of its own
        raise BackboneError(
            f"backbone.architecture is not a config of transformers: "
            f"{' '.join(str(error).split())} Correct its fields."
        ) from error


def _stored_config(place: str) -> PretrainedConfig:
    """The config of a checkpoint; of one in an original format, the native config."""
    from transformers import AutoConfig, PretrainedConfig

    if is_gguf(place):
        return gguf_config(place)
    fields = dict(PretrainedConfig.get_config_dict(place)[0])
    if fields.get("quantization_config"):
        raise BackboneError(
            f"The weights of {place} are stored quantised already, as its config.json says. Give "
            "the checkpoint in full precision as backbone.path, and quantise it with "
            "backbone.quantization."
        )
    if original_family(fields) is not None:
        return native_config(place, fields)
    config: PretrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=False)
    return config


def _random(config: PretrainedConfig, device: torch.device, options: dict[str, Any]) -> Any:
    """A model with random weights, the same in every process and run."""
    from transformers import AutoModelForCausalLM

    dense = {name: options[name] for name in ("dtype", "attn_implementation")}
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, **dense)
    quantized = "quantization_config" in options
    return _from_weights(config, options, model.state_dict())[0] if quantized else model


def _pretrained(place: str, config: PretrainedConfig, options: dict[str, Any]) -> Any:
    """Loads weights, and refuses a checkpoint that does not hold exactly those of the model."""
    from transformers import PretrainedConfig

    family = None
    if is_gguf(place):
        unpacked = gguf_weights(place, config, options["dtype"])
        model, found = _from_weights(config, options, unpacked)
    else:
        family = original_family(PretrainedConfig.get_config_dict(place)[0])
        with nullcontext() if family is None else original_weights(family):
            model, found = _from_weights(config, options, place)
    surplus = set(found["unexpected_keys"]) - IGNORED_WEIGHTS
    if family is None:
        # Such as a part that only other tasks have; but never a layer more than the model has.
        own = {re.sub(_LAYER, ".", name) for name in model.state_dict()}
        surplus = {name for name in surplus if re.sub(_LAYER, ".", name) in own}
    flaws = {
        "lacks": sorted(found["missing_keys"]),
        "holds in another shape": sorted(
            f"{name} {tuple(stored)} for {tuple(needed)}"
            for name, stored, needed in found["mismatched_keys"]
        ),
        "holds beyond the model's own": sorted(surplus),
        "failed to convert": sorted(map(str, found.get("error_msgs", []))),
    }
    for what, names in flaws.items():
        if names:
            raise BackboneError(
                f"The checkpoint {place} {what}: {', '.join(names[:3])}"
                f"{f' and {len(names) - 3} more' if len(names) > 3 else ''}. Its weight files and "
                "its config.json are not of one model, or incomplete: download it again."
            )
    if family is not None:
        # Else saving the model would write the original's names beside the native config.
        model._weight_conversions = None
    return model


def _from_weights(
    config: PretrainedConfig, options: dict[str, Any], source: str | Mapping[str, Tensor]
) -> tuple[Any, Any]:
    """A model from the weights of a checkpoint or in memory, and what did not fit."""
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
    if kind.config_class is config.sub_configs.get("text_config"):
        config = config.get_text_config()  # of a model that also sees; its text part is loaded
    built: tuple[Any, Any] = kind.from_pretrained(
        source if isinstance(source, str) else None,
        config=config,
        state_dict=None if isinstance(source, str) else source,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused by the caller, with their names
        **options,
    )
    return built


@contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """Silences what does not concern the user, or is raised as an error here."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if not (bars and sys.stderr.isatty()):
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


def _choice(kind: type[Choice], value: Choice | str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        raise BackboneError(
            f"{kind.__name__.lower()}={value} is none of {', '.join(item.value for item in kind)}."
        ) from None


def compute_dtype(dtype: Dtype | str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that is asked for; ``auto`` is bfloat16 on a GPU and float32 on a CPU."""
    if isinstance(dtype, torch.dtype):
        return dtype
    chosen = _choice(Dtype, dtype)
    automatic = Dtype.bfloat16 if device.type == "cuda" else Dtype.float32
    found: torch.dtype = getattr(torch, (automatic if chosen is Dtype.auto else chosen).value)
    return found


def resolve_attention(config: PretrainedConfig, attention: Attention) -> Attention:
    """What ``auto`` stands for: PyTorch's fused attention where the architecture takes it."""
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
    takes_sdpa = kind._supports_sdpa
    if attention is Attention.auto:
        return Attention.sdpa if takes_sdpa else Attention.eager
    if attention is Attention.sdpa and not takes_sdpa:
        raise BackboneError(
            f"backbone.attention=sdpa: transformers has no such attention for {config.model_type} "
            "backbones; use backbone.attention=eager, or auto."
        )
    return attention


def _check_flash_attention(device: torch.device, dtype: torch.dtype) -> None:
    """Refuses flash attention where it cannot run, naming all that is missing."""
    found = []
    if find_spec("flash_attn") is None:
        # transformers would fetch compiled code from the Hub and run it.
        found.append("the package flash-attn is not installed (pip install flash-attn)")
    if device.type != "cuda":
        found.append(f"the device is {device}, not a GPU (trainer.accelerator=gpu)")
    if dtype is torch.float32:
        found.append("the compute dtype is torch.float32 (backbone.dtype=bfloat16)")
    if found:
        raise BackboneError(
            f"backbone.attention=flash_attention_2 is not possible: {'; '.join(found)}. "
            "backbone.attention=auto works everywhere."
        )
