"""Where checkpoints are: folders and the Hugging Face Hub, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from msea_lightning.backbone.errors import BackboneError, is_out_of_memory
from msea_lightning.backbone.loading.gguf import is_gguf

Loaded = TypeVar("Loaded")


def expanded(place: str | Path) -> str:
    """A place with the home folder written out, which transformers would take for a Hub id."""
    text = str(place)
    return str(Path(text).expanduser()) if text.startswith("~") else text


def find_file(place: str, name: str, *, offline: bool = False) -> Path | None:
    """A file of a checkpoint, fetched from the Hub where it is not on this machine yet.

    Args:
        place: Hub id or folder.
        name: Name of the file.
        offline: Look at this machine only: folders and what was fetched before.

    Returns:
        Its path; None where the checkpoint has no such file.
    """
    from transformers.utils.hub import cached_file

    folder = Path(place)
    if folder.exists():
        return folder / name if (folder / name).is_file() else None
    found = cached_file(
        place,
        name,
        local_files_only=offline,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def explained(place: str, load: Callable[[], Loaded]) -> Loaded:
    """Runs a loader of transformers; its errors become ones that say what to do.

    Args:
        place: Hub id or folder that it loads from.
        load: The loader.

    Raises:
        BackboneError: what is wrong with the place, or with what lies there.
    """
    looks_local = place.startswith(("/", "./", "../")) or place.count("/") > 1
    folder = Path(place)
    if is_gguf(place):
        looks_local = False  # gguf.py checks the file
    elif folder.is_file():
        raise BackboneError(
            f"{place} is a file; give the folder that holds it, the other files of the checkpoint "
            "and its config.json as backbone.path."
        )
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
    try:
        return load()
    except BackboneError:
        raise
    except Exception as error:  # what a damaged file raises is not documented
        raise BackboneError(_reason(place, error)) from error


def _reason(place: str, error: Exception) -> str:
    causes = _chain(error)
    names = {type(cause).__name__ for cause in causes}
    text = " ".join(str(cause) for cause in causes).lower()
    first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if names & {"GatedRepoError"} or "gated repo" in text:
        return (
            f"No access to {place}: its authors ask for consent first. Accept the licence on the "
            "model's page of the Hugging Face Hub, then run `hf auth login`; or download the files "
            "elsewhere and give their folder as backbone.path."
        )
    if names & {"RepositoryNotFoundError"}:
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
    if any(is_out_of_memory(cause) for cause in causes):
        return (
            f"The machine ran out of memory while {place} was loaded ({first_line}). Free some, "
            "or store the backbone in fewer bits (backbone.quantization=int8 or nf4)."
        )
    if "does not recognize this architecture" in text or "model type" in text:
        return (
            f"The installed transformers does not know the architecture of {place}: {first_line} "
            "A newer transformers may."
        )
    offline = "couldn't connect" in text or "offline mode" in text
    if offline or names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError"}:
        return (
            f"{place} is not on this machine and the Hugging Face Hub cannot be reached. Download "
            f"it where there is a network (`hf download {place}`), and give the folder as "
            "backbone.path."
        )
    if names & {"UnpicklingError"} or "weights_only" in text:
        return (
            f"A weight file of {place} is damaged, or holds Python objects besides tensors, which "
            "are never executed. Download it again, or give a copy in the safetensors format as "
            "backbone.path."
        )
    return (
        f"The language model {place} could not be loaded ({type(error).__name__}: {first_line}). A "
        "file of it may be damaged, not complete, or a pointer of Git LFS in place of the file: "
        "download it again, and give the folder with its config.json as backbone.path."
    )


def _chain(error: BaseException) -> list[BaseException]:
    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in causes:
        causes.append(current)
        current = current.__cause__ or current.__context__
    return causes
