"""Names, words and labels that would steer a terminal: they are shown, never obeyed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msea_lightning import prepare
from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import PrepareConfig
from msea_lightning.config.text import VisibleFormatter, visible
from tests.data.published import (
    dialogue_content,
    mmsa_content,
    table_rows,
    write_dialogue,
    write_mmsa,
    write_table,
)

EVIL = "\x1b[2J[bold red]\x07\x9b31m\u202e\u2066\r\x01"


def hostile_table(folder: Path, **changes: str) -> Path:
    rows = [
        type(row)(
            id=f"{EVIL}{row.id}",
            split=changes.get("split", row.split),
            text=changes.get("text", f"{row.text} {EVIL}"),
            label=f"{row.label}{EVIL}",
            group=f"{EVIL}{row.group}",
            speaker=EVIL,
            audio=row.audio,
            vision=row.vision,
        )
        for row in table_rows()
    ]
    write_table(folder, rows)
    arrays = dict(np.load(folder / "features.npz"))
    extra: dict[str, Any] = {f"audio/{EVIL}other": np.ones((2, 5))}
    if "key" in changes:
        extra[changes["key"]] = np.ones((12, 5))
    np.savez(folder / "features.npz", **{**arrays, **extra})
    return folder


def hostile_mmsa(folder: Path) -> Path:
    content = mmsa_content("mosi")
    content["train"]["id"] = [f"{EVIL}{i}" for i in range(6)]
    content["train"]["regression_labels"] = [EVIL] * 6
    return write_mmsa(folder, "mosi", content)


def hostile_dialogue(folder: Path) -> Path:
    content = dialogue_content("meld")
    content["train"][0] = {EVIL: 1}  # type: ignore[list-item]
    return write_dialogue(folder, "meld", content)


CASES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "all is well": ("table", hostile_table),
    "an empty text": ("table", lambda folder: hostile_table(folder, text=" ")),
    "an unknown split": ("table", lambda folder: hostile_table(folder, split=EVIL)),
    "an unknown feature": ("table", lambda folder: hostile_table(folder, key=f"{EVIL}x")),
    "a label that is no number": ("mosi", hostile_mmsa),
    "a key in place of a label": ("meld", hostile_dialogue),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_of_a_file_reaches_the_terminal_unescaped(
    tmp_path: Path,
    case: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    name, write = CASES[case]
    path = write(tmp_path / "data")
    words = [f"dataset={name}", f"dataset.path={path}", f"dataset.cache={tmp_path / 'cache'}"]
    caplog.handler.setFormatter(VisibleFormatter())  # as the command line's handlers have it
    outcome = nullcontext() if case == "all is well" else pytest.raises(SystemExit, match="1")
    with caplog.at_level(logging.INFO), outcome:
        launch(prepare.job, config_name="prepare", root=PrepareConfig, arguments=words)
    said = capsys.readouterr()
    for text in (said.out, said.err, caplog.text):
        assert text == visible(text)
    assert "\\x1b[2J[bold red]\\x07\\x9b31m\\u202e\\u2066" in said.out + said.err + caplog.text
