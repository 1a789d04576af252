"""What can be chosen by name: registered once, read by everything."""

from __future__ import annotations

import pytest
import yaml
from omegaconf import OmegaConf

from msea_lightning.adapter.options import ABLATIONS, ADAPTERS, MAGOptions
from msea_lightning.commands.command_line import compose
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import to_typed
from msea_lightning.config.registry import Registry
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.options import READERS, Reader
from msea_lightning.paper import paper_table
from msea_lightning.runs.folder import RunFolder
from msea_lightning.runs.identity import fingerprint
from tests.places import ROOT

EVERY = [(registry, name) for registry in (ADAPTERS, READERS) for name in registry.names()]
"""Everything registered that has a place."""


@pytest.mark.parametrize(
    ("registry", "name"), EVERY, ids=lambda value: getattr(value, "kind", value)
)
def test_everything_registered_is_where_it_is_said_to_be(
    registry: Registry[object], name: str
) -> None:
    registry.load(name)
    assert registry.name_of(registry.options(name)) == name


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no adapter foo; there are: mse, mag, chfn"):
        ADAPTERS.load("foo")
    with pytest.raises(ConfigError, match=r"no ablation no_x; there are: none, no_audio"):
        ABLATIONS.options("no_x")
    with pytest.raises(ConfigError, match=r"builtins\.int is not registered as adapter"):
        ADAPTERS.name_of(int)
    with pytest.raises(ValueError, match="two of adapter mse"):
        ADAPTERS.register("mse")
    assert (ADAPTERS.title("mag"), ADAPTERS.title("foo")) == ("MAG", "foo")


def test_every_reader_is_registered() -> None:
    assert set(READERS.names()) == {reader.value for reader in Reader}


def test_ablations_are_the_rows_of_the_paper() -> None:
    rows = {row["variant"] for row in paper_table("ablation")}
    assert {ABLATIONS.title(name) for name in ABLATIONS.names()} == rows
    for name in ABLATIONS.names():
        typed = compose("train", TrainConfig, [f"ablation={name}"]).ablation
        assert typed == ABLATIONS.options(name)
        assert typed.name == name


@pytest.mark.parametrize("name", ADAPTERS.names())
def test_the_adapter_of_a_run_has_the_class_of_its_own_options(name: str) -> None:
    untrained = ["training.schedule_epochs=0"] if name == "none" else []
    config = compose("train", TrainConfig, [f"adapter={name}", *untrained])
    assert type(config.adapter) is ADAPTERS.options(name)
    again = to_typed(OmegaConf.structured(config), TrainConfig)
    assert again == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["adapter=mag", "adapter.scales=[1]"],
            r"adapter\.scales=\[1\] has no effect on mag; it is an option of mse\..*adapter=mse",
        ),
        (["adapter.dropout=0.1"], r"no effect on mse; it is an option of mag\..* adapter=mag"),
        (["adapter=mag", "adapter.dropout=1"], r"adapter\.dropout=1\.0 is out of range: .*less th"),
        (["adapter=mag", "adapter.beta=null"], r"adapter\.beta=null: .* expected float, greater"),
        (["adapter.hidden=null"], r"adapter\.hidden=null: .* expected int, at least 1 \(mse: wid"),
        (
            ["adapter=foo"],
            r"adapter=foo: there is no such choice\..* adapter: chfn, mag, mse, none",
        ),
        (["adapter=chfn", "adapter.name=mse"], r"^adapter\.name=mse: .* write adapter=mse\.$"),
        (["ablation.name=no_text"], r"^ablation\.name=no_text: .* write ablation=no_text\.$"),
        (["adapter.typo=1"], r"there is no option adapter\.typo"),
    ],
)
def test_options_of_another_adapter_and_wrong_ones_are_refused(
    words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compose("train", TrainConfig, words)


@pytest.mark.parametrize("folder", ["run", "interrupted"])
def test_configurations_of_release_0_1_load_and_keep_their_fingerprint(folder: str) -> None:
    """They hold the options of all adapters, null where the adapter is another one."""
    run = RunFolder(ROOT / "tests" / "release" / folder)
    config = run.load_config()
    assert config.adapter.arguments()["audio_hidden"] == 8
    assert run.fingerprint() == fingerprint(config)


def test_an_old_configuration_of_another_adapter_loads() -> None:
    plain = yaml.safe_load((ROOT / "tests/release/run/config.yaml").read_text(encoding="utf-8"))
    plain["adapter"] |= dict.fromkeys(plain["adapter"]) | {"name": "mag", "beta": 2, "dropout": 0.2}
    config = to_typed(OmegaConf.create(plain), TrainConfig)
    assert config.adapter == MAGOptions(beta=2.0, dropout=0.2)
    plain["adapter"]["beta"] = None
    with pytest.raises(ConfigError, match=r"option adapter\.beta: .*'None'"):
        to_typed(OmegaConf.create(plain), TrainConfig)
    plain["adapter"] |= {"scales": [1], "beta": 2}
    with pytest.raises(ConfigError, match=r"adapter\.scales=\[1\] has no effect on mag"):
        to_typed(OmegaConf.create(plain), TrainConfig)
