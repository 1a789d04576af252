"""The benchmark: variants, their results, and what is refused."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from msea_lightning.bench import bench, with_dataset
from msea_lightning.benchmark import BenchError
from msea_lightning.benchmark import run as run_module
from msea_lightning.benchmark.results import Results, VariantResult, share_rates, show, speed
from msea_lightning.benchmark.run import benchmark
from msea_lightning.benchmark.variant import Timing, evenly
from msea_lightning.commands.command_line import compose
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import BenchConfig
from tests.processes import is_gone

SMALL = [
    "backbone.hidden_size=32",
    "backbone.num_layers=1",
    "backbone.architecture.vocab_size=6000",
    "training.batch_size=4",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "bench.utterances=8",
    "bench.eval_utterances=4",
    "bench.steps=2",
    "bench.rounds=1",
]


def options(*overrides: str) -> BenchConfig:
    given = {override.partition("=")[0] for override in overrides}
    kept = [override for override in SMALL if override.partition("=")[0] not in given]
    return compose("bench", BenchConfig, [*kept, *overrides])


@pytest.fixture
def found() -> Results:
    """Two variants with made-up numbers."""
    slow = VariantResult(
        "original", "cpu", 10.0, {"import": 4.0, "load": 6.0}, 2 << 30, peak=4 << 30
    )
    fast = VariantResult("ours", "cpu", 5.0, {"import": 4.0, "load": 1.0}, 1 << 30, peak=1 << 30)
    slow.rounds = {
        "train": [Timing(2.0, 16, 160, 1e9), Timing(4.0, 16, 160, 1e9), Timing(2.0, 16, 160, 1e9)]
    }
    fast.rounds = {
        "train": [Timing(0.5, 16, 160, 1e9), Timing(0.5, 16, 160, 1e9), Timing(1.0, 16, 160, 1e9)]
    }
    fast.stages = {"train": {"backbone": 3.0, "head": 1.0}}
    fast.rate = 4e9
    slow.weights = fast.weights = 1 << 29
    return Results("meld", {"seed": 1}, {"python": "3"}, [slow, fast])


def test_speed_is_of_all_rounds_and_ratios_go_round_by_round(found: Results) -> None:
    slow, fast = found.variants
    assert speed(slow.rounds["train"]) == 6.0
    assert speed(fast.rounds["train"], "tokens") == 240.0
    numbers = fast.compared(slow)
    assert numbers["ratios"]["train"] == [4.0, 8.0, 2.0]
    assert numbers["share_of_limit"] == {"train": pytest.approx(3e9 / 2.0 / 4e9)}
    assert slow.compared(slow)["share_of_limit"] == {"train": None}


@pytest.mark.parametrize(("batches", "count", "rounds"), [(64, 8, 3), (48, 4, 6), (7, 7, 3)])
def test_rounds_are_of_all_costs(batches: int, count: int, rounds: int) -> None:
    offsets = [(2 * number + 1) / (2 * rounds) for number in range(rounds)]
    places = [evenly(range(batches), count, offset) for offset in offsets]
    assert all(len(set(found)) == count and found == sorted(found) for found in places)
    every = [place for found in places for place in found]
    assert sum(every) / len(every) == pytest.approx((batches - 1) / 2, abs=0.5)
    part = batches / count
    assert min(every) <= part / rounds
    assert max(every) >= batches - 1 - part / rounds


def test_a_variant_has_fewer_batches_than_wanted() -> None:
    assert evenly("abc", 9, 0.9) == ["a", "b", "c"]


def test_tables_and_numbers_say_the_same(found: Results) -> None:
    text = io.StringIO()
    show(found, Console(width=100, file=text))
    assert all(len(line) <= 100 for line in text.getvalue().splitlines())
    numbers = found.as_json()["variants"]
    assert numbers[1]["ratios"]["train"] == [4.0, 8.0, 2.0]
    assert numbers[1]["ratio"]["train"] == 4.0
    assert numbers[1]["peak_ratio"] == 0.25
    assert numbers[1]["above_weights_ratio"] == pytest.approx(0.5 / 3.5)
    for part in ("4.00", "2.00", "8.00", "38%", "0.25", "75.0"):
        assert part in text.getvalue()
    assert json.loads(json.dumps(numbers)) == numbers


def test_shape_chooses_the_data_set() -> None:
    words = with_dataset(["bench.shape=mosei", "backbone=qwen", "bench.rounds=1"])
    assert words == ["dataset=mosei", "backbone=qwen", "bench.rounds=1"]
    config = compose("bench", BenchConfig, words)
    assert (config.bench.shape, config.dataset.name) == ("mosei", "mosei")
    assert config.recipe == "mosei_qwen"
    assert config.adapter.audio_hidden == 64


def test_a_comparison_of_two_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way: generated data, a process for each variant, tables and JSON."""
    file = tmp_path / "found.json"
    compared = "bench.compare=[original,ours]"
    bench(options(compared, f"bench.json={file}"))
    printed = capsys.readouterr().out
    assert "training" in printed
    assert "share of limit" in printed
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [variant["name"] for variant in found["variants"]] == ["original", "ours"]
    for variant in found["variants"]:
        assert [item["utterances"] for item in variant["rounds"]["train"]] == [8]
        assert [item["utterances"] for item in variant["rounds"]["evaluate"]] == [4]
        assert variant["peak"] >= variant["start_resident"] // 2 > 0
        assert variant["rate"] > 0
        assert 0 < variant["weights"] < variant["peak"]
        assert set(variant["start_stages"]) == {"import", "load", "first step"}
    first, second = found["variants"]
    # All of the data, in two batches each.
    assert first["rounds"]["train"][0]["tokens"] == second["rounds"]["train"][0]["tokens"]
    assert first["rounds"]["train"][0]["operations"] == second["rounds"]["train"][0]["operations"]


def test_variants_have_the_best_rate_of_their_device_and_dtype() -> None:
    found = [
        VariantResult("a", device, dtype=dtype, rate=rate)
        for device, dtype, rate in (
            ("cpu, 1 thread", "float32", 1.0),
            ("cpu, 1 thread", "float32", 3.0),
            ("cpu, 2 threads", "float32", 5.0),
            ("cpu, 1 thread", "bfloat16", 7.0),
            ("cpu, 1 thread", "float32", None),
        )
    ]
    share_rates(found)
    assert [variant.rate for variant in found] == [3.0, 3.0, 5.0, 7.0, None]


def test_a_variant_that_fails_says_why() -> None:
    config = options("bench.compare=['backbone.attention=flash_attention_2']")
    with pytest.raises(BenchError, match=r"'backbone.attention=flash_attention_2': .*not possible"):
        benchmark(config)


def stubborn(channel: Connection, log: Path, variant: str) -> None:
    """A process that does not end when it is told to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel.send((os.getpid(), None))
    time.sleep(600)


def gone(channel: Connection, log: Path, variant: str) -> None:
    """A process that ends at its first task."""
    log.write_text("first\nno room\n", encoding="utf-8")
    channel.recv()
    os._exit(3)


def test_a_process_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "work", stubborn)
    monkeypatch.setattr(run_module, "_GRACE", 0.1)
    with run_module._worker(tmp_path / "log", "ours") as ask:
        own = psutil.Process(ask("start"))
    assert is_gone(own)


def test_a_process_that_ends_leaves_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "work", gone)
    with (
        run_module._worker(tmp_path / "log", "ours") as ask,
        pytest.raises(BenchError, match=r"'ours' ended during 'start' with exit code 3.*no room"),
    ):
        ask("start")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["bench.compare=[ours,quick]"],
            "'quick' is neither original nor ours, nor options, such as",
        ),
        (["bench.compare=['backbone.nosuch=1']"], "'backbone.nosuch=1'.*nosuch"),
        (["bench.compare=['training.batch_size=many']"], "'training.batch_size=many'.*many"),
        (["dataset=mosi"], "bench.shape=mosi: only the lengths of .*mosei"),
        (
            ["adapter=mag"],
            r"'original' has the adapter mse.*here: adapter=mag\. Leave original out",
        ),
        (["trainer.devices=2"], "each on one device. Leave .* and trainer.devices out"),
        (["bench.compare=['adapter=mag']"], "'adapter=mag' .*go on the command line"),
        (["bench.compare=['dataset.path=x']"], "all variants read the same generated data"),
        (["bench.compare=['dataset={path: x}']"], "all variants read the same generated data"),
        (["bench.compare=['dataset.name=mosei']"], "all variants read the same generated data"),
        (["bench.compare=['runs=x']"], "'runs=x' is no option: Key 'runs'"),
    ],
)
def test_what_cannot_be_compared(overrides: list[str], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        benchmark(options(*overrides))


def test_the_range_of_an_option_holds_in_a_variant() -> None:
    with pytest.raises(ConfigError, match=r"training\.batch_size=0 is out of range"):
        benchmark(options("bench.compare=['training.batch_size=0']"))


def test_another_shape_than_the_data_set_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"bench\.shape=mosei, but dataset=meld: they are the"):
        options("bench.shape=mosei")


@pytest.mark.parametrize("compared", ["[]", "[ours,ours]"])
def test_nothing_to_compare(compared: str) -> None:
    with pytest.raises(ConfigError, match="give one or more different variants"):
        options(f"bench.compare={compared}")


def test_a_place_for_the_numbers_that_is_not_there_or_taken(tmp_path: Path) -> None:
    taken = tmp_path / "found.json"
    taken.write_text("{}")
    for place, flaw in (
        (taken, "exists already"),
        (tmp_path / "no" / "a.json", "does not exist"),
    ):
        with pytest.raises(ConfigError, match=f"{flaw}: give a new file"):
            bench(options(f"bench.json={place}"))
    assert taken.read_text() == "{}"
