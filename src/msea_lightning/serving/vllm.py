"""The language model on a vLLM server, which reads the embeddings that are made here.

The whole distribution over legal answers is asked for, so that answers are those of this process:
one request for an answer of one token, one for each inner node of the answer tree that is not
written by the engine itself where answers have several (``branches.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import torch

from msea_lightning.language.answers import decode
from msea_lightning.language.options import Decode
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.readout import TokenReadout
from msea_lightning.plugin import Answer, Predictor
from msea_lightning.plugin.answer import answers_of
from msea_lightning.serving.batcher import Batcher
from msea_lightning.serving.branches import BranchGroup, branch_groups, token_logp
from msea_lightning.serving.completions import MOST_TOKENS, Completions
from msea_lightning.serving.engines import Asked, Engine
from msea_lightning.serving.errors import EngineError, UnavailableError
from msea_lightning.serving.prompt_embeds import EmbeddedPrompt, embed_prompts, encoded

_TOLERANCE = 0.1
"""Largest difference of log probabilities between two passes of one language model."""


class VLLMEngine(Engine):
    """Adapters in this process, the language model on a vLLM server.

    The server's language model is checked before the first answer, and again after the server was
    away: it has to read embeddings, as long as plugins make them, and to give the same log
    probabilities for token ids as for the embeddings that these tokens have here.

    Args:
        predictor: The attached plugins; the embeddings of their language model are enough.
        completions: The server, which needs ``--enable-prompt-embeds``.
        max_batch: Most utterances that adapters read at a time.
        observe: Called with the number of utterances of every batch of the adapters.

    Raises:
        EngineError: if a plugin's answers need more than the server gives.
    """

    def __init__(
        self,
        predictor: Predictor,
        completions: Completions,
        *,
        max_batch: int,
        observe: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.predictor = predictor
        self.title = f"vLLM at {completions.url}"
        self._completions = completions
        self._max_batch = max_batch
        self._batcher: Batcher[Asked, EmbeddedPrompt] = Batcher(self._embed, max_batch, observe)
        for name, model in predictor.models.items():
            if not isinstance(model.readout, TokenReadout):
                raise EngineError(
                    f"The plugin {name!r} reads the last state of the language model "
                    f"(readout={model.readout.kind.value}), which vLLM does not return: use "
                    "engine=local."
                )
        self._groups = {name: branch_groups(model.tree) for name, model in predictor.models.items()}
        for name, groups in self._groups.items():
            if (most := max(len(group.asked) for group in groups)) > MOST_TOKENS:
                raise EngineError(
                    f"Answers of the plugin {name!r} begin with one of {most} tokens, but vLLM "
                    f"tells the probabilities of {MOST_TOKENS} at most: use engine=local."
                )
        self._is_checked = False
        self._checking = asyncio.Lock()

    async def start(self) -> None:
        """See the base class."""
        async with self._checking:
            if not self._is_checked:
                await self._check()
                self._is_checked = True

    async def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        """See the base class."""
        try:
            await self.start()
            prompts = await self._batcher(asked)
            rules = [
                one.decode or prompt.model.rule for one, prompt in zip(asked, prompts, strict=True)
            ]
            return list(await asyncio.gather(*map(self._answer, prompts, rules)))
        except UnavailableError:
            self._is_checked = False  # whatever comes back may be another language model
            raise

    async def check_health(self) -> None:
        """See the base class."""
        await self._completions.models()

    async def close(self) -> None:
        """See the base class."""
        self._batcher.close()
        await self._completions.close()

    def _embed(self, asked: Sequence[Asked]) -> list[EmbeddedPrompt]:
        utterances = [one.utterance for one in asked]
        names = [one.plugin for one in asked]
        return embed_prompts(self.predictor, utterances, names, self._max_batch)

    async def _answer(self, prompt: EmbeddedPrompt, rule: Decode) -> Answer:
        parts = await asyncio.gather(
            *(self._read(prompt, group) for group in self._groups[prompt.plugin])
        )
        found = {key: value for part in parts for key, value in part.items()}
        tree, readout = prompt.model.tree, prompt.model.readout
        assert isinstance(readout, TokenReadout)
        answers = decode(tree, readout.renormalized(token_logp(tree, found)), rule)
        return answers_of([prompt.id], prompt.plugin, tree.space, answers)[0]

    async def _read(
        self, prompt: EmbeddedPrompt, group: BranchGroup
    ) -> Mapping[tuple[int, int], float]:
        """Log probabilities by row of the answer tree and token id."""
        sequences = [prompt.with_tokens(branch.path) for branch in group.branches]
        body = await asyncio.to_thread(lambda: [encoded(sequence) for sequence in sequences])
        found = await self._completions.log_probabilities(
            {"prompt_embeds": body}, group.asked, forced=group.forced
        )
        return {
            (row, token): value
            for branch, steps in zip(group.branches, found, strict=True)
            for row, step in zip(branch.nodes, steps, strict=True)
            for token, value in step.items()
        }

    async def _check(self) -> None:
        """Refuses a language model that shows to be another one than the plugins'."""
        served = await self._completions.models()
        if not served:
            raise EngineError(f"The engine at {self._completions.url} serves no model.")
        for name, model in self.predictor.models.items():
            self._check_length(name, model, served[0].get("max_model_len"))
        await self._check_embeddings(*next(iter(self.predictor.models.items())))

    def _check_length(self, name: str, model: AdaptedLM, limit: int | None) -> None:
        # What the engine writes counts too.
        needed = model.prompt.longest + model.tree.answer_ids.shape[1]
        if limit is not None and needed > limit:
            raise EngineError(
                f"Sequences of the plugin {name!r} may be {needed} tokens long, but the engine at "
                f"{self._completions.url} reads {limit} at a time: start it with --max-model-len "
                f"{needed} or more."
            )

    async def _check_embeddings(self, name: str, model: AdaptedLM) -> None:
        """Compares a prompt as token ids with the embeddings that these tokens have here."""
        ids = model.prompt.encode(model.prompt.task)
        asked = self._groups[name][0].asked
        embeddings = model.backbone.embed(torch.tensor(ids, device=model.device))
        [[expected]] = await self._completions.log_probabilities({"prompt": [ids]}, asked)
        [[found]] = await self._completions.log_probabilities(
            {"prompt_embeds": [encoded(embeddings)]}, asked
        )
        difference = max(abs(expected[token] - found[token]) for token in asked)
        if difference > _TOLERANCE:
            raise EngineError(
                f"The engine at {self._completions.url} reads tokens and the embeddings that these "
                f"tokens have here differently: log probabilities differ by {difference:.3g}. It "
                "serves another language model than that of the plugins, or one that vLLM scales "
                "the embeddings of. Serve the plugins' own, or use engine=local."
            )
