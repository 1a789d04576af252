"""Trained plugins: save, load, attach to a language model.

A plugin folder holds ``adapter.safetensors`` (adapter weights and feature statistics, megabytes),
``plugin.json`` (everything needed to use them) and a ``README.md``. Attaching several plugins to
one language model costs their own weights only: the language model is shared and never changes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from msea_lightning.adapter import Adapter, FeatureStandardizer
from msea_lightning.adapter.options import ADAPTERS
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.fingerprint import same_model
from msea_lightning.config.errors import UserError
from msea_lightning.data.options import LabelConfig, Language
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.labels import LabelSpace
from msea_lightning.language.options import Decode, SegmentConfig
from msea_lightning.language.prompt import Prompt, encode
from msea_lightning.metrics.options import MetricKind
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.runs.files import write_atomically, write_json

_WEIGHTS = "adapter.safetensors"
_FACTS = "plugin.json"
_FORMAT = 1


class PluginError(UserError):
    """A plugin folder that is incomplete, or a language model that it was not trained on."""


@dataclass
class PromptFacts:
    """How the plugin's sequences are laid out: arguments of :class:`Prompt`."""

    layout: list[SegmentConfig]
    language: Language
    task: str
    text_tokens: int
    pad_token: str | None
    pad_to: int | None
    attend_padding: bool


@dataclass
class PluginFacts:
    """What ``plugin.json`` says.

    Attributes:
        format: Version of the format.
        dataset: Data set that the plugin was trained on; its features are of the same kind as
            those that it must be given.
        adapter: Arguments of the adapter.
        labels: Label space.
        signed_labels: Whether intensities of zero and above have a plus sign.
        metrics: Metric definitions.
        decode: How an answer is picked.
        prompt: Sequence layout and task prompt.
        audio_dim: Audio features a frame; None where there was no audio.
        vision_dim: Vision features a frame; None where there was no vision.
        backbone: Name and place of the language model.
        fingerprint: The language model's fingerprint, by part.
        test: Metrics on the test split.
        adapter_name: ``adapter.name``; plugins from before there were several do not say it.
    """

    format: int
    dataset: str
    adapter: dict[str, Any]
    labels: LabelConfig
    signed_labels: bool
    metrics: MetricKind
    decode: Decode
    prompt: PromptFacts
    audio_dim: int | None
    vision_dim: int | None
    backbone: dict[str, Any]
    fingerprint: dict[str, str]
    test: dict[str, Any]
    adapter_name: str = "mse"


@dataclass(frozen=True)
class Plugin:
    """A trained plugin, not attached to anything yet.

    Attributes:
        facts: Everything but the weights.
        weights: Tensors by name, ``adapter.*`` and ``standardizer.*``.
    """

    facts: PluginFacts
    weights: Mapping[str, Tensor]


def save_plugin(folder: Path, model: AdaptedLM, facts: PluginFacts) -> None:
    """Writes a plugin folder.

    Args:
        folder: Where to; made if needed.
        model: The trained model.
        facts: Everything but the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in _weights(model).items()}
    partial = folder / f".{_WEIGHTS}.partial"
    save_file(weights, partial)
    partial.replace(folder / _WEIGHTS)
    plain = OmegaConf.to_container(OmegaConf.structured(facts), enum_to_str=True)
    write_json(folder / _FACTS, plain)
    write_atomically(folder / "README.md", _readme(facts, sum(t.numel() for t in weights.values())))


def load_plugin(folder: str | Path) -> Plugin:
    """Reads a plugin folder.

    Raises:
        PluginError: if a file is missing, broken, or of another format version.
    """
    folder = Path(folder)
    for name in (_FACTS, _WEIGHTS):
        if not (folder / name).is_file():
            raise PluginError(
                f"{folder} is not a complete plugin: {name} is missing. Give the plugin/ folder "
                "of a finished run."
            )
    try:
        values = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        version = values.get("format")
        if version != _FORMAT:
            raise PluginError(
                f"{folder / _FACTS} has format version {version}, this release reads {_FORMAT}: "
                "use the release of msea_lightning that wrote it, or train the plugin again."
            )
        facts = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PluginFacts), values))
        weights = load_file(folder / _WEIGHTS)
    except (json.JSONDecodeError, AttributeError, OmegaConfBaseException, SafetensorError) as error:
        raise PluginError(
            f"The plugin in {folder} cannot be read: {str(error).splitlines()[0]}. Copy the whole "
            "plugin/ folder of the run again."
        ) from error
    assert isinstance(facts, PluginFacts)
    return Plugin(facts, weights)


def attach(plugin: Plugin, backbone: FrozenBackbone) -> AdaptedLM:
    """Puts a plugin in front of a language model, ready to decode.

    The language model itself is not touched; several plugins can be attached to one at a time.

    Args:
        plugin: The plugin.
        backbone: The language model that it was trained on.

    Raises:
        PluginError: if it is another language model (both fingerprints are given), or the weights
            do not fit the facts.
    """
    facts = plugin.facts
    found = backbone.fingerprint()
    if not same_model(facts.fingerprint, found):
        raise PluginError(
            f"The plugin was trained on {facts.backbone.get('name')} with the fingerprint "
            f"{_listed(facts.fingerprint)}, but this language model has {_listed(found)}. Attach "
            "it to the language model that it was trained on, or train a plugin for this one."
        )
    space = LabelSpace.from_config(
        facts.labels, signed=facts.signed_labels, encode=partial(encode, backbone.tokenizer)
    )
    make: Callable[..., Adapter] = ADAPTERS.load(facts.adapter_name)
    adapter = make(**facts.adapter)
    prompt = Prompt(
        facts.prompt.layout,
        backbone.tokenizer,
        language=facts.prompt.language,
        task=facts.prompt.task,
        pseudo_tokens=adapter.pseudo_tokens,
        text_tokens=facts.prompt.text_tokens,
        pad_id=backbone.pad_id,
        pad_to=facts.prompt.pad_to,
        attend_padding=facts.prompt.attend_padding,
    )
    own = {
        part: {
            name.removeprefix(part): tensor
            for name, tensor in plugin.weights.items()
            if name.startswith(part)
        }
        for part in ("adapter.", "standardizer.")
    }
    try:
        adapter.load_state_dict(own["adapter."])
    except RuntimeError as error:
        raise PluginError(
            f"The plugin's weights do not fit its plugin.json: {' '.join(str(error).split())}"
        ) from error
    model = AdaptedLM(
        backbone,
        adapter,
        standardizer=FeatureStandardizer.from_state_dict(own["standardizer."]),
        prompt=prompt,
        tree=AnswerTree(space, prompt.encode, prompt.decode),
        rule=facts.decode,
    )
    model.to(backbone.device)
    return model.eval()


def describe(
    model: AdaptedLM,
    *,
    metrics: MetricKind,
    dataset: str,
    labels: LabelConfig,
    layout: list[SegmentConfig],
    pad_token: str | None,
    backbone: Mapping[str, Any],
    test: Mapping[str, float],
) -> PluginFacts:
    """The facts of a trained model.

    Args:
        model: The model.
        metrics: Metric definitions.
        dataset: Name of the data set.
        labels: Its label space, with nothing left to infer.
        layout: Segments of the sequence.
        pad_token: Padding token as configured.
        backbone: Name and place of the language model.
        test: Metrics on the test split.
    """
    options = model.adapter.options()
    return PluginFacts(
        format=_FORMAT,
        dataset=dataset,
        adapter=options,
        labels=dataclasses.replace(labels),
        signed_labels=model.tree.space.signed,
        metrics=metrics,
        decode=model.rule,
        prompt=PromptFacts(
            layout=list(layout),
            language=model.prompt.language,
            task=model.prompt.task,
            text_tokens=model.prompt.text_tokens,
            pad_token=pad_token,
            pad_to=model.prompt.pad_to,
            attend_padding=model.prompt.attend_padding,
        ),
        audio_dim=options["audio_dim"],
        vision_dim=options["vision_dim"],
        backbone=dict(backbone),
        fingerprint=model.backbone.fingerprint(),
        test=dict(test),
        adapter_name=ADAPTERS.name_of(model.adapter),
    )


def _weights(model: AdaptedLM) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("adapter.", "standardizer."))
    }


def _listed(fingerprint: Mapping[str, str]) -> str:
    return ", ".join(f"{part} {value}" for part, value in sorted(fingerprint.items()))


def _readme(facts: PluginFacts, parameters: int) -> str:
    scores = "\n".join(f"| {name} | {value} |" for name, value in facts.test.items())
    return f"""# Plugin ({facts.adapter_name}): {facts.dataset} on {facts.backbone.get("name")}

{parameters:,} numbers that let the frozen language model {facts.backbone.get("path")} read audio \
({facts.audio_dim or "none"} features a frame) and vision ({facts.vision_dim or "none"} features a \
frame) beside text. The features must be of the same kind as those of {facts.dataset}.

| test metric | value |
|---|---|
{scores}

```python
from msea_lightning.backbone import load_backbone
from msea_lightning.plugin import attach, load_plugin

plugin = load_plugin("<this folder>")
model = attach(plugin, load_backbone({facts.backbone.get("path")!r}))
```
"""
