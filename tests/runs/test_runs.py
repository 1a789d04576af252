"""Run folders: what makes a run the same one, and where it is found."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from msea_lightning.commands.command_line import compose
from msea_lightning.commands.compose import conf_folder, set_by_method
from msea_lightning.config.errors import UserError
from msea_lightning.config.options import options
from msea_lightning.config.roots import TrainConfig
from msea_lightning.runs import identity, start
from msea_lightning.runs.environment import environment
from msea_lightning.runs.files import write_csv, write_json
from msea_lightning.runs.folder import (
    RunError,
    RunFolder,
    find_runs,
    runs_by_fingerprint,
    runs_of,
)
from msea_lightning.runs.identity import (
    METHOD_OPTIONS,
    comparable,
    departures,
    fingerprint,
    with_absolute_places,
)
from msea_lightning.runs.start import open_run

BASE = compose("train", TrainConfig)


def words_of(word: str) -> list[str]:
    return ["backbone=auto", word] if word.startswith("backbone") else [word]


def opened(*words: str) -> RunFolder:
    with open_run(compose("train", TrainConfig, words)) as run:
        return run


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["backbone=gemma3-1b"],
        ["dataset=cherma", "backbone=llama2"],
        ["adapter=mag", "adapter.beta=1", "training.learning_rate=1e-10"],
        ["dataset.labels.names=[yes,on,'1e5','null']", "dataset.labels.kind=emotions"],
        ["prompt.task='你好: {a}\\n- b'", "dataset.path='~'", "seed=4294967295"],
        ["backbone.architecture={hidden_size: 32, rope: {theta: 1e6, types: [a, 1]}}"],
    ],
)
def test_a_run_has_the_fingerprint_of_its_options(tmp_path: Path, words: list[str]) -> None:
    run = opened(*words, f"runs={tmp_path}")
    assert run.fingerprint() == fingerprint(run.load_config())


@pytest.mark.parametrize(
    "words",
    [
        ["runs=elsewhere"],
        ["ckpt=auto"],
        ["trainer=ddp", "trainer.threads=3"],
        ["logger=wandb", "logger.wandb_project=mine"],
        ["dataset.cache=elsewhere", "dataset.workers=2"],
        ["backbone.check_memory=false"],
        ["backbone.compile=true", "backbone.checkpoint_activations=true"],
        ["training.eval_batch_size=7", "trainer.accumulate=2"],
    ],
)
def test_where_a_run_happens_has_no_part_in_it(words: list[str]) -> None:
    assert fingerprint(compose("train", TrainConfig, words)) == fingerprint(BASE)


@pytest.mark.parametrize(
    "words",
    [
        ["seed=2"],
        ["ablation=no_msf"],
        ["adapter=chfn"],
        ["dataset.train_fraction=0.5"],
        ["dataset.demo_task=msa"],
        ["training.eps=1e-9"],
        ["decode=mean"],
        ["backbone.architecture.hidden_size=32"],
        ["size_only=true"],
    ],
)
def test_what_changes_a_result_changes_the_fingerprint(words: list[str]) -> None:
    assert fingerprint(compose("train", TrainConfig, words)) != fingerprint(BASE)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["prompt=meld"], {}),
        (["prompt.task=null"], {"prompt.task": "another"}),
        (["dataset.features=[audio]"], {"dataset.features": ["audio"]}),
        (["dataset.reader=meld_csv"], {"dataset.reader": "meld_csv"}),
        (["training.loss=answers"], {"training.loss": "answers"}),
    ],
)
def test_what_is_not_as_published_is_told(words: list[str], expected: dict[str, Any]) -> None:
    """The paper's numbers stand beside no such run."""
    config = compose("train", TrainConfig, ["dataset=meld", "backbone=qwen", *words])
    assert departures(config) == expected
    words = ["dataset=meld_text", "backbone=qwen", "prompt=none", "method=published"]
    other = compose("train", TrainConfig, words)
    assert departures(other) == {}


def test_what_methods_set_is_known_as_such() -> None:
    """Reports name the method in place of it."""
    methods = {path.stem for path in (conf_folder() / "method").glob("*.yaml")} - {"none"}
    assert {key for method in methods for key in set_by_method(method)} <= set(METHOD_OPTIONS)


def test_every_option_is_compared_or_has_a_reason_not_to_be() -> None:
    # The split of a data set without a valid split of its own has a version.
    other = compose("train", TrainConfig, ["adapter=mag", "dataset=table", "dataset.path=here"])
    compared = {*comparable(BASE), *comparable(other)}
    left_out = {info.key for info in options(TrainConfig)} - compared
    places = {"runs", "ckpt", "experiment", "method", "backbone.check_memory"}
    places |= {f"dataset.{name}" for name in ("cache", "download", "workers")}
    # How fast and in how much memory, with the same results.
    places |= {"backbone.compile", "backbone.checkpoint_activations", "training.eval_batch_size"}
    places |= {"backbone.cache", "backbone.cache_limit"}
    places |= {"backbone.device_map", "backbone.max_memory", "backbone.offload_folder"}
    assert {key for key in left_out if not key.startswith(("trainer.", "logger."))} == places


def test_a_run_of_an_older_version_lacks_new_options(tmp_path: Path) -> None:
    run = opened(f"runs={tmp_path}")
    lines = run.config.read_text().splitlines()
    assert "size_only: false" in lines
    run.config.write_text("\n".join(line for line in lines if not line.startswith("size_only")))
    assert run.fingerprint() == fingerprint(BASE)


@pytest.mark.parametrize("words", [[], ["adapter=mag", "seed=7"]])
def test_a_new_option_changes_no_earlier_fingerprint(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    config = compose("train", TrainConfig, words)
    now = fingerprint(config)
    earlier = {key: value for key, value in comparable(config).items() if key != "decode"}
    assert identity._hash(earlier) == now


@pytest.mark.parametrize(("dataset", "told_apart"), [("table", True), ("meld", False)])
def test_a_run_of_another_split_is_another_run(
    tmp_path: Path, dataset: str, told_apart: bool
) -> None:
    """Release 0.1 drew a missing validation part in another way, and wrote no version of it."""
    words = [f"dataset={dataset}", f"dataset.path={tmp_path}", f"runs={tmp_path}"]
    config = compose("train", TrainConfig, words)
    with open_run(config) as run:
        written = run.config.read_text()
        assert run.fingerprint() == fingerprint(config)
        run.config.write_text(written.replace("  split_version: 2\n", ""))
        assert "split_version" not in run.config.read_text()
        assert (run.fingerprint() != fingerprint(config)) is told_apart
        assert run.load_config().dataset.split_version == 1
        assert run.fingerprint() == fingerprint(run.load_config())


def test_a_run_that_refused_empty_texts_is_the_same_run(tmp_path: Path) -> None:
    """It did so by default before there was ``auto``."""
    words = ["dataset=table", f"dataset.path={tmp_path}", "dataset.empty_text="]
    auto, refuse, keep = (
        fingerprint(compose("train", TrainConfig, [*words[:2], words[2] + name]))
        for name in ("auto", "refuse", "keep")
    )
    assert auto == refuse != keep


@given(junk=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)))
@settings(max_examples=50)
def test_what_cannot_be_read_is_no_run_of_these_options(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    folder = tmp_path_factory.mktemp("junk")
    (folder / "config.yaml").write_bytes(junk)
    assert RunFolder(folder).fingerprint() != fingerprint(BASE)
    assert runs_of(replace(BASE, runs=str(folder), seed=987)) == []


@pytest.mark.parametrize(
    "text",
    ["3", "seed: [", "adapter: 3", "model: {name: [mse]}", "day: 2020-01-01", "seed: ${there}"],
)
def test_options_that_were_damaged(tmp_path: Path, text: str) -> None:
    run = RunFolder(tmp_path)
    run.config.write_text(text)
    assert run.fingerprint() != fingerprint(BASE)
    with pytest.raises(UserError):
        run.load_config()


def test_runs_are_found_by_their_files_not_their_names(tmp_path: Path) -> None:
    first = opened(f"runs={tmp_path}", "seed=1")
    first.path.rename(tmp_path / "b")
    # W&B keeps a file of the same name inside of a run.
    (tmp_path / "b" / "wandb" / "files").mkdir(parents=True)
    (tmp_path / "b" / "wandb" / "files" / "config.yaml").write_text("seed: 1\n")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "config.yaml").write_text("seed: 1\n")
    assert [run.path for run in find_runs(tmp_path)] == [tmp_path / "b"]
    assert list(find_runs(tmp_path / "nowhere")) == []


def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(lock: FileLock) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", unsupported)
    with pytest.raises(
        RunError, match=r"has no file locks .* Choose a folder for runs= on another"
    ):
        opened(f"runs={tmp_path}", "ckpt=auto")


def test_a_finished_run_comes_before_one_to_resume(tmp_path: Path) -> None:
    runs = [opened(f"runs={tmp_path}") for _ in range(3)]
    runs[1].checkpoints.mkdir()
    runs[1].last.touch()
    runs[0].metrics.write_text('{"test": {}}')
    ((_, found),) = runs_by_fingerprint(tmp_path).items()
    assert [run.path for run in found] == [runs[index].path for index in (0, 1, 2)]


def test_places_are_named_from_the_root_where_they_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    words = ["dataset.path=data", "backbone=auto", "backbone.path=data", "backbone.tokenizer=a/b"]
    absolute = with_absolute_places(compose("train", TrainConfig, words))
    assert absolute.dataset.path == str(tmp_path / "data")
    assert absolute.backbone.path == str(tmp_path / "data")
    assert absolute.backbone.tokenizer == "a/b"  # may be on the Hub


@pytest.mark.parametrize("word", ["dataset.path=data", "backbone.path=./model"])
def test_a_run_is_the_same_once_its_files_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose("train", TrainConfig, words_of(word))
    before = fingerprint(with_absolute_places(config))
    (tmp_path / word.partition("=")[2]).mkdir()
    assert fingerprint(with_absolute_places(config)) == before


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ('{"test": {"acc": 1.0}, "valid": {}}', True),
        ('{"size": {}}', True),
        ('{"test": []}', False),
        ('{"test"', False),
        ("[" * 100_000, False),
        ("[]", False),
        ("", False),
    ],
)
def test_a_run_is_finished_when_its_metrics_can_be_read(
    tmp_path: Path, text: str, finished: bool
) -> None:
    run = RunFolder(tmp_path)
    assert not run.finished
    run.metrics.write_text(text)
    assert run.finished is finished


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ('{"eval_batch_size": 64, "total": 1}', 64),
        ('{"total": 1}', None),  # of an older version
        ('{"eval_batch_size": null}', None),
        ("[]", None),
        ('{"eval', None),
        (None, None),
    ],
)
def test_the_evaluation_batch_of_a_run_is_known_where_it_was_written(
    tmp_path: Path, text: str | None, size: int | None
) -> None:
    run = RunFolder(tmp_path)
    if text is not None:
        run.memory.write_text(text)
    assert run.eval_batch_size == size


def test_runs_that_start_at_once_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start.time, "strftime", lambda _: "the same second")
    config = compose("train", TrainConfig, [f"runs={tmp_path}"])
    with ThreadPoolExecutor() as pool:
        paths = list(pool.map(lambda _: start.new_folder(config).path, range(8)))
    assert len({path.parent for path in paths}) == len(paths)
    assert {path.name for path in paths} == {"seed-1111"}
    # Also while the other one runs, which tells its processes where it is.
    with open_run(config) as one, open_run(config) as other:
        assert one.path != other.path


def test_the_processes_of_a_run_share_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("train", TrainConfig, [f"runs={tmp_path}"])
    with open_run(config) as first:
        monkeypatch.setenv("LOCAL_RANK", "1")
        with open_run(config) as second:
            assert second.path == first.path.resolve()
        monkeypatch.delenv("LOCAL_RANK")


def test_a_file_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(path, ["a"], [{"a": 1}])
    with pytest.raises(ValueError, match="dict contains fields not in fieldnames"):
        write_csv(path, ["a"], [{"a": 2}, {"b": 3}])
    with pytest.raises(UnicodeEncodeError):
        write_csv(path, ["a"], [{"a": "\ud800"}])
    assert path.read_text() == "a\n1\n"
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


def test_two_that_write_one_file_are_not_in_each_others_way(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    texts = {"a": 20_000 * "a", "b": 20_000 * "b"}

    def write(name: str) -> None:
        for _ in range(50):
            write_json(path, texts[name])
            assert json.loads(path.read_text()) in texts.values()

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, texts))
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_what_runs_without_being_installed_has_an_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    monkeypatch.setattr(metadata, "version", missing)
    assert environment()["packages"] == {"msea_lightning": None}
