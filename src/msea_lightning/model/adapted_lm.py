"""A frozen language model with a trainable adapter in front.

Shape legend: B utterances, T text tokens, S tokens of the sequence, n pseudo tokens, L label
tokens, A legal answers, M nodes of the answer tree, d width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from msea_lightning.adapter import Adapter, FeatureStandardizer
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.data.utterance import Batch
from msea_lightning.language.answers import Answers, AnswerTree, decode
from msea_lightning.language.options import Decode, Loss
from msea_lightning.language.prompt import Prompt, Sequences, Texts
from msea_lightning.model.contract import Model, ModelError, Step
from msea_lightning.model.readout import Readout, TokenReadout

if TYPE_CHECKING:
    from msea_lightning.backbone.speed.prefix_cache import PrefixCache


@dataclass(frozen=True, eq=False)
class AnswerInputs:
    """What the language model reads to answer a batch: the sequences, each with the answer tree.

    Attributes:
        embedded: (B, S + M, d) embeddings in the language model's dtype.
        mask: (B, S), False at padding, where the tree is empty; else (B, S + M, S + M), whether
            position i attends to position j.
        positions: (B, S + M), those of the prefix counted.
        prefix: KV cache of what all sequences begin with; None where they hold it themselves.
        read: The last positions, 1 + M, whose hidden states are read.
    """

    embedded: Tensor
    mask: Tensor
    positions: Tensor
    prefix: PrefixCache | None
    read: int


class AdaptedLM(Model):
    """Pairs an adapter with a frozen language model.

    The language model is not a submodule (see :class:`FrozenBackbone`): parameters, checkpoints
    and DDP hold the adapter and the feature statistics alone.

    Args:
        backbone: The frozen language model.
        adapter: The trainable plugin.
        standardizer: Feature standardisation; an identity where there is none.
        prompt: Turns texts and labels into sequences.
        tree: Legal answers as the language model's tokenizer writes them.
        rule: How an answer is picked.
        readout: Gives the probabilities of answers; the language model's own head with its whole
            vocabulary where not given.
        ordinal: Weight in the loss of the expected absolute error of the distribution over
            intensities.
        class_weights: (A,) what an utterance counts in the loss by its answer; none where not
            given. They are of emotions, ``ordinal`` of intensities.

    Attributes:
        reads: Names of the features that adapters read.

    Raises:
        ModelError: if sequences would be longer than the language model can read.
    """

    reads: ClassVar[tuple[str, str]] = ("audio", "vision")

    def __init__(
        self,
        backbone: FrozenBackbone,
        adapter: Adapter,
        *,
        standardizer: FeatureStandardizer,
        prompt: Prompt,
        tree: AnswerTree,
        rule: Decode = Decode.greedy,
        readout: Readout | None = None,
        ordinal: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapter = adapter
        self.standardizer = standardizer
        self.prompt = prompt
        self.tree = tree
        self.space = tree.space
        self.rule = rule
        self.readout = readout or TokenReadout(backbone, tree)
        self._ordinal = ordinal
        self._class_weights = class_weights
        self._check_length()

    @property
    def device(self) -> torch.device:
        """Where the language model and the adapter are."""
        return self.backbone.device

    @cached_property
    def dims(self) -> Mapping[str, int]:
        """Name of each feature that the adapter reads to its values per frame."""
        options = self.adapter.options()
        return {name: int(dim) for name in self.reads if (dim := options.get(f"{name}_dim"))}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: the adapter and the readout."""
        return [{"params": [*self.adapter.parameters(), *self.readout.parameters()]}]

    def move_frozen(self, device: torch.device) -> None:
        """Moves the language model."""
        self.backbone.to(device)

    def step(self, batch: Batch) -> Step:
        """The loss of a batch (paper, Eq. 2), and what it consists of where it has two parts.

        With ``Loss.vocabulary`` it is the mean over label tokens, as in the paper; with
        ``Loss.answers`` that over utterances.
        """
        if self._ordinal:
            return self._ordinal_step(batch)
        states, targets, rows = self._label_states(batch)
        weights = self._utterance_weights(batch)
        counts = torch.tensor([len(self.tree.ids(label)) for label in batch.targets])
        if weights is not None:
            weights = weights.repeat_interleave(counts.to(self.device))
        loss_sum = self.readout.label_loss(states, targets, rows, weights)
        by_token = self.readout.loss is Loss.vocabulary
        return Step(loss_sum, len(targets) if by_token else len(batch))

    def _ordinal_step(self, batch: Batch) -> Step:
        """Cross-entropy of the answers and expected absolute error, of the whole distribution."""
        inputs = self.answer_inputs(batch)
        logp = self.readout.token_logp(self._answer_states(inputs))
        tree = self.tree.to(self.device)
        logp = logp.masked_fill(tree.answer_ids < 0, 0.0).sum(-1)
        logp = logp.log_softmax(-1)
        labels = batch.targets
        answers = torch.tensor([self.tree.number(label) for label in labels]).to(self.device)
        targets = torch.tensor([self.space.target(label) for label in labels]).to(self.device)
        distance = (tree.values.float() - targets[:, None]).abs()
        terms = {
            "cross_entropy": -logp.gather(1, answers[:, None]).sum(),
            "expected_error": (logp.exp() * distance).sum(),
        }
        loss_sum = terms["cross_entropy"] + self._ordinal * terms["expected_error"]
        return Step(loss_sum, len(batch), terms)

    def _utterance_weights(self, batch: Batch) -> Tensor | None:
        """(B,) what each utterance counts in the loss."""
        if self._class_weights is None:
            return None
        numbers = [self.tree.number(label) for label in batch.targets]
        return self._class_weights[torch.tensor(numbers)].to(self.device)

    def predict(self, batch: Batch, rule: Decode | None = None) -> Answers:
        """Decoded answers of a batch, by the model's own rule where none is given."""
        return decode(self.tree, self.answer_logp(batch), rule or self.rule)

    answers = predict

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Sum and count of :meth:`step`."""
        step = self.step(batch)
        return step.loss_sum, step.count

    def label_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The language model's logits at the positions that predict label tokens.

        Returns:
            (N, V) logits, and (N,) the token ids that they should predict; label after label.
        """
        states, targets, _ = self._label_states(batch)
        return self.backbone.logits(states), targets

    def _label_states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(N, d) states that predict label tokens, (N,) their ids, (N,) their rows in the tree."""
        labels = [self.tree.ids(label) for label in batch.targets]
        sequences, embedded, prefix = self._sequences(batch, labels)
        assert sequences.targets is not None
        predicts = sequences.targets != -100
        last = predicts.shape[1]
        hidden = self.backbone.hidden(
            embedded, sequences.mask, sequences.positions, prefix, last=last
        )
        # The last L positions of each row predict its label.
        where = functional.pad(predicts, (hidden.shape[1] - last, 0))
        states = hidden.flatten(0, 1).index_select(0, self._positions(where))
        targets = sequences.targets[predicts].to(self.device, non_blocking=True)
        numbers = [self.tree.number(label) for label in batch.targets]
        rows = self.tree.predictors[torch.tensor(numbers)]
        return states, targets, rows[rows >= 0].to(self.device, non_blocking=True)

    @torch.no_grad()
    def answer_logp(self, batch: Batch) -> Tensor:
        """Log probability (B, A, L) of every token of every legal answer, in one forward pass.

        The answer tree follows the prompt; each of its nodes attends to the prompt and to its own
        ancestors only.
        """
        return self.readout.token_logp(self._answer_states(self.answer_inputs(batch)))

    @torch.no_grad()
    def last_states(self, batch: Batch) -> Tensor:
        """(B, d) float32, what the readout makes of the state from which answers are read."""
        return self.readout.features(self._answer_states(self.answer_inputs(batch))[:, 0])

    def _answer_states(self, inputs: AnswerInputs) -> Tensor:
        """(B, 1 + M, d) states of the prompt's last token and of the tree's nodes."""
        hidden = self.backbone.hidden(
            inputs.embedded, inputs.mask, inputs.positions, inputs.prefix, last=inputs.read
        )
        return hidden[:, -inputs.read :]

    def answer_inputs(self, batch: Batch, *, cached_prefix: bool = True) -> AnswerInputs:
        """What the language model reads in :meth:`answer_logp`.

        With ``cached_prefix`` the sequences go on from the KV cache of what never changes in them,
        where the language model can.
        """
        sequences, embedded, prefix = self._sequences(batch, cached_prefix=cached_prefix)
        mask, positions = sequences.mask, sequences.positions
        nodes = len(self.tree)
        if nodes:
            tree = self.tree.to(self.device)
            tokens = tree.tokens.expand(len(batch), -1)
            embedded = torch.cat([embedded, self.backbone.embed(tokens)], dim=1)
            positions = torch.cat([positions, positions[:, -1:] + tree.depths], dim=1)
            mask = _tree_mask(mask, tree.attends)
        return AnswerInputs(embedded, mask, positions, prefix, 1 + nodes)

    @torch.no_grad()
    def prompt_embeddings(self, batch: Batch) -> list[Tensor]:
        """What the language model reads before an answer, for each of B utterances.

        Returns:
            B tensors (S_b, d) in the language model's dtype, without padding: read causally, with
            positions from 0, their last position predicts the first token of the answer.
        """
        sequences, embedded, _ = self._sequences(batch, cached_prefix=False)
        return [row[real] for row, real in zip(embedded, sequences.mask, strict=True)]

    @torch.no_grad()
    def adapted(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """What the adapter makes of a batch.

        Returns:
            The pseudo tokens (B, n, d), None where it makes none, and the language model's own
            embeddings (T, d) of all tokens of the texts that it reads, one text after the other.
        """
        texts, pseudo, _ = self._adapt(batch)
        if texts is None:
            return pseudo, torch.zeros(0, self.backbone.width, device=self.device)
        return pseudo, self.backbone.embed(texts.ids[texts.mask].to(self.device)[None])[0]

    def read_answers(self, hidden: Tensor) -> Tensor:
        """Log probability (B, A, L) of the answers' tokens, from hidden states (B, S + M, d)."""
        return self.readout.token_logp(hidden[:, -1 - len(self.tree) :])

    def _adapt(self, batch: Batch) -> tuple[Texts | None, Tensor | None, Tensor | None]:
        """Tokenised texts, pseudo tokens (B, n, d), and the text embeddings if they changed.

        The latter are (all real text tokens of the batch, d), row after row.
        """
        features = self.standardizer(batch.features)
        absent = (None, torch.zeros(len(batch), dtype=torch.int64))
        audio, vision = (features.get(name, absent) for name in self.reads)
        if self.adapter.use_text:
            if batch.tokens is None:
                texts = self.prompt.encode_texts(batch.texts)
            else:
                texts = self.prompt.pad_texts(batch.tokens, batch.contexts)
            text_mask = texts.mask.to(self.device, non_blocking=True)
            text = self.backbone.embed(texts.ids.to(self.device, non_blocking=True))
        else:
            texts = None
            text_mask = torch.zeros(len(batch), 0, dtype=torch.bool, device=self.device)
            text = torch.zeros(len(batch), 0, self.backbone.width, device=self.device)
        pseudo, adapted = self.adapter(text, text_mask, *audio, *vision)
        if adapted is text or texts is None:
            return texts, pseudo, None
        return texts, pseudo, adapted.flatten(0, 1).index_select(0, self._positions(texts.mask))

    def _sequences(
        self,
        batch: Batch,
        labels: list[list[int]] | None = None,
        *,
        cached_prefix: bool = True,
    ) -> tuple[Sequences, Tensor, PrefixCache | None]:
        """Sequences after what was read before, their embeddings (B, S, d), and its KV cache."""
        texts, pseudo, text = self._adapt(batch)
        prefix, after = self._read(texts, len(batch)) if cached_prefix else (None, [0] * len(batch))
        sequences = self.prompt.assemble(texts, len(batch), labels, after=after).to(self.device)
        return sequences, self._embed(sequences, pseudo, text), prefix

    def _read(self, texts: Texts | None, count: int) -> tuple[PrefixCache | None, list[int]]:
        """The KV cache of what never changes at the beginning of B sequences, and its tokens."""
        shared = self.prompt.prefix_ids
        if not (self.backbone.caches_prefix and self.backbone.caches_rows):
            prefix = self.backbone.cached_prefix(shared)
            return prefix, [0 if prefix is None else prefix.tokens] * count
        rows = self.prompt.leading(texts, count)
        return self.backbone.read(shared, rows), [len(row) for row in rows]

    def _embed(self, sequences: Sequences, pseudo: Tensor | None, text: Tensor | None) -> Tensor:
        """Embeddings (B, S, d) with what the adapter returned at its positions."""
        embedded = self.backbone.embed(sequences.ids)
        for where, values in ((sequences.pseudo, pseudo), (sequences.text, text)):
            if values is not None:
                rows = values.reshape(-1, values.shape[-1]).to(embedded.dtype)
                flat = embedded.flatten(0, 1).index_copy(0, self._positions(where), rows)
                embedded = flat.view_as(embedded)
        return embedded

    def _positions(self, where: Tensor) -> Tensor:
        """Row-major positions (N,), on the device, of what a mask on the CPU marks."""
        found = where.flatten().nonzero().squeeze(1)
        return found.to(self.device, non_blocking=True)

    def _check_length(self) -> None:
        limit = self.backbone.max_positions
        answer = self.tree.answer_ids.shape[1]
        longest = self.prompt.longest + answer
        if limit is not None and longest > limit:
            left = self.prompt.text_tokens - (longest - limit)
            remedy = "shorten prompt.task, which leaves no room for a text"
            if self.prompt.most_context:
                remedy += f", or lower prompt.context_tokens={self.prompt.most_context}"
            if left > 0:
                lower = f"lower dataset.text_tokens={self.prompt.text_tokens} to {left} or less"
                remedy = f"{lower}, or shorten prompt.task"
            raise ModelError(
                f"Sequences of this data set may be {longest} tokens long, but the backbone reads "
                f"{limit} at a time: {remedy}."
            )


@torch.no_grad()
def predict_together(
    parts: Sequence[tuple[AdaptedLM, Batch]], rules: Sequence[Decode]
) -> list[Answers]:
    """Decoded answers of batches of several models, in one pass of their language model.

    The models share the language model; each gives the answers that it gives alone, up to rounding.
    """
    backbone = parts[0][0].backbone
    inputs = [model.answer_inputs(batch, cached_prefix=False) for model, batch in parts]
    width = max(part.embedded.shape[1] for part in inputs)
    hidden = backbone.hidden(
        torch.cat([_widened(part.embedded, width, dims=1) for part in inputs]),
        torch.cat([_widened_mask(part.mask, width) for part in inputs]),
        torch.cat([_widened(part.positions, width, dims=1) for part in inputs]),
        last=max(part.read for part in inputs),
    )
    found = torch.split(hidden, [len(batch) for _, batch in parts])
    return [
        decode(model.tree, model.read_answers(states), rule)
        for (model, _), states, rule in zip(parts, found, rules, strict=True)
    ]


def _widened(rows: Tensor, width: int, *, dims: int) -> Tensor:
    """(B, S, ...) filled up with zeros on the left to (B, W, ...); with two dims, (B, W, W)."""
    missing = width - rows.shape[1]
    after = [0, 0] * (rows.dim() - 1 - dims)
    return functional.pad(rows, [*after, *[missing, 0] * dims])


def _widened_mask(mask: Tensor, width: int) -> Tensor:
    """(B, S) or (B, S, S) to (B, W, W): who attends to whom; padding on the left to itself."""
    if mask.dim() == 2:
        nobody = torch.zeros(0, 0, dtype=torch.bool, device=mask.device)
        mask = _tree_mask(mask, nobody)
    widened = _widened(mask, width, dims=2)
    widened.diagonal(dim1=1, dim2=2).fill_(True)
    return widened


def _tree_mask(prompt: Tensor, attends: Tensor) -> Tensor:
    """Who attends to whom in ``[prompt; answer tree]``, (B, S + M, S + M).

    From (B, S), False at padding, and (M, M), ancestors within the tree.
    """
    batch, width = prompt.shape
    nodes = len(attends)
    mask = torch.zeros(batch, width + nodes, width + nodes, dtype=torch.bool, device=prompt.device)
    causal = torch.ones(width, width, dtype=torch.bool, device=prompt.device).tril()
    mask[:, :width, :width] = causal & prompt[:, None, :]
    mask[:, width:, :width] = prompt[:, None, :]
    mask[:, width:, width:] = attends
    # Padding attends to itself: a row that attends to nothing would give NaN.
    mask.diagonal(dim1=1, dim2=2).fill_(True)
    return mask
