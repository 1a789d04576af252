"""The original implementation's way of computing, written anew, to measure against.

What it does (with transformers 4.36): loads the published files whole, for each split anew where
they are one file; tokenises every utterance by itself before anything else; pads every text on the
left to the data set's length, and every feature sequence to the longest there is; averages and
attends to the padding; computes logits of the whole vocabulary at every position, in float32, for
the loss as for the first step of an answer; keeps the training batch size in evaluation; writes two
(ERC) or four (MSA) tokens, one step each, and reads the number out of the text; on ChatGLM3 every
step reads the whole sequence again. On a GPU the model is in float16 under autocast, on a CPU in
float32, and PyTorch allocates memory as it does by default.

Two things are those of this framework: the attention, which is no slower, and what reads the
pickles, which takes some tenths of a second more for lists of utterances (MELD, CHERMA).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import seed_everything
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import DynamicCache

from msea_lightning.adapter.mse import MSEAdapter
from msea_lightning.backbone import resolve_device
from msea_lightning.backbone.options import Dtype
from msea_lightning.benchmark.variant import STAGED_BATCHES, StageClock, Variant, now
from msea_lightning.config.roots import TrainConfig
from msea_lightning.cost.estimate import run_prompt
from msea_lightning.data.files.unpickle import load_pickle
from msea_lightning.data.options import SPLITS, DatasetConfig, Reader
from msea_lightning.data.utterance import Label
from msea_lightning.language.prompt import Prompt, Texts, encode
from msea_lightning.metrics import UtteranceScore
from msea_lightning.metrics.options import MetricKind
from msea_lightning.model.build import build_adapter
from msea_lightning.training.build import load_config_backbone

_IGNORED = -100
"""Target where no token is to be predicted."""

Items = dict[str, Any]
"""A batch: ``index`` (B,) in the split, ``ids`` (B, T) of the texts, features and their lengths."""


@dataclass(eq=False)
class _Split(Dataset[Items]):
    """One split as it lies in memory, everything as long as the longest.

    Attributes:
        tensors: ``ids`` (N, T), padded on the left; ``audio`` (N, La, da) and ``vision``
            (N, Lv, dv) float32; ``audio_lengths`` and ``vision_lengths`` (N,).
        tokens: (N,) tokens of each text without padding.
    """

    tensors: dict[str, Tensor]
    tokens: NDArray[np.int64]
    labels: list[Label]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Items:
        return {"index": index, **{name: values[index] for name, values in self.tensors.items()}}


@dataclass(eq=False)
class Original(Variant):
    """The original implementation; options of speed have no effect."""

    splits: Mapping[str, _Split]
    metrics: MetricKind
    shuffle: torch.Generator

    @property
    def _methods(self) -> Mapping[str, tuple[object, str]]:
        return {
            "backbone": (self, "_hidden"),
            "head": (self, "_head"),
            "adapter": (self, "_embed"),
        }

    def _train(self, batches: int, offset: float) -> tuple[float, list[int]]:
        since, read = now(self.device), []
        for batch in islice(self._batches("train"), batches):
            self._step(batch)
            read += batch["index"].tolist()
        return now(self.device) - since, read

    def _evaluate(self, utterances: int, offset: float) -> tuple[float, list[int]]:
        score, since, read = UtteranceScore(self.metrics), now(self.device), []
        labels, space = self.splits["test"].labels, self.tree.space
        for batch in islice(self._batches("test"), -(-utterances // self.batch_size)):
            read += batch["index"].tolist()
            score.update(self._decode(batch), [space.target(labels[i]) for i in batch["index"]])
        score.compute()
        return now(self.device) - since, read

    def _texts(self, split: str) -> tuple[NDArray[np.int64], list[Label]]:
        return self.splits[split].tokens, self.splits[split].labels

    def _few_batches(self, split: str, clock: StageClock) -> Sequence[Items]:
        with clock.during("data"):
            return list(islice(self._batches(split), STAGED_BATCHES))

    def _batches(self, split: str) -> Iterator[Items]:
        data, size = self.splits[split], self.batch_size
        return iter(DataLoader(data, size, shuffle=True, generator=self.shuffle))

    def _step(self, batch: Items) -> None:
        self.optimizer.zero_grad()
        self._mean_loss(batch).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _mean_loss(self, batch: Items) -> Tensor:
        """Cross-entropy over the label tokens, from logits at all positions."""
        labels = [self.tree.ids(self.splits["train"].labels[index]) for index in batch["index"]]
        # assemble() leaves out the last token of a label, which is not read: here all are read.
        embedded = self._embed(batch, [[*ids, self.prompt.pad_id] for ids in labels])
        targets = torch.full(embedded.shape[:2], _IGNORED)
        for row, ids in enumerate(labels):
            targets[row, -len(ids) :] = torch.tensor(ids)
        with self._autocast():
            scores = self._head(self._hidden(embedded))
            # As transformers shifts them, with a copy of all logits.
            shifted = scores[:, :-1].contiguous().view(-1, scores.shape[-1])
            expected = targets[:, 1:].to(self.device).flatten()
            return functional.cross_entropy(shifted, expected, ignore_index=_IGNORED)

    def _decode(self, batch: Items) -> list[float]:
        """The numbers in the texts that it writes; 0.0 where there is none."""
        tokenizer = self.backbone.tokenizer
        written = self._generate(batch).tolist()
        return [_number(str(tokenizer.decode(ids, skip_special_tokens=True))) for ids in written]

    @torch.no_grad()
    def _generate(self, batch: Items) -> Tensor:
        """(B, n) greedy tokens, one step after another."""
        embedded = self._embed(batch, None)
        rereads = self.backbone.model.config.model_type == "glm"
        count = 4 if self.tree.space.ordered else 2
        written: list[Tensor] = []
        cache: Any = None
        with self._autocast():
            for _ in range(count):
                cache = DynamicCache() if rereads or cache is None else cache
                scores = self._head(self._hidden(embedded, cache))
                written.append(scores[:, -1].argmax(-1))
                following = self.backbone.embed(written[-1][:, None])
                embedded = torch.cat([embedded, following], dim=1) if rereads else following
        return torch.stack(written, dim=1)

    def _embed(self, batch: Items, labels: list[list[int]] | None) -> Tensor:
        """(B, S, d) embeddings of the whole sequences."""
        ids = batch["ids"]
        everything = torch.ones_like(ids, dtype=torch.bool)
        with self._autocast():
            pseudo, _ = self.adapter(
                self.backbone.embed(ids.to(self.device)),
                everything.to(self.device),
                batch["audio"].to(self.device),
                batch["audio_lengths"],
                batch["vision"].to(self.device),
                batch["vision_lengths"],
            )
        sequences = self.prompt.assemble(Texts(ids, everything), len(ids), labels)
        embedded = self.backbone.embed(sequences.ids.to(self.device))
        place = sequences.pseudo[:, :, None].to(self.device)
        return embedded.masked_scatter(place, pseudo.to(embedded.dtype))

    def _hidden(self, embedded: Tensor, cache: Any = None) -> Tensor:
        """(B, S, d) last hidden states; keys and values go into the cache where there is one."""
        body = getattr(self.backbone.model, self.backbone.model.base_model_prefix)
        read = body(inputs_embeds=embedded, past_key_values=cache, use_cache=cache is not None)
        return cast("Tensor", read.last_hidden_state)

    def _head(self, hidden: Tensor) -> Tensor:
        """(B, S, V) logits in float32."""
        head = cast("nn.Module", self.backbone.model.get_output_embeddings())
        scores: Tensor = head(hidden)
        return scores.float()

    def _autocast(self) -> torch.autocast:
        device = self.device.type
        return torch.autocast(device, dtype=torch.float16, enabled=device != "cpu")


def load_original(config: TrainConfig, published: Path) -> Original:
    """The original implementation on published files, as ``dataset.path`` names them."""
    seed_everything(config.seed, workers=True, verbose=False)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    device = resolve_device(config.trainer.accelerator)
    dtype = Dtype.float16 if device.type == "cuda" else Dtype.float32
    backbone = load_config_backbone(replace(config.backbone, dtype=dtype, compile=False), device)
    dataset, training = config.dataset, config.training
    # Texts of one length that are attended to in full, padding included.
    text = replace(config.text, pad_to=dataset.text_tokens, attend_padding=True)
    prompt, tree = run_prompt(
        replace(config, text=text), dataset.labels, backbone.tokenizer, backbone.pad_id
    )
    adapter = build_adapter(
        config.adapter,
        config.ablation,
        width=backbone.width,
        dims={"audio": dataset.audio_dim, "vision": dataset.vision_dim},
    )
    assert isinstance(adapter, MSEAdapter)
    for branch in (adapter.audio, adapter.vision):
        if branch is not None and branch.lstm is not None:
            branch.lstm.forward = partial(_last_state, branch.lstm)  # type: ignore[method-assign]
    adapter.to(device)
    return Original(
        backbone,
        adapter,
        prompt,
        tree,
        torch.optim.AdamW(adapter.parameters(), lr=training.learning_rate, eps=training.eps),
        training.batch_size,
        accumulate=1,
        splits={split: _read_split(published, dataset, split, prompt) for split in SPLITS},
        metrics=dataset.metrics,
        shuffle=torch.Generator().manual_seed(config.seed),
    )


def _read_split(published: Path, dataset: DatasetConfig, split: str, prompt: Prompt) -> _Split:
    """Loads a split; of one file for all of them, all of it."""
    if dataset.reader is Reader.mmsa:
        content = load_pickle(published)[split]
        texts, labels = list(content["raw_text"]), list(content["regression_labels"])
    else:
        items = load_pickle(published / f"{dataset.name}_{split}.pkl")
        features = [item["features"] for item in items]
        texts, labels = [item["text"] for item in features], [item["label"] for item in items]
        keys = {"audio": "audio", "vision": "video"}
        keys |= {"audio_lengths": "audio_len", "vision_lengths": "video_len"}
        content = {name: [item[key] for item in features] for name, key in keys.items()}
    names = ("audio", "vision", "audio_lengths", "vision_lengths")
    tensors = {name: torch.from_numpy(np.array(content[name])) for name in names}
    tokenized = [encode(prompt.tokenizer, text) for text in texts]
    padded = [prompt.pad_texts([ids]).ids for ids in tokenized]
    tensors |= {"ids": torch.cat(padded)}
    tensors |= {name: tensors[name].float() for name in ("audio", "vision")}
    tokens = np.array([min(len(ids), prompt.text_tokens) for ids in tokenized])
    return _Split(tensors, tokens, labels)


def _last_state(lstm: nn.LSTM, frames: Tensor, lengths: Tensor) -> Tensor:
    """(B, H) last states of (B, L, F) frames with (B,) lengths, by PyTorch's packed sequences."""
    packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
    _, (last, _) = nn.LSTM.forward(lstm, packed)
    return last[0]


def _number(text: str) -> float:
    try:
        return float(text.strip())
    except ValueError:
        return 0.0
