"""A causal language model that never changes, reduced to what an adapter needs of it.

Shape legend: B utterances, S tokens, M nodes of the answer tree, d width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from msea_lightning.backbone.speed.activations import Perceptron, perceptrons, results_forgotten
from msea_lightning.backbone.speed.last_layer import narrowable, narrowed
from msea_lightning.backbone.speed.norms import join_norms, part_norms
from msea_lightning.backbone.speed.prefix import Opening
from msea_lightning.config.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

_LOGITS_AT_ONCE = 1 << 24
"""Logits held at one time when scoring answers (64 MiB in float32)."""

_READ_MASKS = frozenset({"sdpa", "eager"})
"""Attention implementations that take a mask between every two positions."""

_TRIED = 2
"""Tokens of the opening with which it is tried whether a model reads on from one."""

_CANNOT = (TypeError, ValueError, RuntimeError, AttributeError)
"""How a model fails that does not take what it is given."""

_FINGERPRINT_ROWS = 16
"""Rows of each weight matrix that enter a fingerprint."""


class BackboneError(UserError):
    """A language model that cannot be loaded or cannot serve as a backbone."""


class FrozenBackbone:
    """A frozen language model with its tokenizer.

    Deliberately not an ``nn.Module``: held by a LightningModule it is not one of its modules, so
    none of its tensors can reach an optimizer, a checkpoint, ``hparams`` or DDP. No method of the
    language model is patched and none of its parameters requires a gradient; gradients flow
    through it to its inputs only. What reaches into it changes no result: int8 layers forget their
    inputs (``int8.py``), norms have a gradient in one piece (``norms.py``), and during
    :meth:`hidden` there are hooks on perceptrons (``activations.py``) and on parts of the last
    layer (``narrowing.py``).

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        pad_token: Token that fills up sequences; the tokenizer's own, else its unknown or end
            token, where not given.
        compile: Compile the layers with ``torch.compile`` on their first use.
        checkpoint_activations: Keep the input of each layer only, and compute the rest again in the
            backward pass. Openings are then read with every sequence.

    Attributes:
        model: The language model, in evaluation mode.
        tokenizer: The tokenizer.
        pad_id: Id of the padding token.

    Raises:
        BackboneError: if the model's parts do not add up to its own logits, or its attention does
            not take a mask between every two positions; both are tried once with a few tokens.
    """

    _run: Callable[..., Any]
    _narrow: list[nn.Module]
    _perceptrons: list[Perceptron]

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pad_token: str | None = None,
        compile: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        model.train(mode=False)
        model.requires_grad_(False)
        keep_4bit_layout(model)
        if getattr(model, "is_loaded_in_8bit", False):
            from msea_lightning.backbone.loading.int8 import keep_no_inputs

            keep_no_inputs(model)
        if compile:  # which does as much by itself
            part_norms(model)
        else:
            join_norms(model)
        self._take(model, checkpoint_activations=checkpoint_activations)
        self.tokenizer = tokenizer
        _check_size(tokenizer)
        self.pad_id = _pad_id(tokenizer, pad_token)
        self._check_vocabulary()
        self._check()
        if compile:
            # Lengths differ from batch to batch: compiled once for all of them.
            self._run = torch.compile(self._body, dynamic=True)
            self._narrow = []
            self._perceptrons = []

    def _take(self, model: PreTrainedModel, *, checkpoint_activations: bool) -> None:
        self.model = model
        self._body: nn.Module = getattr(model, model.base_model_prefix)
        self._run = self._body
        self._takes_positions = "position_ids" in inspect.signature(self._body.forward).parameters
        self._openings: dict[tuple[tuple[int, ...], torch.device], Opening] = {}
        self._reads_on = False
        self._narrow = []
        self._recomputed = recomputed_layers(model) if checkpoint_activations else []
        self._perceptrons = [] if checkpoint_activations else perceptrons(self._body)

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
        """Where the embeddings are."""
        return self._embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""
        return self._embedding.weight.dtype

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the model reads as it was made to; None where it does not say.

        That is the length that it was trained for, or the reach of its shortest attention window
        where that is less: the explicit masks of :meth:`hidden` replace the model's own, and equal
        them up to there.
        """
        config = self.model.config.get_text_config()
        limits = [getattr(config, "max_position_embeddings", None), *_windows(config)]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def parameters(self) -> int:
        """Number of parameters, quantised ones counted as what they stand for."""
        return int(self.model.num_parameters())

    @property
    def quantized(self) -> bool:
        """Whether linear layers are stored in int8 or nf4."""
        return getattr(self.model, "quantization_method", None) is not None

    def to(self, device: torch.device) -> FrozenBackbone:
        """Moves the model in place.

        Raises:
            BackboneError: for a quantised model, which stays where it was loaded.
        """
        if self.device.type == device.type and device.index in (None, self.device.index):
            return self
        if self.quantized:
            raise BackboneError(
                f"The quantised backbone was loaded on {self.device} and cannot be moved to "
                f"{device}: load it there."
            )
        nn.Module.to(self.model, device)
        return self

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings.

        Args:
            ids: (B, S) token ids.

        Returns:
            (B, S, d) in the backbone's dtype.
        """
        embedded: Tensor = self._embedding(ids)
        return embedded

    def opening(self, ids: Sequence[int]) -> Opening | None:
        """The tokens that every sequence begins with, read once.

        Args:
            ids: O token ids.

        Returns:
            What :meth:`hidden` goes on from; None where there is nothing to read, or the model has
            to read them with every sequence.
        """
        if not ids or not self._reads_on:
            return None
        key = (tuple(ids), self.device)
        if key not in self._openings:
            self._openings[key] = Opening.read(
                self._body, self.embed(torch.tensor([ids], device=self.device))
            )
        return self._openings[key]

    def hidden(
        self,
        inputs_embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        opening: Opening | None = None,
        *,
        wanted: int | None = None,
    ) -> Tensor:
        """Final hidden states, from which :meth:`logits` are made.

        Args:
            inputs_embeds: (B, S, d) in the backbone's dtype.
            mask: (B, S) bool, False at padding; or (B, S, S) bool, whether position i attends to
                position j, where that is not all of the positions before it.
            positions: (B, S) positions.
            opening: O tokens that were read before; all S positions attend to all of them.
            wanted: Only so many of the last positions are read; what is returned for the others
                may be anything. All where not given.

        Returns:
            (B, S, d).

        Raises:
            BackboneError: if causal sequences are longer than the model was made for.
        """
        extra: dict[str, Any] = {"position_ids": positions} if self._takes_positions else {}
        between = mask.dim() == 3
        if not between:
            self._check_width(inputs_embeds.shape[1] + (opening.tokens if opening else 0))
            if self._explicit_masks:
                # transformers makes the same of it, but asks the device what is in it first.
                mask, between = _causal(mask), True
        if opening is not None:
            mask = functional.pad(mask, (opening.tokens, 0), value=True)
            extra["past_key_values"] = opening
        attention = _additive(mask, inputs_embeds.dtype) if between else mask.long()
        with (
            self._reading_masks() if between else nullcontext(),
            self._recomputing(),
            nullcontext() if wanted is None else narrowed(self._narrow, wanted),
            results_forgotten(self._perceptrons) if torch.is_grad_enabled() else nullcontext(),
        ):
            output = self._run(
                inputs_embeds=inputs_embeds,
                attention_mask=attention,
                use_cache=opening is not None,
                **extra,
            )
        states: Tensor = output.last_hidden_state
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits.

        Args:
            hidden: (..., d) final hidden states.

        Returns:
            (..., V) float32.
        """
        # A slice of three axes would be multiplied by a copy of the head for every utterance.
        rows = hidden.reshape(-1, hidden.shape[-1])
        scores: Tensor = self.model.get_output_embeddings()(rows).view(*hidden.shape[:-1], -1)
        config = self.model.config.get_text_config()
        if (scale := getattr(config, "logit_scale", None)) is not None:
            scores = scores * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            scores = scores / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            scores = torch.tanh(scores / cap) * cap
        return scores.float()

    def token_logp(self, hidden: Tensor, predictors: Tensor, token_ids: Tensor) -> Tensor:
        """Log probability of given tokens at given places, without keeping all logits.

        Args:
            hidden: (B, P, d) hidden states at the P places that predict something.
            predictors: (A, L) place that predicts each token of each answer; -1 for none. Wanted on
                the CPU, as the next one: elsewhere each call waits for the device.
            token_ids: (A, L) the tokens; -1 for none.

        Returns:
            (B, A, L) float32 log probabilities among the whole vocabulary; 0 where there is none.
        """
        batch, places, _ = hidden.shape
        out = hidden.new_zeros(batch, *predictors.shape, dtype=torch.float32)
        rows = max(1, _LOGITS_AT_ONCE // (batch * self.vocabulary))
        for start in range(0, places, rows):
            logp = self.logits(hidden[:, start : start + rows]).log_softmax(-1)
            here = (predictors >= start) & (predictors < start + rows)
            answer, step = here.nonzero(as_tuple=True)
            place, token = predictors[here] - start, token_ids[here]
            answer, step, place, token = (
                index.to(hidden.device, non_blocking=True) for index in (answer, step, place, token)
            )
            out[:, answer, step] = logp[:, place, token]
        return out

    def fingerprint(self) -> dict[str, str]:
        """What tells this language model from any other, by part.

        ``model`` covers the architecture, ``embeddings`` some rows of the embedding matrix and all
        vectors (norms, biases), ``linear`` some rows of every weight matrix, ``tokenizer`` the
        vocabulary. Numbers are rounded to bfloat16 first, so that a checkpoint has the same
        fingerprint in every compute dtype. Quantised matrices are fingerprinted under a key of
        their own, because they are not comparable to the dense ones.
        """
        config = self.model.config.get_text_config()
        shape = [config.model_type, self.width, self.vocabulary, config.num_hidden_layers]
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        method = getattr(self.model, "quantization_method", None)
        linear = f"linear-{method.value}" if method is not None else "linear"
        return {
            "model": _digest([repr(shape).encode()]),
            "tokenizer": _digest([repr(vocabulary).encode()]),
            "embeddings": _digest(_samples(self._tensors(matrices=False))),
            linear: _digest(_samples(self._tensors(matrices=True))),
        }

    def _check_width(self, tokens: int) -> None:
        if self.max_positions is not None and tokens > self.max_positions:
            raise BackboneError(
                f"The sequences are {tokens} tokens long, but this "
                f"{self.model.config.model_type} backbone was made for {self.max_positions}, and "
                "beyond that it computes something else: shorten the texts (dataset.text_tokens)."
            )

    @contextmanager
    def _reading_masks(self) -> Iterator[None]:
        """An attention that takes a mask between positions, which flash attention does not."""
        own = self.model.config._attn_implementation
        if own in _READ_MASKS:
            yield
            return
        self.model.set_attn_implementation("sdpa")
        try:
            yield
        finally:
            self.model.set_attn_implementation(own)

    @property
    def _or_leave_out(self) -> str:
        if not self._recomputed:
            return ""
        return ", or backbone.checkpoint_activations=false: layers that drop something cannot do it"

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Layers in training mode, in which alone they keep nothing but their input.

        What is inside of them stays in evaluation mode.
        """
        layers = self._recomputed if torch.is_grad_enabled() else []
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    @property
    def _explicit_masks(self) -> bool:
        """Whether masks and positions can be given as they are meant."""
        return self._takes_positions and self.model.config._attn_implementation in _READ_MASKS

    @property
    def _embedding(self) -> nn.Embedding:
        return cast("nn.Embedding", self.model.get_input_embeddings())

    def _tensors(self, *, matrices: bool) -> Iterator[Tensor]:
        embedding = self._embedding.weight
        if not matrices:
            yield embedding
        for _, parameter in sorted(self.model.named_parameters()):
            if parameter is not embedding and (parameter.dim() > 1) == matrices:
                yield parameter

    def _check_vocabulary(self) -> None:
        if self.tokenizer.vocab_size > self.vocabulary:
            raise BackboneError(
                f"The tokenizer has {self.tokenizer.vocab_size} tokens, but the language model "
                f"only {self.vocabulary} embeddings: they are not of one model. Set "
                "backbone.tokenizer to the tokenizer of backbone.path."
            )
        if self.pad_id >= self.vocabulary:
            raise BackboneError(
                f"The padding token has the id {self.pad_id}, but the language model only "
                f"{self.vocabulary} embeddings: set backbone.pad_token to a token that it was "
                "trained with, such as the unknown or end token. Padding is masked, so any will do."
            )

    @torch.no_grad()
    def _check(self) -> None:
        """Tries whether the model's parts add up to it, and whether it reads on from an opening."""
        count = min(5, self.vocabulary)
        ids = torch.arange(count, device=self.device)[None]
        positions = torch.arange(count, device=self.device)[None]
        embedded = self.embed(ids)
        everything = torch.ones_like(ids, dtype=torch.bool)
        causal = torch.ones(count, count, dtype=torch.bool, device=self.device).tril()[None]
        expected = self.model(input_ids=ids, use_cache=False).logits.float()
        # Reduced precision orders sums differently for different masks; wrong parts are far off.
        tolerance = 1e-3 if self.dtype is torch.float32 and not self.quantized else 0.25
        scale = expected.std().clamp(min=1e-6)

        def difference(states: Tensor, logits: Tensor) -> float:
            return float((self.logits(states) - logits).abs().max() / scale)

        for what, mask in (
            ("its own logits", everything),
            ("the same logits under an explicit mask between positions", causal),
        ):
            try:
                # As in training, where recomputed layers may turn out to drop something.
                with torch.enable_grad():
                    found = difference(self.hidden(embedded, mask, positions), expected)
            except _CANNOT as error:
                raise BackboneError(
                    f"{type(self.model).__name__} cannot be a backbone: reading embeddings failed "
                    f"with {type(error).__name__}: {error}"
                ) from error
            if not found < tolerance:
                raise BackboneError(
                    f"{type(self.model).__name__} cannot be a backbone: its embeddings, layers and "
                    f"output head do not give {what} (they differ by {found:.3g} standard "
                    f"deviations, at most {tolerance} is rounding). Choose a causal transformer "
                    f"with ordinary attention{self._or_leave_out}."
                )
        if self._recomputed or count <= _TRIED:
            return
        # What a model cannot do of the following, it does as any model does.
        rest = (embedded[:, _TRIED:], everything[:, _TRIED:], positions[:, _TRIED:])
        if self._explicit_masks:
            with suppress(*_CANNOT):
                opening = Opening.read(self._body, embedded[:, :_TRIED])
                found = difference(self.hidden(*rest, opening), expected[:, _TRIED:])
                self._reads_on = found < tolerance
        self.narrow(
            (embedded, everything, positions),
            right=lambda states: difference(states, expected[:, -1:]) < tolerance,
        )
        for can, what in (
            (self._reads_on, "read what all sequences begin with once for all batches"),
            (bool(self._narrow), "leave out of its last layer what nobody reads"),
        ):
            if not can:
                _log.info(
                    "%s does not %s: slower, the same results", type(self.model).__name__, what
                )

    def narrow(
        self, tried: tuple[Tensor, Tensor, Tensor], *, right: Callable[[Tensor], bool]
    ) -> None:
        """Lets the last layer compute only what is read, as far as the architecture can.

        Args:
            tried: Embeddings, mask and positions, arguments of :meth:`hidden`, to try it with.
            right: Whether the (B, 1, d) last states computed so are the same.
        """
        layers = self.model.config.get_text_config().num_hidden_layers
        for modules in narrowable(self._body, layers):
            self._narrow = modules
            with suppress(*_CANNOT):
                if right(self.hidden(*tried, wanted=1)[:, -1:]):
                    return
        self._narrow = []


def _check_size(tokenizer: PreTrainedTokenizerBase) -> None:
    # Without added tokens, which there may be many of where the vocabulary itself is missing.
    if tokenizer.vocab_size < 2:
        raise BackboneError(
            f"The tokenizer has a vocabulary of {tokenizer.vocab_size}, which writes no label: its "
            "files are missing or in a format that transformers does not read. Give a folder with "
            "tokenizer.json in backbone.tokenizer."
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


def _pad_id(tokenizer: PreTrainedTokenizerBase, pad_token: str | None) -> int:
    if pad_token is not None:
        token_id = tokenizer.convert_tokens_to_ids(pad_token)
        if token_id is None or (
            token_id == tokenizer.unk_token_id and pad_token != tokenizer.unk_token
        ):
            raise BackboneError(
                f"backbone.pad_token={pad_token!r} is not a token of the tokenizer; set it to one "
                "that is, or to null for the tokenizer's own."
            )
        assert isinstance(token_id, int)
        return token_id
    for own in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id):
        if own is not None:
            return int(own)
    raise BackboneError(
        "The tokenizer names no padding, unknown or end token: set backbone.pad_token to one of "
        "its tokens. Padding is masked, so any will do."
    )


def keep_4bit_layout(model: nn.Module) -> None:
    """Keeps 4-bit weights on a CPU as they are.

    Outside of training and without a gradient, bitsandbytes repacks them in place for AVX-512,
    which changes frozen tensors, needs widths that 64 divides, and computes in bfloat16. A linear
    layer does nothing else in training mode.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True


def recomputed_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Layers that compute their activations again in the backward pass from now on.

    Args:
        model: The language model. Its results do not change.

    Raises:
        BackboneError: for an architecture whose layers cannot do that.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[nn.Module] = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not layers:
        raise BackboneError(
            f"backbone.checkpoint_activations=true: the layers of a {model.config.model_type} "
            "backbone cannot compute their activations again. Leave it false; "
            "trainer.accumulate=2 or more takes less memory too."
        )
    # Its public name is another one in later releases of transformers.
    model._set_gradient_checkpointing(
        enable=True, gradient_checkpointing_func=partial(checkpoint, use_reentrant=False)
    )
    return layers


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


def _samples(tensors: Iterator[Tensor]) -> Iterator[bytes]:
    for tensor in tensors:
        rows = tensor.detach().reshape(tensor.shape[0], -1)
        step = max(1, rows.shape[0] // _FINGERPRINT_ROWS)
        sample = rows[::step].contiguous().cpu()
        if sample.is_floating_point():
            # The bit pattern of bfloat16 is the upper half of float32's.
            sample = sample.to(torch.bfloat16).view(torch.int16)
        yield repr(tuple(tensor.shape)).encode() + sample.numpy().tobytes()


def _digest(parts: Iterator[bytes] | list[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def same_model(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two fingerprints are of one language model, as far as both tell."""
    return all(one[part] == other[part] for part in one.keys() & other.keys())
