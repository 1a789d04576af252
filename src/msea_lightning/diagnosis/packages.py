"""Installed packages: whether those that the project requires are there, in range and working."""

from __future__ import annotations

import importlib
import io
import platform
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from msea_lightning import __version__

_PROJECT = "msea_lightning"

_OPTIONAL = (Requirement("flash-attn>=2"),)
"""Needed by ``backbone.attention=flash_attention_2`` alone."""

_MODULES = {
    "hydra-core": "hydra",
    "hydra-joblib-launcher": "hydra_plugins.hydra_joblib_launcher.joblib_launcher",
    "lightning": "lightning.pytorch",
    "protobuf": "google.protobuf",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
"""Modules that are not called like their distribution."""


@dataclass(frozen=True)
class Package:
    """An installed or missing package.

    Attributes:
        name: Its name for pip; ``python`` is Python itself.
        version: The installed version; None where it is missing.
        needed: The versions that the project works with, such as ``>=2.6``.
        flaw: ``missing``, ``not in range``, or why it cannot be used; empty where it can.
        remedy: The command that mends that.
        optional: Whether the project works without it.
    """

    name: str
    version: str | None
    needed: str
    flaw: str = ""
    remedy: str = ""
    optional: bool = False


def find_packages() -> list[Package]:
    """Python, the project, all packages that it requires, and the optional ones."""
    own = Package(_PROJECT, __version__, "")
    try:
        wanted = metadata.metadata(_PROJECT)["Requires-Python"]
        required = _requirements(_PROJECT)
    except metadata.PackageNotFoundError:
        flaw = "runs from its folder, not installed: what it needs is not known"
        return [replace(own, flaw=flaw, remedy="pip install -e .")]
    python = Package("python", platform.python_version(), wanted)
    if not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        remedy = f"install Python {wanted}, and the project into a new environment of it"
        python = replace(python, flaw="not in range", remedy=remedy)
    needs: dict[str, Requirement] = {
        canonicalize_name(need.name): need for need in [*required, *_OPTIONAL]
    }
    dependencies = {name: [part for part in _dependencies(name) if part in needs] for name in needs}
    found: dict[str, Package] = {}
    # Dependencies first: what fails because of a broken dependency has no flaw of its own.
    for name in TopologicalSorter(dependencies).static_order():
        broken = [part for part in dependencies[name] if found[part].flaw]
        found[name] = _check(needs[name], broken)
    return [python, own, *(found[name] for name in needs)]


def _requirements(name: str) -> list[Requirement]:
    needs = [Requirement(line) for line in metadata.requires(name) or []]
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def _dependencies(name: str) -> list[str]:
    try:
        return [canonicalize_name(need.name) for need in _requirements(name)]
    except metadata.PackageNotFoundError:
        return []


def _check(need: Requirement, broken: Sequence[str]) -> Package:
    """A required package, of which these dependencies do not work."""
    package = Package(need.name, None, str(need.specifier), optional=need in _OPTIONAL)
    install = f"pip install {shlex.quote(f'{need.name}{need.specifier}')}"
    if package.optional:
        install += " --no-build-isolation"
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
        with _quiet():
            name = canonicalize_name(need.name)
            importlib.import_module(_MODULES.get(name, name.replace("-", "_")))
    except Exception as error:  # a broken package raises whatever it likes
        return replace(package, flaw=one_line(error), remedy=_reinstall(package))
    return package


def check_quantization(package: Package, device: str) -> Package:
    """A package; bitsandbytes, which may fail only when it is used, is tried with a small tensor.

    Args:
        package: The package.
        device: Where a run would quantise.
    """
    if package.name != "bitsandbytes" or package.flaw:
        return package
    try:
        with _quiet():
            import torch
            from bitsandbytes import functional

            weight = torch.ones(64, 64, dtype=torch.float16, device=device)
            functional.quantize_4bit(weight, quant_type="nf4")
            functional.int8_vectorwise_quant(weight)
    except Exception as error:  # its native library fails in many ways
        flaw = f"cannot quantise on {device}: {one_line(error)}"
        return replace(package, flaw=flaw, remedy=_reinstall(package))
    return package


def _reinstall(package: Package) -> str:
    """The command that installs a broken package anew, and nothing else."""
    what = shlex.quote(f"{package.name}{package.needed}")
    return f"pip install --force-reinstall --no-deps {what}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses what packages print, log and warn of while they are imported and tried."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def one_line(error: Exception) -> str:
    """An error's class and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
