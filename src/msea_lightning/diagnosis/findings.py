"""Everything that ``python -m msea_lightning.doctor`` looks at, gathered.

It looks at this machine alone: it opens no connection, loads no language model, and changes
nothing. In what it finds, ``flaw`` says what is wrong and ``remedy`` is the command that mends it;
both are empty where all is well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from msea_lightning.commands.compose import conf_folder, opened
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import DoctorConfig, TrainConfig
from msea_lightning.diagnosis.backbones import find_backbones
from msea_lightning.diagnosis.datasets import Resource, find_datasets
from msea_lightning.diagnosis.devices import (
    Disk,
    Machine,
    find_disks,
    find_machine,
    measured_rate,
)
from msea_lightning.diagnosis.packages import (
    Package,
    find_packages,
    one_line,
)
from msea_lightning.paper import paper_table

if TYPE_CHECKING:
    from msea_lightning.cost.published import ConfigurationCost

_ANY_BACKBONE = "auto"
"""The choice of ``conf/backbone`` that stands for any language model."""


class DoctorError(UserError):
    """A folder to search that does not exist, or a file that cannot be written."""


@dataclass
class Findings:
    """All that was found.

    Attributes:
        packages: What is installed.
        machine: What it runs on.
        disks: Where downloads, stores and checkpoints go.
        datasets: Every choice of ``conf/dataset``.
        backbones: Every choice of ``conf/backbone``, and further checkpoints in the folder that
            was searched.
        rate: Floating point operations per second of the chosen device in matrix products; None
            where that cannot be measured.
        configurations: What the twelve configurations of the paper need.
        fitting: By the name of a backbone that does not fit: the options with which its largest
            configuration fits, each with the bytes that it needs then.
        unchecked: By the name of a section that a broken package kept from being checked: why.
    """

    packages: list[Package]
    machine: Machine
    disks: list[Disk] = field(default_factory=list)
    datasets: list[Resource] = field(default_factory=list)
    backbones: list[Resource] = field(default_factory=list)
    rate: float | None = None
    configurations: list[ConfigurationCost] = field(default_factory=list)
    fitting: dict[str, dict[str, int]] = field(default_factory=dict)
    unchecked: dict[str, str] = field(default_factory=dict)


def diagnose(config: DoctorConfig) -> Findings:
    """Looks at this machine.

    Args:
        config: Folders to search, and the hardware to look at.

    Raises:
        DoctorError: if a folder to search does not exist.
    """
    folders = {name: _folder(config, name) for name in ("datasets", "backbones")}
    machine = find_machine(config.accelerator)
    packages = find_packages(machine.chosen)
    broken = any(package.flaw and not package.optional for package in packages)
    findings = Findings(packages, machine)

    def disks() -> None:
        findings.disks = find_disks()

    def datasets() -> None:
        configs = [choice.dataset for choice in choices("dataset")]
        findings.datasets = find_datasets(configs, folders["datasets"])

    def backbones() -> None:
        configs = [choice.backbone for choice in choices("backbone")]
        findings.backbones = find_backbones(configs, folders["backbones"])

    def configurations() -> None:
        import torch

        from msea_lightning.cost.published import configuration_costs

        resources = (*findings.datasets, *findings.backbones)
        found = {resource.name: resource.option for resource in resources if resource.usable}
        findings.rate = measured_rate(machine.device)
        configs, device = paper_configurations(), torch.device(machine.device.name)
        findings.configurations, findings.fitting = configuration_costs(
            configs, device, machine.device.free, found, findings.rate
        )

    for section in (disks, datasets, backbones, configurations):
        try:
            section()
        except Exception as error:
            # With a broken package anything may fail. Without one, this is a bug of the project.
            if not broken:
                raise
            findings.unchecked[section.__name__] = one_line(error)
    return findings


def _folder(config: DoctorConfig, name: str) -> Path | None:
    given: str | None = getattr(config, name)
    if given is None:
        return None
    folder = Path(given).expanduser().absolute()
    if not folder.is_dir():
        raise DoctorError(f"{name}={given}: there is no such folder. Give one that holds {name}.")
    return folder


def choices(group: str) -> list[TrainConfig]:
    """A training configuration for every choice of a folder in ``conf/``.

    Args:
        group: ``dataset`` or ``backbone``; of the latter not the one that stands for any model.
    """
    names = {path.stem for path in (conf_folder() / group).glob("*.yaml")} - {_ANY_BACKBONE}
    with opened("train", TrainConfig, []) as composer:
        return [composer.typed([f"{group}={name}"]) for name in sorted(names)]


def paper_configurations() -> list[TrainConfig]:
    """The twelve configurations of the paper, as training composes them."""
    from msea_lightning.cost.published import published_run

    return [
        published_run(row["dataset"], row["backbone"]) for row in paper_table("hyperparameters")
    ]
