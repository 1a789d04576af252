"""From overrides to checked configurations, composed by Hydra."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msea_lightning.commands.jobs import Job, Root, Task
from msea_lightning.commands.overrides import Checker, key_of
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import groups, registered, schema, to_typed

_told: dict[str, tuple[Any, ...]] = {}
"""What can be chosen, as Hydra knows it, by command."""

_composed: dict[tuple[Any, ...], DictConfig] = {}
"""What Hydra has composed, by command, what can be chosen, Hydra's own options, and choices."""

_EXPERIMENT = "experiment"  # the group whose choices bring a grid, as hydra.sweeper.params


def compose(config_name: str, root: type[Root], overrides: Sequence[str] = ()) -> Root:
    """The typed configuration of a command line with overrides such as ``dataset=mosei seed=3``.

    Raises:
        ConfigError: naming the override and what is legal.
    """
    with opened(config_name, root, overrides) as composer:
        return composer.typed(composer.words)


def conf_folder() -> Path:
    """The folder ``conf``: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


@contextmanager
def opened(
    config_name: str,
    root: type[Root],
    lines: Sequence[str],
    *,
    multirun: bool = False,
    launches: bool = False,
) -> Iterator[Composer[Root]]:
    """Sets Hydra up for a command line until the end; see :func:`compose` and ``Checker.parse``."""
    _tell_hydra(config_name, root)
    with initialize_config_dir(str(conf_folder()), job_name=config_name, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        checker = Checker(root, loader)
        overrides = checker.parse(lines, multirun=multirun, launches=launches)
        yield Composer(config_name, root, loader, checker, overrides, multirun)


def _tell_hydra(config_name: str, root: type[Any]) -> None:
    """Tells Hydra a command's schema and choices, anew where some were registered since."""
    known = registered(root)
    if _told.get(config_name) == known:
        return
    store = ConfigStore.instance()
    store.store(name=f"{config_name}_schema", node=schema(root))
    for group, name, values in groups(root):
        store.store(group=group, name=name, node=values)
    _told[config_name] = known


def set_by_method(name: str) -> set[str]:
    """The options that a file of ``conf/method`` sets, and the files that it builds on."""
    written = yaml.safe_load((conf_folder() / "method" / f"{name}.yaml").read_text("utf-8"))
    others = [
        one for one in written.pop("defaults", []) if one != "_self_" and isinstance(one, str)
    ]
    keys = {key for other in others for key in set_by_method(other)}
    return keys | set(_flat_keys(written)) - {"method"}


def _flat_keys(section: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat_keys(value, f"{where}{name}.")
        else:
            yield f"{where}{name}"


@dataclass
class Composer(Generic[Root]):
    """Composes and checks the configurations of one command line; see :func:`opened`."""

    config_name: str
    root: type[Root]
    loader: ConfigLoader
    checker: Checker
    overrides: Sequence[Override]
    multirun: bool

    def __post_init__(self) -> None:
        """Keeps Hydra's own options apart."""
        self.own = [override for override in self.overrides if not override.is_hydra_override()]
        self.words = [str(override.input_line) for override in self.own]
        lines = [str(override.input_line) for override in self.overrides]
        self.hydra = [line for line in lines if line not in self.words]
        self._grids: dict[str, list[str]] = {}

    def compose(self, words: Sequence[str], *, hydra: bool = False) -> DictConfig:
        """What Hydra makes of overrides; with its own configuration where that is asked for."""
        try:
            return hydra_compose(self.config_name, [*self.hydra, *words], hydra)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            reasons = [error, error.__cause__] if error.__cause__ else [error]
            lines = [line.strip() for reason in reasons for line in str(reason).splitlines()]
            noise = (
                "reference_type=", "object_type=", "provider=", "Config search path",
                "To append to your config",
            )  # fmt: skip
            text = " ".join(line for line in lines if line and not line.startswith(noise))
            if unknown := re.search(r"Could not override '(hydra\.launcher\.\S+)'", text):
                raise ConfigError(
                    f"{unknown[1]}: the launcher has no such option. Options of hydra.launcher: "
                    f"{', '.join(self._launcher_options())}."
                ) from error
            section = rf"In '([^']+)/([^']+)': .*Key '(\w+)' not in '{self.root.__name__}'"
            if other := re.search(section, text):
                raise ConfigError(
                    f"{other[1]}={other[2]} sets {other[3]}, which this command does not have: "
                    f"choose another {other[1]}, or correct its file."
                ) from error
            if "hydra/launcher" in text:
                text += (
                    " Launchers for clusters come with extras: pip install 'msea_lightning[slurm]' "
                    "or 'msea_lightning[ray]'."
                )
            raise ConfigError(f"The configuration cannot be composed: {text}") from error

    def _launcher_options(self) -> list[str]:
        """What can be set of the launcher that the command line chooses."""
        chosen = [line for line in self.hydra if line.startswith("hydra/launcher")]
        launcher = hydra_compose(self.config_name, chosen, return_hydra_config=True).hydra.launcher
        return [str(name) for name in launcher if name != "_target_"]

    def typed(self, words: Sequence[str]) -> Root:
        """The checked configuration that overrides make.

        Composing takes most of a second for ten jobs, and most jobs of a sweep differ in their seed
        alone. So each set of choices is composed once a process, and options are set in a copy of
        it.
        """
        settings = self.checker.options.keys() - self.checker.groups
        choosing = tuple(word for word in words if word.partition("=")[0] not in settings)
        key = (self.config_name, registered(self.root), *self.hydra, *choosing)
        if key not in _composed:
            _composed[key] = self.compose(choosing)
        config = copy.deepcopy(_composed[key])
        rest = [word for word in words if word not in choosing]
        literal = {}
        method = config.get("method")
        fixed = set_by_method(method) if method else set()
        for override in OverridesParser.create().parse_overrides(rest):
            name, value = override.key_or_group, override.value()
            if name in fixed:
                config.method = None  # what is run may be another one
            if self.checker.options[name].literal and isinstance(value, str):
                literal[name] = value
            else:
                OmegaConf.update(config, name, value, merge=True)
        typed = to_typed(config, self.root)
        # Not in the configuration, where ${...} and ??? would mean something.
        for name, value in literal.items():
            setattr(typed, name, value)
        return typed

    def jobs(self) -> list[Job[Root]]:
        """The configuration of every combination of values, the grid of an experiment included."""
        if not self.multirun:
            if missing := self._missing(self.words):
                raise ConfigError(
                    f"this experiment is a grid over {', '.join(map(key_of, missing))}: add -m to "
                    "run all of it, or give one value for each to run a single configuration."
                )
            return [Job(self.words, self.typed(self.words))]
        jobs = [Job(words, self.typed(words)) for words in self.combinations()]
        if not jobs:
            raise ConfigError("-m: one of the ranges is empty, so that there is nothing to run.")
        for job in jobs:
            trainer = getattr(job.config, "trainer", None)
            if trainer is not None and trainer.ranks > 1:
                name = "devices" if trainer.devices > 1 else "num_nodes"
                given = f"trainer.{name}={getattr(trainer, name)}"
                raise ConfigError(
                    f"{given} does not go with -m: every run on several devices is a command of "
                    "its own. Use a loop of the shell instead, such as: for seed in 1 2 3; do "
                    f"python -m msea_lightning.{self.config_name} seed=$seed {given}; done"
                )
        return jobs

    def start(
        self, task: Task, jobs: Sequence[Job[Root]], *, number: int = 0
    ) -> Sequence[JobReturn]:
        """Hands jobs to Hydra's launcher, which calls the task with each one's configuration.

        They are numbered from ``number`` on.
        """
        words = [*self.hydra, *jobs[0].overrides]
        config = self.loader.load_configuration(self.config_name, words, RunMode.MULTIRUN)
        context = HydraContext(config_loader=self.loader, callbacks=Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(context, task, config)
        return launcher.launch([job.overrides for job in jobs], initial_job_idx=number)

    def show(self, package: str | None) -> str:
        """The configuration, or what is below a key of it, as YAML; of a grid the first run's."""
        config = OmegaConf.structured(self.typed(next(self.combinations())))
        shown = OmegaConf.select(config, package) if package else config
        if shown is None:
            raise ConfigError(f"--package {package}: there is no such section.")
        return OmegaConf.to_yaml(shown)

    def combinations(self) -> Iterator[list[str]]:
        """The overrides of every job, without those of Hydra's own options.

        They are those of Hydra's basic sweeper, which itself would compose each one more often,
        and launch what is finished. What an experiment leaves open comes after what is given.
        """
        todo = _split(self.own)
        while todo:
            words = todo.pop(0)
            missing = self._missing(words)
            if not missing:
                yield words
                continue
            # An experiment of experiments replaces itself by its parts.
            nested = any(key_of(line) == _EXPERIMENT for line in missing)
            kept = [word for word in words if not nested or key_of(word) != _EXPERIMENT]
            grid = self.checker.parse(missing, multirun=True)
            todo = [[*kept, *part] for part in _split(grid)] + todo

    def _missing(self, words: Sequence[str]) -> list[str]:
        """What of its grid (``hydra.sweeper.params``) the experiment of overrides leaves open."""
        given = {key_of(word): word for word in words}
        experiment = given.pop(_EXPERIMENT, None)
        if experiment is None:
            return []
        if experiment not in self._grids:
            params = self.compose([experiment], hydra=True).hydra.sweeper.params or {}
            self._grids[experiment] = [f"{key}={value}" for key, value in params.items()]
        return [line for line in self._grids[experiment] if key_of(line) not in given]


def _split(overrides: Sequence[Override]) -> list[list[str]]:
    """Every combination of values, as Hydra's sweeper has them; single values as they are typed."""
    typed = {o.get_key_element(): str(o.input_line) for o in overrides if not o.is_sweep_override()}
    (jobs,) = BasicSweeper.split_arguments(list(overrides), max_batch_size=None)
    return [[typed.get(word.partition("=")[0], word) for word in words] for words in jobs]
