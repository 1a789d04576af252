"""The findings of ``python -m msea_lightning.doctor``, printed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from msea_lightning.commands.tables import plain_table
from msea_lightning.diagnosis.backbones import GATED, LargestModel
from msea_lightning.diagnosis.datasets import Resource
from msea_lightning.diagnosis.findings import Findings

_ALWAYS_SHOWN = (
    *("python", "msea_lightning", "torch", "lightning", "transformers", "bitsandbytes"),
    *("huggingface-hub", "wandb", "flash-attn", "optuna"),
)
"""Packages that are listed even where nothing is wrong with them."""

_NOTHING_FITS = (
    "its largest configuration fits neither in bfloat16 nor in int8 or nf4: take a smaller "
    "backbone, a smaller training.batch_size or a larger device"
)


def show(findings: Findings, console: Console) -> None:
    """Prints what was found, and the commands that get what is missing."""
    _show_packages(findings, console)
    _show_machine(findings, console)
    gated = " and ".join(name.rstrip("/") for name in GATED)
    licences = f"{gated}: accept the licence on the model's page first.\n"
    _show_resources("Data sets", findings.datasets, "", console)
    _show_resources("Backbones", findings.backbones, licences, console)
    if findings.configurations:
        _show_configurations(findings, console)
    if findings.largest is not None:
        _show_largest(findings.largest, console)
    for name, reason in findings.unchecked.items():
        print_line(console, f"{name}: not checked ({reason})")
    if findings.unchecked:
        print_line(console, "Correct the packages above, then run this command again.")


def print_line(console: Console, line: str = "") -> None:
    """Prints a line unbroken, so that a command in it can be copied."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def _show_packages(findings: Findings, console: Console) -> None:
    packages, gpus = findings.packages, findings.machine.devices[1:]
    shown = [package for package in packages if package.name in _ALWAYS_SHOWN or package.flaw]
    table = plain_table("Installation", "package", "installed", "needed", "")
    for package in shown:
        missing = package.optional and package.version is None
        state = f"optional, {package.use}" if missing else package.flaw or "ok"
        table.add_row(package.name, package.version or "-", package.needed or "-", state)
    console.print(table)
    for package in packages:
        if package.remedy and (gpus or package.name != "flash-attn"):
            print_line(console, f"{package.name}: {package.remedy}")
    print_line(console, f"and {len(packages) - len(shown)} further packages, all as needed\n")


def _show_machine(findings: Findings, console: Console) -> None:
    machine = findings.machine
    table = plain_table("Devices", "device", "", "memory", "free", "computes in")
    for device in machine.devices:
        name = device.name + (" (chosen)" if device.name == machine.chosen else "")
        emulated = ", which it emulates: take backbone.dtype=float16"
        dtype = device.dtype + (emulated if device.bfloat16 is False else "")
        table.add_row(name, device.model, _gib(device.total), _gib(device.free), dtype)
    console.print(table)
    if machine.flaw:
        print_line(console, ": ".join(filter(None, (machine.flaw, machine.remedy))))
    for disk in findings.disks:
        print_line(console, f"disk for {disk.use}: {_gib(disk.free)} free in {disk.folder}")
    print_line(console)


def _show_resources(title: str, resources: Sequence[Resource], note: str, console: Console) -> None:
    """A line for each; a table would cut the commands, which are there to be copied."""
    if not resources:
        return
    console.print(title, style="bold")
    names = max(len(found.name) for found in resources)
    states = max(len(found.state) for found in resources)
    for found in resources:
        where = found.option or found.place if found.usable else found.remedy or found.place
        start = f"{found.name:<{names}}  {found.state:<{states}}  "
        for line in filter(None, (found.flaw, where)):
            print_line(console, f"{start}{line}")
            start = " " * len(start)
    print_line(console, note)


def _show_configurations(findings: Findings, console: Console) -> None:
    from msea_lightning.backbone.loading.memory import HEADROOM
    from msea_lightning.cost.published import ASSUMED_SHARE

    device, rows = findings.machine.device, findings.configurations
    title = f"The paper's configurations on {device.name}, in {device.dtype}; memory in GiB"
    table = plain_table(title, "", padding=0)  # 80 columns have room for no more
    numbers = ("trainable", "batch", "weights", "activ.", "total", "PFLOP/\nepoch")
    for column in (*numbers, "hours\nat most", "fits", "data", "model"):
        right = column not in ("fits", "data", "model")
        table.add_column(column, justify="right" if right else "left", vertical="bottom")
    for name in dict.fromkeys(row.backbone for row in rows):
        table.add_row(name)
        for row in (row for row in rows if row.backbone == name):
            table.add_row(
                f"  {row.dataset}",
                f"{row.trainable:,}",
                f"{row.batch_size}",
                *map(_number, (row.weights, row.activations, row.needed)),
                f"{row.flops_epoch / 1e15:.1f}",
                "-" if row.hours is None else _hours(row.hours),
                "yes" if row.fits else "no",
                "yes" if row.dataset_found else "no",
                "yes" if row.backbone_found else "no",
            )
    console.print(table)
    print_line(console, f"{_gib(device.free)} are free; a run needs {HEADROOM} times its total.")
    print_line(console, "PFLOP: operations of the language model in an epoch and its validation.")
    hours = f"the speed of {device.name} cannot be measured; is its memory full?"
    if findings.rate is not None:
        rate = f"{findings.rate / 1e12:.2f} TFLOP/s"
        hours = f"the whole schedule at {ASSUMED_SHARE:.0%} (assumed) of the measured {rate}."
    print_line(console, f"hours: {hours}")
    for name, options in findings.fitting.items():
        listed = " or ".join(f"{option} ({_gib(size)})" for option, size in options.items())
        would = f"all its configurations fit with {listed}" if options else _NOTHING_FITS
        print_line(console, f"{name}: {would}.")
    ready = [f"  {row.command}" for row in rows if row.ready]
    count = f"{len(ready)} of {len(rows)} configurations can be run as they are."
    print_line(console, "\n".join((count, *ready)))


def _show_largest(found: LargestModel, console: Console) -> None:
    """Two lines: what the largest language model takes, and where it would lie here."""
    stored = ", ".join(f"{_gib(size)} in {how}" for how, size in found.stored.items())
    print_line(console, f"\n{found.name}, {found.parameters:,} parameters:\n{stored}.")
    start = f"backbone={found.name} backbone.device_map=auto backbone.dtype=bfloat16: "
    if found.flaw:
        print_line(console, start + found.flaw)
        return
    places = ", ".join(f"{_gib(size)} on {place}" for place, size in found.places.items())
    visits = "every layer is computed where it lies"
    if found.visiting:
        visits = (
            "layers that lie elsewhere than they are computed are brought there twice in a step of "
            f"training, {_gib(found.visiting)} at a time"
        )
    print_line(console, f"{start}{places}; {visits}.")


def _number(size: float) -> str:
    return f"{size / 2**30:.1f}" if size >= 0.1 * 2**30 else f"{size / 2**30:.2f}"


def _hours(hours: float) -> str:
    digits = 0 if hours >= 10 else 1 if hours >= 0.1 else 2
    return f"{hours:,.{digits}f}"


def _gib(size: float) -> str:
    return f"{_number(size)} GiB"
