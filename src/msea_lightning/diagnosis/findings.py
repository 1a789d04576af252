"""Everything that the doctor finds on this machine; it opens no connection and changes nothing.

``flaw`` says what is wrong, ``remedy`` is the command that mends it; empty where all is well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from msea_lightning.commands.compose import conf_folder, opened
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import DoctorConfig, TrainConfig
from msea_lightning.diagnosis.backbones import LargestModel, find_backbones, find_largest
from msea_lightning.diagnosis.datasets import Resource, find_datasets
from msea_lightning.diagnosis.devices import Disk, Machine, find_disks, find_machine
from msea_lightning.diagnosis.packages import Package, find_packages, one_line
from msea_lightning.paper import paper_table

if TYPE_CHECKING:
    from msea_lightning.cost.published import ConfigurationCost

_ANY_BACKBONE = "auto"
"""The choice of ``conf/backbone`` that stands for any language model."""


_LARGEST = "llama3.1-70b"
"""The preset whose model has the most parameters."""

_SECTIONS = {
    "disks": "disks",
    "datasets": "data sets",
    "backbones": "language models",
    "configurations": "the speed of the device",
    "largest": "what a large language model needs",
}
"""What the sections are called while they are checked."""


class DoctorError(UserError):
    """A folder to search that does not exist, or a file that cannot be written."""


@dataclass
class Findings:
    """All that was found.

    Attributes:
        rate: Floating point operations per second of the chosen device in matrix products; None
            where that cannot be measured.
        fitting: By the name of a backbone that does not fit: the options with which its largest
            configuration fits, each with the bytes that it needs then.
        largest: What the largest language model with a preset would take, and where it would lie.
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
    largest: LargestModel | None = None
    unchecked: dict[str, str] = field(default_factory=dict)


def diagnose(config: DoctorConfig, say: Callable[[str], object] = lambda text: None) -> Findings:
    """Looks at this machine, and into the folders to search; ``say`` is told at what."""
    folders = {name: _folder(config, name) for name in ("datasets", "backbones")}
    say("devices")
    machine = find_machine(config.accelerator)
    say("packages")
    packages = find_packages(machine.chosen)
    broken = any(package.flaw and not package.optional for package in packages)
    findings = Findings(packages, machine)

    def datasets() -> list[Resource]:
        return find_datasets([one.dataset for one in choices("dataset")], folders["datasets"])

    def backbones() -> list[Resource]:
        return find_backbones([one.backbone for one in choices("backbone")], folders["backbones"])

    def configurations() -> list[ConfigurationCost]:
        import torch

        from msea_lightning.cost.published import configuration_costs
        from msea_lightning.cost.rate import matrix_rate

        resources = (*findings.datasets, *findings.backbones)
        found = {resource.name: resource.option for resource in resources if resource.usable}
        device, free = torch.device(machine.chosen), machine.device.free
        findings.rate = matrix_rate(getattr(torch, machine.device.dtype), device)
        costs, findings.fitting = configuration_costs(
            paper_configurations(), device, free, found, findings.rate, say
        )
        return costs

    def largest() -> LargestModel:
        (one,) = (one for one in choices("backbone") if one.backbone.name == _LARGEST)
        return find_largest(one.backbone, machine.chosen)

    sections: dict[str, Callable[[], object]] = {
        "disks": find_disks,
        "datasets": datasets,
        "backbones": backbones,
        "configurations": configurations,
        "largest": largest,
    }
    for name, section in sections.items():
        say(_SECTIONS[name])
        try:
            setattr(findings, name, section())
        except Exception as error:
            # With a broken package anything may fail. Without one, this is a bug of the project.
            if not broken:
                raise
            findings.unchecked[name] = one_line(error)
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
    """A training configuration for every choice of ``conf/dataset`` or ``conf/backbone``."""
    names = {path.stem for path in (conf_folder() / group).glob("*.yaml")} - {_ANY_BACKBONE}
    with opened("train", TrainConfig, []) as composer:
        return [composer.typed([f"{group}={name}"]) for name in sorted(names)]


def paper_configurations() -> list[TrainConfig]:
    """The twelve configurations of the paper, as training composes them."""
    from msea_lightning.cost.published import published_run

    return [
        published_run(row["dataset"], row["backbone"]) for row in paper_table("hyperparameters")
    ]
