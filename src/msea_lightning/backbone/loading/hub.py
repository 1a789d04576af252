"""Where checkpoints are: folders and the Hugging Face Hub, with errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TypeVar

import yaml
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from msea_lightning.backbone.errors import BackboneError, is_out_of_memory
from msea_lightning.backbone.loading.gguf import check_file, is_gguf
from msea_lightning.config.errors import first_line

Loaded = TypeVar("Loaded")

_REASONS: list[dict[str, str]] = yaml.safe_load(
    (resources.files(__package__) / "hub.yaml").read_text(encoding="utf-8")
)


def expanded(place: str | Path) -> str:
    """A place with the home folder written out, which transformers would take for a Hub id."""
    text = str(place)
    return str(Path(text).expanduser()) if text.startswith("~") else text


def find_file(place: str, name: str, *, offline: bool = False) -> Path | None:
    """A file of a checkpoint, fetched from the Hub unless ``offline``; None where it has none."""
    from transformers.utils.hub import cached_file

    if Path(place).exists():
        file = Path(place, name)
        return file if file.is_file() else None
    found = cached_file(
        place,
        name,
        local_files_only=offline,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def hub_commit(place: str | None) -> str | None:
    """Commit of a Hub id's files, as they lie in the cache; None of any other place."""
    if not place or Path(place).exists():
        return None
    try:
        file = try_to_load_from_cache(place, "config.json")
    except HFValidationError:
        return None
    return Path(file).parent.name if isinstance(file, str) else None


def explained(place: str, load: Callable[[], Loaded]) -> Loaded:
    """Runs a loader of transformers; its errors become BackboneErrors that say what to do."""
    if not is_gguf(place):  # gguf.py checks the file
        _check_folder(place)
    try:
        return load()
    except BackboneError:
        raise
    except Exception as error:  # what a damaged file raises is not documented
        raise BackboneError(_reason(place, error)) from error


def check_place(path: str | Path) -> None:
    """Refuses a place without a checkpoint; of a Hub id ``config.json`` is fetched, nothing else.

    Raises:
        BackboneError: saying what is missing and what to do.
    """
    place = expanded(path)
    if is_gguf(place):
        check_file(place)
        return
    _check_folder(place)
    if Path(place).exists():
        return
    try:
        hf_hub_download(place, "config.json")
    except Exception as error:  # as many kinds as there are ways to be out of reach
        raise BackboneError(_reason(place, error)) from error


def _check_folder(place: str) -> None:
    """Refuses a local path that is no folder with a checkpoint."""
    folder = Path(place)
    if folder.is_file():
        raise BackboneError(
            f"{place} is a file; give the folder that holds it, the other files of the checkpoint "
            "and its config.json as backbone.path."
        )
    looks_local = place.startswith(("/", "./", "../")) or place.count("/") > 1
    if looks_local and not folder.exists():
        raise BackboneError(
            f"There is no folder {place}. Put the checkpoint there (config.json, the weights and "
            "the tokenizer), or give a Hub id such as meta-llama/Llama-2-7b-hf as backbone.path."
        )
    files = ("*.json", "*.model", "*.tiktoken")
    if folder.is_dir() and not any(path for kind in files for path in folder.glob(kind)):
        raise BackboneError(
            f"The folder {place} holds no checkpoint: config.json is missing. Give the folder that "
            "has it as backbone.path."
        )


def _reason(place: str, error: Exception) -> str:
    """What an error of a loader means, judged by the errors that caused it too."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    if any(is_out_of_memory(cause) for cause in causes):
        return (
            f"The machine ran out of memory while {place} was loaded ({first_line(error)}). Free "
            "some, or store the backbone in fewer bits (backbone.quantization=int8 or nf4)."
        )
    said = " ".join(f"{type(cause).__name__} {cause}" for cause in causes)
    for entry in _REASONS:
        if re.search(entry["signs"], said, re.IGNORECASE):
            return entry["meaning"].format(place=place, reason=first_line(error))
    return (
        f"The language model {place} could not be loaded ({type(error).__name__}: "
        f"{first_line(error)}). A file of it may be damaged, not complete, or a pointer of Git LFS "
        "in place of the file: download it again. If its tokenizer alone cannot be read, give a "
        "folder with tokenizer.json in backbone.tokenizer."
    )
