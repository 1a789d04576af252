"""The shape of the project itself: who imports whom, and what is declared."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from msea_lightning.commands import menu
from tests.places import PACKAGE, ROOT

FILES = sorted(PACKAGE.rglob("*.py"))

ORDER = (
    "config",
    "commands",
    "metrics",
    "data",
    "language",
    "backbone",
    "adapter",
    "model",
    "paper",
    "runs",
    "features",
    "cost",
    "plugin",
    "inference",
    "serving",
    "reporting",
    "training",
    "sweep",
    "searching",
    "benchmark",
    "diagnosis",
)
"""The rooms, each of which imports only from those before it."""

COMMANDS = {
    "train",
    "search",
    "evaluate",
    "predict",
    "serve",
    "app",
    "prepare",
    "extract",
    "report",
    "bench",
    "doctor",
    "import_original",
}
"""What is run with ``python -m msea_lightning.<command>``."""

PIPELINE = {"data", "language", "backbone", "adapter", "metrics", "paper"}
"""Rooms that import of each other nothing but options."""

EXTRAS = {"serving": "serve", "searching": "search"}
"""Rooms that import the packages of an extra, which their command asks for first."""

DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit_learn", "yaml": "pyyaml"}
"""Import names that differ from the names of their distributions."""


def part_of(path: Path) -> str:
    """The part of the project that a file belongs to: ``data``, ``adapter``, ``train``, ..."""
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


def test_every_room_and_every_command_has_its_place() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    commands = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert rooms == set(ORDER)
    assert commands == COMMANDS == set(menu.COMMANDS)
    assert not rooms & commands


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_from_those_before_them(path: Path) -> None:
    room = part_of(path)
    if room in COMMANDS or room in ("__init__", "__main__") or path.name == "roots.py":
        return
    allowed = {"__init__", *ORDER[: ORDER.index(room) + 1]}
    imported = imported_parts(path)
    assert imported <= allowed, f"{room} imports {', '.join(sorted(imported - allowed))}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_of_the_pipeline_share_options_alone(path: Path) -> None:
    room = part_of(path)
    if room not in PIPELINE:
        return
    for module in imported_modules(path):
        other = module.split(".")[1:2]
        if module.startswith(f"{PACKAGE.name}.") and other[0] in PIPELINE - {room, "metrics"}:
            assert module.split(".")[2] == "options", f"{room} imports {module}"


COMPUTING = set(ORDER) - {"config", "commands", "reporting", "sweep", "searching"}
"""Rooms whose classes compute; reports, sweeps and searches hold the options of runs."""


def annotations(node: ast.stmt) -> list[ast.expr | None]:
    """The types of a field, or of what a class is made of."""
    if isinstance(node, ast.AnnAssign):
        return [node.annotation]
    if isinstance(node, ast.FunctionDef) and node.name == "__init__":
        return [argument.annotation for argument in (*node.args.args, *node.args.kwonlyargs)]
    return []


@pytest.mark.parametrize("room", sorted(COMPUTING))
def test_classes_take_plain_values_and_no_whole_configuration(room: str) -> None:
    roots = ast.parse((PACKAGE / "config" / "roots.py").read_text(encoding="utf-8"))
    whole = {node.name for node in roots.body if isinstance(node, ast.ClassDef)}
    assert "TrainConfig" in whole
    for path in FILES:
        if part_of(path) == room:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                for part in node.body if isinstance(node, ast.ClassDef) else ():
                    named = {ast.unparse(found) for found in annotations(part) if found}
                    assert not named & whole, f"{path}: {node.name} takes {named & whole}"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_are_short(command: str) -> None:
    lines = (PACKAGE / f"{command}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60


def test_everything_imported_is_declared() -> None:
    requirements = metadata.requires("msea_lightning") or []

    def declared(extra: str | None) -> set[str]:
        return {
            re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("-", "_")
            for requirement in requirements
            if "extra ==" not in requirement or (extra and re.search(rf"\b{extra}\b", requirement))
        }

    known = set(sys.stdlib_module_names) | {PACKAGE.name}
    for path in FILES:
        tops = {module.partition(".")[0] for module in imported_modules(path)} - known
        names = {DISTRIBUTIONS.get(top, top).lower() for top in tops}
        spelled = {"hydra_core" if name == "hydra" else name for name in names}
        missing = spelled - declared(EXTRAS.get(part_of(path)))
        assert not missing, f"{path}: {', '.join(sorted(missing))} not declared"


@pytest.mark.parametrize("pattern", ["torch.*+cpu", "/", "@"])
def test_constraints_name_no_place(pattern: str) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert not [line for line in pins if re.search(pattern.replace("+", r"\+"), line)]
