"""The flags of a command line: what is written with dashes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.types import Quote, QuotedString

from msea_lightning.config.errors import ConfigError

FLAGS = """\
  -m, --multirun      run once for every combination of the values given with commas
  -c, --cfg job       show the configuration that a run would have, and run nothing
  -p, --package KEY   with --cfg: only the part below KEY, such as dataset
  --config-dir DIR    a folder with more choices, such as DIR/dataset/mine.yaml
  --version           show the version
  -h, --help          show this text"""

NAMES = ("-m", "--multirun", "--cfg", "--package", "--config-dir", "--version", "--help")
"""The flags that a shell completes."""

COMPLETION = ("-sc", "--shell-completion")
"""How shells ask for the completion of a word, as Hydra's scripts for them do."""


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of leaving."""

    def error(self, message: str) -> NoReturn:
        """Raises what is wrong with the flags, and how options are written."""
        raise ConfigError(
            f"{message}. Options are written without dashes, such as seed=3; the flags are -m, "
            "--cfg job, --package, --config-dir, --version and --help."
        )


def parse_flags(words: list[str]) -> argparse.Namespace:
    """Splits a command line into flags and ``overrides``."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=("job",))
    parser.add_argument("-p", "--package")
    parser.add_argument("--config-dir")
    parser.add_argument("overrides", nargs="*")
    flags = parser.parse_intermixed_args(words)
    if flags.cfg and flags.multirun:
        raise ConfigError("--cfg shows one configuration; leave -m out.")
    if flags.package and not flags.cfg:
        raise ConfigError("--package goes with --cfg job.")
    if flags.config_dir is not None:
        folder = Path(flags.config_dir).resolve()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {flags.config_dir}: there is no such folder.")
        searched = QuotedString(f"file://{folder}", Quote.single).with_quotes()
        flags.overrides.append(f"hydra.searchpath=[{searched}]")
    return flags
