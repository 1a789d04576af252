"""Completion of words in a shell: commands, options, choices, files.

The scripts for the shells, and how they ask, are Hydra's. What they are answered is ours, because
Hydra's own completion composes a configuration at every key, and knows neither legal values nor
options that are refused here.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.plugins.completion_plugin import CompletionPlugin

from msea_lightning.commands.flags import NAMES
from msea_lightning.commands.overrides import Checker, key_of
from msea_lightning.config.errors import ConfigError

_LAUNCHER = "hydra/launcher"


def script(shell: str) -> str:
    """What a shell (``bash``, ``fish``) has to run to complete the command of this process.

    Raises:
        ConfigError: there is no script for the shell.
    """
    plugins = {
        plugin.provides(): plugin
        for plugin in Plugins.instance().discover(CompletionPlugin)
        if issubclass(plugin, CompletionPlugin)
    }
    if shell not in plugins:
        raise ConfigError(
            f"install={shell}: there is no completion for this shell. Shells: "
            f"{', '.join(sorted(plugins))}."
        )
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        # A script holds nothing of a configuration.
        plugins[shell](cast("ConfigLoader", None)).install()
    return written.getvalue()


def typed_words() -> list[str]:
    """The words behind the command, up to the cursor; the last is the one to complete.

    They are in ``COMP_LINE``, as bash has it: ``msea train seed=1 dataset=me``.
    """
    line = os.environ.get("COMP_LINE", "")
    line = line[: int(os.environ.get("COMP_POINT") or len(line))]
    return (line.split() + [""] * line.endswith(" "))[2:] or [""]


def complete(checker: Checker, words: Sequence[str], *, launches: bool = False) -> list[str]:
    """What the last word can become.

    A key ends with ``=``, a section with ``.``; a key that is given before is not offered again.

    Args:
        checker: The options and choices of the command.
        words: The words behind the command; the last, perhaps empty, is completed.
        launches: Whether the command takes Hydra's launchers, with ``-m``.
    """
    word = words[-1]
    if word.startswith("-"):
        return [name for name in NAMES if name.startswith(word)]
    if "=" in word:
        return sorted(set(_values(checker, word)))
    given = {key_of(each) for each in words[:-1]}
    groups = [*checker.groups, *[_LAUNCHER] * launches]
    found = {f"{group}=" for group in groups if group not in given}
    for key, info in checker.options.items():
        if key in given or key.removesuffix(".name") in checker.groups:
            continue
        # To the end of the section that is being typed
        section = key.find(".", len(word))
        found.add(
            f"{key}{'.' if info.type == 'mapping' else '='}" if section < 0 else key[: section + 1]
        )
    return sorted(name for name in found if name.startswith(word) and name != word)


def _values(checker: Checker, word: str) -> Iterator[str]:
    """What the value of an option can become, the last one of several with commas."""
    key, _, value = word.partition("=")
    before, comma, last = value.rpartition(",")
    start = f"{key}={before}{comma}"
    if key in checker.groups or key == _LAUNCHER:
        values = checker.choices(key)
    elif key not in checker.options:
        return
    elif "|" in (kind := checker.options[key].type):
        values = kind.removesuffix(" or null").split("|")
    elif "text" in kind:
        values = _files(last)
    else:
        return
    yield from (f"{start}{each}" for each in values if each.startswith(last))


def _files(word: str) -> list[str]:
    """The files and folders that a path can become; folders end with ``/``."""
    above, slash, _ = word.rpartition("/")
    folder = Path(f"{above}{slash}")
    found = folder.iterdir() if folder.is_dir() else []
    return [f"{above}{slash}{path.name}{'/' * path.is_dir()}" for path in found]
