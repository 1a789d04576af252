"""Processes of cells: what they say is passed on, and none outlives those it works for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from msea_lightning.sweep.processes import Ended, gpu_of_its_own, supervise, visible_gpus
from tests.processes import is_gone, wait_until

SLEEPER = """
import os, pathlib, sys, time
from msea_lightning.sweep.processes import end_with_supervisor
end_with_supervisor()
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""
SUPERVISOR = """
import sys
from msea_lightning.sweep.processes import supervise
supervise([sys.executable, "-c", sys.argv[1], sys.argv[2]], prefix="", environment={})
"""
SWEEP = """
import subprocess, sys
from msea_lightning.sweep.processes import lead_sweep
lead_sweep()
subprocess.run([sys.executable, "-c", *sys.argv[1:]])
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def process_in(file: Path) -> psutil.Process:
    wait_until(lambda: file.exists() and file.read_text() != "")
    return psutil.Process(int(file.read_text()))


def test_what_a_cell_says_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import os, sys; print('on'); print(os.environ['X'], file=sys.stderr); sys.exit(3)"
    ended = supervise(python(code), prefix=" 7 | ", environment={"X": "the other"})
    assert ended == Ended(3, "on\nthe other\n")
    assert ended.signal is None
    assert capsys.readouterr().err == " 7 | on\n 7 | the other\n"


def test_the_signal_that_ends_a_cell_is_named() -> None:
    ended = supervise(python("import os; os.kill(os.getpid(), 9)"), prefix="", environment={})
    assert ended.signal == "SIGKILL"


def test_what_is_no_text_is_passed_on_all_the_same() -> None:
    code = r"import sys; sys.stdout.buffer.write(b'\xff\n')"
    assert supervise(python(code), prefix="", environment={}).tail == "\N{REPLACEMENT CHARACTER}\n"


def test_a_process_that_goes_on_writing_holds_nothing_up() -> None:
    code = "import subprocess; subprocess.Popen(['sleep', '20']); print('done')"
    started = time.monotonic()
    ended = supervise(python(code), prefix="", environment={})
    assert ended == Ended(0, "done\n")
    assert time.monotonic() - started < 15


def test_a_cell_ends_with_its_supervisor(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    supervisor = subprocess.Popen([*python(SUPERVISOR), SLEEPER, str(file)])
    cell = process_in(file)
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: is_gone(cell))


def test_a_supervisor_in_a_child_process_ends_with_the_sweep(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    sweep = subprocess.Popen([*python(SWEEP), SUPERVISOR, SLEEPER, str(file)])
    cell = process_in(file)
    supervisor = cell.parent()
    assert supervisor is not None
    assert supervisor.pid != sweep.pid
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait()
    wait_until(lambda: is_gone(cell) and is_gone(supervisor))


def test_a_process_without_a_supervisor_goes_on() -> None:
    code = """
from msea_lightning.sweep.processes import end_with_supervisor
end_with_supervisor()
import time
time.sleep(0.3)
print("still here")
"""
    done = subprocess.run(python(code), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.stdout == "still here\n"


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two GPUs as a machine without nvidia-smi knows them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.usefixtures("two_gpus")
def test_each_cell_has_a_gpu_of_its_own() -> None:
    with gpu_of_its_own() as one, gpu_of_its_own() as two:
        assert [one, two] == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    with gpu_of_its_own() as again:
        assert again == one


@pytest.mark.usefixtures("two_gpus")
def test_a_cell_waits_for_a_gpu() -> None:
    got: list[dict[str, str]] = []

    def third() -> None:
        with gpu_of_its_own() as gpu:
            got.append(gpu)

    with gpu_of_its_own():
        with gpu_of_its_own():
            waiting = threading.Thread(target=third)
            waiting.start()
            waiting.join(0.3)
            assert got == []
        waiting.join(10)
        assert got == [{"CUDA_VISIBLE_DEVICES": "5"}]


@pytest.mark.parametrize("listed", ["", "-1"])
def test_no_gpu_is_taken_where_none_may_be_used(
    monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    with gpu_of_its_own() as environment:
        assert environment == {}


def test_gpus_are_told_apart_by_their_hardware(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Two jobs of a cluster on one machine call different GPUs 0.
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-aaa'\necho '1, GPU-bbb'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == {"0": "GPU-aaa", "1": "GPU-bbb"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,MIG-ccc")
    assert visible_gpus() == {"1": "GPU-bbb", "MIG-ccc": "MIG-ccc"}
