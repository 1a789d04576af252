"""The original implementation's way of computing, written anew, to measure against.

What it does (with transformers 4.36): loads the published files whole, for each
split anew where they are one file; tokenises every utterance by itself before anything else; pads
every text on the left to the data set's length, and every feature sequence to the longest there is;
averages and attends to the padding; computes logits of the whole vocabulary at every position, in
float32, for the loss as for the first step of an answer; keeps the training batch size in
evaluation; writes two (ERC) or four (MSA) tokens, one step each, and reads the number out of the
text; on ChatGLM3 every step reads the whole sequence again. On a GPU the model is in float16 under
autocast, on a CPU in float32, and PyTorch takes memory as it does by itself. The attention is that
of this framework, which is no slower, and so is what reads the pickles, which takes some tenths of
a second more for lists of utterances (MELD, CHERMA).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import DynamicCache

from msea_lightning.adapter.lstm import LastStateLSTM
from msea_lightning.adapter.mse import MSEAdapter
from msea_lightning.backbone import resolve_device
from msea_lightning.backbone.options import Dtype
from msea_lightning.benchmark.subject import (
    Material,
    Round,
    StageClock,
    Subject,
    Workload,
    rest,
    weight_bytes,
)
from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.files.unpickle import load_pickle
from msea_lightning.data.options import LabelKind, Reader
from msea_lightning.language.prompt import Prompt, Texts, encode
from msea_lightning.metrics import UtteranceScore
from msea_lightning.model.build import build_adapter, build_prompt
from msea_lightning.training.build import load_config_backbone

if TYPE_CHECKING:
    pass

_PROFILED = 2
"""Batches whose stages are timed."""

_IGNORED = -100
"""Where no token is to be predicted."""

_NEW_TOKENS = {LabelKind.scale: 4, LabelKind.emotions: 2}
"""Tokens that are written in answer."""


@dataclass(frozen=True)
class _Split:
    """One split as it lies in memory, everything as long as the longest.

    Attributes:
        ids: (N, T) token ids of the texts, padded on the left.
        lengths: (N,) tokens of each text, as it is read.
        audio: (N, La, da) float32.
        vision: (N, Lv, dv) float32.
        audio_lengths: (N,) frames.
        vision_lengths: (N,) frames.
        labels: N labels.
    """

    ids: Tensor
    lengths: Tensor
    audio: Tensor
    vision: Tensor
    audio_lengths: Tensor
    vision_lengths: Tensor
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.labels)


class _Items(Dataset[dict[str, Any]]):
    def __init__(self, split: _Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        split = self._split
        return {
            "index": index,
            "ids": split.ids[index],
            "audio": split.audio[index],
            "vision": split.vision[index],
            "audio_lengths": split.audio_lengths[index],
            "vision_lengths": split.vision_lengths[index],
        }


class Original(Subject):
    """The original implementation.

    Args:
        config: All options; those of speed have no effect.
        material: The data, as it is published too.
    """

    def __init__(self, config: TrainConfig, material: Material) -> None:
        super().__init__(config, material)
        self._device = resolve_device(config.trainer.accelerator)
        # One for all rounds: each has other batches.
        self._shuffle = torch.Generator().manual_seed(config.seed)

    def start(self, clock: StageClock) -> None:
        """See the base class."""
        seed_everything(self.config.seed, workers=True, verbose=False)
        if self.config.trainer.threads is not None:
            torch.set_num_threads(self.config.trainer.threads)
        with clock.during("load"):
            self._load()
        with clock.during("first step"):
            self._step(next(self._loader("train")))

    @property
    def device(self) -> torch.device:
        """See the base class."""
        return self._device

    def train(self, steps: int, beginning: float = 0.5) -> Round:
        """See the base class; all batches cost the same here."""
        since, read = self._instant(), []
        for batch in islice(self._loader("train"), steps):
            self._step(batch)
            read += batch["index"].tolist()
        return self.measured("train", self._instant() - since, read)

    def evaluate(self, utterances: int, beginning: float = 0.5) -> Round:
        """See the base class; all batches cost the same here."""
        score, since, read = UtteranceScore(self._metrics), self._instant(), []
        split = self._splits["test"]
        steps = -(-utterances // self.config.training.batch_size)
        for batch in islice(self._loader("test"), steps):
            read += batch["index"].tolist()
            answers = self._read(self._generate(batch))
            score.update(
                answers, [self._tree.space.target(split.labels[index]) for index in batch["index"]]
            )
        score.compute()
        return self.measured("test", self._instant() - since, read)

    def stages(self) -> tuple[dict[str, float], dict[str, float]]:
        """See the base class."""
        training, evaluation = StageClock(self.device), StageClock(self.device)
        for batch in self._few("train", training):
            with self._watched(training, to_the_end=True):
                since = training.now()
                self._loss(batch).backward()  # type: ignore[no-untyped-call]
                training.add("step", since)
            with training.during("optimizer"):
                self._optimizer.step()
                self._optimizer.zero_grad()
        for batch in self._few("test", evaluation):
            with self._watched(evaluation, to_the_end=False):
                since = evaluation.now()
                self._read(self._generate(batch))
                evaluation.add("step", since)
        return (
            rest(training.seconds(), "step", "adapter"),
            rest(evaluation.seconds(), "step", "decode"),
        )

    # ---- loading -----------------------------------------------------------------------------

    def _load(self) -> None:
        config = self.config
        half = self.device.type == "cuda"
        config.backbone = replace(
            config.backbone, dtype=Dtype.float16 if half else Dtype.float32, compile=False
        )
        self._backbone = load_config_backbone(config.backbone, self.device)
        prompt, self._tree = build_prompt(
            self._backbone.tokenizer,
            config.dataset.labels,
            config.dataset,
            config.backbone,
            config.adapter,
            config.text,
            config.prompt,
            pad_id=self._backbone.pad_id,
        )
        self._prompt = self._padded(prompt)
        self._metrics = config.dataset.metrics
        adapter = build_adapter(
            config.adapter,
            config.ablation,
            width=self._backbone.width,
            dims={"audio": config.dataset.audio_dim, "vision": config.dataset.vision_dim},
        )
        assert isinstance(adapter, MSEAdapter)
        for branch in (adapter.audio, adapter.vision):
            if branch is not None and branch.lstm is not None:
                branch.lstm = cast("LastStateLSTM", _Packed(branch.lstm))
        self._adapter = adapter.to(self.device)
        self._optimizer = torch.optim.AdamW(
            adapter.parameters(), lr=config.training.learning_rate, eps=config.training.eps
        )
        self._splits = {split: self._read_split(split) for split in ("train", "valid", "test")}

    def _padded(self, prompt: Prompt) -> Prompt:
        return Prompt(
            self.config.backbone.layout,
            prompt.tokenizer,
            language=prompt.language,
            task=prompt.task,
            pseudo_tokens=prompt.pseudo_tokens,
            text_tokens=prompt.text_tokens,
            pad_id=prompt.pad_id,
            pad_to=prompt.text_tokens,
            attend_padding=True,
        )

    def _read_split(self, split: str) -> _Split:
        """Loads a split; of one file for all of them, all of it."""
        place = cast("Path", self.material.published)
        if self.config.dataset.reader is Reader.mmsa:
            content = load_pickle(place)[split]
            texts, labels = list(content["raw_text"]), list(content["regression_labels"])
            names = ("audio", "vision", "audio_lengths", "vision_lengths")
            arrays = [np.array(content[name]) for name in names]
        else:
            items = load_pickle(place / f"{self.config.dataset.name}_{split}.pkl")
            features = [item["features"] for item in items]
            texts, labels = [item["text"] for item in features], [item["label"] for item in items]
            keys = ("audio", "video", "audio_len", "video_len")
            arrays = [np.array([item[key] for item in features]) for key in keys]
        audio, vision, audio_lengths, vision_lengths = map(torch.from_numpy, arrays)
        padded = [self._tokenize(text) for text in texts]
        return _Split(
            ids=torch.cat([one.ids for one, _ in padded]),
            lengths=torch.tensor([length for _, length in padded]),
            audio=audio.float(),
            vision=vision.float(),
            audio_lengths=audio_lengths,
            vision_lengths=vision_lengths,
            labels=labels,
        )

    def _tokenize(self, text: str) -> tuple[Texts, int]:
        """One text, padded, and its length."""
        ids = encode(self._backbone.tokenizer, text)
        return self._prompt.pad_texts([ids]), min(len(ids), self._prompt.text_tokens)

    # ---- a step ------------------------------------------------------------------------------

    def _loader(self, split: str) -> Iterator[dict[str, Any]]:
        return iter(
            DataLoader(
                _Items(self._splits[split]),
                batch_size=self.config.training.batch_size,
                shuffle=True,
                generator=self._shuffle,
            )
        )

    def _step(self, batch: dict[str, Any]) -> None:
        self._optimizer.zero_grad()
        self._loss(batch).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy over the label tokens, from logits at all positions."""
        labels = [self._tree.ids(self._splits["train"].labels[index]) for index in batch["index"]]
        # What assemble() is given as the last token of a label is not read: here all of it is.
        embedded = self._embed(batch, [[*ids, self._prompt.pad_id] for ids in labels])
        targets = torch.full(embedded.shape[:2], _IGNORED)
        for row, ids in enumerate(labels):
            targets[row, -len(ids) :] = torch.tensor(ids)
        with self._autocast():
            scores = self._head(self._hidden(embedded))
            # As transformers shifts them, with a copy of all logits.
            shifted = scores[:, :-1].contiguous().view(-1, scores.shape[-1])
            expected = targets[:, 1:].to(self.device).flatten()
            return functional.cross_entropy(shifted, expected, ignore_index=_IGNORED)

    @torch.no_grad()
    def _generate(self, batch: dict[str, Any]) -> Tensor:
        """(B, n) greedy tokens, one step after another."""
        embedded = self._embed(batch, None)
        rereads = self.config.backbone.architecture.get("model_type") == "glm"
        written: list[Tensor] = []
        cache: Any = None
        with self._autocast():
            for _ in range(_NEW_TOKENS[self.config.dataset.labels.kind]):
                cache = DynamicCache() if rereads or cache is None else cache
                scores = self._head(self._hidden(embedded, cache))
                written.append(scores[:, -1].argmax(-1))
                following = self._backbone.embed(written[-1][:, None])
                embedded = torch.cat([embedded, following], dim=1) if rereads else following
        return torch.stack(written, dim=1)

    def _read(self, written: Tensor) -> list[float]:
        """The numbers in the texts; 0.0 where there is none."""
        return [
            _number(str(self._backbone.tokenizer.decode(ids, skip_special_tokens=True)))
            for ids in written.tolist()
        ]

    def _embed(self, batch: dict[str, Any], labels: list[list[int]] | None) -> Tensor:
        """(B, S, d) embeddings of the whole sequences."""
        ids = batch["ids"]
        everything = torch.ones_like(ids, dtype=torch.bool)
        with self._autocast():
            prefix, _ = self._adapter(
                self._backbone.embed(ids.to(self.device)),
                everything.to(self.device),
                batch["audio"].to(self.device),
                batch["audio_lengths"],
                batch["vision"].to(self.device),
                batch["vision_lengths"],
            )
        sequences = self._prompt.assemble(Texts(ids, everything), len(ids), labels)
        embedded = self._backbone.embed(sequences.ids.to(self.device))
        place = sequences.pseudo[:, :, None].to(self.device)
        return embedded.masked_scatter(place, prefix.to(embedded.dtype))

    def _hidden(self, embedded: Tensor, cache: Any = None) -> Tensor:
        """(B, S, d) last hidden states; keys and values go into the cache where there is one."""
        body = getattr(self._backbone.model, self._backbone.model.base_model_prefix)
        read = body(inputs_embeds=embedded, past_key_values=cache, use_cache=cache is not None)
        return cast("Tensor", read.last_hidden_state)

    def _head(self, hidden: Tensor) -> Tensor:
        """(B, S, V) logits in float32."""
        head = cast("nn.Module", self._backbone.model.get_output_embeddings())
        scores: Tensor = head(hidden)
        return scores.float()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.device.type == "cpu":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.float16)

    # ---- measuring ---------------------------------------------------------------------------

    def _instant(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def workload(self) -> Workload:
        """See the base class."""
        fixed = self._prompt.longest - self._prompt.text_tokens
        train, test = self._splits["train"], self._splits["test"]
        read = np.array([len(self._tree.ids(label)) - 1 for label in train.labels])
        return Workload(
            language=self._backbone.model.config,
            dtype=self._backbone.dtype,
            weights=weight_bytes(self._backbone.model),
            labels=int(self._tree.answer_ids.shape[1]),
            nodes=len(self._tree),
            opening=len(self._prompt.prefix_ids),
            train=train.lengths.numpy() + fixed + read,
            test=test.lengths.numpy() + fixed,
        )

    def _few(self, split: str, clock: StageClock) -> list[dict[str, Any]]:
        with clock.during("data"):
            return list(islice(self._loader(split), _PROFILED))

    def _watched(self, clock: StageClock, *, to_the_end: bool) -> ExitStack:
        watching = ExitStack()
        watching.enter_context(clock.watching(self, "_hidden", "backbone"))
        watching.enter_context(clock.watching(self, "_head", "head", to_the_end=to_the_end))
        if not to_the_end:
            watching.enter_context(clock.watching(self, "_embed", "adapter"))
        return watching


class _Packed(nn.LSTM):
    """PyTorch's LSTM over packed sequences, with the weights of another one."""

    def __init__(self, like: nn.LSTM) -> None:
        super().__init__(like.input_size, like.hidden_size, batch_first=True)
        self.load_state_dict(like.state_dict())

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """(B, H) last states of (B, L, F) frames with (B,) lengths."""
        packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = super().forward(packed)
        return last[0]


def _number(text: str) -> float:
    try:
        return float(text.strip())
    except ValueError:
        return 0.0
