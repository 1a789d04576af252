"""From overrides to checked configurations, composed by Hydra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from msea_lightning.commands.jobs import Job, Root, Task
from msea_lightning.commands.overrides import Checker, key_of
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import groups, schema, to_typed

_EXPERIMENT = "experiment"
"""The group whose choices bring a grid, as ``hydra.sweeper.params``."""

_EXTRAS = (
    " Launchers for clusters come with extras: pip install 'msea_lightning[slurm]' or "
    "'msea_lightning[ray]'."
)


def compose(config_name: str, root: type[Root], overrides: Sequence[str] = ()) -> Root:
    """The typed configuration that a command line with these overrides runs with.

    Args:
        config_name: The file in ``conf/`` that composes it, without ``.yaml``.
        root: The dataclass that the configuration has to fit.
        overrides: Words such as ``dataset=mosei`` and ``seed=3``.

    Raises:
        ConfigError: naming the override and what is legal.
    """
    with Composer.open(config_name, root) as composer:
        (job,) = composer.jobs(overrides, multirun=False)
        return job.config


def conf_folder() -> Path:
    """The folder ``conf``: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


class Composer(Generic[Root]):
    """Composes and checks the configurations of one command, with Hydra set up for it."""

    def __init__(self, config_name: str, root: type[Root]) -> None:
        self.config_name = config_name
        self.root = root
        self.loader = GlobalHydra.instance().config_loader()
        self.checker = Checker(root, self.loader)
        self._grids: dict[tuple[str, ...], list[str]] = {}

    @classmethod
    @contextmanager
    def open(cls, config_name: str, root: type[Root]) -> Iterator[Composer[Root]]:
        """Sets Hydra up, and takes it down again at the end."""
        store = ConfigStore.instance()
        store.store(name=f"{config_name}_schema", node=schema(root))
        for group, name, values in groups(root):
            store.store(group=group, name=name, node=values)
        with initialize_config_dir(str(conf_folder()), job_name=config_name, version_base="1.3"):
            yield cls(config_name, root)

    def compose(self, overrides: Sequence[str], *, return_hydra_config: bool = False) -> DictConfig:
        """What Hydra makes of overrides.

        Raises:
            ConfigError: with Hydra's reasons.
        """
        try:
            return hydra_compose(self.config_name, list(overrides), return_hydra_config)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
            reasons = [error, error.__cause__] if error.__cause__ else [error]
            lines = [line.strip() for reason in reasons for line in str(reason).splitlines()]
            noise = ("reference_type=", "object_type=", "provider=", "Config search path")
            text = " ".join(line for line in lines if line and not line.startswith(noise))
            hint = _EXTRAS if "hydra/launcher" in text else ""
            raise ConfigError(f"The configuration cannot be composed: {text}{hint}") from error

    def jobs(self, lines: Sequence[str], *, multirun: bool) -> list[Job[Root]]:
        """Checks all overrides, and composes every combination of their values.

        Args:
            lines: The overrides.
            multirun: Whether one of them may name several values, and the grid of an experiment
                counts in what they leave open.

        Raises:
            ConfigError: naming the override and what is legal.
        """
        hydra = [line for line in lines if _is_of_hydra(line)]
        jobs = []
        for words in self._combinations(lines, multirun=multirun, grids=multirun):
            config = to_typed(self.compose([*hydra, *words]), self.root)
            if multirun:
                self._refuse_devices(config)
            jobs.append(Job(words, config))
        if not jobs:
            raise ConfigError("-m: one of the ranges is empty, so that there is nothing to run.")
        return jobs

    def refuse_grid(self, lines: Sequence[str]) -> None:
        """Refuses to run an experiment of many runs as one."""
        self.checker.parse(lines, multirun=False)
        if missing := self._missing(lines):
            raise ConfigError(
                f"this experiment is a grid over {', '.join(map(key_of, missing))}: add -m to run "
                "all of it, or give one value for each to run a single configuration."
            )

    def refuse_launcher(self, lines: Sequence[str]) -> None:
        """Refuses a launcher where nothing is launched."""
        for line in lines:
            if key_of(line).startswith(("hydra/launcher", "hydra.launcher", "hydra/sweeper")):
                raise ConfigError(
                    f"{line}: this is for the runs of python -m msea_lightning.train -m; this "
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
        words = [*filter(_is_of_hydra, lines), *jobs[0].overrides]
        config = self.loader.load_configuration(self.config_name, words, RunMode.MULTIRUN)
        context = HydraContext(config_loader=self.loader, callbacks=Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(context, task, config)
        return launcher.launch([job.overrides for job in jobs], initial_job_idx=0)

    def show(self, lines: Sequence[str], package: str | None) -> str:
        """The composed configuration as YAML, of a grid that of the first run.

        Args:
            lines: The overrides.
            package: The key below which it is shown; all of it where not given.
        """
        hydra = [line for line in lines if _is_of_hydra(line)]
        words = next(iter(self._combinations(lines, multirun=False, grids=True)))
        config = OmegaConf.structured(to_typed(self.compose([*hydra, *words]), self.root))
        shown = OmegaConf.select(config, package) if package else config
        if shown is None:
            raise ConfigError(f"--package {package}: there is no such section.")
        return OmegaConf.to_yaml(shown)

    def _combinations(
        self, lines: Sequence[str], *, multirun: bool, grids: bool
    ) -> Iterator[list[str]]:
        """The overrides of every job, without those of Hydra's own options."""
        overrides = self.checker.parse(lines, multirun=multirun)
        hydra = [line for line in lines if _is_of_hydra(line)]
        own = [override for override in overrides if not override.is_hydra_override()]
        if not grids:
            yield [str(override.input_line) for override in own]
            return
        for words in _split(own):
            yield from self._with_grid(words, hydra)

    def _with_grid(self, words: list[str], hydra: list[str]) -> Iterator[list[str]]:
        """Overrides of one value each, once for every combination of what they leave open."""
        missing = self._missing([*hydra, *words])
        if not missing:
            yield words
            return
        # An experiment of experiments replaces itself by one of its parts at a time.
        nested = any(key_of(line) == _EXPERIMENT for line in missing)
        kept = [word for word in words if not nested or key_of(word) != _EXPERIMENT]
        for part in _split(self.checker.parse(missing, multirun=True)):
            combined = [*kept, *part]
            yield from self._with_grid(combined, hydra) if nested else [combined]

    def _missing(self, words: Sequence[str]) -> list[str]:
        """What of its grid (``hydra.sweeper.params``) the experiment of overrides leaves open."""
        chosen = tuple(word for word in words if key_of(word) in (_EXPERIMENT, "hydra.searchpath"))
        if not any(key_of(word) == _EXPERIMENT for word in chosen):
            return []
        if chosen not in self._grids:
            params = self.compose(chosen, return_hydra_config=True).hydra.sweeper.params or {}
            self._grids[chosen] = [f"{key}={value}" for key, value in params.items()]
        given = {key_of(word) for word in words} - {_EXPERIMENT}
        return [line for line in self._grids[chosen] if key_of(line) not in given]

    def _refuse_devices(self, config: Root) -> None:
        trainer = getattr(config, "trainer", None)
        if trainer is not None and trainer.devices > 1:
            raise ConfigError(
                f"trainer.devices={trainer.devices} does not go with -m: every run on several "
                "devices is a command of its own. Use a loop of the shell instead, such as: for "
                f"seed in 1 2 3; do python -m msea_lightning.{self.config_name} seed=$seed "
                f"trainer.devices={trainer.devices}; done"
            )


def _is_of_hydra(word: str) -> bool:
    """Whether an override is for Hydra itself."""
    return key_of(word).startswith(("hydra.", "hydra/"))


def _split(overrides: list[Override]) -> list[list[str]]:
    """Every combination of values, as Hydra's sweeper has them."""
    return BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]
