"""README and docs: links lead somewhere, and every command and program in them is accounted for."""

from __future__ import annotations

import ast
import functools
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from msea_lightning.bench import with_dataset
from msea_lightning.commands.compose import opened
from msea_lightning.commands.flags import parse_flags
from msea_lightning.commands.menu import COMMANDS
from msea_lightning.config import roots
from msea_lightning.runs.folder import RunFolder
from tests.places import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
SHOWN = {"bibtex", "json", "python", "text"}
"""Languages of blocks that are no commands."""

BLOCK = re.compile(
    r"^(?:<!-- needs: (?P<needs>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block: what it needs that tests lack, its language, and its text."""

    needs: str | None
    language: str
    text: str


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[Block]:
    """The blocks of a page that are in a language."""
    found = [Block(*match) for match in BLOCK.findall(page.read_text(encoding="utf-8"))]
    return [block for block in found if block.language == language]


def anchors(page: Path) -> set[str]:
    """What headings are called in links."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def lines(text: str) -> Iterator[list[str]]:
    """The commands of a block, as words."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            cut = words.index("&&")
            yield words[:cut]
            words = words[cut + 1 :]
        if words:
            yield words


@functools.cache
def check_own(name: str, *words: str) -> None:
    """Composes and checks the command line of one of the project's commands."""
    assert name in COMMANDS
    root = getattr(roots, f"{name.title().replace('_', '')}Config")
    flags = parse_flags(with_dataset(words) if name == "bench" else [*words])
    many = flags.multirun
    launches = name == "search" or (many and name == "train")
    with opened(name, root, flags.overrides, multirun=many, launches=launches) as composer:
        if many:  # every value is checked as it is parsed; composing all of them takes long
            composer.typed(next(composer.combinations()))
        elif not flags.help:
            composer.jobs()


def check_make(words: list[str]) -> None:
    """Has ``make`` say what it would do."""
    command = ["make", "-n", "PYTHON=python3", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for variable in (word.partition("=")[0] for word in words if "=" in word):
        assert re.search(rf"^{variable} \?=", makefile, re.MULTILINE), variable


def check_pip(words: list[str]) -> None:
    """Looks for the extras that are named."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for word in words:
        name, bracket, extras = word.rstrip("]").partition("[")
        assert name == "msea_lightning", word
        for extra in extras.split(",") if bracket else ():
            assert re.search(rf"^{re.escape(extra)} = \[", project, re.MULTILINE), extra


def is_accounted_for(words: list[str]) -> bool:
    """Whether a command is one that is checked here, which raises where it is wrong."""
    match words:
        case ["python", "-m", "msea_lightning", name, *rest] | ["msea", name, *rest]:
            check_own(name, *rest)
        case ["python", "-m", module, *rest] if module.startswith("msea_lightning."):
            check_own(module.removeprefix("msea_lightning."), *rest)
        case ["python", script, *_] if script.endswith(".py"):
            assert (ROOT / script).is_file()
        case ["make", *rest]:
            check_make(rest)
        case ["pip", "install", *rest]:
            check_pip(rest)
        case ["source", ".venv/bin/activate"]:
            pass
        case ["eval", "$(msea -sc install=bash)"]:  # tests/commands/test_menu.py
            pass
        case [first, *_] if re.match(r"[A-Z]+=", first):
            pass
        case _:
            return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page_id(page)}: {link}"
        if page.parent == DOCS:  # the site has nothing else
            assert target.is_relative_to(DOCS), f"{page_id(page)}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page_id(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_is_accounted_for(page: Path) -> None:
    for block in blocks(page, "bash"):
        for words in lines(block.text):
            # Commands of other programs, or of other machines
            accounted = is_accounted_for(words) or block.needs
            assert accounted, (
                f"{page_id(page)}: no test knows of {shlex.join(words)}; write <!-- needs: what "
                "tests do not have --> before the block if it cannot be tried"
            )


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_other_blocks_are_what_they_say(page: Path) -> None:
    languages = {match[1] for match in BLOCK.findall(page.read_text(encoding="utf-8"))}
    if page.name == "CONTRIBUTING.md":
        languages -= {""}  # a drawing
    assert languages <= SHOWN | {"bash"}
    for block in blocks(page, "python"):
        ast.parse(block.text)
    for block in blocks(page, "json"):
        json.loads(block.text)


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "use-a-plugin.md"], ids=page_id)
def test_the_first_program_runs_as_it_stands(
    page: Path,
    finished_run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "runs").symlink_to(finished_run.path.parents[3])
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks(page, "python")[0].text, page.name, "exec"), {})
    assert "'joy'" in capsys.readouterr().out


def test_names_of_the_api_exist() -> None:
    names = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert names
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert getattr(import_module(module), attribute).__doc__, name


def test_the_site_shows_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(re.findall(r"[\w-]+\.md", json.dumps(site["nav"])))
    assert listed == {page.name for page in DOCS.glob("*.md")}
