"""The parts of an adapted language model, from component options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from msea_lightning.adapter import Adapter
from msea_lightning.adapter.options import ADAPTERS, AblationConfig, AdapterOptions
from msea_lightning.backbone.options import BackboneConfig
from msea_lightning.data.options import DatasetConfig, LabelConfig
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.labels import LabelSpace, generated_prompt
from msea_lightning.language.options import PromptConfig, TextConfig
from msea_lightning.language.prompt import Prompt, encode
from msea_lightning.language.wording import Wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_prompt(
    tokenizer: PreTrainedTokenizerBase,
    labels: LabelConfig,
    dataset: DatasetConfig,
    backbone: BackboneConfig,
    adapter: AdapterOptions,
    text: TextConfig,
    prompt: PromptConfig,
    *,
    pad_id: int = 0,
) -> tuple[Prompt, AnswerTree]:
    """The sequence layout and the legal answers, for which no language model is needed.

    ``labels`` has nothing left to infer; where only lengths count, any ``pad_id`` will do.
    """
    space = LabelSpace.from_config(
        labels, signed=backbone.signed_labels, encode=partial(encode, tokenizer)
    )
    made = Prompt(
        backbone.layout,
        tokenizer,
        language=dataset.language,
        task=prompt.task or generated_prompt(space, dataset.language.value),
        pseudo_tokens=adapter.arguments().get("pseudo_tokens", 0),
        text_tokens=dataset.text_tokens,
        pad_id=pad_id,
        pad_to=text.pad_to,
        attend_padding=text.attend_padding,
        wording=build_wording(dataset),
    )
    return made, AnswerTree(space, made.encode, made.decode)


def build_wording(dataset: DatasetConfig) -> Wording:
    """How a run's texts are written for the language model."""
    return Wording(case=dataset.text_case)


def build_adapter(
    adapter: AdapterOptions,
    ablation: AblationConfig,
    *,
    width: int,
    dims: Mapping[str, int | None],
) -> Adapter:
    """An untrained adapter for embeddings of a width, and features with these values per frame."""
    make: Callable[..., Adapter] = ADAPTERS.load(adapter.name)
    return make(
        width,
        dims.get("audio"),
        dims.get("vision"),
        **adapter.arguments(),
        **ablation.arguments(adapter),
    )


def trainable(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
