"""``python -m msea_lightning.report``: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from msea_lightning.commands.command_line import compose
from msea_lightning.config.roots import ReportConfig
from msea_lightning.report import report
from msea_lightning.reporting.folders import ReportError
from tests.reporting.folders import make_config, write_run

NAMES = ("report.html", "results.csv", "results.md", "results.tex")


def test_the_command(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "one", make_config("dataset=demo"))
    command = [sys.executable, "-m", "msea_lightning.report", f"runs={tmp_path / 'runs'}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert "MSE-Adapter with tiny" in done.stdout
    assert "finished runs: 1; configurations: 1; seeds: 1;" in done.stdout
    for name in NAMES:
        assert (tmp_path / "runs" / name).stat().st_size
        assert str(tmp_path / "runs" / name) in done.stdout


def test_a_report_takes_no_pytorch() -> None:
    code = "import sys, msea_lightning.reporting.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_another_place(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", make_config("dataset=demo"))
    report(ReportConfig(runs=str(tmp_path / "runs"), out=str(tmp_path / "new" / "place")))
    assert {path.name for path in (tmp_path / "new" / "place").iterdir()} == set(NAMES)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="nowhere: there is no such folder"):
        report(ReportConfig(runs=str(tmp_path / "nowhere")))
    with pytest.raises(ReportError, match=r"no run folder \(a folder with config.yaml\)"):
        report(ReportConfig(runs=str(tmp_path)))
    write_run(tmp_path / "runs", make_config("dataset=demo"))
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match=r"file.*Give another folder with out="):
        report(ReportConfig(runs=str(tmp_path / "runs"), out=str(tmp_path / "file")))


def test_the_options() -> None:
    assert compose("report", ReportConfig, ["runs=a", "out=b"]) == ReportConfig("a", "b")
