"""The answer tree as requests to an engine that reads one sequence and writes on.

In this process one pass of the language model reads all nodes of the tree, each attending to its
ancestors only. An engine reads plain sequences, so each inner node is a sequence of its own: the
prompt and the path to the node. Where only one token can follow, the engine writes it, which saves
the next node's request: ``0`` is followed by ``.``, and after that it gives the probabilities of
all decimals.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msea_lightning.language.answers import AnswerTree


@dataclass(frozen=True)
class Branch:
    """One sequence to read: the prompt and the beginning of an answer.

    Attributes:
        path: Token ids of the beginning; none for the prompt alone.
        nodes: Rows of the tree that are read (0 is the prompt's last token, 1 + m is node m): the
            end of the path and, if the engine writes a token, that one.
    """

    path: tuple[int, ...]
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class BranchGroup:
    """Branches that an engine reads in one request.

    Attributes:
        forced: The token that it writes after each path; None where any may follow.
        asked: Token ids of which it gives log probabilities, at every node.
        branches: The branches.
    """

    forced: int | None
    asked: tuple[int, ...]
    branches: tuple[Branch, ...]


def branch_groups(tree: AnswerTree) -> list[BranchGroup]:
    """All branches of a tree, as few as there have to be, those with the same options together."""
    paths = _paths(tree)
    rows = {path: row for row, path in enumerate(paths)}
    followers = _followers(tree)
    found: dict[int | None, list[Branch]] = {}
    written: set[int] = set()
    for row, path in enumerate(paths):  # parents come before children
        if row in written:
            continue
        only = followers[row][0] if len(followers[row]) == 1 else None
        next_row = None if only is None else rows.get((*path, only))
        if next_row is None:
            found.setdefault(None, []).append(Branch(path, (row,)))
        else:
            written.add(next_row)
            found.setdefault(only, []).append(Branch(path, (row, next_row)))
    return [
        BranchGroup(
            forced,
            tuple(sorted({token for b in branches for row in b.nodes for token in followers[row]})),
            tuple(branches),
        )
        for forced, branches in found.items()
    ]


def token_logp(tree: AnswerTree, found: dict[tuple[int, int], float]) -> Tensor:
    """Log probability (1, A, L) of every token of every answer, 0 beyond an answer's end.

    From those by row of the tree and token id, as ``language.answers.decode`` takes them.
    """
    rows = [
        [0.0 if node < 0 else found[node, token] for node, token in zip(*answer, strict=True)]
        for answer in zip(tree.predictors.tolist(), tree.answer_ids.tolist(), strict=True)
    ]
    return torch.tensor([rows], dtype=torch.float64)


def _paths(tree: AnswerTree) -> list[tuple[int, ...]]:
    """The token ids that lead to each row of the tree."""
    paths: list[tuple[int, ...]] = [()]
    for node in range(len(tree)):
        above = tree.attends[node].nonzero().squeeze(1)
        paths.append(tuple(tree.tokens[above[tree.depths[above].argsort()]].tolist()))
    return paths


def _followers(tree: AnswerTree) -> list[list[int]]:
    """The token ids that may follow at each row of the tree."""
    found: list[dict[int, None]] = [{} for _ in range(1 + len(tree))]
    pairs = zip(tree.predictors.flatten().tolist(), tree.answer_ids.flatten().tolist(), strict=True)
    for row, token in pairs:
        if row >= 0:
            found[row][token] = None
    return [list(tokens) for tokens in found]
