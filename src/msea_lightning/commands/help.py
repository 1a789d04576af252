"""The help text of a command, from its options and choices."""

from __future__ import annotations

import itertools
import textwrap
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from msea_lightning.commands.compose import Composer, conf_folder
from msea_lightning.commands.flags import FLAGS
from msea_lightning.commands.overrides import written
from msea_lightning.config.options import OptionInfo


def help_text(composer: Composer[Any]) -> str:
    """Usage, choices, and every option with the value that it would have without ``--help``."""
    checker = composer.checker
    config = composer.compose(next(composer.combinations()))
    text = [_usage(composer.config_name), "", "Flags", FLAGS]
    if checker.groups:
        text += ["", "Groups: one choice each, as in dataset=mosei"]
        for group in checker.groups:
            line = f"  {group:<10} {', '.join(checker.choices(group))}"
            text += textwrap.wrap(line, 100, subsequent_indent=" " * 13, break_on_hyphens=False)
    section = None
    for key, info in checker.options.items():
        above = key.rpartition(".")[0].partition(".")[0]
        if above != section:
            section = above
            text += ["", f"Options of {section}" if section else "Other options"]
        text += [f"  {key}={_shown(config, info)}", f"      {info.help} [{info.kind}]"]
    text += ["", "Values are those of this command line without --help.", ""]
    return "\n".join(text)


def _usage(config_name: str) -> str:
    """The comment at the head of the command's file in ``conf/``."""
    lines = (conf_folder() / f"{config_name}.yaml").read_text(encoding="utf-8").splitlines()
    head = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return "\n".join(line[2:] for line in head)


def _shown(config: DictConfig, info: OptionInfo) -> str:
    """The value of an option, cut to one line."""
    value = OmegaConf.select(config, info.key, throw_on_missing=False)
    if info.key in OmegaConf.missing_keys(config) and info.default is not MISSING:
        value = info.default
    node = OmegaConf.to_container(value, enum_to_str=True) if OmegaConf.is_config(value) else value
    text = getattr(node, "name", None) or written(node)
    return text if len(text) <= 60 else f"{text[:57]}..."
