"""Every optional package comes with the extra that its error names."""

from __future__ import annotations

import ast

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from msea_lightning.features.contract import FeatureError
from msea_lightning.features.packages import load_package
from tests.places import PACKAGE, ROOT

DISTRIBUTIONS = {"webvtt": "webvtt-py"}
"""Names of modules that differ from the names of their distributions."""


def calls() -> set[tuple[str, str]]:
    """Module and extra of each call of ``load_package``."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "load_package":
                (module,) = node.args
                extras = [word.value for word in node.keywords if word.arg == "extra"]
                assert isinstance(module, ast.Constant)
                assert isinstance(extras[0], ast.Constant)
                found.add((str(module.value).partition(".")[0], str(extras[0].value)))
    return found


def test_extras_hold_the_packages_that_are_asked_for() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {("av", "media"), ("httpx", "serve"), ("fastapi", "app")} <= calls()
    extras = {
        extra: [Requirement(line) for line in lines]
        for extra, lines in project["optional-dependencies"].items()
    }
    for module, extra in calls():
        name = canonicalize_name(DISTRIBUTIONS.get(module, module))
        nested = {more for need in extras[extra] for more in need.extras & extras.keys()}
        needs = [*extras[extra], *(need for more in nested for need in extras[more])]
        packages = {canonicalize_name(need.name) for need in needs}
        assert name in packages, f"{name} is not in the extra {extra}"


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(FeatureError, match=r"no_such_package is missing.*lightning\[media\]'\. So"):
        load_package("no_such_package.part", extra="media", note="So it is.")
