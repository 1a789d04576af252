"""``python -m msea_lightning.doctor``: what is here, what the paper's runs need, what is missing.

What is missing is a finding, not an error: the exit code is 0 wherever the checks ran.
"""

from __future__ import annotations

import os
from dataclasses import asdict

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import DoctorConfig


def doctor(config: DoctorConfig) -> None:
    """Looks at this machine, prints what it finds, and writes it to a file if asked to."""
    from rich.console import Console

    from msea_lightning.diagnosis.findings import DoctorError, diagnose
    from msea_lightning.diagnosis.show import print_line, show
    from msea_lightning.runs.files import json_target, write_json

    target = json_target("json", config.json, replaces=True)
    # Where nobody watches, nothing is shown.
    with Console(stderr=True).status("looking") as status:
        findings = diagnose(config, lambda text: status.update(f"looking at {text}"))
    console = Console()
    show(findings, console)
    if target is not None:
        try:
            write_json(target, asdict(findings))
        except OSError as error:
            raise DoctorError(
                f"json={target}: the findings cannot be written ({error})."
            ) from error
        print_line(console, f"findings: {target}")


def main() -> None:
    """The command line."""
    # Before anything is imported that might look something up on the Hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    launch(doctor, config_name="doctor", root=DoctorConfig)


if __name__ == "__main__":
    main()
