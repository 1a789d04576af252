"""Which questions share a batch: the same as by the plain rule, however many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msea_lightning import Utterance
from msea_lightning.data.sampler import reading_costs
from msea_lightning.plugin import batching
from msea_lightning.plugin.batching import Question, batches

WIDTH, INNER = 4, 16


class Backbone:
    """What is asked of a language model: its widths."""

    width = WIDTH

    def __init__(self) -> None:
        config = SimpleNamespace(intermediate_size=INNER)
        self.model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))


class Model:
    """What is asked of an attached plugin."""

    def __init__(self, around: int, text_tokens: int, nodes: int, dims: Mapping[str, int]) -> None:
        self.backbone = Backbone()
        self.prompt = SimpleNamespace(
            longest=around + text_tokens, text_tokens=text_tokens, most_context=0
        )
        self.tree = range(nodes)
        self.dims = dims


MODELS: Sequence[Any] = (
    Model(9, 20, 5, {"audio": 7, "vision": 3}),
    Model(30, 10, 2, {"vision": 40}),
    Model(2, 8, 9, {}),
)

ROWS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 30),
        st.dictionaries(st.sampled_from(["audio", "vision"]), st.integers(1, 60)),
    ),
    max_size=40,
)


def plain_bytes(batch: Sequence[Question]) -> int:
    """What a batch takes, from all of its questions."""
    models = [question.model for question in batch]
    around = max(m.prompt.longest - m.prompt.text_tokens + len(m.tree) for m in models)
    tokens = around + max(min(len(q.tokens), q.model.prompt.text_tokens) for q in batch)
    values = sum(
        max(question.lengths.get(name, 0) for question in batch)
        * max(model.dims.get(name, 0) for model in models)
        for name in ("audio", "vision")
    )
    return len(batch) * 4 * (tokens * (6 * WIDTH + 3 * INNER + tokens) + 3 * values)


def plain_batches(questions: Sequence[Question], size: int, most: int) -> list[list[int]]:
    """The batches by number, by looking at the whole batch for each question."""
    read = [min(len(q.tokens), q.model.prompt.text_tokens) for q in questions]
    frames = [sum(q.lengths.values()) for q in questions]
    costs = reading_costs(np.array(read, dtype=np.int64), np.array(frames, dtype=np.int64))
    names = list(dict.fromkeys(question.name for question in questions))
    ordered = sorted(questions, key=lambda q: (names.index(q.name), -costs[q.number]))
    found: list[list[Question]] = []
    for question in ordered:
        if not found or len(found[-1]) == size or plain_bytes([*found[-1], question]) > most:
            found.append([])
        found[-1].append(question)
    return [[question.number for question in batch] for batch in found]


@given(rows=ROWS, size=st.integers(1, 12), most=st.integers(0, 120_000))
def test_batches_are_those_of_the_plain_rule(
    rows: list[tuple[int, int, dict[str, int]]], size: int, most: int
) -> None:
    questions = [
        Question(
            number,
            MODELS[model],
            f"plugin {model}",
            Utterance(),
            np.zeros(tokens, dtype=np.int32),
            lengths,
        )
        for number, (model, tokens, lengths) in enumerate(rows)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "_BYTES_AT_ONCE", most)
        found = [[q.number for q in batch] for batch in batches(questions, size)]
    assert found == plain_batches(questions, size, most)
