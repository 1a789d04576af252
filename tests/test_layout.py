"""The shape of the project itself: who imports whom, and what is declared."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "msea_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))

FOUNDATIONS = {"__init__", "config"}
"""What everything may import."""
RAYS = {"data", "prompt", "labels", "backbone", "adapter", "metrics", "paper"}
"""What imports no sibling but the foundations."""
DISTRIBUTIONS = {"yaml": "pyyaml"}
"""Import names that differ from the names of their distributions."""


def part_of(path: Path) -> str:
    """The part of the project that a file belongs to: ``data``, ``prompt``, ``task``, ..."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """All modules that a file imports, also inside functions, with their full names."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules |= {f"{node.module}.{name.name}" for name in node.names}
    return modules


def imported_parts(path: Path) -> set[str]:
    """The parts of the project that a file imports."""
    own = [module.split(".") for module in imported_modules(path)]
    inside = {
        parts[1] if len(parts) > 1 else "__init__" for parts in own if parts[0] == PACKAGE.name
    }
    existing = {part_of(file) for file in FILES}
    return {part if part in existing else "__init__" for part in inside}


def test_there_are_files() -> None:
    assert {"cli", "config", "data"} <= {part_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_form_a_star(path: Path) -> None:
    part, imported = part_of(path), imported_parts(path)
    if part in FOUNDATIONS:
        allowed = FOUNDATIONS
    elif part in RAYS:
        allowed = FOUNDATIONS | {part}
    elif part == "cli":
        allowed = FOUNDATIONS | {"allocator", "jobs"}
    else:
        return
    assert imported <= allowed, f"{part} imports {', '.join(sorted(imported - allowed))}"


def test_only_entry_points_import_the_command_line() -> None:
    for path in FILES:
        if "cli" in imported_parts(path):
            assert "launch(" in path.read_text(encoding="utf-8"), path


def test_everything_imported_is_declared() -> None:
    requirements = metadata.requires("msea_lightning") or []
    declared = {
        re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("-", "_")
        for requirement in requirements
        if "extra ==" not in requirement
    }
    known = set(sys.stdlib_module_names) | {PACKAGE.name}
    for path in FILES:
        tops = {module.partition(".")[0] for module in imported_modules(path)} - known
        names = {DISTRIBUTIONS.get(top, top).lower() for top in tops}
        spelled = {"hydra_core" if name == "hydra" else name for name in names}
        assert spelled <= declared, f"{path}: {', '.join(sorted(spelled - declared))} not declared"


@pytest.mark.parametrize("pattern", ["torch.*+cpu", "/", "@"])
def test_constraints_name_no_place(pattern: str) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert not [line for line in pins if re.search(pattern.replace("+", r"\+"), line)]
