"""The parts of an adapted language model, from component options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from msea_lightning.adapter import Adapter, FeatureStandardizer
from msea_lightning.adapter.absent import NoAdapter
from msea_lightning.adapter.options import ADAPTERS, AblationConfig, AdapterOptions
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.options import BackboneConfig
from msea_lightning.data.options import DatasetConfig, LabelConfig, LabelWords, Language
from msea_lightning.data.utterance import Batch
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.labels import (
    EmotionSet,
    LabelSpace,
    filled_prompt,
    generated_prompt,
)
from msea_lightning.language.options import Loss, PromptConfig, TextConfig
from msea_lightning.language.prompt import Prompt, encode, encode_word, ordered
from msea_lightning.language.wording import Wording, with_context
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.options import ReadoutKind
from msea_lightning.model.readout import LinearReadout, Readout, TokenReadout, numbered_answers

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
    readout: ReadoutKind = ReadoutKind.tokens,
    pad_id: int = 0,
) -> tuple[Prompt, AnswerTree]:
    """The sequence layout and the legal answers, for which no language model is needed.

    ``labels`` has nothing left to infer; where only lengths count, any ``pad_id`` will do. The
    tree of answers is the one that the ``readout`` needs.
    """
    space = LabelSpace.from_config(
        labels, signed=backbone.signed_labels, encode=partial(encode, tokenizer)
    )
    layout = ordered(backbone.layout, prompt.order)
    made = Prompt(
        with_context(layout) if prompt.context else layout,
        tokenizer,
        language=dataset.language,
        task=(
            generated_prompt(space, dataset.language.value)
            if prompt.task is None
            else filled_prompt(prompt.task, space)
        ),
        pseudo_tokens=adapter.pseudo_tokens,
        text_tokens=dataset.text_tokens,
        pad_id=pad_id,
        pad_to=text.pad_to,
        attend_padding=text.attend_padding,
        wording=build_wording(dataset, prompt),
        text_changes=ADAPTERS.load(adapter.name).changes_text,
        anchored=adapter.anchored,
    )
    return made, build_answers(made, space, readout)


def build_answers(prompt: Prompt, space: LabelSpace, readout: ReadoutKind) -> AnswerTree:
    """The legal answers as the tokenizer writes them, or numbered for a linear readout."""
    if readout is ReadoutKind.linear:
        return numbered_answers(space)
    by_name = isinstance(space, EmotionSet) and space.words is LabelWords.names
    if by_name and prompt.language is Language.en:
        return AnswerTree(space, partial(encode_word, prompt.tokenizer), prompt.decode)
    return AnswerTree(space, prompt.encode, prompt.decode)


def build_wording(dataset: DatasetConfig, prompt: PromptConfig) -> Wording:
    """How a run's texts, and those before them, are written for the language model."""
    return Wording(
        case=dataset.text_case,
        context=prompt.context,
        context_tokens=prompt.context_tokens,
        template=prompt.context_template,
    )


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


def build_readout(
    readout: ReadoutKind,
    loss: Loss,
    backbone: FrozenBackbone,
    tree: AnswerTree,
    *,
    prior: Tensor | None = None,
) -> Readout:
    """An untrained readout of a language model.

    Args:
        readout: Which one.
        loss: What probabilities of tokens are normalised over.
        backbone: The language model.
        tree: The legal answers, as :func:`build_prompt` makes them for it.
        prior: See :class:`TokenReadout`.
    """
    if readout is ReadoutKind.linear:
        return LinearReadout(backbone.width, tree)
    return TokenReadout(backbone, tree, loss, prior)


def answer_prior(backbone: FrozenBackbone, prompt: Prompt, tree: AnswerTree) -> Tensor:
    """What the prompt makes of the answers by itself: without text and pseudo tokens.

    Contextual calibration (Zhao et al. 2021, "Calibrate Before Use") subtracts it.

    Returns:
        (1 + M, C) log probabilities of the legal tokens at each row of the answer tree.
    """
    bare = replace(prompt, pseudo_tokens=0, anchored=False)
    model = AdaptedLM(
        backbone,
        NoAdapter(backbone.width, None, None),
        standardizer=FeatureStandardizer(None),
        prompt=bare,
        tree=tree,
    )
    nothing = Batch(
        index=torch.zeros(1, dtype=torch.int64),
        ids=[""],
        texts=[""],
        labels={},
        features={},
        groups=[None],
        speakers=[None],
        positions=torch.zeros(1, dtype=torch.int64),
        tokens=[np.zeros(0, dtype=np.int32)],
    )
    token_logp = model.answer_logp(nothing)[0].cpu()
    prior = torch.zeros(tree.follows.shape)
    real = tree.slots >= 0
    prior[tree.predictors[real], tree.slots[real]] = token_logp[real]
    return prior


def trainable(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
