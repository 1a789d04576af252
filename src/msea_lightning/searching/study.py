"""The study: which trials there were, with what result, and which values come next.

It is Optuna's, in a file ``study.db`` (SQLite), which other programs for Optuna read as well. Every
change of it is one transaction, so that a process that is killed leaves it as it was before or
after. The values of a trial depend on the seed, on its number, and on the results before it, and
on nothing that an interruption would lose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from msea_lightning.config.errors import UserError, first_line
from msea_lightning.searching.space import Dimension, Range

_NAME = "search"
"""What the study is called in its file, which has no other."""

_DIGITS = 4
"""Significant digits of a number that is tried: more of them change nothing, and nobody reads
them."""


class StudyError(UserError):
    """A file that holds no study."""


@dataclass(frozen=True)
class Trial:
    """One trial of a study.

    Attributes:
        number: Its number, from 0.
        values: The options that are tried, with their values as the command line has them.
        ended: Whether its run is over.
        valid: The validation metric; None where there is none.
        error: Why there is none.
    """

    number: int
    values: Mapping[str, str]
    ended: bool = False
    valid: float | None = None
    error: str = ""

    @property
    def words(self) -> list[str]:
        """Its values as overrides."""
        return [f"{key}={value}" for key, value in self.values.items()]


class Study:
    """A study on the disk, new or continued.

    One process at a time may work on it.

    Args:
        path: The file; its folder is there.
        space: What is tried.
        higher_is_better: Direction of the validation metric.
        seed: Seed of what is tried.

    Raises:
        StudyError: the file is damaged, or of another version of Optuna.
    """

    def __init__(
        self, path: Path, space: Sequence[Dimension], *, higher_is_better: bool, seed: int
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = list(space)
        self._distributions = {one.key: _distribution(one) for one in space}
        directions = optuna.study.StudyDirection
        self._direction = directions.MAXIMIZE if higher_is_better else directions.MINIMIZE
        self._seed = seed
        try:
            self._storage = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}")
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=_NAME,
                direction=self._direction,
                load_if_exists=True,
            )
        except Exception as error:  # Optuna's own, or SQLAlchemy's
            raise StudyError(
                f"{path} cannot be read ({first_line(error)}): it is damaged, or was written by "
                f"another version of Optuna than {optuna.__version__}. Delete it; the runs of its "
                "trials stay, and are not trained again where the same options are tried."
            ) from error

    def trials(self) -> list[Trial]:
        """All trials so far, by number."""
        return [self._read(one) for one in self._study.get_trials(deepcopy=False)]

    def propose(self) -> Trial:
        """Chooses the values of the next trial, and writes them down."""
        earlier = self._study.get_trials(deepcopy=False)
        number = len(earlier)
        digest = hashlib.sha256(f"{self._seed}-{number}".encode()).hexdigest()
        sampler = optuna.samplers.TPESampler(seed=int(digest[:8], 16))
        # Not in the study itself, which would be given the values one by one.
        scratch = optuna.create_study(direction=self._direction, sampler=sampler)
        scratch.add_trials(earlier)
        chosen = scratch.ask(self._distributions).params
        params = {one.key: _rounded(one, chosen[one.key]) for one in self._space}
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING, params=params, distributions=self._distributions
            )
        )
        return self.trials()[number]

    def finish(self, trial: Trial, valid: float) -> None:
        """Notes the validation metric of a trial, as ``metrics.json`` has it."""
        self._study.tell(trial.number, valid)

    def fail(self, trial: Trial, error: str) -> None:
        """Notes why a trial has no result."""
        study = self._storage.get_study_id_from_name(_NAME)
        found = self._storage.get_trial_id_from_study_id_trial_number(study, trial.number)
        self._storage.set_trial_user_attr(found, "error", error)
        self._study.tell(trial.number, state=TrialState.FAIL)

    def _read(self, found: FrozenTrial) -> Trial:
        values = {}
        for one in self._space:
            value = found.params[one.key]
            values[one.key] = one.text(value) if isinstance(one, Range) else str(value)
        valid = found.value if found.state is TrialState.COMPLETE else None
        error = str(found.user_attrs["error"]) if found.state is TrialState.FAIL else ""
        return Trial(found.number, values, found.state.is_finished(), valid, error)


def _distribution(one: Dimension) -> BaseDistribution:
    if not isinstance(one, Range):
        return CategoricalDistribution(one.values)
    if one.whole:
        return IntDistribution(int(one.low), int(one.high), log=one.log)
    return FloatDistribution(one.low, one.high, log=one.log)


def _rounded(one: Dimension, value: float) -> float:
    if not isinstance(one, Range) or one.whole:
        return value
    return min(max(float(f"{value:.{_DIGITS}g}"), one.low), one.high)
