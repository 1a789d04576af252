"""What ``msea`` itself does: it lists the commands, completes words, and finds the command."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence

from msea_lightning import __version__
from msea_lightning.commands.flags import COMPLETION
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.text import say

COMMANDS: Mapping[str, str] = {
    "train": "train a plugin and test it; with -m many, one after another or on a cluster",
    "search": "good options for training, by the validation part alone",
    "evaluate": "test a finished run again, on another part or with other answers",
    "report": "tables, statistics and charts of all runs in a folder",
    "extract": "features and transcripts from a folder of clips",
    "predict": "a trained plugin's answers about clips, tables and texts",
    "app": "a page in the browser on which plugins are tried",
    "serve": "a trained plugin's answers over HTTP",
    "prepare": "convert a data set, and show what is in it",
    "doctor": "what is installed, which data and models are here, what runs need",
    "bench": "speed and memory of variants, side by side",
    "import_original": "a plugin from a checkpoint of the original implementation",
}
"""Each command of the package, and what it does."""

_INSTALL = """\
  bash: eval "$(msea -sc install=bash)"
  zsh:  autoload -Uz bashcompinit compinit && compinit && bashcompinit
        eval "$(msea -sc install=bash)"
  fish: msea -sc install=fish | source"""


def chosen(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The command that a command line names, and the words for it; none where all is done.

    Leaves through :class:`SystemExit` with 2 where there is no such command.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        if len(words) < 2:
            sys.stdout.write(menu_text())
            return None, []
        words = [words[1], "--help"]
    if words[0] == "--version":
        sys.stdout.write(f"msea_lightning {__version__}\n")
        return None, []
    try:
        if words[0] in COMPLETION:
            return _completing(words)
        return _command(words[0]), list(words[1:])
    except ConfigError as error:
        say(f"error: {error}")
        sys.exit(2)


def menu_text() -> str:
    """The commands with a line each, and how to go on."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {does}" for name, does in COMMANDS.items()]
    return "\n".join(
        [
            "msea COMMAND OPTION=VALUE ...     (the same as python -m msea_lightning.COMMAND ...)",
            "",
            *lines,
            "",
            "msea COMMAND --help lists the options of a command, msea --version shows the version.",
            "",
            "The shell completes commands, options and choices after",
            _INSTALL,
            "",
        ]
    )


def _command(word: str) -> str:
    name = word.replace("-", "_")
    if name in COMMANDS:
        return name
    listed = f"Commands: {', '.join(COMMANDS)}."
    if "=" in word or word.startswith("-"):
        raise ConfigError(f"{word}: the command comes first, as in msea train {word}. {listed}")
    close = difflib.get_close_matches(name, COMMANDS, n=2)
    guess = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ConfigError(f"{word}: there is no such command.{guess} {listed}")


def _completing(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Completes the command itself; its options are completed by the command."""
    action, _, shell = words[1].partition("=") if len(words) == 2 else ("", "", "")
    if action == "install":
        from msea_lightning.commands.completion import script

        sys.stdout.write(script(shell))
        return None, []
    if action != "query":
        raise ConfigError(
            f"{' '.join(words)}: completion is switched on by one of\n{_INSTALL}\n"
            "and then asks by itself."
        )
    before, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
    name, space, _ = rest.lstrip().partition(" ")
    if space and name.replace("-", "_") in COMMANDS:
        return name.replace("-", "_"), list(words)
    if before and not space:
        sys.stdout.write("\n".join(each for each in COMMANDS if each.startswith(name)))
    return None, []
