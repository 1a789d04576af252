"""Utterances as what a language model reads: embeddings, from the adapter and its own tokens."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msea_lightning.data.utterance import Utterance
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.plugin.batching import Question, batches, collate
from msea_lightning.plugin.predictor import Predictor


@dataclass(frozen=True, eq=False)
class EmbeddedPrompt:
    """What the language model reads about one utterance before it answers.

    Attributes:
        id: Of the utterance.
        plugin: Name of the plugin that is asked.
        model: The plugin, as the model that answers batches.
        embeddings: (S, d) prefix, pseudo tokens, text and task prompt, in the order of the plugin's
            layout, without padding that is masked. A plugin that attends to padding
            (``text.attend_padding``) has it here, as training had it.
    """

    id: str
    plugin: str
    model: AdaptedLM
    embeddings: Tensor

    def with_tokens(self, ids: Sequence[int]) -> Tensor:
        """(S + T, d): the embeddings of T tokens after it."""
        if not ids:
            return self.embeddings
        backbone = self.model.backbone
        tokens = backbone.embed(torch.tensor(list(ids), device=backbone.device))
        return torch.cat([self.embeddings, tokens])


def embed_prompts(
    predictor: Predictor, utterances: Sequence[Utterance], plugins: Sequence[str], batch_size: int
) -> list[EmbeddedPrompt]:
    """The prompts of complete utterances (``Predictor.complete``), in their order.

    Args:
        predictor: The attached plugins; the embeddings of their language model are enough.
        utterances: With their features.
        plugins: Name of the plugin to ask, one for each utterance.
        batch_size: Most utterances that adapters read at a time.
    """
    prompts: list[EmbeddedPrompt | None] = [None] * len(utterances)
    for batch in batches(predictor.questions(utterances, plugin=plugins), batch_size):
        groups: dict[str, list[Question]] = {}
        for question in batch:
            groups.setdefault(question.name, []).append(question)
        for name, group in groups.items():
            model = group[0].model
            rows = model.prompt_embeddings(collate(group).to(model.device))
            for question, embeddings in zip(group, rows, strict=True):
                prompts[question.number] = EmbeddedPrompt(
                    question.utterance.id, name, model, embeddings
                )
    return [prompt for prompt in prompts if prompt is not None]


def encoded(embeddings: Tensor) -> str:
    """Embeddings (S, d) as vLLM reads them: base64 of what ``torch.save`` writes."""
    file = io.BytesIO()
    # A view would be saved with all of the tensor that it is part of.
    torch.save(embeddings.detach().cpu().clone(), file)
    return base64.b64encode(file.getvalue()).decode("ascii")
