"""Log lines that several processes of one run have in common."""

from __future__ import annotations

import logging

import pytest

from msea_lightning.config.logging import log_once


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        # The first process of a second machine.
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "2"}, False),
    ],
)
def test_only_the_first_of_all_processes_logs(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
    said: bool,
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    log_once(logging.getLogger("msea_lightning.x"), "100% of it", level=logging.WARNING)
    assert caplog.messages == ["100% of it"] * said
