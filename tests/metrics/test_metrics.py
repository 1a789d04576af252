"""Metrics against the original's numbers, scikit-learn and SciPy, and their own promises."""

from __future__ import annotations

import json
import math
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from msea_lightning.metrics import (
    METRIC_NAMES,
    METRICS,
    MetricError,
    UtteranceScore,
    score,
    selection_metric,
    zero_share,
)
from msea_lightning.metrics.options import MetricKind
from tests import places

VECTORS = places.VECTORS / "metrics"
NAN = float("nan")

FILES = {
    "mosei_regression": (
        "mosei",
        {
            "Has0_acc_2": "acc2",
            "Has0_F1_score": "f1",
            "Non0_acc_2": "acc2_non0",
            "Non0_F1_score": "f1_non0",
            "Mult_acc_5": "acc5",
            "Mult_acc_7": "acc7",
            "MAE": "mae",
            "Corr": "corr",
        },
    ),
    "simsv2_regression": (
        "simsv2",
        {
            "Mult_acc_2": "acc2",
            "F1_score": "f1",
            "Mult_acc_2_weak": "acc2_weak",
            "Mult_acc_3": "acc3",
            "Mult_acc_5": "acc5",
            "MAE": "mae",
            "Corr": "corr",
        },
    ),
    "meld_classification": ("emotion", {"acc": "acc", "weight_F1": "wf1"}),
    "cherma_classification": ("emotion", {"acc": "acc", "weight_F1": "wf1"}),
}
CASES = [
    pytest.param(kind, names, case, id=f"{file.split('_')[0]}-{case['name']}")
    for file, (kind, names) in FILES.items()
    for case in json.loads((VECTORS / f"{file}.json").read_text(encoding="utf-8"))["cases"]
]
RAISED = {
    ("mosei", "truth_all_zero"): {
        "acc2": 2 / 3,
        "f1": 0.8,
        "acc2_non0": NAN,
        "f1_non0": NAN,
        "acc5": 1.0,
        "acc7": 1.0,
        "mae": 0.1,
        "corr": NAN,
    },
    ("simsv2", "nan_prediction"): {
        "acc2": 0.5,
        "f1": 0.5,
        "acc2_weak": 0.0,
        "acc3": 0.5,
        "acc5": 0.5,
        "mae": NAN,
        "corr": NAN,
    },
    ("emotion", "fractional_prediction"): {"acc": 2 / 3, "wf1": 2 / 3},
    ("emotion", "nan_prediction"): {"acc": 2 / 3, "wf1": 2 / 3},
}
"""What our metrics give where the original raises."""

INTENSITIES = st.floats(-4, 4, width=32) | st.sampled_from(
    [0.0, -0.0, 0.5, -0.5, 1.5, 2.5, 0.1, -0.1, 0.4, -0.4, 0.7, -0.7, 1.0, -1.0, NAN]
)
PAIRS = st.lists(st.tuples(INTENSITIES, INTENSITIES), max_size=30)
EMOTIONS = st.lists(st.tuples(st.integers(-1, 9), st.integers(0, 6)), max_size=30)


def bits(scores: dict[str, float]) -> dict[str, str]:
    """Values that are equal only when all bits are; NaN equals NaN."""
    return {name: float(value).hex() for name, value in scores.items()}


class TestGoldenVectors:
    """Tolerance 1e-6; measured: MAE 6e-7 (a float32 mean in the original), all others 1e-15."""

    def test_all_cases_are_there(self) -> None:
        assert len(CASES) == 15 + 16 + 14 + 14

    @pytest.mark.parametrize(("kind", "names", "case"), CASES)
    def test_case(self, kind: str, names: dict[str, str], case: dict[str, Any]) -> None:
        found = score(kind, case["pred"], case["truth"])
        assert (
            tuple(found)
            == METRIC_NAMES[MetricKind(kind)]
            == tuple(sorted(names.values(), key=METRIC_NAMES[MetricKind(kind)].index))
        )
        if case["metrics"] is None:
            expected = RAISED[kind, case["name"]]
        else:
            expected = {
                name: NAN if case["metrics"][theirs] is None else case["metrics"][theirs]
                for theirs, name in names.items()
            }
        assert found == pytest.approx(expected, rel=0, abs=1e-6, nan_ok=True)


class TestReferences:
    @settings(deadline=None, max_examples=60)
    @given(pairs=EMOTIONS.filter(bool))
    def test_emotions_against_sklearn(self, pairs: list[tuple[int, int]]) -> None:
        sklearn_metrics = pytest.importorskip("sklearn.metrics")
        preds, targets = map(list, zip(*pairs, strict=True))
        found = score("emotion", preds, targets)
        assert found["acc"] == pytest.approx(sklearn_metrics.accuracy_score(targets, preds))
        assert found["wf1"] == pytest.approx(
            sklearn_metrics.f1_score(targets, preds, average="weighted", zero_division=0)
        )

    @settings(deadline=None, max_examples=60)
    @given(pairs=PAIRS.filter(lambda pairs: len(pairs) > 1))
    def test_intensities_against_sklearn_and_scipy(self, pairs: list[tuple[float, float]]) -> None:
        sklearn_metrics = pytest.importorskip("sklearn.metrics")
        stats = pytest.importorskip("scipy.stats")
        preds, targets = np.nan_to_num(np.array(pairs, dtype=np.float32)).T
        found = score("mosei", preds, targets)
        wanted = {
            "acc2": sklearn_metrics.accuracy_score(targets >= 0, preds >= 0),
            "f1": sklearn_metrics.f1_score(
                targets >= 0, preds >= 0, average="weighted", zero_division=0
            ),
            "mae": sklearn_metrics.mean_absolute_error(targets, preds),
        }
        if np.ptp(preds) > 0.01 and np.ptp(targets) > 0.01:
            wanted["corr"] = stats.pearsonr(preds.astype(float), targets.astype(float))[0]
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, abs=1e-6), name


class TestOrder:
    @settings(deadline=None, max_examples=60)
    @given(
        kind=st.sampled_from(["mosei", "simsv2", "scale"]),
        pairs=PAIRS,
        seed=st.integers(0, 99),
        batch_size=st.integers(1, 7),
    )
    def test_intensities(
        self, kind: str, pairs: list[tuple[float, float]], seed: int, batch_size: int
    ) -> None:
        self.check(kind, pairs, seed, batch_size)

    @settings(deadline=None, max_examples=30)
    @given(pairs=EMOTIONS, seed=st.integers(0, 99), batch_size=st.integers(1, 7))
    def test_emotions(self, pairs: list[tuple[float, float]], seed: int, batch_size: int) -> None:
        self.check("emotion", pairs, seed, batch_size)

    @pytest.mark.filterwarnings("ignore:The ``compute`` method")
    def check(
        self, kind: str, pairs: list[tuple[float, float]], seed: int, batch_size: int
    ) -> None:
        """The same bits in another order, and in batches."""
        expected = bits(score(kind, [p for p, _ in pairs], [t for _, t in pairs]))
        shuffled = random.Random(seed).sample(pairs, len(pairs))
        assert bits(score(kind, [p for p, _ in shuffled], [t for _, t in shuffled])) == expected
        metric = UtteranceScore(kind)
        metric.update([], [])
        for start in range(0, len(shuffled), batch_size):
            preds, targets = zip(*shuffled[start : start + batch_size], strict=True)
            metric.update(torch.tensor(preds), torch.tensor(targets))
        assert bits(metric.compute()) == expected


class TestDegenerate:
    @pytest.mark.parametrize("kind", METRIC_NAMES)
    @pytest.mark.parametrize("empty", [[], np.zeros(0), torch.zeros(0), torch.zeros(0, 1)])
    def test_empty(self, kind: MetricKind, empty: Any) -> None:
        found = score(kind, empty, empty)
        assert tuple(found) == METRIC_NAMES[kind]
        assert all(math.isnan(value) for value in found.values())

    @pytest.mark.parametrize("kind", ["mosei", "simsv2"])
    @pytest.mark.parametrize("truth", [0.9, -0.9, 0.0])
    def test_nan_predictions_are_wrong(self, kind: str, truth: float) -> None:
        found = score(kind, [NAN, NAN], [truth, truth])
        for name, value in found.items():
            if METRICS[name].percent:
                assert value == 0 or (math.isnan(value) and name.endswith(("non0", "weak")))
            else:
                assert math.isnan(value)

    def test_nan_emotion_takes_no_hit_from_others(self) -> None:
        assert score("emotion", [NAN, 1, 1], [0, 1, 1]) == {"acc": 2 / 3, "wf1": 2 / 3}

    @pytest.mark.parametrize("kind", ["mosei", "simsv2", "scale"])
    def test_infinite_predictions(self, kind: str) -> None:
        found = score(kind, [float("inf"), 1e39, -1.0], [1.0, 1.0, -1.0])
        if kind == "simsv2":  # clipped first
            assert found["mae"] == 0
        else:
            assert found["mae"] == float("inf")
            assert math.isnan(found["corr"])
        assert found.get("acc2", 1.0) == 1.0

    def test_correlation(self) -> None:
        def corr(preds: list[float], targets: list[float]) -> float:
            return score("scale", preds, targets)["corr"]

        assert math.isnan(corr([1.0], [2.0]))
        assert math.isnan(corr([0.1, 0.1, 0.1], [1.0, 2.0, 3.0]))
        assert math.isnan(corr([1.0, 2.0, 3.0], [0.1, 0.1, 0.1]))
        assert corr([1.0, 2.0, 3.0], [0.1, 0.2, 0.3]) == pytest.approx(1.0)
        assert corr([3e38, -3e38], [1e-45, -1e-45]) == -corr([3e38, -3e38], [-1.0, 1.0])
        assert abs(corr([0.1, 0.2, 0.7], [0.1, 0.2, 0.7])) <= 1

    def test_mean_absolute_error(self) -> None:
        assert score("scale", [1.0, -2.0], [0.5, -0.5])["mae"] == 1.0

    def test_exact_zeros(self) -> None:
        assert zero_share([0.0, -0.0, 1e-30, NAN]) == 0.5
        assert math.isnan(zero_share([]))


class TestInputs:
    PREDS = (1.2, -0.4, 0.0, 3.5)
    TARGETS = (1.0, -0.33333334, 0.6666667, -2.0)

    @pytest.mark.parametrize(
        "convert",
        [
            list,
            tuple,
            np.array,
            lambda values: np.array(values, dtype=np.float32)[:, None],
            torch.tensor,
            lambda values: torch.tensor(values, dtype=torch.float64, requires_grad=True),
            lambda values: [torch.tensor(value) for value in values],
            lambda values: [np.float32(value) for value in values],
        ],
    )
    def test_forms(self, convert: Any) -> None:
        expected = bits(score("mosei", self.PREDS, self.TARGETS))
        assert bits(score("mosei", convert(self.PREDS), convert(self.TARGETS))) == expected

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        values = torch.tensor([1, -2, 0, 3])
        assert score("mosei", values.to(dtype), values) == score("mosei", values, values.to(dtype))

    def test_emotions_as_names_numbers_and_tensors(self) -> None:
        expected = {"acc": 0.5, "wf1": 0.5}
        assert score("emotion", ["joy", "?"], ["joy", "anger"]) == expected
        assert score("emotion", ["joy", None], ["joy", "anger"]) == expected
        assert score("emotion", np.array(["joy", "?"]), ["joy", "anger"]) == expected
        assert score("emotion", torch.tensor([1, 9]), np.array([1, 2])) == expected
        assert score("emotion", torch.tensor([1.0, 0.5]), [1, 2]) == expected
        assert score("emotion", ["a", "b"], ["a", "c"])["wf1"] == 0.5

    @pytest.mark.parametrize("kind", ["mosei", "simsv2", "scale", "emotion"])
    def test_kinds_by_name_and_by_member(self, kind: str) -> None:
        assert score(kind, [1], [1]).keys() == score(MetricKind(kind), [1], [1]).keys()

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            (("mosi", [], []), r"kind 'mosi': choose one of mosei, simsv2, scale, emotion"),
            ((MetricKind.infer, [], []), r"kind 'infer'"),
            (("mosei", [1.0], []), r"1 predictions were given for 0 targets"),
            (("emotion", [1], [1, 2]), r"1 predictions were given for 2 targets"),
            (("mosei", ["joy"], [1.0]), r"must be numbers.*joy.*kind 'emotion'"),
            (("emotion", ["joy"], [1]), r"predictions are names, such as 'joy'.*such as 1"),
            (("emotion", [2], ["joy"]), r"targets are names, such as 'joy'.*such as 2"),
        ],
    )
    def test_refuses(self, arguments: tuple[Any, ...], match: str) -> None:
        with pytest.raises(MetricError, match=match):
            score(*arguments)


class TestTable:
    def test_names(self) -> None:
        assert {name for names in METRIC_NAMES.values() for name in names} == set(METRICS)
        assert all(info.name == name for name, info in METRICS.items())
        titles = [info.title for info in METRICS.values()]
        assert len(set(titles)) == len(titles)

    def test_titles_are_the_papers(self) -> None:
        names = ("acc2", "f1", "acc2_weak", "acc7", "mae", "corr", "acc", "wf1")
        assert [METRICS[name].title for name in names] == [
            "Acc-2",
            "F1",
            "Acc2_weak",
            "Acc-7",
            "MAE",
            "Corr",
            "Acc",
            "WF1",
        ]

    def test_selection(self) -> None:
        found = {kind.value: selection_metric(kind) for kind in METRIC_NAMES}
        assert {kind: info.name for kind, info in found.items()} == {
            "mosei": "mae",
            "simsv2": "mae",
            "scale": "mae",
            "emotion": "wf1",
        }
        assert not found["mosei"].higher_is_better
        assert found["emotion"].higher_is_better

    def test_format(self) -> None:
        assert METRICS["acc2"].format(0.8691) == "86.91"
        assert METRICS["mae"].format(0.515) == "0.515"
        assert METRICS["corr"].format(NAN) == "-"

    def test_better(self) -> None:
        assert METRICS["mae"].better(0.5, than=0.6)
        assert not METRICS["acc"].better(0.5, than=0.6)
        assert METRICS["acc"].better(0.5, than=NAN)
        assert not METRICS["acc"].better(NAN, than=0.5)
        assert not METRICS["acc"].better(NAN, than=NAN)


def rank_scores(rank: int, folder: str, split: list[list[int]]) -> None:
    """One of several processes: scores its share, and writes what it was told in the end."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(split)
    )
    preds, targets = intensities()
    metric = UtteranceScore("mosei")
    if split[rank]:
        metric.update(preds[split[rank]], targets[split[rank]])
    Path(folder, f"{rank}.json").write_text(json.dumps(bits(metric.compute())), encoding="utf-8")
    torch.distributed.destroy_process_group()


def intensities() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, generator=generator), torch.randn(50, generator=generator)


class TestShell:
    @pytest.mark.parametrize("cut", [0, 1, 13, 50])
    def test_same_bits_on_uneven_ranks(self, cut: int) -> None:
        """Gathering is replaced by what the other rank would send."""
        preds, targets = intensities()
        sent = iter([preds[cut:], targets[cut:]])
        metric = UtteranceScore(
            "mosei",
            distributed_available_fn=lambda: True,
            dist_sync_fn=lambda own, group: [own, next(sent)],
        )
        metric.update(preds[:cut], targets[:cut])
        assert bits(metric.compute()) == bits(score("mosei", preds, targets))

    def test_reset_and_copy(self) -> None:
        metric = UtteranceScore("simsv2")
        metric.update([0.5], [0.4])
        expected = bits(score("simsv2", [0.5], [0.4]))
        assert bits(pickle.loads(pickle.dumps(metric)).compute()) == expected
        assert bits(metric(torch.tensor([0.5]), torch.tensor([0.4]))) == expected
        metric.reset()
        metric.update([], [])
        assert all(math.isnan(value) for value in metric.compute().values())

    def test_keeps_nothing_of_the_graph(self) -> None:
        metric = UtteranceScore("mosei")
        metric.update(torch.ones(2, requires_grad=True), torch.ones(2))
        assert not metric.preds[0].requires_grad

    def test_refuses_uneven_batches(self) -> None:
        with pytest.raises(MetricError, match="2 predictions were given for 1 targets"):
            UtteranceScore("mosei").update([1.0, 2.0], [1.0])

    def test_same_bits_on_two_ranks(self, tmp_path: Path) -> None:
        """Two processes, one of them without a single utterance."""
        split = [[], random.Random(0).sample(range(50), 50)]
        mp.spawn(rank_scores, args=(str(tmp_path), split), nprocs=len(split))
        expected = bits(score("mosei", *intensities()))
        for rank in range(len(split)):
            found = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
            assert found == expected
