"""The command line of the entry points: compose, check, show, run.

:func:`launch` turns the words of a command line into a typed configuration and hands it to a job.
Everything is checked before the job starts, and before anything heavy is imported: this module and
:mod:`msea_lightning.config` import neither torch nor transformers nor lightning, and an entry point
imports them inside its job.

Exit codes: 0 done, 1 the job failed, 2 the command line is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import itertools
import logging
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Generic, NoReturn

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException, OverrideParseException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from msea_lightning import __version__
from msea_lightning.commands.allocator import begin_at_pages
from msea_lightning.commands.jobs import Job, Root, Sweep, Task
from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.config.options import OptionInfo, complete, groups, options, schema, to_typed
from msea_lightning.config.text import VisibleFormatter, visible

_logger = logging.getLogger(__name__)

_EXPERIMENT = "experiment"
"""The group whose choices bring a grid, as ``hydra.sweeper.params``."""

_EXTRAS = (
    " Launchers for clusters come with extras: pip install 'msea_lightning[slurm]' or "
    "'msea_lightning[ray]'."
)

_FLAGS = """\
  -m, --multirun      run once for every combination of the values given with commas
  -c, --cfg job       show the configuration that a run would have, and run nothing
  -p, --package KEY   with --cfg: only the part below KEY, such as dataset
  --resolve           with --cfg: with interpolations resolved
  --config-dir DIR    a folder with more choices, such as DIR/dataset/mine.yaml
  --version           show the version
  -h, --help          show this text"""


def launch(
    job: Callable[[Root], None],
    *,
    config_name: str,
    root: type[Root],
    arguments: Sequence[str] | None = None,
    sweep: Sweep[Root] | None = None,
) -> None:
    """Runs a job as the command line says: once, or with ``-m`` once per combination of values.

    Returns after a success and leaves through :class:`SystemExit` otherwise (exit codes at the head
    of this module). An error of the user is printed to standard error as one paragraph; the
    environment variable ``MSEA_TRACEBACK=1`` raises it instead. Any other exception keeps its
    traceback.

    Args:
        job: What to do with the checked configuration.
        config_name: The file in ``conf/`` that composes it, without ``.yaml``.
        root: The dataclass that the configuration has to fit.
        arguments: The words of the command line; those of this process where not given.
        sweep: What runs the jobs of a command line with ``-m``, through one of Hydra's launchers.
            Where not given they run in this process, one after another.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if arguments is None:  # the process is this command's own
        begin_at_pages()
    try:
        status = _launch(job, config_name, root, words, sweep)
    except KeyboardInterrupt:
        _say("interrupted")
        status = 130
    if status:
        sys.exit(status)


def compose(config_name: str, root: type[Root], overrides: Sequence[str] = ()) -> Root:
    """The typed configuration that a command line with these overrides runs with.

    Args:
        config_name: The file in ``conf/`` that composes it, without ``.yaml``.
        root: The dataclass that the configuration has to fit.
        overrides: Words such as ``dataset=mosei`` and ``seed=3``.

    Raises:
        ConfigError: naming the override and what is legal.
    """
    with _Composer.open(config_name, root) as composer:
        (job,) = composer.jobs(overrides, multirun=False)
        return job.config


def conf_folder() -> Path:
    """The folder ``conf``: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def _launch(
    job: Callable[[Root], None],
    config_name: str,
    root: type[Root],
    words: list[str],
    sweep: Sweep[Root] | None,
) -> int:
    with _Composer.open(config_name, root) as composer:
        try:
            flags = _parse_flags(words)
            if flags.help:
                sys.stdout.write(composer.help(flags.overrides))
                return 0
            if flags.version:
                sys.stdout.write(f"msea_lightning {__version__}\n")
                return 0
            if not flags.multirun or sweep is None:
                composer.refuse_launcher(flags.overrides)
            if not (flags.multirun or flags.cfg):
                composer.refuse_grid(flags.overrides)
            if flags.cfg:
                composer.show(flags)
                return 0
            jobs = composer.jobs(flags.overrides, multirun=flags.multirun)
        except ConfigError as error:
            return _refuse(error, status=2)
        _configure_logging()
        if flags.multirun:
            start = partial(composer.start, flags.overrides)
            try:
                return sweep(jobs, start) if sweep else _one_by_one(job, jobs)
            except UserError as error:
                return _refuse(error, status=1)
    # A single run is outside of Hydra: processes that Lightning starts for further devices repeat
    # this very command line.
    try:
        job(jobs[0].config)
    except UserError as error:
        return _refuse(error, status=1)
    return 0


def _one_by_one(job: Callable[[Root], None], jobs: Sequence[Job[Root]]) -> int:
    """Runs all jobs in this process; one that fails says so, and the others run."""
    failed: list[str] = []
    for number, item in enumerate(jobs, 1):
        name = f"job {number} of {len(jobs)} ({' '.join(item.overrides)})"
        _logger.info(name)
        try:
            job(item.config)
        except Exception as error:
            brief = isinstance(error, UserError) and not _wants_traceback()
            _say(f"error: {name} failed: {error if brief else traceback.format_exc()}")
            failed.append(name)
    if failed:
        _say(f"error: {len(failed)} of {len(jobs)} jobs failed: {'; '.join(failed)}")
    return int(bool(failed))


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of leaving."""

    def error(self, message: str) -> NoReturn:
        """Raises what is wrong with the flags, and how options are written."""
        raise ConfigError(
            f"{message}. Options are written without dashes, such as seed=3; the flags are -m, "
            "--cfg job, --package, --resolve, --config-dir, --version and --help."
        )


def _parse_flags(words: list[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("-p", "--package")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--config-dir")
    parser.add_argument("overrides", nargs="*")
    flags = parser.parse_intermixed_args(words)
    if flags.cfg and flags.multirun:
        raise ConfigError("--cfg shows one configuration; leave -m out.")
    if (flags.package or flags.resolve) and not flags.cfg:
        raise ConfigError("--package and --resolve go with --cfg.")
    if flags.config_dir is not None:
        folder = Path(flags.config_dir).resolve()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {flags.config_dir}: there is no such folder.")
        searched = QuotedString(f"file://{folder}", Quote.single).with_quotes()
        flags.overrides.append(f"hydra.searchpath=[{searched}]")
    return flags


class _Composer(Generic[Root]):
    """Composes and checks the configuration of one entry point, with Hydra set up for it."""

    def __init__(self, config_name: str, root: type[Root]) -> None:
        self.config_name = config_name
        self.root = root
        self.schema = schema(root)
        self.options = {info.key: info for info in options(root)}
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        self.hydra = hydra
        self.loader = GlobalHydra.instance().config_loader()
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.names = list(dict.fromkeys(key.partition(".")[0] for key in self.options))
        folders = self.loader.list_groups("")
        self.groups = [name for name in self.names if name in folders]

    @classmethod
    @contextmanager
    def open(cls, config_name: str, root: type[Root]) -> Iterator[_Composer[Root]]:
        """Sets Hydra up, and takes it down again at the end."""
        store = ConfigStore.instance()
        store.store(name=f"{config_name}_schema", node=schema(root))
        for group, name, values in groups(root):
            store.store(group=group, name=name, node=values)
        with initialize_config_dir(str(conf_folder()), job_name=config_name, version_base="1.3"):
            yield cls(config_name, root)

    def jobs(self, lines: Sequence[str], *, multirun: bool) -> list[Job[Root]]:
        """Checks all overrides, and composes every combination of their values.

        Args:
            lines: The overrides.
            multirun: Whether one of them may name several values, and the grid of an experiment
                counts in what they leave open.

        Raises:
            ConfigError: naming the override and what is legal.
        """
        jobs = []
        composed: dict[tuple[str, ...], DictConfig] = {}
        for words in self._combinations(lines, multirun=multirun, grids=multirun):
            config = to_typed(self._compose_once(words, composed), self.root)
            if multirun:
                self._refuse_devices(config)
            jobs.append(Job([word for word in words if not _is_of_hydra(word)], config))
        if not jobs:
            raise ConfigError("-m: one of the ranges is empty, so that there is nothing to run.")
        return jobs

    def _combinations(
        self, lines: Sequence[str], *, multirun: bool, grids: bool
    ) -> Iterator[Sequence[str]]:
        overrides = self._parse(lines, multirun=multirun)
        for combination in itertools.product(*map(_values, overrides)):
            yield from self._cells(combination) if grids else [combination]

    def _cells(self, words: Sequence[str]) -> Iterator[Sequence[str]]:
        """The overrides once for every cell of the grid that an experiment brings."""
        lines = self._open_grid(words)
        parts = [line for line in lines if _key(line) == _EXPERIMENT]
        if parts:
            # An experiment of several experiments, one after another.
            others = [word for word in words if _key(word) != _EXPERIMENT]
            for (part,) in itertools.product(*map(_values, self._parse(parts, multirun=True))):
                yield from self._cells([*others, part])
            return
        for cell in itertools.product(*map(_values, self._parse(lines, multirun=True))):
            yield [*words, *cell]

    def _open_grid(self, words: Sequence[str]) -> list[str]:
        """What of ``hydra.sweeper.params``, the grid of an experiment, the overrides leave open."""
        if _EXPERIMENT not in self.groups:
            return []
        grid = self._compose(words, return_hydra_config=True).hydra.sweeper.params or {}
        given = {_key(word) for word in words} - {_EXPERIMENT}
        return [f"{key}={value}" for key, value in grid.items() if key not in given]

    def refuse_grid(self, lines: Sequence[str]) -> None:
        """Refuses to run an experiment of many runs as one.

        Raises:
            ConfigError: naming what is open, and both ways on.
        """
        words = [str(override.input_line) for override in self._parse(lines, multirun=False)]
        grid = self._open_grid(words)
        if grid:
            raise ConfigError(
                f"this experiment is a grid over {', '.join(_key(line) for line in grid)}: add -m "
                "to run all of it, or give one value for each to run a single cell."
            )

    def refuse_launcher(self, lines: Sequence[str]) -> None:
        """Refuses a launcher where nothing is launched.

        Raises:
            ConfigError: naming the override.
        """
        for line in lines:
            if _key(line).startswith(("hydra/launcher", "hydra.launcher")):
                raise ConfigError(
                    f"{line}: a launcher runs the cells of python -m msea_lightning.train -m; this "
                    "command launches nothing. Leave it out."
                )

    def start(
        self, lines: Sequence[str], task: Task, jobs: Sequence[Job[Root]]
    ) -> Sequence[JobReturn]:
        """Hands jobs to Hydra's launcher.

        Args:
            lines: The overrides of the command line, which choose the launcher.
            task: What the launcher calls with the composed configuration of each.
            jobs: The jobs.

        Returns:
            What the launcher returns of each.
        """
        own = [line for line in lines if _is_of_hydra(line)]
        config = self.hydra.compose_config(
            self.config_name, [*own, *jobs[0].overrides], RunMode.MULTIRUN, False
        )
        context = HydraContext(config_loader=self.loader, callbacks=Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(context, task, config)
        return launcher.launch([job.overrides for job in jobs], initial_job_idx=0)

    def show(self, flags: argparse.Namespace) -> None:
        """Writes the composed configuration to standard output as YAML; of a grid the first cell.

        Raises:
            ConfigError: naming the override and what is legal.
        """
        words = next(iter(self._combinations(flags.overrides, multirun=False, grids=True)))
        config = self._compose(words)
        typed = OmegaConf.structured(to_typed(config, self.root))
        if flags.cfg == "job":
            if flags.package and OmegaConf.select(typed, flags.package) is None:
                raise ConfigError(f"--package {flags.package}: there is no such section.")
            shown = OmegaConf.select(typed, flags.package) if flags.package else typed
            sys.stdout.write(OmegaConf.to_yaml(shown))
            return
        self.hydra.show_cfg(
            config_name=self.config_name,
            overrides=list(words),
            cfg_type=flags.cfg,
            package=flags.package,
            resolve=flags.resolve,
        )

    def help(self, lines: Sequence[str]) -> str:
        """The help text: usage, choices, and every option with the value it would have."""
        overrides = self._parse(lines, multirun=False)
        config = self._compose([str(override.input_line) for override in overrides])
        complete(config, self.root)
        text = [self._usage(), "", "Flags", _FLAGS]
        if self.groups:
            text += ["", "Groups: one choice each, as in dataset=mosei"]
            for group in self.groups:
                choices = f"  {group:<10} {', '.join(self._choices(group))}"
                text += textwrap.wrap(
                    choices, 100, subsequent_indent=" " * 13, break_on_hyphens=False
                )
        section = None
        for key, info in self.options.items():
            above = key.rpartition(".")[0]
            if above.partition(".")[0] != section:
                section = above.partition(".")[0]
                text += ["", f"Options of {section}" if section else "Other options"]
            text += [f"  {key}={_shown(config, key)}", f"      {info.help} [{_kind(info)}]"]
        text += ["", "Values are those of this command line without --help.", ""]
        return "\n".join(text)

    def _usage(self) -> str:
        """The comment at the head of the entry point's file in ``conf/``."""
        path = conf_folder() / f"{self.config_name}.yaml"
        lines = path.read_text(encoding="utf-8").splitlines()
        head = itertools.takewhile(lambda line: line.startswith("#"), lines)
        return "\n".join(line[2:] for line in head)

    def _parse(self, lines: Sequence[str], *, multirun: bool) -> list[Override]:
        """Parses overrides, checks each, and refuses those that contradict each other."""
        overrides = [self._parse_line(line) for line in lines]
        for override in overrides:
            if override.is_hydra_override() and override.is_sweep_override():
                raise ConfigError(
                    f"{override.input_line}: all runs are launched in one way; give "
                    f"{override.key_or_group} one value."
                )
        own = [override for override in overrides if not override.is_hydra_override()]
        for first, second in itertools.combinations(own, 2):
            one, other = first.key_or_group, second.key_or_group
            if one == other:
                raise ConfigError(
                    f"{one} is given twice, as {first.input_line} and {second.input_line}; "
                    "give it once (several values to try: with commas, and -m)."
                )
            short, long = sorted((one, other), key=len)
            if long.startswith(f"{short}.") and short not in self.groups:
                raise ConfigError(
                    f"{short} and {long} are both given; {long} is a part of {short}."
                )
        for override in own:
            if override.is_sweep_override() and not multirun:
                self._refuse_values(override)
            self._check(override, _folders(overrides))
        return overrides

    def _parse_line(self, line: str) -> Override:
        """Parses one override; the value of a text option may hold characters that Hydra splits."""
        plain = line.lstrip("+")
        if self._is_mapping(plain.partition("=")[0]):
            # What is in a mapping need not be there before.
            line = f"++{plain}"
        try:
            return self.parser.parse_overrides([line])[0]
        except OverrideParseException:
            key, equals, value = line.partition("=")
            option = self.options.get(key)
            if option is not None and option.type.startswith("text"):
                quoted = QuotedString(value, Quote.single).with_quotes()
                return self.parser.parse_overrides([f"{key}={quoted}"])[0]
            reason = f"the value cannot be read; in quotes it is one text: \"{key}='{value}'\""
            if option is not None and option.type.startswith("list"):
                reason = (
                    "the list cannot be read; texts with signs such as = are in quotes, and the "
                    f"whole for the shell: '{key}=[a,\"b=c\"]'"
                )
            if not equals:
                reason = f"options are written key=value, such as seed=3.{self._listed(key)}"
            raise ConfigError(f"{line}: {reason}") from None

    def _check(self, override: Override, folders: list[Path]) -> None:
        """Refuses an override of something that there is not, or with a value of a wrong type."""
        key, line = override.key_or_group, override.input_line
        if override.package is not None:
            raise ConfigError(f"{line}: '@' has no use here; write {key}=...")
        if not self._is_known(key):
            raise ConfigError(f"{line}: there is no option {key}.{self._guess(key)}")
        if override.type is OverrideType.DEL:
            raise ConfigError(
                f"{line}: nothing can be deleted from the configuration; give {key} another value."
            )
        adds = (OverrideType.ADD, OverrideType.FORCE_ADD)
        known = (*self.options, *self.names)
        if override.type in adds and key in known and not self._is_mapping(key):
            raise ConfigError(f"{line}: {key} is there already; leave the + out.")
        values = [override.value()]
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                raise ConfigError(f"{line}: an interval has no values to try; use range or commas.")
            values = [_unquoted(value) for value in override.sweep_iterator()]
        for value in values:
            if key in self.groups and not isinstance(value, dict):
                self._check_choice(key, value, folders)
            else:
                self._check_value(key, value)

    def _check_choice(self, group: str, value: Any, folders: list[Path]) -> None:
        choices = self._choices(group, folders)
        if value not in choices:
            raise ConfigError(
                f"{group}={_written(value)}: there is no such choice."
                f"{_similar(str(value), choices)} Choices of {group}: {', '.join(choices)}."
            )

    def _check_value(self, key: str, value: Any) -> None:
        """Refuses a value that the option's type does not allow, and looks into mappings."""
        if isinstance(value, dict) and key not in self.options:
            for name, part in value.items():
                if not self._is_known(f"{key}.{name}"):
                    raise ConfigError(
                        f"{key}={value}: there is no option {key}.{name}."
                        f"{self._guess(f'{key}.{name}')}"
                    )
                self._check_value(f"{key}.{name}", part)
            return
        if key not in self.options:
            if key in self.names or any(name.startswith(f"{key}.") for name in self.options):
                raise ConfigError(
                    f"{key}={value}: {key} is a section, give one of its options."
                    f"{self._listed(key)}"
                )
            return  # Below a list or a mapping: composing checks it.
        info = self.options[key]
        try:
            OmegaConf.update(OmegaConf.structured(self.schema), key, value)
            fits = value is not None or "null" in info.type
        except OmegaConfBaseException:
            fits = False
        if not fits:
            guess = _similar(str(value), info.type.split("|")) if "|" in info.type else ""
            raise ConfigError(
                f"{key}={_written(value)}: this is not a possible value; expected "
                f"{_kind(info)} ({info.help}).{guess}"
            )

    def _refuse_values(self, override: Override) -> NoReturn:
        """Refuses several values for one option where there is only one run."""
        key, _, value = str(override.input_line).partition("=")
        kind = self.options[key].type if key in self.options else ""
        hint = ""
        if kind.startswith("list"):
            hint = f" A list is written {key}=[{value}]."
        if kind.startswith("text"):
            hint = f" One text with commas needs two pairs of quotes: \"{key}='{value}'\"."
        raise ConfigError(
            f"{override.input_line}: these are several values; add -m to run once with each.{hint}"
        )

    def _compose(
        self, overrides: Sequence[str], *, return_hydra_config: bool = False
    ) -> DictConfig:
        try:
            return hydra_compose(self.config_name, list(overrides), return_hydra_config)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
            reasons = [error, error.__cause__] if error.__cause__ else [error]
            lines = [line.strip() for reason in reasons for line in str(reason).splitlines()]
            noise = ("reference_type=", "object_type=", "provider=", "Config search path")
            text = " ".join(line for line in lines if line and not line.startswith(noise))
            hint = _EXTRAS if "hydra/launcher" in text else ""
            raise ConfigError(f"The configuration cannot be composed: {text}{hint}") from error

    def _compose_once(
        self, words: Sequence[str], composed: dict[tuple[str, ...], DictConfig]
    ) -> DictConfig:
        """The configuration of one of many jobs, which composes each set of choices once.

        Composing takes most of a second for ten jobs, and most jobs of a sweep differ in their seed
        alone: an option has no part in choosing files, so that Hydra, too, sets it at the end.

        Args:
            words: The overrides.
            composed: What has been composed before, by the overrides.
        """
        choosing = tuple(
            word for word in words if word.startswith(("+", "~")) or not self._is_option(_key(word))
        )
        if choosing not in composed:
            composed[choosing] = self._compose(choosing)
        config = copy.deepcopy(composed[choosing])
        setting = [word for word in words if word not in choosing]
        for override in self.parser.parse_overrides(setting):
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        return config

    def _is_option(self, key: str) -> bool:
        return key in self.options and key not in self.groups

    def _refuse_devices(self, config: Root) -> None:
        trainer = getattr(config, "trainer", None)
        if trainer is not None and trainer.devices > 1:
            raise ConfigError(
                f"trainer.devices={trainer.devices} does not go with -m: every run on several "
                "devices is a command of its own. Use a loop of the shell instead, such as: for "
                f"seed in 1 2 3; do python -m msea_lightning.{self.config_name} seed=$seed "
                f"trainer.devices={trainer.devices}; done"
            )

    def _is_known(self, key: str) -> bool:
        """Whether a key is an option, a section, or something inside of a list or a mapping."""
        return any(
            key == name
            or name.startswith(f"{key}.")
            or (key.startswith(f"{name}.") and info.type.startswith(("list", "mapping")))
            for name, info in self.options.items()
        )

    def _is_mapping(self, key: str) -> bool:
        """Whether a key is an option that is a mapping, or something inside of one."""
        return any(
            info.type.startswith("mapping") and (key == name or key.startswith(f"{name}."))
            for name, info in self.options.items()
        )

    def _guess(self, key: str) -> str:
        """What was probably meant by an unknown key, and what there is."""
        scores: dict[str, float] = {}
        inside = [name for name in self.options if name.startswith(f"{key.partition('.')[0]}.")]
        for name in inside or (*self.names, *self.options):
            whole = difflib.SequenceMatcher(None, key, name).ratio()
            last = difflib.SequenceMatcher(
                None, key.rpartition(".")[2], name.rpartition(".")[2]
            ).ratio()
            scores[name] = max(whole, last)
        best = max(scores, key=lambda name: scores[name])
        guess = f" Did you mean {best}?" if scores[best] > 0.7 else ""
        return f"{guess}{self._listed(key)}"

    def _listed(self, key: str) -> str:
        """The options of a key's section; where it has none, the names at the top."""
        parts = key.split(".")
        for depth in range(len(parts), 0, -1):
            section = ".".join(parts[:depth])
            inside = [
                name.removeprefix(f"{section}.").partition(".")[0]
                for name in self.options
                if name.startswith(f"{section}.")
            ]
            if inside:
                return f" Options of {section}: {', '.join(dict.fromkeys(inside))}."
        return f" There are: {', '.join(self.names)}; --help lists all options."

    def _choices(self, group: str, folders: Sequence[Path] = ()) -> list[str]:
        more = [path.stem for folder in folders for path in (folder / group).glob("*.yaml")]
        return sorted({*self.loader.get_group_options(group), *more})


def _folders(overrides: Sequence[Override]) -> list[Path]:
    """Further folders with choices that the command line names."""
    folders: list[Path] = []
    for override in overrides:
        value = override.value()
        if override.key_or_group == "hydra.searchpath" and isinstance(value, list):
            folders += [Path(str(entry).removeprefix("file://")) for entry in value]
    return folders


def _key(word: str) -> str:
    """What an override is for."""
    return word.lstrip("+~").partition("=")[0]


def _is_of_hydra(word: str) -> bool:
    """Whether an override is for Hydra itself."""
    return _key(word).startswith(("hydra.", "hydra/"))


def _values(override: Override) -> list[str]:
    """The override once for every value that it names."""
    if not override.is_sweep_override() or override.is_hydra_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _kind(info: OptionInfo) -> str:
    """Type and range of an option in words."""
    return ", ".join(part for part in (info.type, info.range) if part)


def _unquoted(value: Any) -> Any:
    return value.text if isinstance(value, QuotedString) else value


def _written(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(config: DictConfig, key: str) -> str:
    """The value of an option in the help text, cut to one line."""
    value = OmegaConf.select(config, key, throw_on_missing=False)
    node = OmegaConf.to_container(value, enum_to_str=True) if OmegaConf.is_config(value) else value
    text = getattr(node, "name", None) or _written(node)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _similar(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, words, n=2)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _say(text: str) -> None:
    sys.stderr.write(f"{visible(text)}\n")
    sys.stderr.flush()


def _refuse(error: UserError, *, status: int) -> int:
    """Prints an error of the user and gives the exit code, or raises it (``MSEA_TRACEBACK=1``)."""
    if _wants_traceback():
        raise error
    _say(f"error: {error}")
    return status


def _wants_traceback() -> bool:
    return os.environ.get("MSEA_TRACEBACK") == "1"


def _configure_logging() -> None:
    """Sends messages to standard error: the project's from INFO on, others' from WARNING on.

    Processes that Lightning starts for further devices speak of warnings and errors only.
    """
    handler: logging.Handler = logging.StreamHandler()
    line = "%(asctime)s %(levelname)s %(message)s"
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler, line = RichHandler(console=Console(stderr=True), show_path=False), "%(message)s"
    # Lightning prints its messages itself, and would print them twice.
    handler.addFilter(lambda record: record.name.partition(".")[0] != "lightning")
    handler.setFormatter(VisibleFormatter(line, datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    for name in ("msea_lightning", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO if first else logging.WARNING)
