"""A new adapter is a class, and options that are registered with its place: nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from msea_lightning.adapter.contract import Modality, TextAdapter
from msea_lightning.adapter.options import ADAPTERS, AdapterOptions
from msea_lightning.commands.command_line import compose, launch
from msea_lightning.config import options as schema
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.options import option
from msea_lightning.config.roots import TrainConfig
from msea_lightning.plugin import load_plugin
from msea_lightning.training.fit import fit


class ToyAdapter(TextAdapter):
    """Adds what an MLP makes of the mean frame to every token."""

    def __init__(
        self,
        text_dim: int,
        audio_dim: int | None,
        vision_dim: int | None,
        *,
        width: int,
        dropout: int = 1,
        use_audio: bool = True,
        use_vision: bool = True,
    ) -> None:
        given = locals()

        def branch(features: int) -> nn.Module:
            return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, text_dim))

        super().__init__(given, branch)

    def _change(self, text: Tensor, mask: Tensor, modalities: Sequence[Modality]) -> Tensor:
        for modality in modalities:
            mean = modality.zeroed.sum(1) / modality.mask.sum(1, keepdim=True).clamp(min=1)
            text = text + modality.branch(mean)[:, None]
        return text


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    @ADAPTERS.register("toy", f"{__name__}.ToyAdapter", title="Toy")
    @dataclass
    class ToyOptions(AdapterOptions):
        width: int = option(3, "width of the MLP", low=2)
        dropout: int = option(1, "of another type and range than MAG's", low=1)

    yield
    del ADAPTERS._entries["toy"]


def test_it_is_trained_and_its_plugin_loaded(options: Callable[..., TrainConfig]) -> None:
    run = fit(options("adapter=toy", "adapter.width=4", "training.schedule_epochs=1"))
    assert run.path.parents[1].name == "toy-tiny"
    assert run.load_config().adapter.arguments() == {"width": 4, "dropout": 1}
    plugin = load_plugin(run.plugin)
    assert plugin.facts.adapter_name == "toy"
    moved = [weight for name, weight in plugin.weights.items() if name.startswith("adapter")]
    assert all(torch.isfinite(weight).all() for weight in moved)


def test_it_can_be_chosen_and_is_listed_with_its_ranges(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = compose("train", TrainConfig, ["adapter=toy", "adapter.width=4"])
    assert config.adapter == ADAPTERS.options("toy")(width=4)  # type: ignore[call-arg]
    assert compose("train", TrainConfig, ["adapter=mag"]).adapter.arguments()["dropout"] == 0.1
    assert {"adapter.width", "adapter.dropout"} <= {
        info.key for info in schema.options(TrainConfig)
    }
    launch(lambda config: None, config_name="train", root=TrainConfig, arguments=["-h"])
    text = capsys.readouterr().out
    assert "adapter    chfn, mag, mse, none, toy" in text
    assert "toy: width of the MLP [int, at least 2]" in text
    assert "toy: of another type and range than MAG's [int, at least 1]" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adapter=toy", "adapter.width=1"], r"adapter\.width=1 is out of range: at least 2"),
        (["adapter.width=3"], r"adapter\.width=3 has no effect on mse; it is an option of toy"),
        (["adapter=toy", "adapter.dropout=0.5"], r"adapter\.dropout: Value '0\.5' of type"),
        (["adapter=toy", "ablation=no_text"], r"Toy has nothing of that kind to leave out"),
    ],
)
def test_what_does_not_fit_it_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose("train", TrainConfig, words)
