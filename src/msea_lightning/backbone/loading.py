"""Loading a causal language model and its tokenizer, with errors that say what to do.

Nothing here runs code from a checkpoint: only architectures that transformers itself implements.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from msea_lightning.backbone.frozen import BackboneError, FrozenBackbone, keep_4bit_layout
from msea_lightning.backbone.memory import check_memory
from msea_lightning.config import Accelerator, Dtype, Quantization, Weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

_RANDOM_SEED = 0
"""Random weights are the same in every process and run."""


def tiny_backbone() -> Path:
    """Folder of the language model that ships with the project."""
    return Path(str(resources.files("msea_lightning.backbone") / "assets" / "tiny"))


def resolve_device(accelerator: Accelerator) -> torch.device:
    """The device of this process; with several GPUs, the one of its local rank.

    Raises:
        BackboneError: if a GPU is asked for and there is none.
    """
    if accelerator is Accelerator.cpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if accelerator is Accelerator.gpu:
        raise BackboneError(
            "trainer.accelerator=gpu, but PyTorch sees no GPU: use trainer.accelerator=cpu, or "
            "install a PyTorch build for your GPU."
        )
    return torch.device("cpu")


def load_backbone(
    path: str | None,
    *,
    tokenizer: str | None = None,
    weights: Weights = Weights.pretrained,
    architecture: dict[str, Any] | None = None,
    quantization: Quantization = Quantization.none,
    dtype: Dtype = Dtype.auto,
    pad_token: str | None = None,
    device: torch.device | str = "cpu",
    check_fit: bool = True,
) -> FrozenBackbone:
    """Loads a language model with its tokenizer as a frozen backbone.

    Args:
        path: Hub id or local folder; None takes the model that ships with the project.
        tokenizer: Hub id or folder of the tokenizer, where it is not in ``path``.
        weights: Pretrained, or random for measuring.
        architecture: With random weights: fields of the transformers config, ``model_type``
            among them; those of ``path`` where not given.
        quantization: Storage of the linear layers.
        dtype: Compute dtype; ``auto`` is bfloat16 on a GPU and float32 on a CPU.
        pad_token: Token that fills up sequences.
        device: Where to put it.
        check_fit: Refuse a model that does not fit into the memory that is free.

    Raises:
        BackboneError: no such model, no access, an architecture that transformers does not know,
            not enough memory, or a model or tokenizer that cannot serve as a backbone.
    """
    place = str(tiny_backbone()) if path is None else path
    language_model = load_language_model(
        place,
        weights=weights,
        architecture=architecture,
        quantization=quantization,
        dtype=dtype,
        device=device,
        check_fit=check_fit,
    )
    if tokenizer is None and weights is Weights.random and not _is_local(place):
        # Random weights are for measuring, which any vocabulary serves.
        tokenizer = str(tiny_backbone())
        _log.warning(
            "Random weights: using the tokenizer of the built-in backbone; set backbone.tokenizer "
            "for %s's own.",
            place,
        )
    return FrozenBackbone(language_model, load_tokenizer(tokenizer or place), pad_token=pad_token)


def load_language_model(
    path_or_name: str,
    *,
    weights: Weights = Weights.pretrained,
    architecture: dict[str, Any] | None = None,
    quantization: Quantization | str = Quantization.none,
    dtype: Dtype | str = Dtype.auto,
    device: torch.device | str = "cpu",
    check_fit: bool = True,
) -> PreTrainedModel:
    """Loads a causal language model of transformers, frozen and in evaluation mode.

    Arguments and errors are those of :func:`load_backbone`.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        # A bar in a file or a pipe is no progress, but noise.
        transformers_logging.disable_progress_bar()
    quantization, device = Quantization(quantization), torch.device(device)
    torch_dtype = _torch_dtype(Dtype(dtype), device)
    config = (
        _random_config(path_or_name, architecture)
        if weights is Weights.random
        else load_config(path_or_name)
    )
    if check_fit:
        random = weights is Weights.random
        check_memory(config, torch_dtype, quantization, device, dense_first=random)
    options: dict[str, Any] = {"dtype": torch_dtype}
    if quantization is not Quantization.none:
        options["quantization_config"] = _quantization_config(quantization, torch_dtype)
        options["device_map"] = {"": str(device)}
    if weights is Weights.random:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(_RANDOM_SEED)
            model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype)
        if quantization is not Quantization.none:
            model = type(model).from_pretrained(
                None, config=config, state_dict=model.state_dict(), **options
            )
    else:
        model = _explained(
            path_or_name, lambda: AutoModelForCausalLM.from_pretrained(path_or_name, **options)
        )
    if quantization is Quantization.none:
        model.to(device)
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    keep_4bit_layout(loaded)
    return loaded


def load_config(path_or_name: str) -> PretrainedConfig:
    """The config of a checkpoint.

    Raises:
        BackboneError: see :func:`load_backbone`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config: PretrainedConfig = _explained(
        path_or_name, lambda: AutoConfig.from_pretrained(path_or_name, trust_remote_code=False)
    )
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise BackboneError(
            f"{path_or_name} is a {config.model_type!r} model, which transformers knows, but not "
            "as a causal language model; an MSE-Adapter needs one that writes text."
        )
    return config


def load_tokenizer(path_or_name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    A folder with a LLaMA ``tokenizer.model`` and no ``tokenizer.json`` is converted piece by
    piece, because transformers 5 builds another tokenizer from it: texts with leading, doubled or
    trailing spaces would get other ids.

    Raises:
        BackboneError: if there is none, or it has no vocabulary.
    """
    from transformers import AutoTokenizer

    from msea_lightning.backbone.sentencepiece import from_sentencepiece

    folder = Path(path_or_name).expanduser()
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        return from_sentencepiece(folder / "tokenizer.model")
    tokenizer: PreTrainedTokenizerBase = _explained(
        path_or_name,
        lambda: AutoTokenizer.from_pretrained(path_or_name, trust_remote_code=False),
    )
    if len(tokenizer) < 2 or not tokenizer("a 1", add_special_tokens=False)["input_ids"]:
        raise BackboneError(
            f"The tokenizer of {path_or_name} has a vocabulary of {len(tokenizer)} and writes "
            "nothing: its files are missing or in a format that transformers does not read. Give "
            "a folder with tokenizer.json in backbone.tokenizer."
        )
    return tokenizer


def _is_local(place: str) -> bool:
    return Path(place).expanduser().exists()


def _torch_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    if dtype is Dtype.auto:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    chosen: torch.dtype = getattr(torch, dtype.value)
    return chosen


def _quantization_config(quantization: Quantization, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if quantization is Quantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _random_config(path_or_name: str, architecture: dict[str, Any] | None) -> PretrainedConfig:
    from transformers import AutoConfig

    if not architecture:
        return load_config(path_or_name)
    fields = dict(architecture)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise BackboneError(
            f"backbone.architecture names {', '.join(fields)}, but no model_type: add one that "
            "transformers knows, such as llama."
        )
    try:
        config: PretrainedConfig = AutoConfig.for_model(model_type, **fields)
    except (ValueError, TypeError) as error:
        raise BackboneError(
            f"backbone.architecture is not a config of transformers: {error}"
        ) from error
    return config


def _explained(place: str, load: Any) -> Any:
    """Runs a loader of transformers and turns its errors into ones that say what to do."""
    looks_local = place.startswith(("/", "./", "../", "~")) or place.count("/") > 1
    folder = Path(place).expanduser()
    if looks_local and not folder.exists():
        raise BackboneError(
            f"There is no folder {place}. Put the checkpoint there (config.json, the weights and "
            "the tokenizer), or give a Hub id such as meta-llama/Llama-2-7b-hf as backbone.path."
        )
    if folder.is_dir() and not any(folder.glob("*.json")) and not any(folder.glob("*.model")):
        raise BackboneError(
            f"The folder {place} holds no checkpoint: config.json is missing. Give the folder that "
            "has it as backbone.path."
        )
    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BackboneError(_reason(place, error)) from error


def _reason(place: str, error: Exception) -> str:
    causes = _chain(error)
    names = {type(cause).__name__ for cause in causes}
    text = " ".join(str(cause) for cause in causes)
    first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if "GatedRepoError" in names or "gated repo" in text:
        return (
            f"No access to {place}: its authors ask for consent first. Accept the licence on the "
            "model's page of the Hugging Face Hub, then run `hf auth login`; or download the files "
            "elsewhere and give their folder as backbone.path."
        )
    if "RepositoryNotFoundError" in names:
        return (
            f"There is no model {place} on the Hugging Face Hub, or your account may not see it. "
            "Check backbone.path for a misspelling; for a private model run `hf auth login` first."
        )
    if "custom code" in text or "trust_remote_code" in text:
        return (
            f"The checkpoint {place} brings its own Python code, which is never run: only "
            "architectures that transformers implements can be a backbone. Give a checkpoint in "
            "a native format as backbone.path."
        )
    if "does not recognize this architecture" in text or "model type" in text.lower():
        return (
            f"The installed transformers does not know the architecture of {place}: {first_line} "
            "A newer transformers may."
        )
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError"} or (
        "couldn't connect" in text or "offline mode" in text
    ):
        return (
            f"{place} is not on this machine and the Hugging Face Hub cannot be reached. Download "
            f"it where there is a network (`hf download {place}`), and give the folder as "
            "backbone.path."
        )
    return f"The language model {place} could not be loaded: {first_line}"


def _chain(error: BaseException) -> list[BaseException]:
    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in causes:
        causes.append(current)
        current = current.__cause__ or current.__context__
    return causes
