"""Large tensors begin at memory pages in processes of the project's commands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from msea_lightning.commands.allocator import SETTING, begin_at_pages

COMMAND = """
import sys
from msea_lightning.train import main
sys.argv = ["train", "--cfg", "job"]
main()
import torch
print([torch.empty(1 << 22).data_ptr() % 4096 for _ in range(4)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has the setting on Linux alone")
@pytest.mark.parametrize(("given", "pages"), [(None, True), ("0", False)])
def test_a_command_sets_it_before_the_first_tensor(given: str | None, pages: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != SETTING}
    if given is not None:
        environment[SETTING] = given
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout.splitlines()[-1] == "[0, 0, 0, 0]") == pages


def test_what_the_environment_says_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "0")
    begin_at_pages()
    assert os.environ[SETTING] == "0"
