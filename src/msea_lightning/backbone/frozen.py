"""A causal language model that never changes, reduced to what an adapter needs of it.

Shape legend: B utterances, S tokens, M nodes of the answer tree, d width, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from threading import RLock
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from msea_lightning.backbone.errors import BackboneError
from msea_lightning.backbone.fingerprint import fingerprint
from msea_lightning.backbone.loading.hub import hub_commit
from msea_lightning.backbone.loading.spread import computing_device, is_spread, offloads
from msea_lightning.backbone.self_check import self_check
from msea_lightning.backbone.speed.last_layer import at_last_positions
from msea_lightning.backbone.speed.prefix_cache import PrefixCache, Recorder
from msea_lightning.backbone.speed.read_once import ReadOnce, extended, padded_rows
from msea_lightning.backbone.speed.views import checkpointed, replaced, with_attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.cache_utils import Cache

_LOGITS_AT_ONCE = 1 << 24
"""Logits held at one time when scoring answers (64 MiB in float32)."""

_SAMPLED_TOKENS = 4096

_PAIRWISE_ATTENTION = frozenset({"sdpa", "eager"})
"""Attention implementations that take a mask between every two positions."""


class FrozenBackbone:
    """A frozen language model with its tokenizer.

    Deliberately not an ``nn.Module``: held by a LightningModule it is not one of its modules, so
    none of its tensors can reach an optimizer, a checkpoint, ``hparams`` or DDP. None of its
    parameters requires a gradient; gradients flow through it to its inputs only.

    The language model itself is left as it is, without hooks or patched methods, so that it
    generates what it generated before. What is computed in another way is computed by views of it
    (``speed/views.py``). No call changes anything that another one reads: several threads can use
    one backbone at the same time.

    A model that was loaded in several places (``loading/spread.py``) has accelerate's hooks, as
    transformers sets them. Views of it have them too. While weights are brought and taken away by
    them, threads take turns, and layers compute their activations again in the backward pass: what
    the first pass keeps would hold all weights in memory.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        pad_token: Token that fills up sequences; the tokenizer's own, else its unknown or end
            token, where not given.
        compile: Compile the layers with ``torch.compile`` on their first use.
        checkpoint_activations: Keep the input of each layer only, and compute the rest again in the
            backward pass. No prefix is cached then.

    Attributes:
        model: The language model, in evaluation mode.
        tokenizer: The tokenizer.
        pad_id: Id of the padding token.
        revision: Commit of its files on the Hugging Face Hub; None where it was not loaded from it.
        body: The language model without its head, or a view of it.
        checkpoint_activations: Whether layers recompute their activations.
        caches_prefix: Whether the model can continue from a cached prefix (``self_check.py``).
        caches_rows: Whether it can continue from a prefix of each sequence (``self_check.py``).
        read_once: Keeps what was read of each sequence, for one thread; None computes it again for
            every batch.
        last_modules: Names of the modules of the last layer that can be computed at the last
            positions only (``self_check.py``).

    Raises:
        BackboneError: if the model cannot be a backbone, which is tried with a few tokens.
    """

    caches_prefix: bool
    caches_rows: bool
    read_once: ReadOnce | None = None
    last_modules: tuple[str, ...]

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pad_token: str | None = None,
        compile: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        freeze(model)
        self.model = model
        self.tokenizer = tokenizer
        brings_weights = offloads(model)
        checkpoint_activations = checkpoint_activations or brings_weights
        self.checkpoint_activations = checkpoint_activations
        self._turn: AbstractContextManager[Any] = RLock() if brings_weights else nullcontext()
        self.pad_id = padding_id(tokenizer, pad_token)
        # Now: the cache may hold a newer commit when training ends.
        self.revision = hub_commit(model.name_or_path)
        self._check_vocabulary()
        self.body: nn.Module = model.base_model
        if getattr(model, "is_loaded_in_8bit", False):
            from msea_lightning.backbone.loading.int8 import frozen_int8

            self.body = replaced(self.body, frozen_int8)
        self._takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters
        self._prefixes: dict[tuple[tuple[int, ...], torch.device], PrefixCache] = {}
        pairwise = self.body
        if model.config._attn_implementation not in _PAIRWISE_ATTENTION:
            pairwise = with_attention(self.body, "sdpa")
        # Equal bodies stay one, which is compiled once.
        trained = cache(_recomputing if checkpoint_activations else lambda body: body)
        # By whether the mask is between positions, and whether gradients are computed.
        self._bodies: dict[tuple[bool, bool], Any] = {
            (False, False): self.body,
            (True, False): pairwise,
            (False, True): trained(self.body),
            (True, True): trained(pairwise),
        }
        self_check(self)
        if compile:
            # Lengths differ from batch to batch: compiled once for all of them.
            compiled = cache(partial(torch.compile, dynamic=True))
            self._bodies = {case: compiled(body) for case, body in self._bodies.items()}
            self.last_modules = ()

    @property
    def width(self) -> int:
        """Width d of the embeddings."""
        return int(self._embedding.weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """Number of token embeddings V."""
        return int(self._embedding.weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the embeddings are computed, and everything that is given back."""
        return computing_device(self._embedding)

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""
        return self._embedding.weight.dtype

    @property
    def embedding_norm(self) -> float:
        """Mean norm of the embeddings of a few thousand tokens of the vocabulary."""
        step = max(1, self.vocabulary // _SAMPLED_TOKENS)
        ids = torch.arange(0, self.vocabulary, step, device=self.device)
        with torch.no_grad():
            return float(self.embed(ids[None]).float().norm(dim=-1).mean())

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the model reads as it was made to; None where it does not say.

        Never beyond the shortest attention window: up to there the masks of :meth:`hidden` equal
        the model's own.
        """
        config = self.model.config.get_text_config()
        limits = [getattr(config, "max_position_embeddings", None), *_windows(config)]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def quantized(self) -> bool:
        """Whether linear layers are stored in int8 or nf4."""
        return getattr(self.model, "quantization_method", None) is not None

    def to(self, device: torch.device) -> FrozenBackbone:
        """Moves the model in place; a quantised or spread one stays where it was loaded."""
        if self.device.type == device.type and device.index in (None, self.device.index):
            return self
        if self.quantized or is_spread(self.model):
            kind = "quantised" if self.quantized else "spread"
            raise BackboneError(
                f"The {kind} backbone was loaded on {self.device} and cannot be moved to "
                f"{device}: load it there."
            )
        nn.Module.to(self.model, device)
        return self

    def embed(self, ids: Tensor) -> Tensor:
        """(B, S) token ids to (B, S, d) embeddings in the backbone's dtype."""
        with self._turn:
            embedded: Tensor = self._embedding(ids)
        return embedded.to(ids.device)

    def cached_prefix(self, ids: Sequence[int]) -> PrefixCache | None:
        """The KV cache of O tokens that every sequence begins with, computed once.

        None where there are no tokens, or the model has to compute them with every sequence.
        """
        if not ids or not self.caches_prefix:
            return None
        key = (tuple(ids), self.device)
        if key not in self._prefixes:
            embedded = self.embed(torch.tensor([list(ids)], device=self.device))
            # Of two threads that compute it at once, one wins.
            self._prefixes.setdefault(key, PrefixCache.compute(self.body, embedded))
        return self._prefixes[key]

    def read(self, shared: Sequence[int], rows: Sequence[Sequence[int]]) -> PrefixCache | None:
        """The KV cache of the beginnings of B sequences, computed without gradient.

        Args:
            shared: Token ids that all of them begin with, as far as they go.
            rows: Token ids of each, ``shared`` included.

        Returns:
            A prefix of O tokens, the longest of ``rows``, padded on the left after ``shared``. None
            where there are no tokens, or the model has to compute them with every sequence.
        """
        shared = shared[: min(map(len, rows))]
        prefix = self.cached_prefix(shared)
        rests = [row[len(shared) :] for row in rows]
        if not any(rests) or not (self.caches_prefix and self.caches_rows):
            return prefix
        if self.read_once is not None:
            layers = self.read_once.keys_values(
                shared, rests, partial(self.recorded, prefix), self.device
            )
        else:
            layers = self.recorded(prefix, rests)
        return extended(prefix, layers, padded_rows(rests, self.pad_id)[1].to(self.device))

    @torch.no_grad()
    def recorded(
        self, prefix: PrefixCache | None, rows: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values of B rows of tokens after a prefix, (B, heads, R, d)."""
        ids, mask = (part.to(self.device) for part in padded_rows(rows, self.pad_id))
        before = 0 if prefix is None else prefix.tokens
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0) + before
        layers = self.model.config.get_text_config().num_hidden_layers
        recorder = Recorder(prefix, layers)
        with torch.inference_mode(mode=False):  # else they would serve no training
            self._run(self.embed(ids), mask, positions, prefix, recorder, last=1)
        return recorder.recorded

    def hidden(
        self,
        inputs_embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        prefix: PrefixCache | None = None,
        *,
        last: int | None = None,
    ) -> Tensor:
        """Final hidden states, from which :meth:`logits` are computed.

        Args:
            inputs_embeds: (B, S, d) in the backbone's dtype.
            mask: (B, S) bool, False at padding; or (B, S, S) bool, whether position i attends to
                position j, where that is not all of the positions before it.
            positions: (B, S) positions, those of the prefix counted.
            prefix: KV cache of O tokens; all S positions attend to all of them.
            last: Only so many of the last positions are read; the states of the others may be
                anything. All where not given.

        Returns:
            (B, S, d).

        Raises:
            BackboneError: if causal sequences are longer than the model was made for.
        """
        return self._run(inputs_embeds, mask, positions, prefix, prefix, last=last)

    def _run(
        self,
        inputs_embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        prefix: PrefixCache | None,
        cache: Cache | None,
        *,
        last: int | None,
    ) -> Tensor:
        """See :meth:`hidden`; the layers read and write the cache, which stands for the prefix."""
        extra: dict[str, Any] = {"position_ids": positions} if self._takes_positions else {}
        pairwise = mask.dim() == 3
        if not pairwise:
            self._check_length(inputs_embeds.shape[1] + (prefix.tokens if prefix else 0))
            if self.explicit_masks:
                # transformers computes the same, but waits for the device to look at the mask.
                mask, pairwise = _causal(mask), True
        if prefix is not None:
            mask = prefix.seen_by(mask)
        if cache is not None:
            extra["past_key_values"] = cache
        body = self._bodies[pairwise, torch.is_grad_enabled()]
        if last is not None and self.last_modules:
            body = at_last_positions(body, self.last_modules, last)
        with self._turn:
            output = body(
                inputs_embeds=inputs_embeds,
                attention_mask=_additive(mask, inputs_embeds.dtype) if pairwise else mask.long(),
                use_cache=cache is not None,
                **extra,
            )
        states: Tensor = output.last_hidden_state
        return states.to(inputs_embeds.device)

    def logits(self, hidden: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits of the next token, in float32.

        Args:
            hidden: (..., d) final hidden states.
            tokens: (C,) the token ids whose logits are wanted; all V where not given.

        Returns:
            (..., V), or (..., C).
        """
        # A slice of three axes would be multiplied by a copy of the head for every utterance.
        rows = hidden.reshape(-1, hidden.shape[-1])
        head = self.model.get_output_embeddings()
        scores: Tensor
        with self._turn:
            # A hook brings the weights of a layer to where it computes as a whole.
            if tokens is not None and type(head) is nn.Linear and not hasattr(head, "_hf_hook"):
                bias = None if head.bias is None else head.bias[tokens]
                scores = functional.linear(rows, head.weight[tokens], bias)
            else:
                scores = head(rows).to(hidden.device)
                scores = scores if tokens is None else scores[:, tokens]
        scores = scores.view(*hidden.shape[:-1], -1)
        config = self.model.config.get_text_config()
        if (scale := getattr(config, "logit_scale", None)) is not None:
            scores = scores * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            scores = scores / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            scores = torch.tanh(scores / cap) * cap
        return scores.float()

    def token_logp(self, hidden: Tensor, predictors: Tensor, token_ids: Tensor) -> Tensor:
        """Log probability of given tokens at given positions, without keeping all logits.

        Args:
            hidden: (B, P, d) hidden states at the P positions that predict something.
            predictors: (A, L) position that predicts each token of each answer; -1 for none. On the
                CPU, as the next one: elsewhere each call waits for the device.
            token_ids: (A, L) the tokens; -1 for none.

        Returns:
            (B, A, L) float32 log probabilities among the whole vocabulary; 0 where there is none.
        """
        batch, positions, _ = hidden.shape
        out = hidden.new_zeros(batch, *predictors.shape, dtype=torch.float32)
        rows = max(1, _LOGITS_AT_ONCE // (batch * self.vocabulary))
        for start in range(0, positions, rows):
            logp = self.logits(hidden[:, start : start + rows]).log_softmax(-1)
            here = (predictors >= start) & (predictors < start + rows)
            answer, step = here.nonzero(as_tuple=True)
            position, token = predictors[here] - start, token_ids[here]
            answer, step, position, token = (
                index.to(hidden.device, non_blocking=True)
                for index in (answer, step, position, token)
            )
            out[:, answer, step] = logp[:, position, token]
        return out

    def fingerprint(self) -> dict[str, str]:
        """What tells this language model from any other, by part (``fingerprint.py``)."""
        return fingerprint(self.model, self.tokenizer)

    def _check_length(self, tokens: int) -> None:
        if self.max_positions is not None and tokens > self.max_positions:
            raise BackboneError(
                f"The sequences are {tokens} tokens long, but this "
                f"{self.model.config.model_type} backbone was made for {self.max_positions}, and "
                "beyond that it computes something else: shorten the texts (dataset.text_tokens)."
            )

    @property
    def explicit_masks(self) -> bool:
        """Whether the model takes masks between positions, and positions, as they are given."""
        implementation = self.model.config._attn_implementation
        return self._takes_positions and implementation in _PAIRWISE_ATTENTION

    @property
    def _embedding(self) -> nn.Embedding:
        return cast("nn.Embedding", self.model.get_input_embeddings())

    def _check_vocabulary(self) -> None:
        # Without added tokens, which there may be many of where the vocabulary itself is missing.
        if self.tokenizer.vocab_size < 2:
            raise BackboneError(
                f"The tokenizer has a vocabulary of {self.tokenizer.vocab_size}, which writes no "
                "label: its files are missing or in a format that transformers does not read. Give "
                "a folder with tokenizer.json in backbone.tokenizer."
            )
        if max(self.tokenizer.vocab_size, self.pad_id + 1) > self.vocabulary:
            raise BackboneError(
                f"The tokenizer has {self.tokenizer.vocab_size} tokens and pads with the id "
                f"{self.pad_id}, but the language model has only {self.vocabulary} embeddings: "
                "they are not of one model (set backbone.tokenizer), or the padding was added "
                "later (set backbone.pad_token to any token that the model was trained with)."
            )


def _windows(config: PreTrainedConfig) -> list[int | None]:
    """Reach in tokens of every kind of attention that does not see the whole text."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        reaches = {"sliding": "sliding_window", "chunked": "attention_chunk_size"}
        return [
            getattr(config, reach, None)
            for name, reach in reaches.items()
            if any(name in kind for kind in kinds)
        ]
    if "local" in getattr(config, "attention_layers", ()):  # GPT-Neo
        return [config.window_size]
    if getattr(config, "use_sliding_window", True):
        return [getattr(config, "sliding_window", None)]
    return []


def padding_id(tokenizer: PreTrainedTokenizerBase, pad_token: str | None) -> int:
    """Id of the token that fills up sequences; see :class:`FrozenBackbone`."""
    if pad_token is not None:
        if pad_token not in (vocabulary := tokenizer.get_vocab()):
            raise BackboneError(
                f"backbone.pad_token={pad_token!r} is not a token of the tokenizer; set it to one "
                "that is, or to null for the tokenizer's own."
            )
        return int(vocabulary[pad_token])
    for own in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id):
        if own is not None:
            return int(own)
    raise BackboneError(
        "The tokenizer names no padding, unknown or end token: set backbone.pad_token to one of "
        "its tokens. Padding is masked, so any will do."
    )


def freeze(model: nn.Module) -> None:
    """Switches a model to evaluation, without gradients of its weights."""
    states = (getattr(weight, "quant_state", None) for weight in model.parameters())
    if any(getattr(state, "packing_format_for_cpu", False) for state in states):
        raise BackboneError(
            "bitsandbytes has repacked the 4-bit weights of this model for the CPU, which it does "
            "when the model first computes without gradients; there are no gradients through them "
            "then. Load the model anew, and hand it over before it computes anything."
        )
    model.eval().requires_grad_(False)
    # Outside of training and without a gradient, bitsandbytes repacks 4-bit weights on a CPU in
    # place for AVX-512, which changes frozen tensors, needs widths that 64 divides, and computes in
    # bfloat16. Its layer does nothing else in another way in training mode.
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True


def _recomputing(body: nn.Module) -> nn.Module:
    """A view whose layers compute their activations again in the backward pass."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    def layer(module: nn.Module) -> nn.Module | None:
        return checkpointed(module) if isinstance(module, GradientCheckpointingLayer) else None

    view = replaced(body, layer)
    if view is body:
        model_type = cast("PreTrainedConfig", body.config).model_type
        raise BackboneError(
            f"backbone.checkpoint_activations=true: the layers of a {model_type} backbone "
            "cannot compute their activations again. Leave it false; "
            "trainer.accumulate=2 or more takes less memory too."
        )
    return view


def _causal(mask: Tensor) -> Tensor:
    """(B, S) bool, False at padding, to (B, S, S): who attends to whom."""
    width = mask.shape[1]
    before = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
    # Padding attends to itself: a row without any place would give NaN.
    itself = torch.eye(width, dtype=torch.bool, device=mask.device)
    return (before & mask[:, None, :]) | itself


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, S, S) bool to the (B, 1, S, S) mask that every attention adds to its scores."""
    zero = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, zero, torch.finfo(dtype).min)[:, None]
