"""Processes of runs: what they say is passed on, and none outlives those it works for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from msea_lightning.sweep.processes import supervise
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


def test_what_a_run_says_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import os, sys; print('on'); print(os.environ['X'], file=sys.stderr); sys.exit(3)"
    ended = supervise(python(code), prefix=" 7 | ", environment={"X": "the other"})
    assert (ended.returncode, ended.stdout) == (3, "on\nthe other\n")
    assert capsys.readouterr().err == " 7 | on\n 7 | the other\n"


def test_the_signal_that_ends_a_run_is_told() -> None:
    ended = supervise(python("import os; os.kill(os.getpid(), 9)"), prefix="", environment={})
    assert ended.returncode == -signal.SIGKILL


def test_what_is_no_text_is_passed_on_all_the_same() -> None:
    code = r"import sys; sys.stdout.buffer.write(b'\xff\n')"
    assert (
        supervise(python(code), prefix="", environment={}).stdout == "\N{REPLACEMENT CHARACTER}\n"
    )


def test_a_process_that_keeps_the_pipe_open_holds_nothing_up() -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"
    ended = supervise(python(code), prefix="", environment={})
    sleeper = psutil.Process(int(ended.stdout))
    assert ended.returncode == 0
    assert not is_gone(sleeper)  # it still has the pipe
    sleeper.kill()


def test_a_run_ends_with_its_supervisor(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    supervisor = subprocess.Popen([*python(SUPERVISOR), SLEEPER, str(file)])
    run = process_in(file)
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: is_gone(run))


def test_a_supervisor_in_a_child_process_ends_with_the_sweep(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    sweep = subprocess.Popen([*python(SWEEP), SUPERVISOR, SLEEPER, str(file)])
    run = process_in(file)
    supervisor = run.parent()
    assert supervisor is not None
    assert supervisor.pid != sweep.pid
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait()
    wait_until(lambda: is_gone(run) and is_gone(supervisor))


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
