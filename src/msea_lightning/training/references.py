"""What a result has to beat: one answer for all, and a text classifier of a few seconds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from msea_lightning.data.options import Language
from msea_lightning.language.labels import LabelSpace
from msea_lightning.metrics import score
from msea_lightning.metrics.options import MetricKind

_TERMS = 5000  # most frequent words and pairs of words; more take time and help little
_STRENGTH = (
    5.0  # inverse of the regularisation: on MELD's validation part better than 1 (docs/log.md)
)


@dataclass(frozen=True)
class Reference:
    """Something simple that answers the same test utterances.

    Attributes:
        name: Such as ``always neutral``.
        kind: What it reads: ``constant``, ``text``, or ``state`` of the language model.
        answers: Its answer to each test utterance.
        test: Its metrics, as those of the run are.
    """

    name: str
    kind: str
    answers: Sequence[float | str]
    test: dict[str, float]


def references(
    texts: Sequence[str],
    labels: Sequence[float | str | None],
    test_texts: Sequence[str],
    test_labels: Sequence[float | str],
    *,
    space: LabelSpace,
    kind: MetricKind,
    language: Language,
) -> list[Reference]:
    """References that learn from the training part alone.

    The constant answer is the most frequent training label, of intensities their median. The text
    classifier weighs words and pairs of words (Chinese: characters) by TF-IDF for a logistic
    regression, or ridge regression of intensities. There is none where nobody says a word.

    Args:
        texts: Of all training utterances.
        labels: Theirs; None where there is none.
        test_texts: (N,) of the test utterances.
        test_labels: (N,) theirs.
        space: The label space.
        kind: The kind of metrics.
        language: In which a word is a sequence of letters, or may be one character.
    """
    known = [(text, label) for text, label in zip(texts, labels, strict=True) if label is not None]
    if not known:
        return []
    said, taught = [text for text, _ in known], [label for _, label in known]
    constant: float | str
    if space.ordered:
        # As it can be written: 0.0445 is no answer on a scale in steps of 0.1.
        constant = float(space.text(statistics.median(float(label) for label in taught)))
        name = f"always {constant:g}"
    else:
        constant = Counter(taught).most_common(1)[0][0]
        name = f"always {constant}"
    found = [(name, "constant", [constant] * len(test_labels))]
    if len(set(taught)) > 1 and (answers := _from_text(said, taught, test_texts, space, language)):
        found.append(("TF-IDF on the text", "text", answers))
    targets = [space.target(label) for label in test_labels]
    return [
        Reference(*one, score(kind, [space.target(answer) for answer in one[2]], targets))
        for one in found
    ]


def _from_text(
    texts: Sequence[str],
    labels: Sequence[float | str],
    test_texts: Sequence[str],
    space: LabelSpace,
    language: Language,
) -> list[Any]:
    """Answers of a linear model of the words; none where the texts hold no word."""
    by_letter = {"analyzer": "char"} if language is Language.zh else {"token_pattern": r"\b\w+\b"}
    terms = TfidfVectorizer(ngram_range=(1, 2), max_features=_TERMS, sublinear_tf=True, **by_letter)
    if not any(map(terms.build_analyzer(), texts)):
        return []
    # Each emotion against the rest: a tenth of the time that all at once take.
    emotions = OneVsRestClassifier(LogisticRegression(C=_STRENGTH, solver="liblinear"))
    model = make_pipeline(terms, Ridge() if space.ordered else emotions)
    answers = model.fit(texts, labels).predict(test_texts)
    if space.ordered:
        answers = np.clip(answers, space.values[0], space.values[-1])
    answers_list: list[Any] = answers.tolist()
    return answers_list
