"""``msea`` and ``python -m msea_lightning``: the commands under one name, and completion."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msea_lightning import __version__
from msea_lightning.__main__ import main
from msea_lightning.commands import command_line
from msea_lightning.commands.menu import COMMANDS

# A command's module may have been imported by another test; a process of its own has not.
pytestmark = pytest.mark.filterwarnings("ignore:'msea_lightning:RuntimeWarning")

Msea = Callable[..., str]


@pytest.fixture
def msea(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Msea:
    """Runs ``msea`` with words in this process; gives what it writes to standard output."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["/somewhere/msea", *words])
        main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def completed(msea: Msea, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """What a shell offers for a line with the cursor at its end."""

    def ask(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        return msea("-sc", "query=bash").split()

    return ask


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_the_commands_are_listed(msea: Msea, words: tuple[str, ...]) -> None:
    text = msea(*words)
    for name, does in COMMANDS.items():
        assert f"  {name} " in text
        assert does in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_version_and_the_help_of_a_command(msea: Msea) -> None:
    assert msea("--version") == f"msea_lightning {__version__}\n"
    assert msea("help", "report") == msea("report", "--help")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "trian: there is no such command. Did you mean train? Commands: train, "),
        (["nonsense"], "nonsense: there is no such command. Commands: train, search, "),
        (["seed=3", "train"], "seed=3: the command comes first, as in msea train seed=3. "),
        (["-m", "train"], "-m: the command comes first, as in msea train -m. "),
        (["-sc"], "-sc: completion is switched on by one of\n"),
        (["-sc", "install=tcsh"], "install=tcsh: there is no completion for this shell. Shells: "),
    ],
)
def test_what_is_no_command_is_refused(
    msea: Msea, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        msea(*words)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.parametrize("name", ["train", "import_original", "import-original"])
def test_a_command_runs_as_under_its_own_name(
    msea: Msea, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: list[Any] = []

    def launch(*args: Any, **kwargs: Any) -> None:
        # What Lightning starts the processes of further devices by
        spec = sys.modules["__main__"].__spec__
        seen.extend([spec and spec.name, sys.argv[1:]])

    monkeypatch.setattr(command_line, "launch", launch)
    msea(name, "trainer.devices=2", "seed=3")
    assert seen == [
        f"msea_lightning.{name.replace('-', '_')}",
        ["trainer.devices=2", "seed=3"],
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("msea ", list(COMMANDS)),
        ("msea pr", ["predict", "prepare"]),
        ("msea nonsense ", []),
        ("msea train dat", ["dataset.", "dataset="]),
        ("msea train dataset=mos", ["dataset=mosei", "dataset=mosi", "dataset=mosi_utterance"]),
        ("msea train -m dataset=mosi,mose", ["dataset=mosi,mosei"]),
        ("msea train dataset.labels.k", ["dataset.labels.kind="]),
        ("msea train decode=m", ["decode=mean", "decode=median"]),
        ("msea train trainer.progress_bar=t", ["trainer.progress_bar=true"]),
        ("msea train backbone.arch", ["backbone.architecture."]),
        ("msea train seed=1 se", []),
        ("msea train seed=", []),
        ("msea train hydra/launcher=slu", ["hydra/launcher=slurm", "hydra/launcher=slurm_local"]),
        ("msea report hydra", []),
        (
            "msea search search.",
            ["search.parallel=", "search.seed=", "search.space.", "search.trials="],
        ),
        ("msea search hydra/launcher=loc", ["hydra/launcher=local"]),
        ("msea report ", ["out=", "runs="]),
        ("msea train --c", ["--cfg", "--config-dir"]),
    ],
)
def test_words_are_completed(
    completed: Callable[[str], list[str]], line: str, found: list[str]
) -> None:
    assert completed(line) == found


def test_files_are_completed(
    completed: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips.csv").touch()
    assert completed("msea extract input=cl") == ["input=clips.csv", "input=clips/"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_script_that_asks_msea(msea: Msea, shell: str) -> None:
    script = msea("-sc", f"install={shell}")
    assert "msea" in script.splitlines()[0 if shell != "fish" else -2]
    assert "-sc query=" in script
