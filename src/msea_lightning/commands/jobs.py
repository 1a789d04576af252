"""What a command line with ``-m`` hands over: jobs, and the way to Hydra's launchers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

Root = TypeVar("Root")


@dataclass(frozen=True)
class Job(Generic[Root]):
    """One run of a sweep: the overrides that make it a run of its own, and what they make."""

    overrides: list[str]
    config: Root


Task: TypeAlias = Callable[[DictConfig], Any]
"""What a launcher calls with the composed configuration of a job, perhaps in another process or on
another machine: a function of a module."""

Start: TypeAlias = Callable[[Task, Sequence[Job[Root]]], Sequence[JobReturn]]
"""Hands jobs to the launcher that the command line chooses, and returns what it returns of each."""

Sweep: TypeAlias = Callable[[Sequence[Job[Root]], Start[Root]], int]
"""Runs all jobs of a command line with ``-m``; the exit code."""
