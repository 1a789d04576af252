"""The answer tree as requests: every probability is asked for, in as few requests as there are."""

from __future__ import annotations

import pytest
import torch

from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.labels import EmotionSet, LabelSpace, SentimentScale
from msea_lightning.serving.branches import branch_groups, token_logp


def by_letter(space: LabelSpace, front: str = "") -> AnswerTree:
    """A tokenizer that writes letters, with a piece of its own in front."""
    return AnswerTree(
        space,
        lambda text: [ord(letter) for letter in front + text],
        lambda ids: "".join(map(chr, ids)).removeprefix(front),
    )


TREES = {
    "emotions": by_letter(EmotionSet("abcdefg")),
    "emotions after a space": by_letter(EmotionSet("abcdefg"), "_"),
    "many emotions": by_letter(EmotionSet([str(number) for number in range(28)])),
    "intensities": by_letter(SentimentScale(-3.0, 3.0)),
    "signed intensities": by_letter(SentimentScale(-1.0, 1.0, 0.2, signed=True)),
    "intensities after a space": by_letter(SentimentScale(-3.0, 3.0), "_"),
}


@pytest.mark.parametrize("name", TREES)
def test_every_probability_of_the_tree_is_asked_for(name: str) -> None:
    tree = TREES[name]
    asked = {}
    for group in branch_groups(tree):
        for branch in group.branches:
            paths = [branch.path, *([(*branch.path, group.forced)] if group.forced else [])]
            assert len(paths) == len(branch.nodes)
            for row, path in zip(branch.nodes, paths, strict=True):
                # The path that a request reads is that of the answers that the row predicts.
                for answer in (tree.predictors == row).any(1).nonzero().flatten():
                    assert tuple(tree.answer_ids[answer, : len(path)].tolist()) == path
                asked |= {(row, token): float(row + token) for token in group.asked}
    needed = zip(tree.predictors.flatten(), tree.answer_ids.flatten(), strict=True)
    assert {(int(row), int(token)) for row, token in needed if row >= 0} <= asked.keys()
    expected = torch.where(tree.predictors < 0, 0, tree.predictors + tree.answer_ids)
    assert torch.equal(token_logp(tree, asked)[0], expected.double())


@pytest.mark.parametrize(
    ("name", "groups", "sequences"),
    [
        ("emotions", 1, 1),
        ("emotions after a space", 1, 1),
        ("many emotions", 1, 4),  # the first digit, and the second after 0, 1, 2
        ("intensities", 2, 10),  # sign or digit, digit after the sign; "." is written by the engine
        ("signed intensities", 2, 7),
        ("intensities after a space", 3, 10),
    ],
)
def test_nodes_that_the_engine_writes_itself_are_no_requests(
    name: str, groups: int, sequences: int
) -> None:
    found = branch_groups(TREES[name])
    assert len(found) == groups
    assert sum(len(group.branches) for group in found) == sequences
