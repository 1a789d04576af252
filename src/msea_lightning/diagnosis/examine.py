"""What :mod:`msea_lightning.doctor` finds out: packages, devices, data sets, backbones, cells.

Every function looks at this machine alone: it opens no connection, loads no language model, and
changes nothing. What it finds is a plain dataclass, in which a ``remedy`` is the one line that gets
what is missing, and a ``flaw`` says what is wrong; both are empty where all is well.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import platform
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from msea_lightning import __version__
from msea_lightning.backbone.options import Accelerator, BackboneConfig
from msea_lightning.config.errors import UserError
from msea_lightning.data.options import DatasetConfig, Reader

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_PROJECT = "msea_lightning"

_OPTIONAL = (Requirement("flash-attn>=2"),)
"""What ``backbone.attention=flash_attention_2`` needs, and nothing else does."""

_MODULES = {
    "hydra-core": "hydra",
    "hydra-joblib-launcher": "hydra_plugins.hydra_joblib_launcher.joblib_launcher",
    "lightning": "lightning.pytorch",
    "protobuf": "google.protobuf",
    "pyyaml": "yaml",
}
"""Modules of distributions that have another name than theirs."""

GATED = ("google/", "meta-llama/")
"""Who asks for consent on the page of a model before it can be fetched."""

_SHAPE = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads"),
)
"""Fields of a config by which an architecture is known."""

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Package:
    """An installed or missing package.

    Attributes:
        name: Its name for pip; ``python`` is Python itself.
        version: The installed version; None where it is missing.
        needed: The versions that the project works with, such as ``>=2.6``.
        flaw: ``missing``, ``not in range``, or why it cannot be imported.
        remedy: The command that mends that.
        optional: Whether the project works without it.
    """

    name: str
    version: str | None
    needed: str
    flaw: str = ""
    remedy: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Device:
    """Something to compute on.

    Attributes:
        name: ``cpu``, or ``cuda:0`` and so on.
        model: What it is, such as the name of a GPU.
        total: Its memory in bytes.
        free: Bytes of it that are free.
        dtype: Dtype in which a backbone computes there unless ``backbone.dtype`` says otherwise.
        bfloat16: Whether it has bfloat16 in hardware; None where that is not known.
    """

    name: str
    model: str
    total: int
    free: int
    dtype: str
    bfloat16: bool | None = None


@dataclass(frozen=True)
class Disk:
    """A folder that grows, and the bytes that are free on its disk."""

    use: str
    folder: str
    free: int


@dataclass(frozen=True)
class Machine:
    """What the machine has.

    Attributes:
        devices: The CPU, and the GPUs that PyTorch sees.
        chosen: Name of the device that a run would take.
        flaw: Why a device cannot be used, though it is there or asked for.
        remedy: What mends that.
    """

    devices: list[Device]
    chosen: str
    flaw: str = ""
    remedy: str = ""

    @property
    def device(self) -> Device:
        """The device that a run would take."""
        return next(device for device in self.devices if device.name == self.chosen)


@dataclass(frozen=True)
class Place:
    """A choice of ``conf/dataset`` or ``conf/backbone``, and where it was found.

    Attributes:
        name: The choice.
        state: ``built in``; ``prepared`` (data set), ``found`` (data set) and ``complete``
            (backbone), which a run can use; ``incomplete``, ``missing``; or ``yours``, for choices
            that have no place of their own.
        place: Where it is.
        option: What a command needs to use it there; empty where it finds it by itself.
        flaw: What an incomplete one lacks.
        remedy: The line that gets what is missing.
    """

    name: str
    state: str
    place: str = ""
    option: str = ""
    flaw: str = ""
    remedy: str = ""

    @property
    def usable(self) -> bool:
        """Whether a run can use it as it is."""
        return self.state in ("built in", "prepared", "found", "complete")


# ---- packages ----------------------------------------------------------------------------------


def packages() -> list[Package]:
    """Python, the project, all packages that it requires, and the optional ones."""
    own = Package(_PROJECT, __version__, "")
    try:
        wanted = metadata.metadata(_PROJECT)["Requires-Python"]
        required = [Requirement(line) for line in metadata.requires(_PROJECT) or []]
    except metadata.PackageNotFoundError:
        flaw = "runs from its folder, not installed: what it needs is not known"
        return [replace(own, flaw=flaw, remedy="pip install -e .")]
    python = Package("python", platform.python_version(), wanted)
    if not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        remedy = f"install Python {wanted}, and the project into a new environment of it"
        python = replace(python, flaw="not in range", remedy=remedy)
    needs: dict[str, Requirement] = {
        canonicalize_name(need.name): need
        for need in [*required, *_OPTIONAL]
        if need.marker is None or need.marker.evaluate({"extra": ""})
    }
    found: dict[str, Package] = {}
    for name in needs:
        _examine_package(name, needs, found)
    return [python, own, *(found[name] for name in needs)]


def _examine_package(
    name: str, needs: Mapping[str, Requirement], found: dict[str, Package]
) -> Package:
    """Examines a package after those that it requires itself: a flaw of theirs is not its own."""
    if name in found:
        return found[name]
    need = needs[name]
    optional = need in _OPTIONAL
    wanted = str(need.specifier)
    install = f"pip install {shlex.quote(f'{need.name}{wanted}')}"
    if optional:
        install += " --no-build-isolation"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        found[name] = Package(need.name, None, wanted, "missing", install, optional)
        return found[name]
    found[name] = package = Package(need.name, version, wanted, optional=optional)
    flawed = [
        part
        for part in _required_by(name)
        if part in needs and _examine_package(part, needs, found).flaw
    ]
    if not need.specifier.contains(version, prereleases=True):
        # Not imported: some releases are excluded because importing them does harm.
        package = replace(package, flaw="not in range", remedy=install)
    elif flawed:
        package = replace(package, flaw=f"waits for {', '.join(flawed)}")
    elif flaw := _import_flaw(_MODULES.get(need.name, name.replace("-", "_"))):
        package = replace(package, flaw=flaw, remedy=reinstall(package))
    found[name] = package
    return package


def _required_by(name: str) -> list[str]:
    needs = [Requirement(line) for line in metadata.requires(name) or []]
    return [
        canonicalize_name(need.name)
        for need in needs
        if need.marker is None or need.marker.evaluate({"extra": ""})
    ]


def reinstall(package: Package) -> str:
    """The command that installs a broken package anew, and nothing else."""
    what = shlex.quote(f"{package.name}{package.needed}")
    return f"pip install --force-reinstall --no-deps {what}"


def _import_flaw(module: str) -> str:
    """Why a module cannot be imported, in one line; empty where it can."""
    with _silence():
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken package raises whatever it likes
            return one_line(error)
    return ""


def quantization_flaw(device: str) -> str:
    """Why bitsandbytes cannot quantise on a device, tried with a small tensor; empty if it can."""
    with _silence():
        try:
            import torch
            from bitsandbytes import functional

            weight = torch.ones(64, 64, dtype=torch.float16, device=device)
            functional.quantize_4bit(weight, quant_type="nf4")
            functional.int8_vectorwise_quant(weight)
        except Exception as error:  # its native library fails in many ways
            return one_line(error)
    return ""


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps to itself what packages say while they are imported and tried."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def one_line(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ---- the machine -------------------------------------------------------------------------------


def machine(accelerator: Accelerator) -> Machine:
    """Devices with their memory, and the one that a run would take.

    Args:
        accelerator: What a run is told.
    """
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = f"{cores} cores, {platform.machine()}"
    cpu = Device("cpu", model, int(memory.total), int(memory.available), "float32")
    devices, chosen, flaw, remedy = [cpu], "cpu", "", ""
    try:
        import torch

        from msea_lightning.backbone import resolve_device
        from msea_lightning.backbone.loading.memory import free_bytes

        devices = [replace(cpu, free=free_bytes(torch.device("cpu")))]
        devices += [_gpu(index) for index in range(torch.cuda.device_count())]
        chosen = str(resolve_device(accelerator))
        if accelerator is not Accelerator.cpu and len(devices) == 1:
            flaw, remedy = _unseen_gpu(torch.version.cuda or torch.version.hip)
    except Exception as error:  # PyTorch itself, or its driver, is broken
        flaw = str(error) if isinstance(error, UserError) else one_line(error)
    return Machine(devices, chosen, flaw, remedy)


def disks() -> list[Disk]:
    """The disks that fill up with downloads, stores and checkpoints."""
    from huggingface_hub import constants

    from msea_lightning.data.prepare import cache_folder

    places = {
        "data sets": cache_folder(DatasetConfig()),
        "backbones": Path(constants.HF_HUB_CACHE),
    }
    return [Disk(use, str(folder), _free_disk(folder)) for use, folder in places.items()]


def _gpu(index: int) -> Device:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    name = torch.cuda.get_device_name(index)
    return Device(f"cuda:{index}", name, total, free, "bfloat16", bfloat16)


def _unseen_gpu(build: str | None) -> tuple[str, str]:
    """What keeps PyTorch from a GPU whose driver is there; nothing where there is no driver."""
    if not _DRIVER.exists() and shutil.which("nvidia-smi") is None:
        return "", ""
    if build is None:
        return (
            "an NVIDIA driver is there, but PyTorch is a build for CPUs alone",
            "pip install --force-reinstall torch",
        )
    return (
        f"an NVIDIA driver is there, but PyTorch (CUDA {build}) sees no GPU",
        "nvidia-smi  # shows whether driver and GPU work; CUDA_VISIBLE_DEVICES may hide the GPU",
    )


def _free_disk(folder: Path) -> int:
    there = folder.expanduser().absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


# ---- data sets ---------------------------------------------------------------------------------


def data_sets(configs: Sequence[DatasetConfig], folder: Path | None = None) -> list[Place]:
    """Where data sets are.

    Args:
        configs: The choices of ``conf/dataset``.
        folder: A folder with files of data sets, to be searched too.
    """
    names = {config.name for config in configs}
    return [
        data_set(config, folder=folder, others=sorted(names - {config.name})) for config in configs
    ]


def data_set(
    config: DatasetConfig, *, folder: Path | None = None, others: Sequence[str] = ()
) -> Place:
    """Where the published files of a data set are, and whether they are prepared.

    Looked at are the folder of downloads, a folder that the user names, and the files that earlier
    stores were made of.

    Args:
        config: The data set's options.
        folder: A folder with files of data sets.
        others: Names of the other data sets; in folders that are called so lie their files.
    """
    from msea_lightning.data.prepare import download_folder, earlier_sources, find_places

    name = config.name
    if config.reader is Reader.demo:
        return Place(name, "built in", place="generated where it is used")
    flaws = []
    downloads = download_folder(config)
    candidates = [None, *(_candidates(folder, config, others) if folder else [])]
    for candidate in [*candidates, *earlier_sources(config)]:
        chosen = replace(config, path=None if candidate is None else str(candidate))
        places = find_places(chosen)
        if places.source is not None:
            option = "" if candidate is None else shlex.quote(f"dataset.path={candidate}")
            state = "prepared" if places.store is not None else "found"
            return Place(name, state, str(places.source), option)
        if (candidate or downloads).exists():
            flaws.append(places.flaw)
    remedy = _dataset_remedy(config)
    if config.reader is Reader.table:
        return Place(name, "yours", remedy=remedy)
    if _partial_download(downloads):
        flaws.append("a download broke off; the same command goes on")
    return Place(name, "incomplete" if flaws else "missing", flaw="; ".join(flaws), remedy=remedy)


def _dataset_remedy(config: DatasetConfig) -> str:
    command = f"python -m msea_lightning.prepare dataset={config.name}"
    if config.reader is Reader.table:
        return f"{command} dataset.path=FOLDER  # with utterances.csv and features.npz"
    if config.hub_id is not None:
        return f"{command} dataset.download=true"
    return f"{command} dataset.path=PATH  # from {config.source}"


def _partial_download(downloads: Path) -> bool:
    from msea_lightning.data.files.download import partial_folder

    return any(path.is_file() for path in partial_folder(downloads).rglob("*"))


def _candidates(folder: Path, config: DatasetConfig, others: Sequence[str]) -> Iterator[Path]:
    """What in a folder of data sets may be this one: what is called so."""
    from msea_lightning.data.readers import find_files

    for inside in sorted(folder.iterdir()):
        if inside.is_dir() and inside.name.lower() == config.name:
            yield inside
    try:
        files = find_files(folder, config)
    except (UserError, OSError):
        return
    foreign = {name.lower() for name in others}
    if any(
        part.lower() in foreign for file in files for part in file.relative_to(folder).parts[:-1]
    ):
        return
    if config.reader is Reader.mmsa and files[0].name == Path(config.hub_file or "").name:
        yield files[0]
    if config.reader is Reader.dialogue and all(
        file.stem.rpartition("_")[0] == config.name for file in files
    ):
        yield folder
    if config.reader is Reader.table:
        yield folder


# ---- backbones ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a ``config.json``.

    Attributes:
        folder: Where it is.
        shape: What its architecture is known by; None where that cannot be read.
        flaw: Why not.
    """

    folder: Path
    shape: tuple[Any, ...] | None
    flaw: str = ""


def checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints in a folder, up to three folders down."""
    from msea_lightning.backbone.loading.load import load_config

    found = []
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        for path in sorted(folder.glob(f"{depth}config.json")):
            try:
                found.append(Checkpoint(path.parent, _shape(load_config(str(path.parent)))))
            except UserError as error:
                found.append(Checkpoint(path.parent, None, str(error)))
    return found


def backbones(configs: Sequence[BackboneConfig], folder: Path | None = None) -> list[Place]:
    """Where backbones are, and which further checkpoints lie in a folder.

    Args:
        configs: The choices of ``conf/backbone``.
        folder: A folder with checkpoints, to be searched too.
    """
    found = [] if folder is None else checkpoints(folder)
    places = [backbone(config, found) for config in configs]
    known = {_shape(_published(config)) for config in configs if config.path is not None and found}
    for checkpoint in found:
        if checkpoint.shape in known:
            continue
        path = str(checkpoint.folder)
        option = f"backbone=auto {shlex.quote(f'backbone.path={path}')}"
        if checkpoint.shape is None:
            places.append(Place("auto", "incomplete", path, flaw=checkpoint.flaw))
        else:
            places.append(replace(_examined("auto", path), option=option))
    return places


def backbone(config: BackboneConfig, found: Sequence[Checkpoint] = ()) -> Place:
    """Where the checkpoint of a backbone is, and what it lacks.

    Looked at are the folder that ``path`` names, the cache of the Hugging Face Hub, and a folder
    that the user names. There a checkpoint is known by the sizes in its ``config.json``; one that
    is called like the published one is preferred.

    Args:
        config: The backbone's options.
        found: The checkpoints in a folder that the user names.
    """
    if config.path is None:
        return Place(config.name, "built in", place="part of the package")
    own = _examined(config.name, config.path)
    if own.usable:
        return own
    shape = _shape(_published(config))
    names = (config.path.rpartition("/")[2].lower(), config.name)
    alike = [checkpoint for checkpoint in found if checkpoint.shape == shape]
    alike.sort(key=lambda checkpoint: checkpoint.folder.name.lower() not in names)
    places = [
        replace(
            _examined(config.name, str(checkpoint.folder)),
            option=shlex.quote(f"backbone.path={checkpoint.folder}"),
        )
        for checkpoint in alike
    ]
    best = next((place for place in places if place.usable), None)
    if best is not None:
        return best
    place = next((place for place in (own, *places) if place.state == "incomplete"), own)
    return replace(place, remedy=_backbone_remedy(config.path))


def _examined(name: str, path: str) -> Place:
    """A backbone at a Hub id or in a folder: complete, incomplete or missing."""
    from msea_lightning.backbone.loading.hub import find_file

    lacking = _lacking(path)
    config = find_file(path, "config.json", offline=True)
    place = "" if config is None else str(config.parent)
    if not lacking:
        return Place(name, "complete", place)
    if config is None and not _begun(path):
        return Place(name, "missing")
    return Place(name, "incomplete", place, flaw=f"lacks {', '.join(lacking)}")


def _begun(path: str) -> bool:
    """Whether something of a repository of the Hub was fetched."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=path, repo_type="model")
    return any(file.is_file() for file in folder.glob("blobs/*"))


def _lacking(path: str) -> list[str]:
    """What a checkpoint lacks: its config, its tokenizer, weights; nothing if it is complete."""
    from msea_lightning.backbone.loading.hub import find_file
    from msea_lightning.backbone.loading.tokenizers import has_tokenizer

    def find(name: str) -> Path | None:
        return find_file(path, name, offline=True)

    parts = {
        "config.json": "" if find("config.json") is not None else "config.json",
        "tokenizer": "" if has_tokenizer(path) else "the tokenizer",
        "weights": _weights_flaw(find),
    }
    return [flaw for flaw in parts.values() if flaw]


def _weights_flaw(find: Callable[[str], Path | None]) -> str:
    """What is wrong with the weights of a checkpoint; of several formats, one is enough."""
    flaw = ""
    for whole, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (file := find(whole)) is not None:
            names, files = [whole], [file]
        elif (listed := find(index)) is not None:
            names = _shards(listed)
            files = [file for name in names if (file := find(name)) is not None]
        else:
            continue
        damaged = [file.name for file in files if _is_damaged(file)]
        if names and len(files) == len(names) and not damaged:
            return ""
        lacks = f"{len(names) - len(files)} of {len(names)} weight files"
        flaw = flaw or (f"a whole {damaged[0]} (it is damaged)" if damaged else lacks)
    return flaw or "the weights"


def _shards(index: Path) -> list[str]:
    """The weight files that an index lists; none where it is damaged."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _is_damaged(file: Path) -> bool:
    """Whether a safetensors file is not as long as its header says."""
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        return False
    try:
        with safe_open(file, framework="np"):
            return False
    except (SafetensorError, OSError):
        return True


def _backbone_remedy(path: str) -> str:
    fetch = f"hf download {path}"
    if not path.startswith(GATED):
        return fetch
    from huggingface_hub import get_token

    return fetch if get_token() else f"hf auth login && {fetch}"


def _published(config: BackboneConfig) -> PretrainedConfig:
    """The config of the published model, whatever is on this machine."""
    from msea_lightning.backbone.loading.load import backbone_config
    from msea_lightning.backbone.options import Weights

    assert config.path is not None
    return backbone_config(config.path, weights=Weights.random, architecture=config.architecture)


def _shape(config: PretrainedConfig) -> tuple[Any, ...]:
    return tuple(getattr(config, name, None) for name in _SHAPE)
