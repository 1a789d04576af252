"""Runs a command: what was typed becomes a checked configuration, which a job receives.

Nothing heavy is imported before everything is checked: commands import PyTorch inside their jobs.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from msea_lightning import __version__
from msea_lightning.commands.allocator import begin_at_pages
from msea_lightning.commands.compose import compose as compose
from msea_lightning.commands.compose import conf_folder as conf_folder
from msea_lightning.commands.compose import opened
from msea_lightning.commands.flags import COMPLETION, parse_flags
from msea_lightning.commands.help import help_text
from msea_lightning.commands.jobs import Job, Root, Sweep
from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.config.logging import is_rank_zero, log_console
from msea_lightning.config.text import VisibleFormatter, print_exception, say

_logger = logging.getLogger(__name__)


def launch(
    job: Callable[[Root], None],
    *,
    config_name: str,
    root: type[Root],
    arguments: Sequence[str] | None = None,
    sweep: Sweep[Root] | None = None,
    launches: bool = False,
) -> None:
    """Runs a job as the command line says: once, or with ``-m`` once per combination of values.

    Returns after a success and leaves through :class:`SystemExit` otherwise: 1 where the job
    failed, 2 where the command line is wrong, 130 where it was interrupted. An error of the user is
    printed as one paragraph, or raised with ``MSEA_TRACEBACK=1`` in the environment.

    Args:
        job: What to do with the checked configuration.
        config_name: The file in ``conf/`` that composes it, without ``.yaml``.
        root: The dataclass that the configuration has to fit.
        arguments: The words of the command line; those of this process where not given.
        sweep: What runs the jobs of a command line with ``-m``, through one of Hydra's launchers.
            Where not given they run in this process, one after another.
        launches: Whether a single job uses one of Hydra's launchers, whose options are legal then
            without ``-m``.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if arguments is None:  # the process is this command's own
        begin_at_pages()
        sys.excepthook = print_exception
    try:
        status = _launch(job, config_name, root, words, sweep, launches)
    except KeyboardInterrupt:
        say("interrupted")
        status = 130
    if status:
        sys.exit(status)


def _launch(
    job: Callable[[Root], None],
    config_name: str,
    root: type[Root],
    words: list[str],
    sweep: Sweep[Root] | None,
    single_launches: bool,
) -> int:
    if words[:1] and words[0] in COMPLETION:
        from msea_lightning.commands.completion import complete, typed_words

        launches = single_launches or sweep is not None
        with opened(config_name, root, []) as composer:
            found = complete(composer.checker, typed_words(), launches=launches)
        sys.stdout.write("\n".join(found))
        return 0
    with ExitStack() as hydra:
        try:
            flags = parse_flags(words)
            if flags.version:
                sys.stdout.write(f"msea_lightning {__version__}\n")
                return 0
            many = flags.multirun
            if many and single_launches:
                raise ConfigError(
                    f"-m: {config_name} starts many runs by itself, of one configuration. Leave -m "
                    "out, and give every option one value."
                )
            launches = single_launches or (many and sweep is not None)
            composer = hydra.enter_context(
                opened(config_name, root, flags.overrides, multirun=many, launches=launches)
            )
            if flags.help or flags.cfg:
                sys.stdout.write(
                    help_text(composer) if flags.help else composer.show(flags.package)
                )
                return 0
            jobs = composer.jobs()
        except ConfigError as error:
            return _refuse(error, status=2)
        _configure_logging()
        if many:
            try:
                return sweep(jobs, composer.start) if sweep else _one_by_one(job, jobs)
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
            say(f"error: {name} failed: {error if brief else traceback.format_exc()}")
            failed.append(name)
    if failed:
        say(f"error: {len(failed)} of {len(jobs)} jobs failed: {'; '.join(failed)}")
    return int(bool(failed))


def _refuse(error: UserError, *, status: int) -> int:
    """Prints an error of the user and gives the exit code, or raises it (``MSEA_TRACEBACK=1``)."""
    if _wants_traceback():
        raise error
    say(f"error: {error}")
    return status


def _wants_traceback() -> bool:
    return os.environ.get("MSEA_TRACEBACK") == "1"


def _configure_logging() -> None:
    """Sends messages to standard error: the project's from INFO on, others' from WARNING on.

    Processes that Lightning starts for further devices speak of warnings and errors only.
    """
    handler: logging.Handler = logging.StreamHandler()
    formatter = VisibleFormatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    if sys.stderr.isatty():
        from rich.highlighter import NullHighlighter
        from rich.logging import RichHandler

        handler = RichHandler(
            console=log_console(),
            show_path=False,
            show_level=False,
            highlighter=NullHighlighter(),
            log_time_format="%H:%M:%S",
        )
        formatter = _TerminalFormatter("%(message)s")
    # Lightning prints its messages itself, and would print them twice.
    handler.addFilter(lambda record: record.name.partition(".")[0] != "lightning")
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler])
    for name in ("msea_lightning", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO if is_rank_zero() else logging.WARNING)


class _TerminalFormatter(VisibleFormatter):
    """Messages alone, which leaves room for them; what is worse than news says so."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, with the level in front of a warning or an error."""
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return level + super().format(record)
