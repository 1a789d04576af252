"""Builds the frozen language model with an adapter, and its parts, from component options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from msea_lightning.adapter import Adapter, FeatureStandardizer
from msea_lightning.adapter.options import ADAPTERS, AblationConfig, AdapterOptions
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.options import BackboneConfig
from msea_lightning.data.options import DatasetConfig, LabelConfig
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.labels import LabelSpace, generated_prompt
from msea_lightning.language.options import Decode, PromptConfig, TextConfig
from msea_lightning.language.prompt import Prompt, encode
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.contract import Statistics

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

    Args:
        tokenizer: The language model's tokenizer.
        labels: Label space with nothing left to infer.
        dataset: Language and length of the texts.
        backbone: Layout of the sequence, and how it writes intensities.
        adapter: Number of pseudo tokens.
        text: Treatment of the texts.
        prompt: The task prompt.
        pad_id: Id that pads texts and sequences; where only lengths count, any will do.

    Raises:
        UserError: where labels, prompt and tokenizer do not go together.
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
    )
    return made, AnswerTree(space, made.encode, made.decode)


def build_adapter(
    adapter: AdapterOptions,
    ablation: AblationConfig,
    *,
    width: int,
    dims: Mapping[str, int | None],
) -> Adapter:
    """An untrained adapter.

    Args:
        adapter: Which one, and its sizes.
        ablation: What is left out of it.
        width: Width d of the language model's embeddings.
        dims: Values per frame of the features that the data set has, by name.

    Raises:
        AdapterError: for an adapter that does not exist, or sizes that it does not have.
    """
    make: Callable[..., Adapter] = ADAPTERS.load(adapter.name)
    return make(
        width,
        dims.get("audio"),
        dims.get("vision"),
        **adapter.arguments(),
        **ablation.arguments(adapter),
    )


def build_model(
    language_model: FrozenBackbone,
    labels: LabelConfig,
    *,
    dims: Mapping[str, int | None],
    statistics: Statistics | None,
    dataset: DatasetConfig,
    backbone: BackboneConfig,
    adapter: AdapterOptions,
    ablation: AblationConfig,
    text: TextConfig,
    prompt: PromptConfig,
    rule: Decode,
) -> AdaptedLM:
    """An untrained adapter in front of a frozen language model.

    Args:
        language_model: The frozen language model.
        labels: Label space with nothing left to infer.
        dims: Values per frame of the features that the data set has, by name.
        statistics: Mean and standard deviation of each feature; None standardises nothing.
        dataset: See :func:`build_prompt`.
        backbone: See :func:`build_prompt`.
        adapter: See :func:`build_adapter`.
        ablation: See :func:`build_adapter`.
        text: See :func:`build_prompt`.
        prompt: See :func:`build_prompt`.
        rule: How an answer is picked.

    Raises:
        UserError: where data, labels, language model and adapter do not go together.
    """
    tokenizer, pad_id = language_model.tokenizer, language_model.pad_id
    made, tree = build_prompt(
        tokenizer, labels, dataset, backbone, adapter, text, prompt, pad_id=pad_id
    )
    return AdaptedLM(
        language_model,
        build_adapter(adapter, ablation, width=language_model.width, dims=dims),
        standardizer=FeatureStandardizer(statistics),
        prompt=made,
        tree=tree,
        rule=rule,
    )


def trainable(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
