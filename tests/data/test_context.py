"""What was said before: within dialogue and split, whatever is left out of the split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from msea_lightning.data.context import Said, said_before, token_arrays
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.options import DatasetConfig, Reader, Split
from msea_lightning.data.utterance import Utterance
from tests.data.corpus import stored, utterance


def test_the_last_ones_of_a_group_come_before() -> None:
    rows = [
        ("a", Said("1", "X")),
        ("b", Said("2")),
        ("a", Said("3", "Y")),
        (None, Said("4")),
        ("a", Said(" ")),  # says nothing
        ("a", Said("5")),
        ("b", Said("6")),
        (None, Said("7")),
        ("a", Said("8")),
        ("c", Said("9")),
    ]
    found = said_before(rows, 2)
    texts = [" ".join(said.text for said in before) for before in found]
    assert texts == ["", "", "1", "", "1 3", "1 3", "2", "", "3 5", ""]
    assert found[5][0].speaker == "X"
    assert [len(before) for before in said_before(rows, 9)] == [0, 0, 1, 0, 2, 2, 1, 0, 3, 0]


def test_token_ids_of_many_texts() -> None:
    rows = [[1, 2], [], [3]]
    assert [array.tolist() for array in token_arrays(rows)] == rows
    assert token_arrays([[]])[0].tolist() == []


class Letters:
    """Writes what was said before as the code points of its words, at most five."""

    number = 3

    def __call__(self, said: Sequence[Said], before: Sequence[Sequence[Said]]) -> list[list[int]]:
        return [[ord(one.text) for one in last][-5:] for last in before]


def encode(texts: list[str]) -> list[list[int]]:
    return [list(map(ord, text)) for text in texts]


def part(split: str, words: str, **changes: Any) -> list[Utterance]:
    """Utterances of a letter each, four to a dialogue."""
    return [
        utterance(
            f"{split}{number}",
            text=word,
            group=f"dialogue {number // 4}",
            label=None if word in changes.get("unlabelled", "") else number % 2 / 2,
        )
        for number, word in enumerate(words)
    ]


def contexts(data: UtteranceDataModule, split: str) -> dict[str, str]:
    """The words before each utterance, by its own."""
    found = data.splits[split]
    assert found.contexts is not None
    before = ["".join(map(chr, ids)) for ids in found.contexts]
    return dict(zip(found.texts, before, strict=True))


def test_nothing_that_is_left_out_is_missing_before(tmp_path: Path) -> None:
    splits = {
        "train": part("train", "abcdefghijklmnopqrst"),
        "valid": part("valid", "ABCD", unlabelled="B"),
        "test": part("test", "12345678", unlabelled="136"),
    }
    store = stored(tmp_path, splits)
    options = {"name": "table", "reader": Reader.table}
    data = UtteranceDataModule(
        DatasetConfig(**options, train_fraction=0.4), batch_size=4, seed=1, store=store
    )
    data.setup()
    data.tokenize(encode, Letters())
    whole = {
        word: "abcdefghijklmnopqrst"[4 * (place // 4) : place][-3:]
        for place, word in enumerate("abcdefghijklmnopqrst")
    }
    train = contexts(data, "train")
    assert len(train) == 8  # sampled
    assert train == {word: whole[word] for word in train}
    # Unlabelled ones are not scored, but were said.
    assert contexts(data, "valid") == {"A": "", "C": "AB", "D": "ABC"}
    assert contexts(data, "test") == {"2": "1", "4": "123", "5": "", "7": "56", "8": "567"}
    batch = data.splits["test"].batch([4, 1])
    assert batch.contexts is not None
    assert [ids.tolist() for ids in batch.contexts] == encode(["567", "123"])
    # Longer ones go first in evaluation.
    assert data.evaluation_batches("test", 1)[-1] == [2]
    data.tokenize(encode)
    assert data.splits["test"].batch([0]).contexts is None


@pytest.mark.parametrize("evaluated", [None, Split.valid])
def test_a_held_out_part_has_its_own_dialogues_before(
    tmp_path: Path, evaluated: Split | None
) -> None:
    words = "abcdefghijklmnopqrst"
    store = stored(tmp_path, {"train": part("train", words), "test": part("test", "1234")})
    dataset = DatasetConfig(name="table", reader=Reader.table, valid_fraction=0.4)
    data = UtteranceDataModule(dataset, batch_size=4, seed=1, store=store, evaluated=evaluated)
    data.setup()
    data.tokenize(encode, Letters())
    valid = contexts(data, "valid")
    assert len(valid) == 8
    for word, before in valid.items():
        place = words.index(word)
        assert before == words[4 * (place // 4) : place]
        assert set(before) <= set(valid)
