"""The input sequence of the backbone: layout and task prompt as data, text <-> token ids.

A layout is an ordered list of segments (``conf/backbone/*.yaml``): special tokens, wrapping
strings, the pseudo tokens P, the text T, the task prompt; the label follows. For LLaMA it is
``<s> <s> "<Multimodal>" P T "</Multimodal>" prompt``. Every quoted piece is tokenised by itself,
as the original does, because a tokenizer treats the start of a string specially.

Shape legend: B utterances, S tokens of the longest sequence, T of the longest text, n pseudo
tokens, L label tokens of the longest label.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msea_lightning.config.errors import UserError
from msea_lightning.data.options import Language
from msea_lightning.language.options import Order, SegmentConfig, SegmentKind
from msea_lightning.language.wording import Wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptError(UserError):
    """A layout that the tokenizer cannot write."""


def encode(tokenizer: PreTrainedTokenizerBase, string: str) -> list[int]:
    """Token ids of one piece of a sequence, without special tokens."""
    ids: list[int] = tokenizer(string, add_special_tokens=False)["input_ids"]
    return ids


def encode_word(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    """Token ids of a word that follows others.

    A space stands before it, unless the tokenizer begins every piece with one (LLaMA 2).
    """
    ids = encode(tokenizer, word)
    first = str(tokenizer.convert_ids_to_tokens(ids[:1])[0]) if ids else ""
    return ids if first.startswith(("\u2581", "\u0120")) else encode(tokenizer, f" {word}")


def encode_all(tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> list[list[int]]:
    """Token ids of many strings, each by itself, without special tokens."""
    # Else transformers warns of texts beyond what the model reads, which are cut afterwards.
    found = tokenizer(list(strings), add_special_tokens=False, verbose=False)
    ids: list[list[int]] = found["input_ids"]
    return ids


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that a tokenizer puts in front of a text (``[gMASK] <sop>`` of GLM-4).

    Else its beginning token, which some leave to others to write (GPT-2); else nothing (Qwen2.5).
    """
    whole, plain = tokenizer("a")["input_ids"], encode(tokenizer, "a")
    for front in range(1, len(whole) - len(plain) + 1):
        if whole[front : front + len(plain)] == plain:
            return list(whole[:front])
    bos = tokenizer.bos_token_id
    return [] if bos is None else [int(bos)]


def ordered(layout: Sequence[SegmentConfig], order: Order) -> list[SegmentConfig]:
    """The segments of a layout in another order; see :class:`Order`."""
    if order is Order.pseudo_first:
        return list(layout)
    last = [segment for segment in layout if segment.kind is SegmentKind.pseudo]
    rest = [segment for segment in layout if segment.kind is not SegmentKind.pseudo]
    if order is Order.prompt_first:
        special = (SegmentKind.token, SegmentKind.bos)
        begin = list(takewhile(lambda segment: segment.kind in special, rest))
        task = [segment for segment in rest if segment.kind is SegmentKind.prompt]
        others = [segment for segment in rest[len(begin) :] if segment not in task]
        rest = [*begin, *task, *others]
    return [*rest, *last]


@dataclass(frozen=True, eq=False)
class Texts:
    """Tokenised texts of a batch.

    Attributes:
        ids: (B, T) token ids, padded on the left.
        mask: (B, T) bool, which of them the model reads and the adapter averages. With
            ``attend_padding`` that includes the padding.
        contexts: B arrays of token ids of what was said before, which the model alone reads; None
            where it reads none.
    """

    ids: Tensor
    mask: Tensor
    contexts: Sequence[NDArray[np.int32]] | None = None

    def before(self, row: int) -> list[int]:
        """Token ids of what was said before an utterance."""
        return [] if self.contexts is None else [int(token) for token in self.contexts[row]]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences of a batch, padded on the left to the longest.

    The masks of pseudo tokens and text stay on the CPU, so that a look-up waits for no device.

    Attributes:
        ids: (B, S) token ids; the pad id where a pseudo token goes.
        mask: (B, S) bool, False at padding.
        positions: (B, S) positions counted from each sequence's first real token.
        pseudo: (B, S) bool on the CPU, where the pseudo tokens go; n in every row, one after the
            other.
        text: (B, S) bool on the CPU, where the text is; as many in a row as its ``Texts.mask`` has.
        targets: (B, L) on the CPU, label token ids that the last L positions predict, aligned
            right, -100 where a label is shorter; None without labels.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    pseudo: Tensor
    text: Tensor
    targets: Tensor | None

    def to(self, device: torch.device) -> Sequences:
        """The sequences with ids, mask and positions on another device."""
        return replace(
            self,
            ids=self.ids.to(device, non_blocking=True),
            mask=self.mask.to(device, non_blocking=True),
            positions=self.positions.to(device, non_blocking=True),
        )


@dataclass(eq=False)
class Prompt:
    """Turns texts and labels into sequences of token ids.

    Attributes:
        layout: Segments in order; the label follows the last one.
        tokenizer: The backbone's tokenizer.
        language: Chooses the wrapping strings.
        task: The task prompt.
        pseudo_tokens: Number of pseudo tokens n; 0 where the adapter makes none.
        text_tokens: Texts are cut on the right to this many tokens.
        pad_id: Id that pads texts and sequences.
        pad_to: Every text takes this many positions of the sequence, as in the original; without
            ``attend_padding`` the padding is masked and changes nothing but the shapes.
        attend_padding: With ``pad_to``: padding is attended to and averaged into the text mean.
        wording: How texts are written before they are tokenised.
        text_changes: Whether the adapter changes the embeddings of the text.
        anchored: Whether the pseudo tokens, which come last, take the places of the task prompt's
            last n tokens, :attr:`anchor_ids`.

    Raises:
        PromptError: if a special token of the layout is unknown to the tokenizer, or a string
            or the template of a context does not survive tokenising; if anchored pseudo tokens do
            not follow a task prompt of as many tokens.
    """

    layout: Sequence[SegmentConfig]
    tokenizer: PreTrainedTokenizerBase
    language: Language
    task: str
    pseudo_tokens: int
    text_tokens: int
    pad_id: int
    pad_to: int | None = None
    attend_padding: bool = False
    wording: Wording = field(default_factory=Wording)
    text_changes: bool = False
    anchored: bool = False

    def __post_init__(self) -> None:
        self._segments = [self._ids_and_kind(segment) for segment in self.layout]
        self.anchor_ids: list[int] = self._take_anchors() if self.anchored else []
        if self.most_context:
            self._check_template()

    @property
    def prefix_ids(self) -> list[int]:
        """Token ids that all sequences begin with, before pseudo tokens and text."""
        fixed = takewhile(lambda segment: segment[1] == _FIXED, self._segments)
        return [token for ids, _ in fixed for token in ids]

    def leading(self, texts: Texts | None, count: int) -> list[list[int]]:
        """Token ids of each of B sequences up to the first one that training may change.

        That is the prefix, and where pseudo tokens come last, all before them. The last token of a
        sequence is never among them, because its state is read.

        Args:
            texts: As in :meth:`assemble`.
            count: B, the number of utterances.
        """
        constant = {_FIXED, _CONTEXT}
        if not self.text_changes and self.pad_to is None:
            constant.add(_TEXT)
        segments = list(takewhile(lambda segment: segment[1] in constant, self._variable))
        whole = len(segments) == len(self._variable)
        rows = []
        for row in range(count):
            ids: list[int] = []
            for segment, kind in segments:
                if kind == _FIXED:
                    ids += segment
                elif texts is not None and kind == _CONTEXT:
                    ids += texts.before(row)
                elif texts is not None:
                    ids += texts.ids[row][texts.mask[row]].tolist()
            rows.append(ids[:-1] if whole else ids)
        return rows

    @property
    def _variable(self) -> list[tuple[list[int], int]]:
        """The segments without pseudo tokens that there are none of."""
        return [part for part in self._segments if part[1] != _PSEUDO or self.pseudo_tokens]

    @property
    def most_context(self) -> int:
        """Most tokens of what was said before; 0 where none is read."""
        kinds = (kind for _, kind in self._segments)
        return self.wording.context_tokens if self.wording.context and _CONTEXT in kinds else 0

    @property
    def longest(self) -> int:
        """Most tokens that a sequence has without its label."""
        fixed = sum(len(ids) for ids, _ in self._segments)
        return fixed + self.most_context + (self.pad_to or self.text_tokens)

    def encode(self, string: str) -> list[int]:
        """Token ids of one piece of a sequence, without special tokens."""
        return encode(self.tokenizer, string)

    def decode(self, ids: Sequence[int]) -> str:
        """The string that token ids stand for, to the letter."""
        # Tidying would take the space out of " ." and make a sound tokenizer look like a bad one.
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def describe(self, answer: str, ids: Sequence[int] | None) -> str:
        """The whole sequence on one line, as the tokenizer writes it, with an answer as example.

        Special tokens stand bare, strings in quotes, ``P*4`` is four pseudo tokens; such as
        ``<s> "<Multimodal>" P*4 text "</Multimodal>" "The emotion is" label ("0" as ▁ 0)``.

        Args:
            answer: The example.
            ids: Its token ids; None where no answer is written.
        """
        written: list[str] = []
        for segment, (own, _) in zip(self.layout, self._segments, strict=True):
            if segment.kind is SegmentKind.pseudo:
                words = f" ({self.decode(self.anchor_ids)!r})" if self.anchor_ids else ""
                written += [f"P*{self.pseudo_tokens}{words}"] if self.pseudo_tokens else []
            elif segment.kind is SegmentKind.context:
                written += ["context"] if self.most_context else []
            elif segment.kind is SegmentKind.text:
                written.append("text")
            elif segment.kind in (SegmentKind.literal, SegmentKind.prompt):
                is_cut = self.anchored and segment.kind is SegmentKind.prompt
                string = self.decode(own) if is_cut else self._string(segment)
                written += [json.dumps(string, ensure_ascii=False)] if string else []
            else:
                written += self._tokens(own)
        if ids is not None:
            written.append(f'label ("{answer}" as {" ".join(self._tokens(ids))})')
        return " ".join(written)

    def encode_texts(self, texts: Sequence[str]) -> Texts:
        """Tokenises B texts, cuts them on the right and pads them on the left."""
        written = [self.wording.text(text) for text in texts]
        return self.pad_texts(encode_all(self.tokenizer, written))

    def pad_texts(
        self,
        encoded: Sequence[Sequence[int] | NDArray[np.int32]],
        contexts: Sequence[NDArray[np.int32]] | None = None,
    ) -> Texts:
        """Cuts B tokenised texts on the right and pads them on the left; contexts are as they are.

        These are left out where the layout has no place for them.
        """
        limit = self.text_tokens if self.pad_to is None else min(self.text_tokens, self.pad_to)
        rows = [ids[:limit] for ids in encoded]
        ids = _pad_left(rows, self.pad_id, self.pad_to)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]
        return Texts(ids, mask | self.attend_padding, contexts)

    def assemble(
        self,
        texts: Texts | None,
        count: int,
        labels: Sequence[Sequence[int]] | None = None,
        *,
        after: int | Sequence[int] = 0,
    ) -> Sequences:
        """Lays out the sequences of a batch.

        Args:
            texts: Tokenised texts and contexts; None where the model reads none (w/o T).
            count: B, the number of utterances.
            labels: Token ids of the B labels, in training. The last token of each is only
                predicted, never read.
            after: So many tokens of each sequence have been read already and are left out;
                positions go on from there.
        """
        read = [after] * count if isinstance(after, int) else list(after)
        rows: list[list[int]] = []
        kinds: list[list[int]] = []
        for row in range(count):
            ids: list[int] = []
            kind: list[int] = []
            for segment, segment_kind in self._segments:
                if segment_kind == _CONTEXT:
                    before = [] if texts is None else texts.before(row)
                    ids += before
                    kind += [_FIXED] * len(before)
                elif segment_kind != _TEXT:
                    ids += segment
                    kind += [segment_kind] * len(segment)
                elif texts is not None:
                    kept = texts.mask[row] if self.pad_to is None else slice(None)
                    ids += texts.ids[row][kept].tolist()
                    kind += [_TEXT if real else _PADDING for real in texts.mask[row][kept].tolist()]
            if labels is not None:
                ids += labels[row][:-1]
                kind += [_FIXED] * (len(labels[row]) - 1)
            rows.append(ids[read[row] :])
            kinds.append(kind[read[row] :])
        all_kinds = _pad_left(kinds, _PADDING)
        mask = all_kinds != _PADDING
        return Sequences(
            ids=_pad_left(rows, self.pad_id),
            mask=mask,
            positions=(mask.long().cumsum(-1) - 1).clamp(min=0) + torch.tensor(read)[:, None],
            pseudo=all_kinds == _PSEUDO,
            text=all_kinds == _TEXT,
            targets=None if labels is None else _pad_left(labels, -100),
        )

    def _ids_and_kind(self, segment: SegmentConfig) -> tuple[list[int], int]:
        if segment.kind is SegmentKind.pseudo:
            return [self.pad_id] * self.pseudo_tokens, _PSEUDO
        if segment.kind is SegmentKind.text:
            return [], _TEXT
        if segment.kind is SegmentKind.context:
            return [], _CONTEXT
        if segment.kind is SegmentKind.bos:
            return beginning(self.tokenizer), _FIXED
        if segment.kind is SegmentKind.token:
            token_id = self.tokenizer.convert_tokens_to_ids(segment.token)
            is_unk = token_id == self.tokenizer.unk_token_id
            if token_id is None or (is_unk and segment.token != self.tokenizer.unk_token):
                raise PromptError(
                    f"The layout names the special token {segment.token!r}, which the tokenizer "
                    "does not have; correct backbone.layout or give the backbone's own "
                    "backbone.tokenizer."
                )
            assert isinstance(token_id, int)
            return [token_id], _FIXED
        string = self._string(segment)
        ids = self.encode(string)
        written = self.decode(ids)
        # Pieces may begin with a space of the tokenizer's own, as those of LLaMA do.
        if written.strip() != string.strip():
            raise PromptError(
                f"The tokenizer does not keep the string {string!r}: it reads back as "
                f"{written!r}. Give the backbone's own tokenizer with backbone.tokenizer, or "
                f"change {'prompt.task' if segment.kind is SegmentKind.prompt else 'the layout'}."
            )
        return ids, _FIXED

    def _take_anchors(self) -> list[int]:
        """Takes the last tokens of the task prompt out of the sequence."""
        taken: list[int] = []
        *_, task, last = self.layout
        if (task.kind, last.kind) == (SegmentKind.prompt, SegmentKind.pseudo):
            ids, kind = self._segments[-2]
            taken = ids[-self.pseudo_tokens :]
            self._segments[-2] = ids[: -self.pseudo_tokens], kind
        if len(taken) < self.pseudo_tokens:
            raise PromptError(
                f"adapter.anchored=true puts adapter.pseudo_tokens={self.pseudo_tokens} in the "
                f"places of the task prompt's last tokens, but {self.task!r} has {len(taken)}: "
                f"lower adapter.pseudo_tokens, or give a longer prompt.task."
            )
        return taken

    def _check_template(self) -> None:
        """Refuses a tokenizer that loses what stands around the words of what was said before."""
        for line in (self.wording.line("a", "B"), self.wording.lead("B")):
            written = self.decode(self.encode(line)) if line else ""
            if written.lstrip() != line.lstrip():
                raise PromptError(
                    f"The tokenizer does not keep what stands around an utterance before, "
                    f"{line!r}: it reads back as {written!r}. Change prompt.context_template."
                )

    def _string(self, segment: SegmentConfig) -> str:
        """The string of a literal or of the task prompt."""
        if segment.kind is SegmentKind.prompt:
            return self.task
        return segment.en if self.language is Language.en else segment.zh

    def _tokens(self, ids: Sequence[int]) -> list[str]:
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(list(ids))]


_PADDING, _FIXED, _PSEUDO, _TEXT, _CONTEXT = range(5)


def _pad_left(
    rows: Sequence[Sequence[int] | NDArray[np.int32]], value: int, width: int | None = None
) -> Tensor:
    """(B, W) rows, filled up on the left to a width, or to the longest."""
    width = width or max(map(len, rows))
    padded = np.full((len(rows), width), value, dtype=np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[width - len(ids) :] = ids
    return torch.from_numpy(padded)
