"""The LightningModule: a trainable adapter in front of a frozen language model.

Shape legend: B utterances, T text tokens, S tokens of the sequence, n pseudo tokens, L label
tokens, M nodes of the answer tree, d width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional

from msea_lightning.adapter import Adapter, FeatureStandardizer, adapter_class
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.module import UtteranceDataModule
from msea_lightning.data.utterance import Batch
from msea_lightning.language.labels import Answers, AnswerTree, LabelSpace, decode, generated_prompt
from msea_lightning.language.options import Decode
from msea_lightning.language.prompt import Prompt, Sequences, Texts, encode
from msea_lightning.metrics import UtteranceScore, selection_metric, zero_share
from msea_lightning.training.options import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STEPS_UNSEEN = 10
"""Steps after which a device is asked whether a gradient was not finite."""

_NEVER = 2**62
"""A step that no run comes to."""

_NOTHING = torch.empty(0)
"""In place of what is not kept."""


class TaskError(UserError):
    """An adapter, a backbone and a data set that do not go together, or training that diverged."""


@dataclass(frozen=True)
class Prediction:
    """One decoded utterance.

    Attributes:
        index: Position in the split.
        id: Utterance id.
        text: The utterance's words.
        label: The true label.
        prediction: The decoded label.
        probability: Probability of the prediction among all legal answers.
    """

    index: int
    id: str
    text: str
    label: float | str
    prediction: float | str
    probability: float


class AdapterTask(LightningModule):
    """Pairs an adapter with a frozen backbone.

    The backbone is not a module of this one (see :class:`FrozenBackbone`): parameters, checkpoints
    and DDP hold the adapter and the feature statistics alone.

    Args:
        backbone: The frozen language model.
        adapter: The trainable plugin.
        standardizer: Feature standardisation; an identity where there is none.
        prompt: Turns texts and labels into sequences.
        tree: Legal answers as the backbone's tokenizer writes them.
        score: Metrics of the data set, one for each use.
        training: Optimisation.
        rule: How an answer is picked.

    Raises:
        TaskError: if sequences would be longer than the backbone reads as it was made to.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        adapter: Adapter,
        *,
        standardizer: FeatureStandardizer,
        prompt: Prompt,
        tree: AnswerTree,
        score: UtteranceScore,
        training: TrainingConfig | None = None,
        rule: Decode = Decode.greedy,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapter = adapter
        self.standardizer = standardizer
        self.prompt = prompt
        self.tree = tree
        self.rule = rule
        self.score = score
        self.predictions: list[Prediction] = []
        self._training = training or TrainingConfig()
        self._gathering: list[tuple[Batch, Answers]] = []
        self._seed = torch.initial_seed()
        self._metrics: dict[str, float] = {}
        self._diverged: Tensor | None = None
        self._check_length()

    # ---- the model ---------------------------------------------------------------------------

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Summed cross-entropy of the label tokens (paper, Eq. 2) and their number.

        Args:
            batch: B utterances with their labels.

        Returns:
            A scalar that carries the gradient to the adapter, and the number of label tokens.
        """
        logits, targets = self.label_logits(batch)
        return functional.cross_entropy(logits, targets, reduction="sum"), len(targets)

    def label_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits at the positions that predict label tokens, and nowhere else.

        Args:
            batch: B utterances with their labels, N label tokens altogether.

        Returns:
            (N, V) logits, and (N,) the token ids that they should predict; label after label.
        """
        texts, prefix, text = self._adapt(batch)
        labels = [self.tree.ids(label) for label in batch.labels]
        opening = self.backbone.opening(self.prompt.opening)
        after = opening.tokens if opening is not None else 0
        sequences = self.prompt.assemble(texts, len(batch), labels, after=after).to(self.device)
        embedded = self._embed(sequences, prefix, text)
        assert sequences.targets is not None
        wanted = sequences.targets != -100
        hidden = self.backbone.hidden(
            embedded, sequences.mask, sequences.positions, opening, wanted=wanted.shape[1]
        )
        # The last L positions of each row predict its label.
        predicting = functional.pad(wanted, (hidden.shape[1] - wanted.shape[1], 0))
        states = hidden.flatten(0, 1).index_select(0, self._places(predicting))
        targets = sequences.targets[wanted].to(self.device, non_blocking=True)
        return self.backbone.logits(states), targets

    @torch.no_grad()
    def answer_logp(self, batch: Batch) -> Tensor:
        """Log probability of every token of every legal answer, in one forward pass.

        The answer tree follows the prompt; each of its nodes attends to the prompt and to its own
        ancestors only.

        Args:
            batch: B utterances.

        Returns:
            (B, A, L) float32.
        """
        texts, prefix, text = self._adapt(batch)
        opening = self.backbone.opening(self.prompt.opening)
        after = opening.tokens if opening is not None else 0
        sequences = self.prompt.assemble(texts, len(batch), after=after).to(self.device)
        embedded = self._embed(sequences, prefix, text)
        mask, positions = sequences.mask, sequences.positions
        nodes = len(self.tree)
        if nodes:
            tree = self.tree.to(self.device)
            tokens = tree.tokens.expand(len(batch), -1)
            embedded = torch.cat([embedded, self.backbone.embed(tokens)], dim=1)
            positions = torch.cat([positions, positions[:, -1:] + tree.depths], dim=1)
            mask = _tree_mask(mask, tree.attends)
        hidden = self.backbone.hidden(embedded, mask, positions, opening, wanted=1 + nodes)
        return self.backbone.token_logp(
            hidden[:, -1 - nodes :], self.tree.predictors, self.tree.answer_ids
        )

    def answers(self, batch: Batch, rule: Decode | None = None) -> Answers:
        """Decoded answers of a batch, with the full distribution over all legal ones.

        Args:
            batch: B utterances.
            rule: How an answer is picked; the task's own rule where not given.
        """
        return decode(self.tree, self.answer_logp(batch), rule or self.rule)

    def _adapt(self, batch: Batch) -> tuple[Texts | None, Tensor | None, Tensor | None]:
        """Tokenised texts, pseudo tokens (B, n, d), and the text embeddings if they changed.

        The latter are (all real text tokens of the batch, d), row after row.
        """
        audio, vision = self.standardizer(
            batch.audio, batch.audio_lengths, batch.vision, batch.vision_lengths
        )
        if self.adapter.use_text:
            if batch.tokens is None:
                texts = self.prompt.encode_texts(batch.texts)
            else:
                texts = self.prompt.pad_texts(batch.tokens)
            text_mask = texts.mask.to(self.device, non_blocking=True)
            text = self.backbone.embed(texts.ids.to(self.device, non_blocking=True))
        else:
            texts = None
            text_mask = torch.zeros(len(batch), 0, dtype=torch.bool, device=self.device)
            text = torch.zeros(len(batch), 0, self.backbone.width, device=self.device)
        prefix, adapted = self.adapter(
            text, text_mask, audio, batch.audio_lengths, vision, batch.vision_lengths
        )
        if adapted is text or texts is None:
            return texts, prefix, None
        return texts, prefix, adapted.flatten(0, 1).index_select(0, self._places(texts.mask))

    def _embed(self, sequences: Sequences, prefix: Tensor | None, text: Tensor | None) -> Tensor:
        """Embeddings (B, S, d) with what the adapter returned in its places."""
        embedded = self.backbone.embed(sequences.ids)
        for place, values in ((sequences.pseudo, prefix), (sequences.text, text)):
            if values is not None:
                rows = values.reshape(-1, values.shape[-1]).to(embedded.dtype)
                flat = embedded.flatten(0, 1).index_copy(0, self._places(place), rows)
                embedded = flat.view_as(embedded)
        return embedded

    def _places(self, where: Tensor) -> Tensor:
        """Row-major positions (N,) on the device of what a mask on the CPU marks."""
        found = where.flatten().nonzero().squeeze(1)
        return found.to(self.device, non_blocking=True)

    def _check_length(self) -> None:
        limit = self.backbone.max_positions
        answer = self.tree.answer_ids.shape[1]
        longest = self.prompt.longest + answer
        if limit is not None and longest > limit:
            left = self.prompt.text_tokens - (longest - limit)
            remedy = "shorten prompt.task, which leaves no room for a text"
            if left > 0:
                remedy = (
                    f"lower dataset.text_tokens={self.prompt.text_tokens} to {left} or less, or "
                    "shorten prompt.task"
                )
            raise TaskError(
                f"Sequences of this data set may be {longest} tokens long, but the backbone reads "
                f"{limit} at a time: {remedy}."
            )

    # ---- Lightning ---------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Puts the backbone where the adapter goes."""
        self.backbone.to(self.trainer.strategy.root_device)

    def on_fit_start(self) -> None:
        """Forgets that an earlier training diverged."""
        self._diverged = None

    def on_train_epoch_start(self) -> None:
        """Draws dropout anew from seed, epoch and device: a resumed run draws what others do."""
        earlier = self.current_epoch * self.trainer.world_size + self.global_rank
        torch.manual_seed(self._seed + earlier)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy over the label tokens of the global batch."""
        loss, count = self.loss(batch)
        world, parts = self.trainer.world_size, self.trainer.accumulate_grad_batches
        labels = batch.labels if batch.step_labels is None else batch.step_labels
        total = sum(len(self.tree.ids(label)) for label in labels)
        self.log(
            "train/loss",
            loss.detach() / count,
            prog_bar=True,
            on_step=True,
            on_epoch=True,
            batch_size=count,
            sync_dist=world > 1,
        )
        # Gradients are averaged over devices and parts, which may hold different numbers of tokens.
        return loss * (world * parts / total)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Notices when training has diverged.

        On a CPU at once, before the weights are spoilt; elsewhere, where looking means to wait for
        the device, every few steps and before the epoch's checkpoint.
        """
        gradients = [p.grad for p in self.adapter.parameters() if p.grad is not None]
        broken = ~torch.isfinite(nn.utils.get_total_norm(gradients))
        step = torch.where(broken, self.global_step, _NEVER)
        self._diverged = step if self._diverged is None else self._diverged.minimum(step)
        if self.device.type == "cpu" or self.global_step % _STEPS_UNSEEN == 0:
            self._refuse_divergence()

    def on_train_epoch_end(self) -> None:
        """Looks once more whether training has diverged."""
        self._refuse_divergence()

    def _refuse_divergence(self) -> None:
        if self._diverged is None or (step := int(self._diverged)) == _NEVER:
            return
        raise TaskError(
            f"The gradient is not finite in epoch {self.current_epoch}, step {step}: training has "
            "diverged. Lower training.learning_rate="
            f"{self._training.learning_rate}, set training.gradient_clip=1, standardise the "
            "features (dataset.standardize=true), or use backbone.dtype=float32."
        )

    def on_validation_epoch_start(self) -> None:
        """Empties the collected predictions."""
        self._gathering = []
        self.score.reset()

    def on_test_epoch_start(self) -> None:
        """Empties the collected predictions."""
        self.on_validation_epoch_start()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Decodes a batch."""
        answers = self.answers(batch)
        # Read at the end of the epoch, because reading means to wait for the device. Features are
        # not kept, nor are distributions.
        self._gathering.append(
            (replace(batch, audio=None, vision=None), replace(answers, distribution=_NOTHING))
        )

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Decodes a batch."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Computes the metrics over all devices and logs them as ``valid/<metric>``."""
        self._log_metrics("valid")

    def on_test_epoch_end(self) -> None:
        """Computes the metrics over all devices and logs them as ``test/<metric>``."""
        self._log_metrics("test")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a cosine schedule after a linear warm-up, stepped once a batch."""
        from transformers import get_cosine_schedule_with_warmup

        options = self._training
        optimizer = torch.optim.AdamW(
            self.adapter.parameters(),
            lr=options.learning_rate,
            eps=options.eps,
            weight_decay=options.weight_decay,
            fused=True,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_schedule_with_warmup(
            optimizer, int(steps * options.warmup_fraction), steps
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def metrics(self) -> dict[str, float]:
        """Metrics of the evaluation that ran last, by their names in the paper's tables.

        With intensities also ``zero_share``, the share of predictions that are exactly zero, for
        which the two binary accuracies differ.
        """
        values = dict(self._metrics)
        if self.tree.space.ordered and self.predictions:
            values["zero_share"] = zero_share([p.prediction for p in self.predictions])
        return values

    def _read(self) -> list[Prediction]:
        """This device's predictions, which also go into the metrics."""
        space, decoded = self.tree.space, self._gathering
        self._gathering = []
        if not decoded:
            return []
        values = torch.cat([answers.value for _, answers in decoded]).tolist()
        probabilities = torch.cat([answers.probability for _, answers in decoded]).tolist()
        labels = [label for batch, _ in decoded for label in batch.labels]
        self.score.update(values, [space.target(label) for label in labels])
        return [
            Prediction(index, utterance, text, label, space.label(value), probability)
            for index, utterance, text, label, value, probability in zip(
                torch.cat([batch.index for batch, _ in decoded]).tolist(),
                [utterance for batch, _ in decoded for utterance in batch.ids],
                [text for batch, _ in decoded for text in batch.texts],
                labels,
                values,
                probabilities,
                strict=True,
            )
        ]

    def _log_metrics(self, stage: str) -> None:
        own = self._read()
        gathered = [own]
        if self.trainer.world_size > 1:
            gathered = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(gathered, own)
        self.predictions = sorted(
            (prediction for part in gathered for prediction in part), key=lambda p: p.index
        )
        self._metrics = self.score.compute()
        selection = selection_metric(self.score.kind).name
        for name, value in self._metrics.items():
            # Every device has computed the same value from all predictions.
            self.log(f"{stage}/{name}", value, prog_bar=name == selection and stage == "valid")


def build_prompt(
    config: TrainConfig,
    data: UtteranceDataModule,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pad_id: int,
) -> tuple[Prompt, AnswerTree]:
    """The sequence layout and the legal answers of a run, for which no backbone is needed.

    Args:
        config: All options of a run.
        data: The data module, set up.
        tokenizer: The backbone's tokenizer.
        pad_id: Id that pads texts and sequences.

    Raises:
        UserError: where labels, prompt and tokenizer do not go together.
    """
    space = LabelSpace.from_config(
        data.labels, signed=config.backbone.signed_labels, encode=partial(encode, tokenizer)
    )
    prompt = Prompt(
        config.backbone.layout,
        tokenizer,
        language=config.dataset.language,
        task=config.prompt.task or generated_prompt(space, config.dataset.language.value),
        pseudo_tokens=config.adapter.pseudo_tokens or 0,
        text_tokens=config.dataset.text_tokens,
        pad_id=pad_id,
        pad_to=config.text.pad_to,
        attend_padding=config.text.attend_padding,
    )
    return prompt, AnswerTree(space, prompt.encode, prompt.decode)


def build_adapter(config: TrainConfig, data: UtteranceDataModule, width: int) -> Adapter:
    """The adapter of a run, untrained.

    Args:
        config: All options of a run.
        data: The data module, set up.
        width: Width d of the backbone's embeddings.

    Raises:
        AdapterError: for an adapter that does not exist, or sizes that it does not have.
    """
    make: Callable[..., Adapter] = adapter_class(config.adapter.name)
    return make(
        width,
        data.audio_dim,
        data.vision_dim,
        **config.adapter.arguments(),
        **config.ablation.arguments(config.adapter.name),
    )


def build_task(
    config: TrainConfig, data: UtteranceDataModule, backbone: FrozenBackbone
) -> AdapterTask:
    """The task that a config describes, for a data set and a backbone that are at hand.

    Args:
        config: All options of a run.
        data: The data module, set up.
        backbone: The frozen language model.

    Raises:
        UserError: where data, labels, backbone and adapter do not go together.
    """
    prompt, tree = build_prompt(config, data, backbone.tokenizer, pad_id=backbone.pad_id)
    adapter = build_adapter(config, data, backbone.width)
    statistics = data.feature_statistics() if config.dataset.standardize else None
    return AdapterTask(
        backbone,
        adapter,
        standardizer=FeatureStandardizer(statistics),
        prompt=prompt,
        tree=tree,
        score=UtteranceScore(data.metrics),
        training=config.training,
        rule=config.decode,
    )


def trainable(module: nn.Module) -> int:
    """Number of trainable parameters: the adapter's, whatever else a module holds."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _tree_mask(prompt: Tensor, attends: Tensor) -> Tensor:
    """Who attends to whom in ``[prompt; answer tree]``.

    Args:
        prompt: (B, S) bool, False at padding.
        attends: (M, M) bool, ancestors within the tree.

    Returns:
        (B, S + M, S + M) bool.
    """
    batch, width = prompt.shape
    nodes = len(attends)
    mask = torch.zeros(batch, width + nodes, width + nodes, dtype=torch.bool, device=prompt.device)
    causal = torch.ones(width, width, dtype=torch.bool, device=prompt.device).tril()
    mask[:, :width, :width] = causal & prompt[:, None, :]
    mask[:, width:, :width] = prompt[:, None, :]
    mask[:, width:, width:] = attends
    # Padding attends to itself: a row without any place would give NaN.
    mask.diagonal(dim1=1, dim2=2).fill_(True)
    return mask
