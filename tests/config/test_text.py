"""What other people's files hold is shown, never obeyed."""

from __future__ import annotations

import logging
import unicodedata

import pytest

from msea_lightning.config.text import VisibleFormatter, print_exception, visible


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F)])
def test_control_characters_are_escaped(code: int) -> None:
    shown = visible(f"a{chr(code)}b")
    assert shown == ("a\nb" if code == 0x0A else f"a{ascii(chr(code))[1:-1]}b")


def test_whatever_changes_direction_is_escaped() -> None:
    """By Unicode's own classes: no embedding, override, isolate or directional mark is left."""
    everything = "".join(map(chr, range(0x110000)))
    reordering = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    marks = {"\u061c", "\u200e", "\u200f"}
    left = [c for c in visible(everything) if unicodedata.bidirectional(c) in reordering]
    assert not left
    assert not marks & set(visible(everything))
    assert not [c for c in visible(everything) if unicodedata.category(c) == "Cc" and c != "\n"]
    visible(everything).encode()


def test_words_stay_as_they_are() -> None:
    for text in ("plain", "愤怒 café", "two\nlines", "C:\\data", "👩‍🚀 سلام שלום"):
        assert visible(text) == text


def test_log_lines_are_escaped_with_their_tracebacks() -> None:
    try:
        raise ValueError("\x1b[2J")
    except ValueError as error:
        record = logging.LogRecord(
            "n", 20, "", 1, "id %s", ("\u202ea",), (type(error), error, error.__traceback__)
        )
    line = VisibleFormatter("%(message)s").format(record)
    assert line.startswith("id \\u202ea\nTraceback")
    assert line.endswith("ValueError: \\x1b[2J")


def test_exceptions_that_nobody_caught_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise KeyError("\x1b[2J") from ValueError("\u202e")
    except KeyError as error:
        print_exception(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert said == visible(said)
    assert "ValueError: \\u202e" in said
    assert said.endswith("KeyError: '\\x1b[2J'\n")
