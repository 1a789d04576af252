"""The command line: what is refused, how, and when; help, sweeps and exit codes."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from msea_lightning import __version__
from msea_lightning.commands.command_line import compose, conf_folder, launch
from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.config.options import options
from msea_lightning.config.roots import EvaluateConfig, PrepareConfig, TrainConfig
from msea_lightning.language.options import Decode
from tests.places import PACKAGE

HEAVY = ("torch", "transformers", "lightning", "wandb", "bitsandbytes")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MSEA_TRACEBACK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.fixture
def run() -> Callable[..., list[TrainConfig]]:
    """Runs a command line with a job that keeps its configurations; gives them."""

    def run(*words: str) -> list[TrainConfig]:
        seen: list[TrainConfig] = []
        launch(seen.append, config_name="train", root=TrainConfig, arguments=words)
        return seen

    return run


def refusal(run: Callable[..., object], capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said about a wrong command line; nothing may have run."""
    with pytest.raises(SystemExit) as stop:
        run(*words)
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert not list(Path.cwd().iterdir())
    return output.err.removeprefix("error: ")


def test_without_options_the_demo_runs(run: Callable[..., list[TrainConfig]]) -> None:
    (config,) = run()
    assert (config.dataset.name, config.backbone.name, config.seed) == ("demo", "tiny", 1111)
    assert not list(Path.cwd().iterdir())  # Hydra writes nothing of its own


def test_overrides_reach_the_job(run: Callable[..., list[TrainConfig]]) -> None:
    (config,) = run("dataset=mosei", "seed=7", "decode=median", "adapter.scales=[1,2]")
    assert (config.dataset.name, config.seed, config.decode) == ("mosei", 7, Decode.median)
    assert config.adapter.scales == [1, 2]


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("a", ["a"]),
        ("[a,b]", ["a", "b"]),
        ("a=b c", ["a=b c"]),
        ("'a,b'", ["a,b"]),
        ("[]", []),
    ],
)
def test_a_list_of_one_text_needs_no_brackets(
    run: Callable[..., list[TrainConfig]], word: str, names: list[str]
) -> None:
    (config,) = run(f"dataset.labels.names={word}")
    assert config.dataset.labels.names == names


def test_the_job_runs_outside_of_hydra(run: Callable[..., list[TrainConfig]]) -> None:
    states = []

    def job(config: TrainConfig) -> None:
        states.append((GlobalHydra.instance().is_initialized(), HydraConfig.initialized()))

    launch(job, config_name="train", root=TrainConfig, arguments=[])
    assert states == [(False, False)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # what there is not
        (["dataset.pth=x"], r"^dataset\.pth=x: .*mean dataset\.path\? Options of dataset: name, r"),
        (["lerning_rate=1"], r"^lerning_rate=1: .*mean training\.learning_rate\? There are: datas"),
        (["batch_size=4"], r"^batch_size=4: .* mean training\.batch_size\?"),
        (["dataset.labels.lwo=3"], r"mean dataset\.labels\.low\? Options of dataset\.labels: kind"),
        (["+group.typo=1"], r"^\+group\.typo=1: there is no option group\.typo.* There are: datas"),
        (
            ["+sweeper=foo"],
            r"^\+sweeper=foo: there is no option sweeper\. There are: dataset, model, ",
        ),
        (["sweeper=foo"], r"there is no option sweeper\. There are: dataset, model, "),
        (
            ["experiment=tabel4"],
            r"^experiment=tabel4: there is no such choice\. Did you mean table4",
        ),
        (
            ["experiment=table4"],
            r"grid over dataset, backbone, ablation, seed: add -m to run all of",
        ),
        (
            ["experiment=table4", "backbone=tiny", "seed=1"],
            r"is a grid over dataset, ablation: add",
        ),
        (["-m", "experiment=table4", "seed=x"], r"^seed=x: this is not a possible value"),
        (
            ["hydra/launcher=local"],
            r"^hydra/launcher=local: this is for the runs of .*-m; this",
        ),
        (["hydra.launcher.n_jobs=2", "-m", "seed=1,2"], r"this command launches nothing"),
        (["hydra/sweeper=basic"], r"^hydra/sweeper=basic: this is for the runs of"),
        (["hydra.launcher.n_jobs=1,2"], r"^hydra\.launcher\.n_jobs=1,2: this is for"),
        (["hydra.sweeper.max_batch_size=2"], r"planned before the first one begins.*other sweeper"),
        (
            ["hydra.run.dir=x"],
            r"^hydra\.run\.dir=x: hydra\.run\.dir has no effect.* Write runs=x: .* x/<dataset>/",
        ),
        (["hydra.sweep.dir=/a/b"], r"hydra\.sweep\.dir has no effect.* Write runs=/a/b: "),
        (["hydra.sweep.subdir=${hydra.job.num}"], r"Write runs=FOLDER: .*FOLDER/<dataset>/"),
        (["hydra.mode=MULTIRUN"], r"hydra\.mode has no effect.* Write -m "),
        (["hydra.job.chdir=true"], r"hydra\.job\.chdir has no effect"),
        (["hydra/job_logging=default"], r"hydra/job_logging has no effect"),
        (["+hydra.job.env_set.A=1"], r"hydra\.job\.env_set\.A has no effect"),
        (["++x.y=1"], r"^\+\+x\.y=1: there is no option x\.y\."),
        (["dataset/foo=1"], r"there is no option dataset/foo\. Did you mean dataset\?"),
        (["hydra=foo"], r"there is no option hydra\."),
        (["hydra.foo=1"], r"hydra\.foo has no effect"),
        (["seed.x=3"], r"there is no option seed\.x\. Did you mean seed\?"),
        (["train_schema=1"], r"there is no option train_schema"),
        # choices
        (["dataset=mosie"], r"^dataset=mosie: .*mean mosi or mosei\? Choices of dataset: cherma, "),
        (["dataset=null"], r"^dataset=null: there is no such choice\."),
        (["dataset=mosei.yaml"], r"Did you mean mosei\?"),
        # Lightning's names
        (
            ["trainer.logger=tensorboard"],
            r"^trainer\.logger=tensorboard: trainer\.logger is logger\.loggers here \(more loggers "
            r"of Lightning: logger=tensorboard, .*\)\.$",
        ),
        (["ckpt_path=a"], r"^ckpt_path=a: ckpt_path is ckpt here .* Write ckpt=<text or null>\.$"),
        (
            ["trainer.max_epochs=3"],
            r"^trainer\.max_epochs=3: trainer\.max_epochs is training\.schedule_epochs here .*"
            r"Write training\.schedule_epochs=<int, at least 0>\.$",
        ),
        (["trainer.precision=bf16"], r"is backbone\.dtype here \(compute dtype"),
        (["trainer.strategy=ddp"], r"is trainer\.devices here"),
        (["lr=1e-3"], r"is training\.learning_rate here"),
        (["logger=[csv,wandb]"], r"there is no such choice\. Choices of logger: comet, csv"),
        (["recipe=mosei_lama2"], r"Did you mean mosei_llama2"),  # optional in the defaults list
        (["prompt=nope"], r"Choices of prompt: cherma, en, meld, mosei, none, simsv2, zh"),
        (["decode=foo"], r"^decode=foo: .*expected greedy\|median\|mean \(how an answer is picked"),
        (["decode=medain"], r"Did you mean median or mean\?"),
        (["trainer.accelerator=tpu"], r"expected auto\|cpu\|gpu"),
        # types and ranges
        (["seed=x"], r"^seed=x: .* expected int, at least 0 and at most 4294967295 \(seed of"),
        (["seed=1.5"], r"^seed=1\.5: this is not a possible value"),
        (["seed=true"], r"^seed=true: this is not a possible value"),
        (["training={batch_size: 3}"], r"^training=\{batch_size: 3\}: training is a section, giv"),
        (["training={patience: 3}", "training.patience=4"], r"training is a section, give one of"),
        (["training.batch_size=0"], r"^training\.batch_size=0 is out of range: at least 1\."),
        (["adapter.scales=8"], r"^adapter\.scales=8: .* expected list of int"),
        (["adapter.scales=[a]"], r"expected list of int"),
        (["adapter.scales.9=4"], r"adapter\.scales\.9=4 list index out of range"),
        (["backbone.layout=[{kind: foo}]"], r"expected list of \{kind, token, en, zh\}"),
        (["dataset.path=[a]"], r"expected text or null \(file or folder with the published fil"),
        (["dataset.name=null"], r"^dataset\.name=null: .* expected text \(name in run folders"),
        (["training=foo"], r"training is a section, give one of its options\. Options of training"),
        (["text.attend_padding=true"], r"text\.attend_padding=true needs text\.pad_to"),
        (["dataset.path=${nowhere}"], r"option dataset\.path: Interpolation key 'nowhere' not"),
        # ways of writing
        (["~dataset.path"], r"^~dataset\.path: nothing can be deleted .* give dataset\.path anoth"),
        (["~logger"], r"nothing can be deleted"),
        (["+seed=3"], r"seed is there already; leave the \+ out"),
        (["++dataset=mosei"], r"dataset is there already; leave the \+ out"),
        (["dataset@x=mosei"], r"'@' has no use here; write dataset="),
        (["seed=1", "seed=2"], r"^seed is given twice, as seed=1 and seed=2; give it once"),
        (["dataset=mosei", "dataset=meld"], r"^dataset is given twice, as dataset=mosei and data"),
        (
            ["hydra.searchpath=[/one]", "hydra.searchpath=[/other]"],
            r"^hydra\.searchpath=\[/one\]: there is no folder /one\.$",
        ),
        (
            ["hydra.searchpath=[.]", "hydra.searchpath=[..]"],
            r"^hydra\.searchpath is given twice, as hydra\.searchpath=\[\.\] and hydra\.searc",
        ),
        (["seed=1,2"], r"^seed=1,2: these are several values; add -m to run once with each\.$"),
        (["adapter.scales=1,2"], r"add -m .* A list is written adapter\.scales=\[1,2\]"),
        (["prompt.task=a, b"], r"needs two pairs of quotes: \"prompt\.task='a, b'\""),
        (["seed"], r"^seed: options are written key=value, such as seed=3\."),
        (
            ["adapter.scales=[1,b=2]"],
            r"the list cannot be read; .* the shell: 'adapter\.scales=\[a,\"b=c\"\]'$",
        ),
        (["seed=(3"], r"the value cannot be read; in quotes it is one text: \"seed='\(3'\""),
        (["--seed=3"], r"unrecognized arguments: --seed=3\. Options are written without dashes"),
        (["--seed", "3"], r"unrecognized arguments: --seed\. Options are written without"),
        (["--cfg", "foo"], r"invalid choice: 'foo'"),
        (["--cfg", "job", "-m"], r"--cfg shows one configuration; leave -m out"),
        (["--package", "dataset"], r"--package goes with --cfg"),
        (["--cfg", "job", "--package", "x"], r"--package x: there is no such section"),
        (["--config-dir", "nowhere"], r"--config-dir nowhere: there is no such folder"),
        # sweeps
        (["-m", "seed=1,x"], r"^seed=x: this is not a possible value"),
        (["-m", "dataset=demo,mosie"], r"^dataset=mosie: there is no such choice"),
        (["-m", "training.batch_size=8,0"], r"training\.batch_size=0 is out of range"),
        (["-m", "text.attend_padding=false,true"], r"needs text\.pad_to"),
        (["-m", "seed=interval(1,2)"], r"an interval has no values to try"),
        (["-m", "seed=range(3,1)"], r"one of the ranges is empty"),
        (["-m", "seed=1,2", "trainer=ddp"], r"trainer\.devices=2 does not go with -m: .* for seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_refused(
    run: Callable[..., list[TrainConfig]],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert re.search(message, refusal(run, capsys, *words))


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("dataset.path=~/data", "~/data"),
        ("dataset.path=a=b", "a=b"),
        ("dataset.path=My Data (1)/x,y.pkl", "My Data (1)/x,y.pkl"),
        ("dataset.path=it's here", "it's here"),
        ("dataset.path=/data/it is:here", "/data/it is:here"),
        ("dataset.path='a, b'", "a, b"),
        ("dataset.path=null", None),
    ],
)
def test_texts_may_hold_any_character(
    run: Callable[..., list[TrainConfig]], word: str, path: str | None
) -> None:
    (config,) = run(word)
    assert config.dataset.path == path


def test_fields_of_a_mapping_can_be_added(run: Callable[..., list[TrainConfig]]) -> None:
    (config,) = run("backbone=llama2", "backbone.architecture.num_hidden_layers=2",
                    "+backbone.architecture.head_dim=64")  # fmt: skip
    assert config.backbone.architecture["num_hidden_layers"] == 2
    assert config.backbone.architecture["head_dim"] == 64


def test_a_sweep_runs_every_combination(run: Callable[..., list[TrainConfig]]) -> None:
    seen = run("-m", "seed=1,2", "ablation=none,no_audio", "dataset=mosei", "backbone=llama2")
    assert [(config.seed, config.ablation.name) for config in seen] == [
        (1, "none"),
        (1, "no_audio"),
        (2, "none"),
        (2, "no_audio"),
    ]
    assert {config.recipe for config in seen} == {"mosei_llama2"}


def test_what_is_typed_once_names_the_runs_of_a_sweep_as_it_is_typed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def job(config: TrainConfig) -> None:
        raise UserError("no")

    words = ["-m", "size_only=true", "training.learning_rate=1e-3", "seed=1,2"]
    with pytest.raises(SystemExit):
        launch(job, config_name="train", root=TrainConfig, arguments=words)
    said = "job 2 of 2 (size_only=true training.learning_rate=1e-3 seed=2) failed"
    assert said in capsys.readouterr().err


def test_a_sweep_over_groups_takes_the_recipe_of_each(
    run: Callable[..., list[TrainConfig]],
) -> None:
    seen = run("dataset=mosei,demo", "-m", "backbone=glob(t*)", "seed=range(3,5)", "runs=here")
    assert [(config.dataset.name, config.recipe, config.seed) for config in seen] == [
        ("mosei", None, 3),
        ("mosei", None, 4),
        ("demo", "demo_tiny", 3),
        ("demo", "demo_tiny", 4),
    ]
    assert list(Path.cwd().iterdir()) == []


def grid(run: Callable[..., list[TrainConfig]], *words: str) -> list[tuple[Any, ...]]:
    return [
        (
            config.dataset.name,
            config.backbone.name,
            config.adapter.name,
            config.ablation.name,
            config.dataset.train_fraction,
            config.seed,
        )
        for config in run("-m", *words)
    ]


SEEDS = (1111, 2222, 3333, 4444, 5555)
PAPER = ("qwen", "llama2", "chatglm3")
VARIANTS = ("none", "no_audio", "no_vision", "no_text", "no_audio_vision", "no_tgm", "no_msf")


@pytest.mark.parametrize(
    ("experiment", "cells"),
    [
        ("table2", [(d, b, "mse", "none", 1.0) for d in ("mosei", "simsv2") for b in PAPER]),
        ("table3", [(d, b, "mse", "none", 1.0) for d in ("meld", "cherma") for b in PAPER]),
        ("table4", [(d, "chatglm3", "mse", a, 1.0) for d in ("meld", "simsv2") for a in VARIANTS]),
        (
            "table5",
            [
                (d, "chatglm3", a, "none", 1.0)
                for d in ("mosei", "simsv2", "meld", "cherma")
                for a in ("mse", "mag", "chfn")
            ],
        ),
        (
            "figure4",
            [
                (d, b, "mse", "none", tenths / 10)
                for d, b in (("mosei", "qwen"), ("cherma", "llama2"))
                for tenths in range(1, 11)
            ],
        ),
    ],
)
def test_an_experiment_is_the_grid_of_its_table(
    run: Callable[..., list[TrainConfig]], experiment: str, cells: list[tuple[Any, ...]]
) -> None:
    found = grid(run, f"experiment={experiment}", "seed=7")
    assert found == [(*cell, 7) for cell in cells]


def test_an_experiment_has_the_paper_s_five_seeds(run: Callable[..., list[TrainConfig]]) -> None:
    found = grid(run, "experiment=table2", "dataset=mosei", "backbone=qwen")
    assert found == [("mosei", "qwen", "mse", "none", 1.0, seed) for seed in SEEDS]


def test_jobs_of_a_sweep_are_composed_as_single_runs_are(
    run: Callable[..., list[TrainConfig]],
) -> None:
    words = ["dataset=mosei", "training.learning_rate=0.1", "prompt.task='a, b'", "decode=mean"]
    mapping = "backbone.architecture.hidden_size=32"
    seen = run("-m", *words, "backbone=llama2", mapping, "seed=1,2", "adapter.scales=[4,2],[8]")
    single = run(*words, "backbone=llama2", mapping, "seed=2", "adapter.scales=[4,2]")
    assert seen[2] == single[0]
    assert len({id(config.adapter.scales) for config in seen}) == 4


def test_the_command_line_wins_over_the_grid(run: Callable[..., list[TrainConfig]]) -> None:
    found = grid(run, "experiment=table4", "backbone=tiny", "dataset=demo", "seed=7")
    assert found == [("demo", "tiny", "mse", variant, 1.0, 7) for variant in VARIANTS]


def test_a_sweep_runs_several_experiments(run: Callable[..., list[TrainConfig]]) -> None:
    found = run("-m", "experiment=table1,table2", "dataset=mosei", "backbone=qwen")
    assert [(c.experiment, c.size_only) for c in found] == [("table1", True)] * 3 + [
        ("table2", False)
    ] * 5


def test_one_row_of_an_experiment_is_a_run(run: Callable[..., list[TrainConfig]]) -> None:
    words = ["dataset=meld", "backbone=chatglm3", "ablation=no_msf", "seed=1111"]
    (config,) = run("experiment=table4", *words)
    assert (config.experiment, config.recipe) == ("table4", "meld_chatglm3")


def test_a_failing_job_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def job(config: TrainConfig) -> None:
        seen.append(config.seed)
        if config.seed == 2:
            raise UserError("features.npz is missing")
        if config.seed == 3:
            raise KeyError("a bug")

    with pytest.raises(SystemExit) as stop:
        launch(job, config_name="train", root=TrainConfig, arguments=["-m", "seed=1,2,3,4"])
    assert stop.value.code == 1
    assert seen == [1, 2, 3, 4]
    said = capsys.readouterr().err
    assert "error: job 2 of 4 (seed=2) failed: features.npz is missing\n" in said
    assert "error: job 3 of 4 (seed=3) failed: Traceback" in said
    assert "KeyError: 'a bug'" in said
    assert "UserError" not in said
    assert said.endswith("2 of 4 jobs failed: job 2 of 4 (seed=2); job 3 of 4 (seed=3)\n")


def test_an_error_of_the_user_is_one_paragraph(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(config: TrainConfig) -> None:
        raise UserError("features.npz is missing; put it there.")

    with pytest.raises(SystemExit) as stop:
        launch(job, config_name="train", root=TrainConfig, arguments=[])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: features.npz is missing; put it there.\n"
    monkeypatch.setenv("MSEA_TRACEBACK", "1")
    with pytest.raises(UserError, match=r"features\.npz is missing"):
        launch(job, config_name="train", root=TrainConfig, arguments=[])
    with pytest.raises(ConfigError, match=r"no such choice"):
        launch(job, config_name="train", root=TrainConfig, arguments=["dataset=mosie"])


def test_other_errors_keep_their_traceback() -> None:
    def job(config: TrainConfig) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        launch(job, config_name="train", root=TrainConfig, arguments=[])


@pytest.mark.parametrize("words", [[], ["-m", "seed=1,2"]])
def test_an_interruption_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    def job(config: TrainConfig) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        launch(job, config_name="train", root=TrainConfig, arguments=words)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("name", "root"),
    [("train", TrainConfig), ("prepare", PrepareConfig), ("evaluate", EvaluateConfig)],
)
def test_help_names_everything(
    capsys: pytest.CaptureFixture[str], name: str, root: type[object]
) -> None:
    launch(lambda config: None, config_name=name, root=root, arguments=["--help"])
    text = capsys.readouterr().out
    assert f"python -m msea_lightning.{name}" in text
    for info in options(root):
        assert f"  {info.key}=" in text
        assert info.help in text
        assert info.range in text
    if name != "evaluate":
        assert (
            "dataset    cherma, demo, iemocap, meld, meld_text, mosei, mosi, mosi_utterance" in text
        )
    assert max(len(line) for line in text.splitlines()) < 250


def test_help_shows_the_values_of_its_command_line(
    run: Callable[..., list[TrainConfig]], capsys: pytest.CaptureFixture[str]
) -> None:
    run("-h", "dataset=meld", "backbone=llama2")
    text = capsys.readouterr().out
    assert "  training.learning_rate=0.0005\n      peak learning rate of AdamW [float, gre" in text
    assert "  dataset.text_tokens=65\n" in text
    assert "  decode=greedy\n      how an answer is picked [greedy|median|mean]\n" in text


def test_the_configuration_is_shown_as_yaml(
    run: Callable[..., list[TrainConfig]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--cfg", "job", "dataset=cherma", "seed=3") == []
    output = capsys.readouterr()
    shown = yaml.safe_load(output.out)
    assert (shown["dataset"]["name"], shown["seed"]) == ("cherma", 3)
    assert list(shown) == list(
        dict.fromkeys(info.key.split(".")[0] for info in options(TrainConfig))
    )
    assert output.err == ""
    run("-c", "job", "-p", "dataset.labels", "dataset=cherma")
    assert "愤怒" in capsys.readouterr().out


def test_the_version_is_shown(
    run: Callable[..., list[TrainConfig]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--version") == []
    assert capsys.readouterr().out == f"msea_lightning {__version__}\n"


def test_a_folder_can_add_choices(
    run: Callable[..., list[TrainConfig]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "my conf" / "dataset"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("name: mine\nreader: table\n", encoding="utf-8")
    (folder / "typo.yaml").write_text("raeder: table\n", encoding="utf-8")
    (folder / "broken.yaml").write_text("name: [\n", encoding="utf-8")
    (config,) = run("--config-dir", "my conf", "dataset=mine", "seed=2")
    assert (config.dataset.name, config.seed) == ("mine", 2)
    seen = run("--config-dir", "my conf", "-m", "dataset=mine,demo", "runs=my conf")
    assert [config.dataset.name for config in seen] == ["mine", "demo"]
    for choice, message in {
        "mien": "dataset=mien: there is no such choice. Did you mean mine?",
        "typo": "In 'dataset/typo': ConfigKeyError raised while composing config: Key 'raeder'",
        "broken": "broken.yaml",
    }.items():
        capsys.readouterr()
        with pytest.raises(SystemExit):
            run("--config-dir", "my conf", f"dataset={choice}")
        assert message in capsys.readouterr().err


def test_compose_gives_what_a_command_line_would(run: Callable[..., list[TrainConfig]]) -> None:
    words = ["dataset=meld", "backbone=qwen", "seed=3"]
    assert [compose("train", TrainConfig, words)] == run(*words)
    with pytest.raises(ConfigError, match=r"these are several values"):
        compose("train", TrainConfig, ["seed=1,2"])


def entry_points() -> list[str]:
    """The modules that end in a call of ``launch``."""
    return [
        path.stem
        for path in sorted(PACKAGE.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "launch"
    ]


def python(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), str(folder)])}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("module", ["commands.command_line", "config.roots", *entry_points()])
def test_nothing_heavy_is_imported_before_the_check(module: str, tmp_path: Path) -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = ['x', 'sede=3']\n"
        "code = None\n"
        "try:\n"
        f"    runpy.run_module('msea_lightning.{module}', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "sys.stdout.write(f'{code} {loaded}')\n"
    )
    done = python("-c", script, folder=tmp_path)
    assert done.stdout == (
        "None []" if module in ("commands.command_line", "config.roots") else "2 []"
    )


JOB = """
import logging
import sys
from msea_lightning.commands.command_line import launch
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig

def job(config):
    logging.getLogger(__name__).info("training")
    logging.getLogger("elsewhere").info("noise")
    assert "torch" not in sys.modules
    if config.seed == 2:
        raise UserError("seed two is no good")
    sys.stdout.write(f"seed {config.seed} of {config.recipe}\\n")

if __name__ == "__main__":
    launch(job, config_name="train", root=TrainConfig)
"""


def test_real_commands(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB, encoding="utf-8")
    good = python("-m", "job", "seed=3", folder=tmp_path)
    assert (good.returncode, good.stdout) == (0, "seed 3 of demo_tiny\n")
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO training\n", good.stderr)
    sweep = python("job.py", "-m", "seed=1,2,3", folder=tmp_path)
    assert (sweep.returncode, sweep.stdout) == (1, "seed 1 of demo_tiny\nseed 3 of demo_tiny\n")
    assert "INFO job 3 of 3 (seed=3)" in sweep.stderr
    assert "Traceback" not in sweep.stderr
    wrong = python("-m", "job", "dataset=mosie", folder=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: dataset=mosie: there is no such choice.")


def test_conf_is_found_in_a_checkout() -> None:
    assert (conf_folder() / "train.yaml").is_file()


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_mapping_takes_what_was_not_in_it(plus: str) -> None:
    given = compose(
        "train", TrainConfig, [f"{plus}backbone.architecture.model_type=gpt2", "backbone=llama2"]
    )
    assert given.backbone.architecture["model_type"] == "gpt2"
    assert given.backbone.architecture["hidden_size"] == 4096
    whole = f"{plus}backbone.architecture={{model_type:gpt2,n_embd:64}}"
    auto = compose("train", TrainConfig, ["backbone=auto", "backbone.path=x", whole])
    assert auto.backbone.architecture == {"model_type": "gpt2", "n_embd": 64}


def test_what_a_file_holds_never_reaches_the_terminal_unescaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def job(_: object) -> None:
        raise UserError("utterance '\x1b[2J\u202e' has no label.")

    with pytest.raises(SystemExit):
        launch(job, config_name="prepare", root=PrepareConfig, arguments=[])
    assert capsys.readouterr().err == "error: utterance '\\x1b[2J\\u202e' has no label.\n"
