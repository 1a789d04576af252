"""Installed packages: whether those that the project requires are there, in range and working."""

from __future__ import annotations

import importlib
import io
import platform
import shlex
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from msea_lightning import __version__

_PROJECT = "msea_lightning"

_OPTIONAL = {"flash-attn>=2": "for GPUs", "optuna>=5": "for msea search"}
"""Packages that some users need alone, with what for: flash-attn is for
``backbone.attention=flash_attention_2``."""

_MODULES = {
    "hydra-core": "hydra",
    "hydra-joblib-launcher": "hydra_plugins.hydra_joblib_launcher.joblib_launcher",
    "lightning": "lightning.pytorch",
    "pillow": "PIL",
    "protobuf": "google.protobuf",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
"""Modules that are not called like their distribution."""


@dataclass(frozen=True)
class Package:
    """An installed or missing package, or Python itself; needed is the range of its versions.

    What is optional has its ``use``.
    """

    name: str
    version: str | None
    needed: str
    flaw: str = ""
    remedy: str = ""
    optional: bool = False
    use: str = ""


def find_packages(device: str) -> list[Package]:
    """Python, the project, and what it requires; quantisation is tried on the device."""
    own = Package(_PROJECT, __version__, "")
    try:
        wanted = metadata.metadata(_PROJECT)["Requires-Python"]
    except metadata.PackageNotFoundError:
        flaw = "runs from its folder, not installed: what it needs is not known"
        return [replace(own, flaw=flaw, remedy="pip install -e .")]
    python = Package("python", platform.python_version(), wanted)
    wishes = map(Requirement, _OPTIONAL)
    needs = {canonicalize_name(need.name): need for need in (*_requirements(_PROJECT), *wishes)}
    dependencies = {
        name: {canonicalize_name(need.name) for need in _requirements(name)} & needs.keys()
        for name in needs
    }
    found: dict[str, Package] = {}
    # Dependencies first: what fails because of a broken dependency has no flaw of its own.
    for name in TopologicalSorter(dependencies).static_order():
        broken = sorted(part for part in dependencies[name] if found[part].flaw)
        found[name] = _check(needs[name], broken, device)
    return [python, own, *(found[name] for name in needs)]


def _requirements(name: str) -> list[Requirement]:
    """What a package requires without extras; nothing where it is not installed."""
    try:
        needs = [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def _check(need: Requirement, broken: Sequence[str], device: str) -> Package:
    """A required package, of which these dependencies do not work."""
    use = _OPTIONAL.get(str(need), "")
    package = Package(need.name, None, str(need.specifier), optional=bool(use), use=use)
    what = shlex.quote(f"{need.name}{need.specifier}")
    install = f"pip install {what}{' --no-build-isolation' * (need.name == 'flash-attn')}"
    try:
        package = replace(package, version=metadata.version(need.name))
    except metadata.PackageNotFoundError:
        return replace(package, flaw="missing", remedy=install)
    if not need.specifier.contains(str(package.version), prereleases=True):
        # Not imported: some releases are excluded because importing them does harm.
        return replace(package, flaw="not in range", remedy=install)
    if broken:
        return replace(package, flaw=f"waits for {', '.join(broken)}")
    try:
        # Packages print, log and warn while they are imported and tried.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            name = canonicalize_name(need.name)
            importlib.import_module(_MODULES.get(name, name.replace("-", "_")))
            if name == "bitsandbytes":
                _quantize(device)
    except Exception as error:  # a broken package raises whatever it likes
        remedy = f"pip install --force-reinstall --no-deps {what}"
        return replace(package, flaw=one_line(error), remedy=remedy)
    return package


def _quantize(device: str) -> None:
    """Quantises a small tensor: bitsandbytes may fail only when it is used."""
    import torch
    from bitsandbytes import functional

    weight = torch.ones(64, 64, dtype=torch.float16, device=device)
    functional.quantize_4bit(weight, quant_type="nf4")
    functional.int8_vectorwise_quant(weight)


def one_line(error: Exception) -> str:
    """An error's class and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
