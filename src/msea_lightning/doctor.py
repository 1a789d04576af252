"""``python -m msea_lightning.doctor``: what is here, what the paper's cells need, what is missing.

Missing things are findings, not errors: the exit code is 0 when the examination ran. It opens no
connection, loads no language model, and changes nothing besides the file that ``json=`` names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from msea_lightning.backbone.options import BackboneConfig
from msea_lightning.commands.command_line import compose, conf_folder, launch
from msea_lightning.config.errors import UserError
from msea_lightning.config.options import option
from msea_lightning.config.roots import DoctorConfig, TrainConfig
from msea_lightning.data.options import DatasetConfig
from msea_lightning.paper import paper_table

if TYPE_CHECKING:
    from msea_lightning.cost.published import Cell
    from msea_lightning.diagnosis.examine import Device, Disk, Machine, Package, Place

Found = TypeVar("Found")

_SHOWN = (
    *("python", "msea_lightning", "torch", "lightning", "transformers", "bitsandbytes"),
    *("huggingface-hub", "wandb", "flash-attn"),
)
"""Packages that are shown one by one; of the others those with a flaw are."""

_TAKES_ANY = "auto"
"""The choice of ``conf/backbone`` that is no language model of its own."""


_NOTHING_FITS = (
    "its largest cell fits neither in bfloat16 nor in int8 or nf4: take a smaller backbone, a "
    "smaller training.batch_size or a larger device"
)


class DoctorError(UserError):
    """A folder to search or a file to write that there is not."""


@dataclass
class Findings:
    """All that was found.

    Attributes:
        packages: What is installed.
        machine: What it runs on.
        disks: Where downloads, stores and checkpoints go.
        datasets: Every choice of ``conf/dataset``.
        backbones: Every choice of ``conf/backbone``, and the further checkpoints of the folder that
            was searched.
        rate: Floating point operations per second of the chosen device in matrix products; None
            where that cannot be measured.
        cells: The twelve cells of the paper.
        fitting: By the name of a backbone that does not fit: the options that make its largest
            cell fit, each with the bytes that it needs then.
        unknown: By the name of a section that a broken package kept from being examined: why.
    """

    packages: list[Package]
    machine: Machine
    disks: list[Disk] = field(default_factory=list)
    datasets: list[Place] = field(default_factory=list)
    backbones: list[Place] = field(default_factory=list)
    rate: float | None = None
    cells: list[Cell] = field(default_factory=list)
    fitting: dict[str, dict[str, int]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


@dataclass
class _DatasetChoice:
    """The schema of a file in ``conf/dataset``."""

    dataset: DatasetConfig = option(DatasetConfig, "data set")


@dataclass
class _BackboneChoice:
    """The schema of a file in ``conf/backbone``."""

    backbone: BackboneConfig = option(BackboneConfig, "frozen language model")


def diagnose(config: DoctorConfig) -> Findings:
    """Examines this machine.

    Args:
        config: Folders to search, and the hardware to look at.

    Raises:
        DoctorError: if a folder to search is not there.
    """
    from msea_lightning.diagnosis import examine

    places = {name: _folder(config, name) for name in ("datasets", "backbones")}
    packages, machine = examine.packages(), examine.machine(config.accelerator)
    packages = [_tried(package, machine.chosen) for package in packages]
    broken = any(package.flaw and not package.optional for package in packages)
    findings = Findings(packages, machine)

    def section(name: str, find: Callable[[], Found], otherwise: Found) -> Found:
        try:
            return find()
        except Exception as error:
            # A broken package is reason enough; without one, this is an error of the project.
            if not broken:
                raise
            findings.unknown[name] = examine.one_line(error)
            return otherwise

    def cells() -> tuple[list[Cell], dict[str, dict[str, int]]]:
        from msea_lightning.cost.published import examine_cells

        datasets = {place.name: place for place in findings.datasets}
        backbones = {place.name: place for place in findings.backbones}
        findings.rate = _rate(machine.device)
        return examine_cells(paper_cells(), machine.device, datasets, backbones, findings.rate)

    findings.disks = section("disks", examine.disks, [])
    findings.datasets = section(
        "data sets", lambda: examine.data_sets(dataset_choices(), places["datasets"]), []
    )
    findings.backbones = section(
        "backbones", lambda: examine.backbones(backbone_choices(), places["backbones"]), []
    )
    nothing: tuple[list[Cell], dict[str, dict[str, int]]] = ([], {})
    findings.cells, findings.fitting = section("cells", cells, nothing)
    return findings


def dataset_choices() -> list[DatasetConfig]:
    """Every choice of ``conf/dataset``."""
    return [compose(f"dataset/{name}", _DatasetChoice).dataset for name in _choices("dataset")]


def backbone_choices() -> list[BackboneConfig]:
    """Every choice of ``conf/backbone`` that is a language model of its own."""
    default = compose("train", TrainConfig).backbone  # sets options of other groups as well
    names = [name for name in _choices("backbone") if name not in (_TAKES_ANY, default.name)]
    others = [compose(f"backbone/{name}", _BackboneChoice).backbone for name in names]
    return [default, *others]


def paper_cells() -> list[TrainConfig]:
    """The runs of the twelve cells, as training composes them."""
    return [
        compose("train", TrainConfig, [f"dataset={row['dataset']}", f"backbone={row['backbone']}"])
        for row in paper_table("hyperparameters")
    ]


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def _folder(config: DoctorConfig, name: str) -> Path | None:
    given: str | None = getattr(config, name)
    if given is None:
        return None
    folder = Path(given).expanduser().absolute()
    if not folder.is_dir():
        raise DoctorError(f"{name}={given}: there is no such folder. Give one that holds {name}.")
    return folder


def _tried(package: Package, device: str) -> Package:
    """A package that is imported well may fail when it is used: bitsandbytes is tried."""
    from msea_lightning.diagnosis.examine import quantization_flaw, reinstall

    if package.name != "bitsandbytes" or package.flaw:
        return package
    flaw = quantization_flaw(device)
    if not flaw:
        return package
    flaw = f"cannot quantise on {device}: {flaw}"
    return replace(package, flaw=flaw, remedy=reinstall(package))


def _rate(device: Device) -> float | None:
    """Operations per second of a device in what a backbone computes in."""
    import torch

    from msea_lightning.cost.flops import matrix_rate

    try:
        return matrix_rate(getattr(torch, device.dtype), torch.device(device.name))
    except RuntimeError:  # where others fill the memory, the library fails, if not the allocator
        return None


# ---- what is printed ---------------------------------------------------------------------------


def show(findings: Findings, console: Console) -> None:
    """Prints what was found, and the commands that get what is missing.

    Args:
        findings: What was found.
        console: Where to print.
    """
    from msea_lightning.diagnosis.examine import GATED

    _show_packages(findings, console)
    _show_machine(findings, console)
    if findings.datasets:
        _show_places("Data sets", findings.datasets, console)
        _say(console)
    if findings.backbones:
        _show_places("Backbones", findings.backbones, console)
        asking = " and ".join(name.rstrip("/") for name in GATED)
        _say(console, f"{asking}: accept the licence on the model's page first.")
        _say(console)
    if findings.cells:
        _show_cells(findings, console)
    for name, reason in findings.unknown.items():
        _say(console, f"{name}: cannot be examined ({reason})")
    if findings.unknown:
        _say(console, "Mend the packages above, then run this command again.")


def _show_packages(findings: Findings, console: Console) -> None:
    packages, gpus = findings.packages, findings.machine.devices[1:]
    shown = [package for package in packages if package.name in _SHOWN or package.flaw]
    table = _table("Installation", "package", "installed", "needed", "")
    for package in shown:
        optional = package.optional and package.version is None
        state = "optional, for GPUs" if optional else package.flaw or "ok"
        table.add_row(package.name, package.version or "-", package.needed or "-", state)
    console.print(table)
    for package in packages:
        if package.remedy and (gpus or not package.optional):
            _say(console, f"{package.name}: {package.remedy}")
    _say(console, f"and {len(packages) - len(shown)} further packages, all as needed")
    _say(console)


def _show_machine(findings: Findings, console: Console) -> None:
    machine = findings.machine
    table = _table("Devices", "device", "")
    table.add_column("memory", justify="right")
    table.add_column("free", justify="right")
    table.add_column("computes in")
    for device in machine.devices:
        chosen = " (chosen)" if device.name == machine.chosen else ""
        sizes = _gib(device.total), _gib(device.free)
        table.add_row(device.name + chosen, device.model, *sizes, _computes_in(device))
    console.print(table)
    if machine.flaw:
        _say(console, f"{machine.flaw}: {machine.remedy}" if machine.remedy else machine.flaw)
    for disk in findings.disks:
        _say(console, f"disk for {disk.use}: {_gib(disk.free)} free in {disk.folder}")
    _say(console)


def _computes_in(device: Device) -> str:
    if device.bfloat16 is False:
        return f"{device.dtype}, which it emulates: take backbone.dtype=float16"
    return device.dtype


def _show_places(title: str, places: Sequence[Place], console: Console) -> None:
    """A line for each place; a table would cut the commands, which are there to be copied."""
    console.print(title, style="bold")
    names = max(len(place.name) for place in places)
    states = max(len(place.state) for place in places)
    for place in places:
        where = place.option or place.place if place.usable else place.remedy or place.place
        start = f"{place.name:<{names}}  {place.state:<{states}}  "
        for line in filter(None, (place.flaw, where)):
            _say(console, f"{start}{line}")
            start = " " * len(start)


def _show_cells(findings: Findings, console: Console) -> None:
    from msea_lightning.backbone.loading.memory import HEADROOM

    device, cells = findings.machine.device, findings.cells
    title = f"Cells of the paper on {device.name}, in {cells[0].dtype}; memory in GiB"
    table = _table(title, "")
    table.padding = (0, 0, 0, 0)  # 80 columns have room for no more
    for column in ("trainable", "batch", "weights", "activ.", "total", "PFLOP/\nepoch"):
        table.add_column(column, justify="right", vertical="bottom")
    table.add_column("hours\nat most", justify="right", vertical="bottom")
    for column in ("fits", "data", "model"):
        table.add_column(column, vertical="bottom")
    for name in dict.fromkeys(cell.backbone for cell in cells):
        table.add_row(name)
        for cell in cells:
            if cell.backbone == name:
                table.add_row(
                    f"  {cell.dataset}",
                    f"{cell.trainable:,}",
                    f"{cell.batch_size}",
                    _number(cell.weights),
                    _number(cell.activations),
                    _number(cell.needed),
                    f"{cell.flops_epoch / 1e15:.1f}",
                    "-" if cell.hours is None else _hours(cell.hours),
                    *map(_yes, (cell.fits, cell.dataset_found, cell.backbone_found)),
                )
    console.print(table)
    _say(console, f"{_gib(device.free)} are free; {HEADROOM} times what a cell needs must be.")
    _show_rate(findings, console)
    for name, options in findings.fitting.items():
        listed = " or ".join(f"{option} ({_gib(size)})" for option, size in options.items())
        would = f"all its cells fit with {listed}" if options else _NOTHING_FITS
        _say(console, f"{name}: {would}.")
    ready = [cell for cell in cells if cell.ready]
    _say(console, f"{len(ready)} of {len(cells)} cells can be run as they are.")
    for cell in ready:
        _say(console, f"  {cell.command}")


def _show_rate(findings: Findings, console: Console) -> None:
    """What the hours are made of, and how sure they are."""
    from msea_lightning.cost.published import ASSUMED_SHARE

    _say(console, "PFLOP: operations of the language model in an epoch and its validation.")
    if findings.rate is None:
        device = findings.machine.device.name
        _say(console, f"hours: the speed of {device} cannot be measured; is its memory full?")
        return
    rate = f"{ASSUMED_SHARE:.0%} (assumed) of the measured {findings.rate / 1e12:.2f} TFLOP/s"
    _say(console, f"hours: the whole schedule at {rate}.")


def _table(title: str, *columns: str) -> Table:
    return Table(
        *columns,
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )


def _say(console: Console, line: str = "") -> None:
    """Prints a line whole, so that a command in it can be copied."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _number(size: float) -> str:
    return f"{size / 2**30:.2f}" if size < 0.1 * 2**30 else f"{size / 2**30:.1f}"


def _hours(hours: float) -> str:
    if hours >= 10:
        return f"{hours:,.0f}"
    return f"{hours:.1f}" if hours >= 0.1 else f"{hours:.2f}"


def _gib(size: float) -> str:
    return f"{_number(size)} GiB"


# ---- the command -------------------------------------------------------------------------------


def job(config: DoctorConfig) -> None:
    """Examines this machine, prints what was found, and writes it to a file if asked to.

    Args:
        config: All options.

    Raises:
        DoctorError: if a folder to search is not there, or the file cannot be written.
    """
    target = None if config.json is None else Path(config.json).expanduser()
    if target is not None and not target.absolute().parent.is_dir():
        raise DoctorError(f"json={config.json}: there is no folder {target.parent}. Make it first.")
    if target is not None and target.is_dir():
        raise DoctorError(
            f"json={config.json} is a folder; give a file, such as findings.json in it."
        )
    findings = diagnose(config)
    console = Console()
    show(findings, console)
    if target is not None:
        _write(findings, target)
        _say(console, f"findings: {target}")


def _write(findings: Findings, target: Path) -> None:
    remedy = "Mend the packages above, then run this command again."
    try:
        from msea_lightning.runs.folder import write_json

        remedy = "Give a file in a folder that you may write to."
        write_json(target, asdict(findings))
    except (ImportError, OSError) as error:
        raise DoctorError(
            f"json={target}: the findings cannot be written ({type(error).__name__}: {error}). "
            f"{remedy}"
        ) from error


def main() -> None:
    """Runs the command line."""
    # Before anything is imported that might look something up on the Hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    launch(job, config_name="doctor", root=DoctorConfig)


if __name__ == "__main__":
    main()
